"""Image retrieval of a run, a checkpoint or an export: score evaluations of its recipe, or any source of pictures, and report.

Writes evaluation/NAME.json (the figures), evaluation/NAME.html (pictures found), and, of a run, the same to TensorBoard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard.writer import SummaryWriter

from m3p.errors import UserError
from m3p.objectives.tasks import TASKS
from m3p.recipe.evaluation import EvaluationConfig
from m3p.retrieval.gallery import Finding, contact_sheet, html_page
from m3p.retrieval.metrics import QueryRanks, query_ranks
from m3p.retrieval.pictures import Pictures, load_pictures, picture_bytes
from m3p.retrieval.result import Conditions, Evaluation, Shortlist
from m3p.retrieval.scoring import Floats, Scorer, scorer_of, shortlist
from m3p.retrieval.table import print_table, write_tensorboard
from m3p.runs import Run, open_run

Scoring = Literal["dual", "cross", "rerank"]
SHORTLIST = 128
"""Candidates of each query that are scored again, where re-ranking is asked for and nothing says how many."""
SHOWN_QUERIES, SHOWN_PICTURES = 3, 5
SHOWN_LANGUAGES = 12


def evaluate_run(
    path: Path,
    names: Sequence[str] = (),
    rerank: int | None = None,
    scoring: Scoring | None = None,
    data: Path | None = None,
    json_file: Path | None = None,
) -> list[Evaluation]:
    """Evaluate a run, checkpoint or export on the evaluations `names` of its recipe (all, if none is named).

    Args:
        path: what `open_run` opens.
        names: entries of the recipe's `evaluation` section.
        rerank: length of the shortlist, in place of the recipe's.
        scoring: how pairs are scored, in place of the recipe's way.
        data: a folder of shards that is scored instead, named or not in the recipe.
        json_file: a further file for the result; only where there is one.

    Prints, writes and returns the results. Raises UserError.
    """
    run = open_run(path)
    chosen = _choose(run, names, data)
    if json_file is not None and len(chosen) != 1:
        raise UserError(f"--json {json_file}: it holds one result, and {', '.join(chosen)} would be scored; name one")
    asked = {name: _settle(run, name, config, scoring, rerank) for name, config in chosen.items()}
    done = []
    for name, (config, way) in asked.items():
        evaluation, found = _evaluate(run, name, config, way)
        file = run.folder / "evaluation" / f"{_file_name(run, name, config, chosen[name], way)}.json"
        for place in (file, *([json_file] if json_file else [])):
            evaluation.save(place)
        print_table(evaluation)
        _show(run, evaluation, found, file)
        done.append(evaluation)
    return done


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


def _settle(
    run: Run, name: str, config: EvaluationConfig, scoring: Scoring | None, rerank: int | None
) -> tuple[EvaluationConfig, Scoring]:
    """Return the evaluation with its shortlist (0: none) and its scoring. Raises UserError where the run cannot score so."""
    if rerank is not None:
        if rerank and scoring not in (None, "rerank"):
            raise UserError(
                f"--rerank {rerank}: goes with --scoring rerank, not with --scoring {scoring}; leave one out"
            )
        config = config.model_copy(update={"rerank": rerank})
    way = scoring or _usual_scoring(run, config)
    config = config.model_copy(update={"rerank": (config.rerank or SHORTLIST) if way == "rerank" else 0})
    option = f"--rerank {rerank}" if rerank else f"evaluation.{name}, scoring {way}"
    for needed, able in (
        (way != "dual", [task for task in TASKS.values() if task.scores_pairs]),
        (way != "cross", [task for task in TASKS.values() if task.embeds]),
    ):
        if needed and not set(able) & set(run.recipe.tasks):
            words = " or ".join(task.name for task in able)
            raise UserError(
                f"{option}: scores by {words}, but no active objective of {run.folder} trains it; score otherwise (--scoring), "
                f"or train a run whose tasks.{words} has a weight"
            )
    return config, way


def _usual_scoring(run: Run, config: EvaluationConfig) -> Scoring:
    """Return how an evaluation is scored where nobody says: by the cross-encoder alone where the run has no dual encoder."""
    if config.rerank:
        return "rerank"
    return "dual" if any(task.embeds for task in run.recipe.tasks) else "cross"


def _file_name(run: Run, name: str, config: EvaluationConfig, own: EvaluationConfig, way: Scoring) -> str:
    """Return the name of the result's files: that of the evaluation, and what differs from scoring it as the recipe says."""
    if way == "rerank" and config.rerank != own.rerank:
        name += f"-rerank{config.rerank}"
    elif way != _usual_scoring(run, own):
        name += f"-{way}"
    return name if run.is_newest else f"{name}-step-{run.step:08d}"


def _evaluate(run: Run, name: str, config: EvaluationConfig, way: Scoring) -> tuple[Evaluation, list[Finding]]:
    """Score all queries: -> the figures, and what a few of them found."""
    pictures = load_pictures(run.recipe, name, config)
    scorer = scorer_of(run, config.batch_size)
    images = None if way == "cross" else scorer.embed_pictures(pictures.visuals)
    ranks: dict[str, QueryRanks] = {}
    found: list[Finding] = []
    in_shortlist: dict[str, float] = {}
    truncated: dict[str, int] = {}
    for language, captions in pictures.pool.captions.items():
        texts = [caption.text for caption in captions]
        right = pictures.pool.right(language)
        truncated[language] = scorer.truncated(texts)
        if images is None:
            to_images = scorer.match_all(texts, pictures.visuals)
            to_texts = to_images.T
        else:
            to_texts = images @ scorer.embed_texts(texts).T
            to_images = to_texts.T
        if way == "rerank":
            to_images, to_texts, in_shortlist[language] = _rerank(
                scorer, pictures, texts, to_texts, right, config.rerank
            )
        ranks[language] = QueryRanks(query_ranks(to_images, right.T), query_ranks(to_texts, right))
        if len(found) < SHOWN_QUERIES * SHOWN_LANGUAGES:
            found += _findings(pictures, language, texts, to_images, right)
    conditions = _conditions(run, name, config, way, pictures, in_shortlist, truncated)
    return Evaluation.of(pictures.pool, ranks, conditions), found


def _conditions(
    run: Run,
    name: str,
    config: EvaluationConfig,
    way: Scoring,
    pictures: Pictures,
    in_shortlist: dict[str, float],
    truncated: dict[str, int],
) -> Conditions:
    return Conditions(
        dataset=config.path,
        split=name,
        scoring="dual+cross" if way == "rerank" else way,
        shortlist=Shortlist(k=config.rerank, recall=in_shortlist) if way == "rerank" else None,
        caption_source=config.caption_source,
        system=run.record.run,
        step=run.step,
        checkpoint=run.record.checkpoint,
        weights=run.record.weights,
        seed=run.recipe.run.seed,
        captioned_languages=run.record.captioned_languages,
        truncated_captions=truncated,
        unreadable=pictures.unreadable,
    )


def _rerank(
    scorer: Scorer, pictures: Pictures, texts: list[str], scores: Floats, right: NDArray[np.bool_], most: int
) -> tuple[Floats, Floats, float]:
    """Score each query's shortlist by the cross-encoder: -> (scores [C, N], scores [N, C], share of queries kept in %).

    What is not in a query's shortlist scores -inf: it ranks behind all that is.
    """
    best_images, best_texts = shortlist(scores.T, most), shortlist(scores, most)
    to_images = np.full(scores.T.shape, -np.inf, np.float32)
    to_texts = np.full(scores.shape, -np.inf, np.float32)
    wanted = np.zeros(scores.T.shape, bool)
    np.put_along_axis(wanted, best_images, True, 1)
    np.put_along_axis(wanted.T, best_texts, True, 1)
    pairs = np.argwhere(wanted)
    logits = np.full(scores.T.shape, -np.inf, np.float32)
    logits[wanted] = scorer.match(texts, pictures.visuals, pairs)
    np.put_along_axis(to_images, best_images, np.take_along_axis(logits, best_images, 1), 1)
    np.put_along_axis(to_texts, best_texts, np.take_along_axis(logits.T, best_texts, 1), 1)
    asked = right.sum(axis=1) > 0  # a picture without a caption in this language asks for none
    kept = [
        np.take_along_axis(right.T, best_images, 1).sum(axis=1) > 0,
        np.take_along_axis(right[asked], best_texts[asked], 1).sum(axis=1) > 0,
    ]
    return to_images, to_texts, 100 * float(np.concatenate(kept).mean())


def _findings(
    pictures: Pictures, language: str, texts: list[str], scores: Floats, right: NDArray[np.bool_]
) -> list[Finding]:
    """Take a few queries, evenly spread, with the pictures that scored highest."""
    queries = np.linspace(0, len(texts) - 1, min(SHOWN_QUERIES, len(texts))).astype(int).tolist()
    found = []
    for query in queries:
        best = shortlist(scores[query : query + 1], SHOWN_PICTURES)[0].tolist()
        shown = [(picture_bytes(pictures, n), float(scores[query, n]), bool(right[n, query])) for n in best]
        found.append(Finding(language, texts[query], [(data, score, good) for data, score, good in shown if data]))
    return found


def _show(run: Run, evaluation: Evaluation, found: list[Finding], file: Path) -> None:
    """Write the page of pictures found; where the run keeps TensorBoard's files, figures and pictures go there too."""
    shown = any(finding.pictures for finding in found)
    if shown:
        file.with_suffix(".html").write_text(html_page(found), encoding="utf-8")
    if (run.folder / "checkpoints").is_dir():
        with SummaryWriter(str(run.folder / "tensorboard")) as writer:
            write_tensorboard(writer, evaluation, run.step)
            if shown:
                sheet = np.asarray(contact_sheet(found))
                writer.add_image(f"found/{file.stem}", sheet, run.step, dataformats="HWC")
