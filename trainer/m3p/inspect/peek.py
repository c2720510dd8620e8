"""What the network gets: the samples of a step, told from their micro-batches, masks and switches included."""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3p.batch import Batch
from m3p.data.sample import BadSamples, Sample
from m3p.errors import BadSample, UserError
from m3p.objectives.objective import Objective
from m3p.objectives.tasks import TASKS
from m3p.recipe.recipe import Recipe
from m3p.visual.decode import MAX_PIXELS, decode, picture_kind
from m3p.visual.source import VisualSource

SIDE = 192
"""Pixels of a picture as it is shown."""
_GAP = re.compile(r"(\s+)")


@dataclass(frozen=True)
class Word:
    """A piece of text with what happened to it."""

    text: str
    was: str = ""
    """What stood there before: the true piece of a masked one, the words before they were switched; "" where nothing did."""


@dataclass(frozen=True)
class Line:
    """One sequence that the network forwards for a sample."""

    kind: str
    """"text", "picture", "text and picture", and whether they match where that is asked."""
    words: list[Word]
    """Its pieces; those with a `was` are masked words, which the network has to name."""
    regions: int
    masked_regions: int
    picture: str
    """The picture as the network sees it (masked patches grey), as a data URI; "" for region features."""


@dataclass(frozen=True)
class Shown:
    """One sample."""

    name: str
    captions: dict[str, list[str]]
    """Language -> its captions as stored; a passage under the language of its source."""
    switched: list[Word]
    """The caption chosen; words that were switched say what they were. Empty for text."""
    picture: str
    """The stored picture as a data URI, made small; "" where there is none."""
    lines: list[Line]


@dataclass(frozen=True)
class ShownTurn:
    """One turn of the step."""

    title: str
    samples: list[Shown]
    bad: list[str]
    """Bad samples that were replaced."""


def peek(recipe: Recipe, objectives: Mapping[str, Objective], step: int, limit: int) -> list[ShownTurn]:
    """Return the turns of `step` (from 1), up to `limit` samples each; the same samples and choices as in training.

    Raises UserError for a step that the run has not.
    """
    if step > recipe.run.steps:
        raise UserError(f"--step {step}: beyond the last of the recipe, run.steps = {recipe.run.steps}")
    shown = []
    for turn in recipe.plan().turns(step - 1):
        objective = objectives[turn.objective]
        positions = turn.positions[:limit]
        title = f"turn {turn.number}: {turn.objective}, {len(positions)} of {len(turn.positions)} samples"
        bad: list[str] = []
        samples = [_sample(objective, turn.positions, position, bad) for position in positions]
        shown.append(ShownTurn(title, samples, bad))
    return shown


def _sample(objective: Objective, turn: range, position: int, bad: list[str]) -> Shown:
    batch = objective.batch(turn, range(position, position + 1))
    bad += batch.bad
    sample = objective.mix.read(position, BadSamples([]))
    text = objective.show(sample)
    switched = _changes(text.chosen, text.seen) if text.chosen else []
    picture = _stored_picture(objective, sample, position)
    return Shown(sample.name, text.captions, switched, picture, _lines(objective, batch))


def _lines(objective: Objective, batch: Batch) -> list[Line]:
    """Tell the sequences of a micro-batch apart again."""
    tokens, ends = objective.context.tokenizer, np.cumsum(batch.lengths.numpy())
    marks = [TASKS[task].show(targets) for task, targets in batch.targets.items()]
    labels = {slot: token for mark in marks for slot, token in mark.words.items()}
    predicted = {slot for mark in marks for slot in mark.regions}
    lines = []
    for number, end in enumerate(ends.tolist()):
        first = end - int(batch.lengths[number])
        words = [
            Word(tokens.piece(int(token)), tokens.piece(labels[slot]) if slot in labels else "")
            for token, slot in zip(batch.token_ids.tolist(), batch.token_slots.tolist(), strict=True)
            if first <= slot < end
        ]
        rows = [row for row, slot in enumerate(batch.visual_slots.tolist()) if first <= slot < end]
        kind = ("text and picture" if len(words) > 1 else "picture") if rows else "text"
        remarks = [mark.sequences[number] for mark in marks if number in mark.sequences]
        kind = ", ".join([kind, *remarks])
        masked = sum(first <= slot < end for slot in predicted)
        picture = _seen(objective.context.visual, batch, batch.visual_rows[rows].numpy()) if rows else ""
        lines.append(Line(kind, words, len(rows), masked, picture))
    return lines


def _changes(before: str, after: str) -> list[Word]:
    """Return the words of `after`; those that `before` has not say what stood there."""
    old, new = _GAP.split(before), _GAP.split(after)
    words: list[Word] = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = "".join(new[c:d])
        words.append(Word(text) if kind == "equal" else Word(text, "".join(old[a:b]) or " "))
    return words


def _seen(visual: VisualSource | None, batch: Batch, rows: NDArray[np.int64]) -> str:
    """Show the picture whose tokens are the rows `rows`."""
    picture = visual.show(batch.visual_features, rows) if visual else None
    return "" if picture is None else _uri(picture)


def _stored_picture(objective: Objective, sample: Sample, position: int) -> str:
    """Return the picture of a sample; "" where it has none, or none that can be read (regions do not need it)."""
    if sample.visual is None:
        return ""
    source = objective.mix.source(position)
    _, _, shard, number = sample.owner
    members = source.members(shard, number)
    kind = picture_kind(members)
    visual = objective.context.visual
    largest = visual.shown_pixels if visual else MAX_PIXELS
    try:
        return _uri(Image.fromarray(decode(members[kind], SIDE, largest))) if kind else ""
    except BadSample:
        return ""


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
