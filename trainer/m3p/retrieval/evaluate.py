"""Image retrieval of a run, a checkpoint or an export: score evaluations of its recipe, or any source of pictures, and report.

Writes evaluation/NAME.json (the figures), evaluation/NAME.html (pictures found), and, of a run, the same to TensorBoard.
"""

import glob
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard.writer import SummaryWriter

from m3p import __version__, distributed
from m3p.atomic import write_text
from m3p.checkpoints.seen_pictures import read_seen
from m3p.data.identity import Gallery
from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import UserError
from m3p.locks import hold
from m3p.objectives.tasks import TASKS
from m3p.recipe.evaluation import EvaluationConfig, ProtocolName
from m3p.retrieval.blocks import Blocks
from m3p.retrieval.centres import language_centres
from m3p.retrieval.gallery import Finding, contact_sheet, html_page
from m3p.retrieval.pictures import Pictures, load_pictures, picture_bytes
from m3p.retrieval.protocols import PROTOCOLS
from m3p.retrieval.ranking import Ranker, Ranking, Scoring, Way
from m3p.retrieval.result import Conditions, Evaluation, Shortlist
from m3p.retrieval.scoring import Floats, scorer_of
from m3p.retrieval.table import print_table, write_tensorboard
from m3p.runs import Run, open_run

SHORTLIST = 128
"""Candidates of each query that are scored again, where re-ranking is asked for and nothing says how many."""
SHOWN_QUERIES = 3
"""Queries of a language that are shown with the pictures that they found."""
SHOWN_LANGUAGES = 12
"""Languages that are shown so."""
PATIENCE = 1.0
"""Seconds for which another call may hold an evaluation: one that was killed lets go of it, but not at once."""


@dataclass(frozen=True)
class Options:
    """What a call asks for in place of what the recipe's evaluations say; None: as they say."""

    rerank: int | None = None
    """Length of the shortlist that the cross-encoder scores again."""
    scoring: Scoring | None = None
    """How pairs are scored."""
    protocol: ProtocolName | None = None
    """Which pictures and captions are the pool, and how is counted."""
    dual_weight: float | None = None
    """What the dual encoder's cosine is multiplied by before it is added to the cross-encoder's logit."""
    data: Path | None = None
    """A folder of shards that is scored, named or not in the recipe."""
    json_file: Path | None = None
    """A further file for the result, where there is one."""
    save: bool = False
    """Whether scores are written too, with the ids of pictures and captions."""
    given: Mapping[str, EvaluationConfig] | None = None
    """Evaluations in place of those of the recipe, by name."""
    folder: Path | None = None
    """Where files go, in place of the folder of the run."""


def evaluate_run(path: Path, names: Sequence[str] = (), options: Options | None = None) -> list[Evaluation]:
    """Evaluate a run, checkpoint or export on the evaluations `names` of its recipe (all, if none is named).

    Started on several ranks (torchrun, deepspeed, srun), they share the work, and rank 0 prints and writes. What a killed call
    had scored is not scored again. Returns the results. Raises UserError.
    """
    options = options or Options()
    distributed.join()
    distributed.gather_objects(None)  # after training, rank 0 may still be writing the checkpoint
    run = open_run(path)
    chosen = dict(options.given) if options.given else _choose(run, names, options.data)
    if options.json_file is not None and len(chosen) != 1:
        raise UserError(
            f"--json {options.json_file}: it holds one result, and {', '.join(chosen)} would be scored; name one"
        )
    asked = {name: _settle(run, name, config, options) for name, config in chosen.items()}
    done = []
    for name, (config, way) in asked.items():
        file = (
            (options.folder or run.folder) / "evaluation" / f"{_file_name(run, name, config, chosen[name], way)}.json"
        )
        if options.data is not None:
            file = _free_file(file, options.data)
        with _alone(file):
            evaluation, found, blocks = _evaluate(run, name, config, way, file, options.save)
            if distributed.is_main():
                for place in (file, *([options.json_file] if options.json_file else [])):
                    evaluation.save(place)
                print_table(evaluation)
                _show(run, evaluation, found, file, with_curves=options.folder is None)
                blocks.remove()
        done.append(evaluation)
    return done


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold the lock of the evaluation that `file` is of, by rank 0 for all. Raises UserError where another call has it."""
    lock = file.with_name(f".{file.stem}.lock")
    with ExitStack() as stack:
        mine = True
        if distributed.is_main():
            lock.parent.mkdir(parents=True, exist_ok=True)
            mine = stack.enter_context(hold(lock, PATIENCE))
        if not distributed.broadcast_object(mine):
            raise UserError(f"{file}: another call is scoring for this file; wait until it is done, and call again")
        if distributed.is_main():
            stack.callback(lock.unlink, missing_ok=True)
        yield


def _choose(run: Run, names: Sequence[str], data: Path | None) -> dict[str, EvaluationConfig]:
    if data is None:
        if not (names or run.recipe.evaluation):
            raise UserError(
                f"{run.folder}: no evaluation in its recipe; name --data FOLDER, a folder of shards with captions"
            )
        return {name: run.evaluation(name) for name in names or run.recipe.evaluation}
    if names:
        raise UserError(
            f"--data {data}: leave out {', '.join(names)}, which are evaluations of the recipe, or leave out --data"
        )
    name = data.resolve().name
    taken = name in run.recipe.evaluation and Path(run.recipe.evaluation[name].path).resolve() != data.resolve()
    return {f"data-{name}" if taken else name: EvaluationConfig(path=str(data))}


def _settle(run: Run, name: str, config: EvaluationConfig, options: Options) -> tuple[EvaluationConfig, Way]:
    """Return the evaluation as it is asked for, and how it is scored. Raises UserError where the run cannot score so."""
    rerank, scoring = options.rerank, options.scoring
    if rerank and scoring not in (None, "rerank"):
        raise UserError(f"--rerank {rerank}: goes with --scoring rerank, not with --scoring {scoring}; leave one out")
    given = {"rerank": rerank, "protocol": options.protocol, "dual_weight": options.dual_weight}
    config = config.model_copy(update={field: value for field, value in given.items() if value is not None})
    scoring = scoring or _usual_scoring(run, config)
    if config.dual_weight and scoring == "dual":
        raise UserError(
            f"evaluation.{name}.dual_weight = {config.dual_weight:g}: there is no cross-encoder's score to add to; leave it out, "
            "or take --scoring cross or rerank"
        )
    config = config.model_copy(update={"rerank": (config.rerank or SHORTLIST) if scoring == "rerank" else 0})
    embeds = scoring != "cross" or config.dual_weight > 0
    if not embeds:
        config = config.model_copy(update={"centre": None})
    option = f"--rerank {rerank}" if rerank else f"evaluation.{name}, scoring {scoring}"
    for needed, able in (
        (scoring != "dual", [task for task in TASKS.values() if task.scores_pairs]),
        (embeds, [task for task in TASKS.values() if task.embeds]),
    ):
        if needed and not set(able) & set(run.recipe.tasks):
            words = " or ".join(task.name for task in able)
            raise UserError(
                f"{option}: scores by {words}, but no active objective of {run.folder} trains it; score otherwise (--scoring), "
                f"or train a run whose tasks.{words} has a weight"
            )
    return config, Way(scoring, config.rerank, config.dual_weight, PROTOCOLS[config.protocol].ties)


def _usual_scoring(run: Run, config: EvaluationConfig) -> Scoring:
    """Return how an evaluation is scored where nobody says: by the cross-encoder alone where the run has no dual encoder."""
    if config.rerank:
        return "rerank"
    return "dual" if any(task.embeds for task in run.recipe.tasks) else "cross"


def _file_name(run: Run, name: str, config: EvaluationConfig, own: EvaluationConfig, way: Way) -> str:
    """Return the name of the result's files: that of the evaluation, and what differs from scoring it as the recipe says."""
    if way.scoring == "rerank" and config.rerank != own.rerank:
        name += f"-rerank{config.rerank}"
    elif way.scoring != _usual_scoring(run, own):
        name += f"-{way.scoring}"
    if config.dual_weight != own.dual_weight:
        name += f"-dual{config.dual_weight:g}"
    if config.protocol != own.protocol:
        name += f"-{config.protocol}"
    return name if run.is_newest else f"{name}-step-{run.step:08d}"


def _free_file(file: Path, data: Path) -> Path:
    """Return `file`, NAME.json, or NAME-2.json and so on where it holds the result of other data of that name."""
    stem, number = file.stem, 1
    while (other := _data_of(file)) is not None and Path(other).resolve() != data.resolve():
        number += 1
        file = file.with_name(f"{stem}-{number}.json")
    return file


def _data_of(file: Path) -> str | None:
    """Return the data that a result in a file was measured on; None where there is none, or none that can be read."""
    try:
        return Evaluation.load(file).dataset
    except UserError:
        return None


def _evaluate(
    run: Run, name: str, config: EvaluationConfig, way: Way, file: Path, save: bool
) -> tuple[Evaluation, list[Finding], Blocks]:
    """Score all queries, on all ranks of the job: -> the figures, what a few of the queries found, and what may be deleted."""
    pictures = load_pictures(run.recipe, name, config)
    rank, ranks = distributed.rank_and_count()
    scorer, centres = scorer_of(run, config.batch_size), None
    if config.centre is not None:
        centres = language_centres(name, config.centre, list(pictures.pool.captions), scorer)
        centres = distributed.broadcast_object(centres)  # the same to the last bit
    folder = file.with_name(f".{file.stem}.blocks-{_key(run, pictures, config, way, centres)}")
    blocks = Blocks(folder, rank, ranks)
    if rank == 0:
        _remove_others(folder, file.stem)
    saved = file.with_suffix(".scores") if save else None
    found = Ranker(scorer, pictures, way, blocks, SHOWN_QUERIES, saved, centres).rank()
    evaluation = Evaluation.of(pictures.pool, found.ranks, _conditions(run, name, config, way, pictures, found))
    shown = [
        Finding(
            language, query, [(data, score, right) for n, score, right in best if (data := picture_bytes(pictures, n))]
        )
        for language, query, best in found.found[: SHOWN_QUERIES * SHOWN_LANGUAGES]
    ]
    return evaluation, shown, blocks


def _key(run: Run, pictures: Pictures, config: EvaluationConfig, way: Way, centres: Mapping[str, Floats] | None) -> str:
    """Hash what the blocks of a scoring follow from: blocks of another key are not gone on with."""
    visual = run.recipe.visual
    assert visual is not None, "a source of pictures was opened"
    shards = [(shard.name, shard.samples, shard.fingerprint) for shard in pictures.source.manifest.shards]
    parts = (
        *(__version__, torch.__version__, run.record.weights, run.max_tokens, config.batch_size, way),
        *(visual.model_dump_json(), pictures.pool, shards),
        *sorted((language, centre.tobytes()) for language, centre in (centres or {}).items()),
    )
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _remove_others(folder: Path, stem: str) -> None:
    """Delete what earlier calls left of this evaluation with other weights, data or settings."""
    for other in folder.parent.glob(f".{glob.escape(stem)}.blocks-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _conditions(
    run: Run, name: str, config: EvaluationConfig, way: Way, pictures: Pictures, found: Ranking
) -> Conditions:
    reranks = way.scoring == "rerank"
    origin, seen = pictures.source.manifest.origin, read_seen(run.folder)
    return Conditions(
        dataset=config.path,
        split=name,
        protocol=config.protocol,
        scoring="dual+cross" if reranks else way.scoring,
        shortlist=Shortlist(k=way.shortlist, recall=found.shortlist_recall) if reranks else None,
        dual_weight=way.dual_weight,
        centre=config.centre,
        caption_source=_caption_source(config, origin),
        origin=origin,
        system=run.record.run,
        step=run.step,
        checkpoint=run.record.checkpoint,
        weights=run.record.weights,
        seed=run.recipe.run.seed,
        captioned_languages=run.record.captioned_languages,
        selection_split=run.record.selected_on,
        pictures_seen=None if seen is None else Gallery(pictures.source).shared_with([seen]).pictures,
        truncated_captions=found.truncated,
        unreadable=pictures.unreadable,
    )


def _caption_source(config: EvaluationConfig, origin: Mapping[str, str]) -> str | None:
    """Return who wrote the captions: what the importer noted in the shards, or what the recipe says of other shards."""
    noted = origin.get("caption_source", NOT_STATED)
    return config.caption_source if noted == NOT_STATED else noted


def _show(run: Run, evaluation: Evaluation, found: list[Finding], file: Path, with_curves: bool) -> None:
    """Write the page of pictures found; `with_curves`, figures and pictures go to a run's TensorBoard files too."""
    shown = any(finding.pictures for finding in found)
    if shown:
        write_text(file.with_suffix(".html"), html_page(found), durable=False)
    if with_curves and (run.folder / "checkpoints").is_dir():
        with SummaryWriter(str(run.folder / "tensorboard")) as writer:
            write_tensorboard(writer, evaluation, run.step)
            if shown:
                sheet = np.asarray(contact_sheet(found))
                writer.add_image(f"found/{file.stem}", sheet, run.step, dataformats="HWC")
