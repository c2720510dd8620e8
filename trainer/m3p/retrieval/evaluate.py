"""Image retrieval of a run: load its newest checkpoint, score every evaluation of its recipe, and report.

Writes evaluation/NAME.json (the figures), evaluation/NAME.html (pictures found), and the same to TensorBoard.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard.writer import SummaryWriter

from m3p.checkpoints.files import read_state
from m3p.checkpoints.read import load_weights, newest_whole, say_passed_over
from m3p.checkpoints.resumable import check_vocabulary
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.gallery import Finding, contact_sheet, html_page
from m3p.retrieval.metrics import QueryRanks, query_ranks
from m3p.retrieval.pictures import Pictures, load_pictures, picture_bytes
from m3p.retrieval.report import Conditions, Evaluation, Shortlist, print_table, write_tensorboard
from m3p.retrieval.scoring import Floats, Scorer, shortlist

SHOWN_QUERIES, SHOWN_PICTURES = 3, 5
SHOWN_LANGUAGES = 12


def evaluate_run(run: Path, names: Sequence[str] = (), rerank: int | None = None) -> list[Evaluation]:
    """Evaluate `run` on the evaluations `names` of its recipe (all, if none is named); print, write and return them.

    `rerank` replaces the recipe's shortlist length. Raises UserError.
    """
    recipe, model, step = load_run(run)
    unknown = [name for name in names if name not in recipe.evaluation]
    if unknown or not recipe.evaluation:
        known = ", ".join(recipe.evaluation) or "none"
        raise UserError(f"{run}: no evaluation {unknown[0] if unknown else ''} in its recipe; it has {known}")
    if rerank and not any(task.scores_pairs for task in recipe.tasks):
        able = " or ".join(task.name for task in TASKS.values() if task.scores_pairs)
        raise UserError(
            f"--rerank {rerank}: scores by {able}, but no active objective of {run} trains it; leave it out, or train a "
            f"run whose tasks.{able} has a weight"
        )
    done = []
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for wanted in names or recipe.evaluation:
            name, config = wanted, recipe.evaluation[wanted]
            if rerank is not None and rerank != config.rerank:
                config = config.model_copy(update={"rerank": rerank})
                name = f"{name}-rerank{rerank}"  # beside the recipe's own result, not over it
            evaluation, found = _evaluate(run, recipe, model, step, name, config)
            evaluation.save(run / "evaluation" / f"{name}.json")
            print_table(evaluation)
            write_tensorboard(writer, evaluation, step)
            _write_gallery(run / "evaluation" / f"{name}.html", found, writer, name, step)
            done.append(evaluation)
    return done


def load_run(run: Path) -> tuple[Recipe, M3P, int]:
    """Return the recipe, the network of the newest checkpoint (evaluation mode) and its step. Raises UserError."""
    newest, problems = newest_whole(run)
    if newest is None and problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{run / 'checkpoints'}: no checkpoint is whole:\n{lines}\nPut a copy back, or train again")
    if newest is None or not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} holds no checkpoint of a run; train first: deepspeed trainer/run.py --recipe ...")
    say_passed_over(newest, problems)
    recipe, state = load_recipe(run / "recipe.yaml"), read_state(newest)
    check_vocabulary(newest, state, recipe.tokenizer_folder)
    vocabulary = Tokenizer(recipe.tokenizer_folder).size
    model = build_model(recipe.model, vocabulary, recipe.visual, recipe.tasks, recipe.run.seed, load=False)
    load_weights(model, newest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return recipe, model.eval().to(device), state.step


def max_tokens(recipe: Recipe) -> int:
    """Return where texts are cut: as in training, at the longest of the objectives on pairs."""
    return max(c.max_tokens for c in recipe.active_objectives.values() if c.needs_pictures)


def _evaluate(
    run: Path, recipe: Recipe, model: M3P, step: int, name: str, config: EvaluationConfig
) -> tuple[Evaluation, list[Finding]]:
    """Score all queries: -> the figures, and what a few of them found."""
    pictures = load_pictures(recipe, name, config)
    assert recipe.visual is not None
    tokenizer = Tokenizer(recipe.tokenizer_folder)
    scorer = Scorer(model, tokenizer, max_tokens(recipe), config.batch_size)
    images = scorer.embed_pictures(pictures.visuals)
    ranks: dict[str, QueryRanks] = {}
    found: list[Finding] = []
    in_shortlist: dict[str, float] = {}
    for language, captions in pictures.pool.captions.items():
        texts = [caption.text for caption in captions]
        scores = images @ scorer.embed_texts(texts).T
        right = pictures.pool.right(language)
        if config.rerank:
            to_images, to_texts, in_shortlist[language] = _rerank(scorer, pictures, texts, scores, right, config.rerank)
        else:
            to_images, to_texts = scores.T, scores
        ranks[language] = QueryRanks(query_ranks(to_images, right.T), query_ranks(to_texts, right))
        if len(found) < SHOWN_QUERIES * SHOWN_LANGUAGES:
            found += _findings(pictures, language, texts, to_images, right)
    conditions = Conditions(
        dataset=config.path,
        split=name,
        scoring="dual+cross" if config.rerank else "dual",
        shortlist=Shortlist(k=config.rerank, recall=in_shortlist) if config.rerank else None,
        caption_source=config.caption_source,
        system=run.name,
        step=step,
        seed=recipe.run.seed,
        captioned_languages=config.captioned,
        selection_split=config.selected_on,
    )
    return Evaluation.of(pictures.pool, ranks, conditions), found


def _rerank(
    scorer: Scorer, pictures: Pictures, texts: list[str], scores: Floats, right: NDArray[np.bool_], most: int
) -> tuple[Floats, Floats, float]:
    """Score each query's shortlist by the cross-encoder: -> (scores [C, N], scores [N, C], share of queries kept in %).

    What is not in a query's shortlist scores -inf: it ranks behind all that is.
    """
    best_images, best_texts = shortlist(scores.T, most), shortlist(scores, most)
    to_images = np.full(scores.T.shape, -np.inf, np.float32)
    to_texts = np.full(scores.shape, -np.inf, np.float32)
    pairs = {(c, n) for c, row in enumerate(best_images.tolist()) for n in row}
    pairs |= {(c, n) for n, row in enumerate(best_texts.tolist()) for c in row}
    every = np.array(sorted(pairs), np.int64)
    logits = np.full(scores.T.shape, -np.inf, np.float32)
    logits[every[:, 0], every[:, 1]] = scorer.match(texts, pictures.visuals, every)
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


def _write_gallery(path: Path, found: list[Finding], writer: SummaryWriter, name: str, step: int) -> None:
    if not any(finding.pictures for finding in found):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_page(found), encoding="utf-8")
    writer.add_image(f"found/{name}", np.asarray(contact_sheet(found)), step, dataformats="HWC")
