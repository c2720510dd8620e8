import gc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from m3p.batch import Sequence
from m3p.data.loader.arena import Arena, BufferWriter
from m3p.data.loader.picture_buffer import EXTRA_PICTURES, PictureBuffer
from m3p.data.loader.threads import set_threads
from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.packing import Packer
from m3p.visual.patches import MID_GREY, Patches, PatchTokens
from tests.data.broken import pair, read_many, source, write


def test_the_memory_of_pictures_lies_side_by_side_and_is_used_again() -> None:
    buffer = PictureBuffer((2, 12))
    first = buffer.divide(3)
    assert all(memory is not None and memory.shape == (2, 12) for memory in first)
    for number, memory in enumerate(first):
        assert memory is not None
        memory[:] = number
    again = buffer.divide(2)
    assert [int(memory[0, 0]) for memory in again if memory is not None] == [0, 1]
    assert np.shares_memory(again[1], first[1])
    assert PictureBuffer(None).divide(2) == [None, None]


@pytest.mark.long
def test_pictures_are_the_same_with_and_without_shared_memory_and_threads(tmp_path: Path) -> None:
    visual = Patches(kind="patches", size=16, patch=8, crop=0.5, flip=True)
    samples = [(str(number), pair(number)) for number in range(9)]
    samples[4] = ("4", {**pair(4), "jpg": b"", "png": b"", "webp": b""})
    write(tmp_path / "a.tar", samples)
    index_folder(tmp_path, "captions")
    found = []
    for threads, memories in (
        (1, []),
        (1, PictureBuffer(visual.memory_shape).divide(18)),
        (3, PictureBuffer(visual.memory_shape).divide(18)),
    ):
        set_threads(threads)
        bad = BadSamples([])
        read = read_many(source(tmp_path, visual), 18, bad, memories)
        set_threads(1)
        found.append(
            (
                [(sample.name, sample.owner, sample.visual.features.tolist()) for sample in read if sample.visual],
                bad.seen,
            )
        )
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 18
    assert len(found[0][1]) == 2


@pytest.mark.long
def test_pictures_that_lie_as_they_are_packed_are_not_copied() -> None:
    arena = Arena(1, 2)
    writer = BufferWriter(arena, 0)
    buffer = PictureBuffer((1, 2, 2, 3))
    # (times that each is shown, whether the last of the second hides a patch, pictures from elsewhere behind them)
    extra = EXTRA_PICTURES
    for times, masked, others in ((1, False, 0), (2, False, 0), (2, True, 0), (1, False, extra), (1, True, extra)):
        packer = Packer(2, 2, 3, allocate=writer.allocate)
        for number, memory in enumerate(buffer.divide(3, writer.allocate)):
            assert memory is not None
            memory[:] = number
            picture = PatchTokens(memory, 1)
            for _ in range(times):
                sequence, _ = packer.add(Sequence(np.zeros(1, np.int64), picture))
            if masked and number == 1:
                last, hidden = sequence, picture
        for number in range(others):
            elsewhere = PatchTokens(np.full((1, 2, 2, 3), 10 + number, np.uint8), 1)
            packer.add(Sequence(np.zeros(1, np.int64), elsewhere))
        if masked:
            packer.hide(last, np.array([3]), hidden)
        batch = packer.finish(3, buffer)
        assert buffer.whole is not None
        fits = others + masked <= EXTRA_PICTURES
        assert (batch.visual_features.data_ptr() == buffer.whole.data_ptr()) is fits
        opened = writer.pack(batch).open()
        grey = [MID_GREY] * masked
        pictures = [0, 1, 2, *range(10, 10 + others), *grey]
        assert opened.visual_features[:, 0, 0, 0].tolist() == pictures
        assert opened.visual_features[:, 1, 1, 2].tolist() == pictures
        rows = [[4 * number + patch for patch in range(4)] for number in range(3) for _ in range(times)]
        rows += [[4 * number + patch for patch in range(4)] for number in range(3, 3 + others)]
        if masked:
            rows[last][3] = 4 * (3 + others) + 3
        assert opened.visual_rows.tolist() == list(chain.from_iterable(rows))
        assert sum(arena._used) == 1, "all lies in one buffer"
        del opened, batch
        gc.collect()
        assert sum(arena._used) == 0
