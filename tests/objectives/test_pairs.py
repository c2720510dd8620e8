"""What a pair becomes, read back from the packed micro-batch; and what two objectives make of twins."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3p.batch import Batch
from m3p.data.sample import BadSamples, Sample
from m3p.data.tokenizer import Tokenizer
from m3p.objectives import OBJECTIVES
from m3p.objectives.image_caption import ImageCaption
from m3p.objectives.mismatches import MAX_TRIED, Candidates
from m3p.objectives.objective import Context
from m3p.prepare.shards import ShardWriter
from m3p.recipe.recipe import Recipe
from m3p.visual.regions import Regions
from tests.tiny import CLASSES, FEATURE_SIZE
from tests.visual.test_regions import packed

TASKS = ("masked_words", "masked_regions", "matching", "contrastive")


def regions(number: int) -> bytes:
    rng = np.random.default_rng(number)
    corner = rng.random((3, 2)).astype(np.float32) / 2
    return packed(
        {
            "boxes": np.concatenate([corner, corner + 0.5], 1),
            "features": rng.normal(size=(3, FEATURE_SIZE)).astype(np.float16),
            "class_ids": rng.integers(0, CLASSES, 3),
        }
    )


def pairs(
    folder: Path,
    tiny_recipe: Recipe,
    name: str,
    records: list[dict[str, Any]],
    tasks: tuple[str, ...] = TASKS,
    unreadable: int | None = None,
) -> ImageCaption:
    """The objective `name` on these records, the regions of one of which may be unreadable."""
    with ShardWriter(folder, "captions", 100) as writer:
        for number, record in enumerate(records):
            writer.write({"png": b"", "json": json.dumps(record).encode(), "regions.npz": regions(number)})
    if unreadable is not None:
        (shard,) = folder.glob("*.tar")
        content = shard.read_bytes()
        shard.write_bytes(content.replace(regions(unreadable), bytes(len(regions(unreadable)))))
    fields: dict[str, Any] = {"batch_size": 4, "sources": [{"path": str(folder)}], "tasks": dict.fromkeys(tasks, 1.0)}
    if name == "code_switched":
        switching = getattr(tiny_recipe.objectives, name).switching
        fields["switching"] = switching.model_copy(update={"word_rate": 1.0})
    visual = Regions(kind="regions", feature_size=FEATURE_SIZE, classes=CLASSES)
    context = Context(name, 0, Tokenizer(tiny_recipe.tokenizer_folder), visual, 1)
    built = OBJECTIVES[name].model_validate(fields).build(context)
    assert isinstance(built, ImageCaption)
    return built


def read(objective: ImageCaption, position: int) -> Sample:
    return objective.mix.read(position, BadSamples([]))


def words_of(batch: Batch, sequence: int) -> list[int]:
    start = int(batch.lengths[:sequence].sum())
    inside = (batch.token_slots >= start) & (batch.token_slots < start + int(batch.lengths[sequence]))
    return batch.token_ids[inside].tolist()


def boxes_of(batch: Batch, sequence: int) -> list[list[float]]:
    start = int(batch.lengths[:sequence].sum())
    inside = (batch.visual_slots >= start) & (batch.visual_slots < start + int(batch.lengths[sequence]))
    return batch.visual_boxes[batch.visual_rows[inside]].tolist()


@pytest.fixture(scope="module")
def batch(tiny_recipe: Recipe) -> tuple[ImageCaption, range, Batch]:
    """A large turn of the tiny run's pairs."""
    context = Context("image_caption", 0, Tokenizer(tiny_recipe.tokenizer_folder), tiny_recipe.visual, 2)
    objective = tiny_recipe.active_objectives["image_caption"].build(context)
    assert isinstance(objective, ImageCaption)
    turn = range(30, 90)
    return objective, turn, objective.batch(turn, turn)


def test_a_pair_is_a_text_a_picture_the_two_joined_and_a_mismatch(batch: tuple[ImageCaption, range, Batch]) -> None:
    objective, turn, packed_pairs = batch
    contrast, matching = packed_pairs.targets["contrastive"], packed_pairs.targets["matching"]
    assert contrast["rows"].tolist() == list(range(len(turn)))
    assert len(packed_pairs.lengths) == 4 * len(turn)
    for row, position in enumerate(turn):
        sample = read(objective, position)
        assert sample.visual is not None
        tokens = objective.context.tokenizer.encode(objective.text(sample).text, 32).tolist()
        assert words_of(packed_pairs, int(contrast["text_sequences"][row])) == tokens
        picture = int(contrast["image_sequences"][row])
        assert words_of(packed_pairs, picture) == [0]
        assert int(packed_pairs.lengths[picture]) == 1 + len(sample.visual.features)
        joint = int(matching["sequences"][row])
        assert int(packed_pairs.lengths[joint]) == len(tokens) + len(sample.visual.features)


def test_labels_stand_at_the_slots_of_the_words_that_they_name(batch: tuple[ImageCaption, range, Batch]) -> None:
    """The true ids are those of the text alone; the labels must be what they say at the same place."""
    _, turn, packed_pairs = batch
    contrast, matching = packed_pairs.targets["contrastive"], packed_pairs.targets["matching"]
    labels = dict(
        zip(
            packed_pairs.targets["masked_words"]["slots"].tolist(),
            packed_pairs.targets["masked_words"]["labels"].tolist(),
            strict=True,
        )
    )
    starts = torch.cumsum(packed_pairs.lengths, 0) - packed_pairs.lengths
    asked = 0
    for row in range(len(turn)):
        true = words_of(packed_pairs, int(contrast["text_sequences"][row]))
        joint = int(matching["sequences"][row])
        shown, start = words_of(packed_pairs, joint), int(starts[joint])
        for place, (truly, seen) in enumerate(zip(true, shown, strict=True)):
            if start + place in labels:
                assert labels[start + place] == truly
                asked += 1
            else:
                assert seen == truly
    assert asked == len(labels) > 0


def test_a_pair_hides_words_or_regions_never_both_and_a_mismatch_is_asked_for_nothing(
    batch: tuple[ImageCaption, range, Batch],
) -> None:
    _, turn, packed_pairs = batch
    ends = torch.cumsum(packed_pairs.lengths, 0)
    owners = {
        task: Counter(torch.searchsorted(ends, packed_pairs.targets[task]["slots"], right=True).tolist())
        for task in ("masked_words", "masked_regions")
    }
    joints = set(packed_pairs.targets["matching"]["sequences"][: len(turn)].tolist())
    assert not owners["masked_words"].keys() & owners["masked_regions"].keys()
    assert owners["masked_words"].keys() | owners["masked_regions"].keys() == joints
    assert 0.3 < len(owners["masked_words"]) / len(turn) < 0.7


def test_mismatches_take_the_others_picture_and_the_others_caption_alike_often(
    batch: tuple[ImageCaption, range, Batch],
) -> None:
    """And they are masked like the true pairs, so that a mask gives nothing away."""
    objective, turn, packed_pairs = batch
    matching = packed_pairs.targets["matching"]
    mask = objective.context.tokenizer.mask
    own, masked = 0, Counter[bool]()
    for row in range(len(turn)):
        true, false = (int(matching["sequences"][row + which]) for which in (0, len(turn)))
        own += boxes_of(packed_pairs, true) == boxes_of(packed_pairs, false)
        for good, sequence in ((True, true), (False, false)):
            masked[good] += mask in words_of(packed_pairs, sequence)
    assert 0.25 < own / len(turn) < 0.75
    assert abs(masked[True] - masked[False]) < 0.3 * len(turn)


CAPTIONS = [
    {"captions": {"en": ["dog cat"]}, "id": "a", "concept": "dogs"},
    {"captions": {"en": ["Dog Cat"]}, "id": "b", "concept": "more dogs"},
    {"captions": {"en": ["moon tree"]}, "id": "c", "concept": "dogs"},
]


@pytest.mark.parametrize("name", ["image_caption", "code_switched"])
def test_a_mismatch_is_never_of_the_same_concept_or_caption(tmp_path: Path, tiny_recipe: Recipe, name: str) -> None:
    """Of these three only the second and the third do not fit together, however their words are switched."""
    objective = pairs(tmp_path, tiny_recipe, name, CAPTIONS)
    for epoch in range(12):
        turn = range(3 * epoch, 3 * epoch + 3)
        labels = Counter(objective.batch(turn, turn).targets["matching"]["labels"].tolist())
        assert labels == {1.0: 3, 0.0: 2}


def test_a_caption_that_the_other_picture_has_too_makes_no_mismatch(tmp_path: Path, tiny_recipe: Recipe) -> None:
    """Whichever of its captions is drawn."""
    both = [
        {"captions": {"en": ["dog cat", "moon tree"]}, "id": "a"},
        {"captions": {"en": ["moon tree", "house"]}, "id": "b"},
    ]
    objective = pairs(tmp_path, tiny_recipe, "image_caption", both)
    for epoch in range(12):
        turn = range(2 * epoch, 2 * epoch + 2)
        assert objective.batch(turn, turn).targets["matching"]["labels"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["image_caption", "code_switched"])
def test_identical_captions_have_one_name_however_their_words_are_switched(
    tmp_path: Path, tiny_recipe: Recipe, name: str
) -> None:
    objective = pairs(tmp_path, tiny_recipe, name, CAPTIONS)
    shown = set()
    for epoch in range(12):
        turn = range(3 * epoch, 3 * epoch + 3)
        targets = objective.batch(turn, turn).targets["contrastive"]
        ids = [read(objective, position).name.rsplit("/", 1)[-1] for position in turn]
        captions = dict(zip(ids, targets["captions"].tolist(), strict=True))
        pictures = dict(zip(ids, targets["pictures"].tolist(), strict=True))
        assert captions["a"] == captions["b"] != captions["c"]
        assert pictures["a"] == pictures["c"] != pictures["b"]
        shown.add(objective.text(read(objective, turn[ids.index("a")])).text)
    assert (len(shown) > 2) == (name == "code_switched")


@pytest.mark.parametrize(
    ("tasks", "sequences"),
    [(("contrastive",), 2), (("masked_words",), 1), (("masked_regions",), 1), (("matching",), 2), (TASKS, 4)],
)
def test_only_what_the_tasks_need_is_packed(
    tmp_path: Path, tiny_recipe: Recipe, tasks: tuple[str, ...], sequences: int
) -> None:
    different = [{"captions": {"en": [word]}} for word in ("dog", "cat", "moon", "tree")]
    found = pairs(tmp_path, tiny_recipe, "image_caption", different, tasks).batch(range(4), range(4))
    assert len(found.lengths) == 4 * sequences
    assert found.targets.keys() <= set(tasks)
    assert set(tasks) - {"masked_words", "masked_regions"} <= found.targets.keys()


def test_a_bad_sample_is_counted_once_however_the_turn_is_split(tmp_path: Path, tiny_recipe: Recipe) -> None:
    """Its neighbour reads it too, as a partner; but it is one bad sample."""
    records = [{"captions": {"en": [word]}} for word in ("dog", "cat", "moon", "tree")]
    records[2] = {"captions": {}}
    objective = pairs(tmp_path, tiny_recipe, "image_caption", records)
    turn = range(4)
    whole = objective.batch(turn, turn).bad
    assert len(whole) == 1
    assert [bad for position in turn for bad in objective.batch(turn, range(position, position + 1)).bad] == whole


@pytest.mark.parametrize("name", ["image_caption", "code_switched"])
@pytest.mark.parametrize("broken", ["record", "picture"])
def test_what_replaces_a_bad_sample_comes_with_its_own_text(
    tmp_path: Path, tiny_recipe: Recipe, name: str, broken: str
) -> None:
    words = ("dog", "cat", "moon", "tree")
    records: list[dict[str, Any]] = [{"captions": {"en": [word]}} for word in words]
    if broken == "record":
        records[2] = {"captions": {}}
    objective = pairs(tmp_path, tiny_recipe, name, records, ("contrastive",), 2 if broken == "picture" else None)
    found = objective.batch(range(4), range(4))
    assert len(found.bad) == 1
    seen = [read(objective, position) for position in range(4)]
    assert found.names == [sample.name for sample in seen]
    assert len(set(found.names)) == 3
    texts = [objective.text(sample) for sample in seen]
    encode = objective.context.tokenizer.encode
    starts = found.targets["contrastive"]["text_sequences"].tolist()
    assert [words_of(found, start) for start in starts] == [encode(text.text, 32).tolist() for text in texts]
    assert found.counts.get("switching/words", 0) == sum(text.counts.get("switching/words", 0) for text in texts)
    assert bool(found.counts) == (name == "code_switched")


def test_an_empty_part_of_a_turn_asks_nothing(tmp_path: Path, tiny_recipe: Recipe) -> None:
    found = pairs(tmp_path, tiny_recipe, "image_caption", CAPTIONS).batch(range(4), range(0))
    assert (found.samples, found.targets, found.names, found.bad) == (0, {}, [], [])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 10**12))
def test_a_partner_is_of_the_own_source_whenever_that_has_another_picture_in_the_turn(
    sources: list[int], start: int
) -> None:
    candidates = Candidates(np.array(sources), start)
    for place, source in enumerate(sources):
        found = (candidates.of(start + place) - start).tolist()
        assert place not in found
        others = [other for other in range(len(sources)) if other != place]
        own = [other for other in others if sources[other] == source]
        wanted = sorted(own or others, key=lambda other: (other - place) % len(sources))
        assert found == wanted[:MAX_TRIED], "the next ones, cyclically"


def sources_of_mismatches(objective: ImageCaption, turn: range) -> list[tuple[str, str]]:
    """Return, of each mismatched pair of a turn, the folders of its text and of its picture."""
    found = objective.batch(turn, turn)
    matching = found.targets["matching"]
    false = matching["sequences"][matching["labels"] == 0].tolist()
    samples = [read(objective, position) for position in turn]
    folder = {position: str(objective.mix.source(position).folder) for position in turn}
    encode = objective.context.tokenizer.encode
    by_text = {
        tuple(encode(objective.text(one).text, 32).tolist()): folder[p] for p, one in zip(turn, samples, strict=True)
    }
    by_picture = {str(one.picture.boxes): folder[p] for p, one in zip(turn, samples, strict=True)}
    return [
        (by_text[tuple(words_of(found, sequence))], by_picture[str(np.array(boxes_of(found, sequence), np.float32))])
        for sequence in false
    ]


def test_text_and_picture_of_a_mismatch_come_from_one_source_though_sources_take_turns(
    tmp_path: Path, tiny_recipe: Recipe
) -> None:
    """Else whether they match could be told from the sources alone, without looking at text or picture."""
    words = ("dog", "cat", "moon", "tree", "house", "red", "blue", "green")
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        with ShardWriter(folder, "captions", 100) as writer:
            for place in range(8):
                caption = f"{words[place]} {words[(place + 1 + number) % 8]}"
                content = json.dumps({"captions": {"en": [caption]}}).encode()
                writer.write({"png": b"", "json": content, "regions.npz": regions(10 * number + place)})
    fields = {"batch_size": 16, "sources": [{"path": str(folder)} for folder in folders], "tasks": {"matching": 1.0}}
    visual = Regions(kind="regions", feature_size=FEATURE_SIZE, classes=CLASSES)
    context = Context("image_caption", 0, Tokenizer(tiny_recipe.tokenizer_folder), visual, 1)
    objective = OBJECTIVES["image_caption"].model_validate(fields).build(context)
    assert isinstance(objective, ImageCaption)
    found = sources_of_mismatches(objective, range(16))
    assert len(found) == 16
    assert {text for text, _ in found} == {str(folder) for folder in folders}
    assert all(text == picture for text, picture in found)
    told = objective.fingerprints()
    assert told["objectives.image_caption.tasks.matching, mismatched partners"] == "of the own source"
