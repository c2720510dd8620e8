import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3p.batch import Batch, Sequence
from m3p.packing import Packer
from m3p.visual.regions import RegionTokens

WIDTH = 3
SHAPES = st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(1, 5)), max_size=6)
"""(words, picture tokens or None) of each sequence."""


def sequence(rng: np.random.Generator, words: int, picture: int | None) -> Sequence:
    tokens = rng.integers(0, 100, words)
    if picture is None:
        return Sequence(tokens)
    features, boxes = rng.random((picture, WIDTH), np.float32), rng.random((picture, 4), np.float32)
    return Sequence(tokens, RegionTokens(features, boxes))


def laid_out(batch: Batch, at: int, length: int) -> list[tuple[object, ...]]:
    """What lies in the slots from `at` on, read slot by slot."""
    words = {slot: place for place, slot in enumerate(batch.token_slots.tolist())}
    pictures = {slot: place for place, slot in enumerate(batch.visual_slots.tolist())}
    found: list[tuple[object, ...]] = []
    for slot in range(at, at + length):
        if slot in words:
            place = words[slot]
            found.append(("word", int(batch.token_ids[place]), int(batch.token_places[place])))
        else:
            place = pictures[slot]
            row = batch.visual_rows[place]
            found.append(("picture", *batch.visual_features[row].tolist(), *batch.visual_boxes[row].tolist()))
    return found


@given(SHAPES.filter(len))
def test_every_slot_holds_one_thing_words_before_the_picture(shapes: list[tuple[int, int | None]]) -> None:
    rng = np.random.default_rng(0)
    packer = Packer(WIDTH)
    sequences = [sequence(rng, *shape) for shape in shapes]
    places = [packer.add(one) for one in sequences]
    batch = packer.finish(len(shapes))
    lengths = [words + (picture or 0) for words, picture in shapes]
    assert batch.lengths.tolist() == lengths
    assert batch.longest == max(lengths)
    assert batch.tokens == sum(lengths)
    assert sorted(batch.token_slots.tolist() + batch.visual_slots.tolist()) == list(range(sum(lengths)))
    for number, (one, (given_number, first), length) in enumerate(zip(sequences, places, lengths, strict=True)):
        assert given_number == number
        expected: list[tuple[object, ...]] = [("word", int(t), place) for place, t in enumerate(one.token_ids)]
        if one.visual is not None:
            assert one.visual.boxes is not None
            rows = zip(one.visual.features.tolist(), one.visual.boxes.tolist(), strict=True)
            expected += [("picture", *features, *box) for features, box in rows]
        assert laid_out(batch, first, length) == expected


def test_a_picture_is_held_once_however_often_it_is_shown_and_whatever_is_hidden_of_it() -> None:
    rng = np.random.default_rng(0)
    first, second = (sequence(rng, 2, size) for size in (3, 2))
    assert first.visual is not None
    packer = Packer(WIDTH)
    shown = [first, second, first, first, second]
    places = [packer.add(one) for one in shown]
    masked, _ = places[3]
    packer.hide(masked, np.array([1]), first.visual)
    packer.hide(masked, np.array([], np.int64), first.visual)
    batch = packer.finish(2)
    assert batch.visual_features.shape == (3 + 2 + 1, WIDTH)
    assert batch.visual_boxes.shape == (3 + 2 + 1, 4)
    assert batch.embedded_rows == 3 + 2 + 1
    assert batch.visual_rows.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 5, 2, 3, 4]
    assert batch.tokens == 5 * 2 + 3 + 2 + 3 + 3 + 2
    for one, (number, place) in zip(shown, places, strict=True):
        assert one.visual is not None
        found = [row[1 : 1 + WIDTH] for row in laid_out(batch, place + 2, len(one.visual.features))]
        wanted = one.visual.features.tolist()
        if number == masked:
            wanted[1] = [0.0] * WIDTH
        assert [list(row) for row in found] == wanted


def test_nothing_at_all_is_a_lone_start_token_that_asks_nothing() -> None:
    batch = Packer(WIDTH).finish(0)
    assert batch.token_ids.tolist() == [0]
    assert batch.lengths.tolist() == [1]
    assert batch.samples == 0
    assert batch.targets == {}
    assert batch.visual_features.shape == (0, WIDTH)
    assert batch.visual_boxes.shape == (0, 4)
    assert batch.visual_slots.dtype == torch.int64
    assert (batch.tokens, batch.embedded_rows) == (1, 0)


def test_targets_of_a_task_are_joined_and_counters_add_up() -> None:
    packer = Packer(WIDTH)
    packer.target("a", slots=np.array([1, 2]), labels=np.array([5, 6]))
    packer.target("b", sequences=np.array([0]))
    packer.target("a", slots=np.array([9]), labels=np.array([7]))
    packer.count("words", 2)
    packer.count("words", 3)
    packer.names.append("shard/key")
    batch = packer.finish(1)
    assert {name: tensor.tolist() for name, tensor in batch.targets["a"].items()} == {
        "slots": [1, 2, 9],
        "labels": [5, 6, 7],
    }
    assert batch.targets["b"]["sequences"].tolist() == [0]
    assert (batch.counts, batch.names) == ({"words": 5}, ["shard/key"])


def test_wide_rows_are_packed_into_the_memory_that_is_given() -> None:
    given: list[torch.Tensor] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        given.append(torch.empty(shape, dtype=dtype))
        return given[-1]

    packer = Packer(WIDTH, allocate=allocate)
    packer.add(sequence(np.random.default_rng(0), 2, 4))
    packer.target("wide", slots=np.array([1]), rows=np.ones((1, 5), np.float32))
    batch = packer.finish(1)
    places = {tensor.data_ptr() for tensor in given}
    assert {tuple(tensor.shape) for tensor in given} == {(4, WIDTH), (4, 4), (1, 5)}
    for tensor in (batch.visual_features, batch.visual_boxes, batch.targets["wide"]["rows"]):
        assert tensor.data_ptr() in places
    assert batch.token_ids.data_ptr() not in places
