import gc
from pathlib import Path

import numpy as np

from tests.data.broken import pair, read_many, source, write
from trainer.batch import Packer, Sequence, set_room
from trainer.data.arena import Arena, Desk
from trainer.data.canvas import Canvas
from trainer.data.index_folder import index_folder
from trainer.data.sample import BadSamples
from trainer.data.threads import set_threads
from trainer.visual.patches import MID_GREY, Patches, PatchTokens


def test_rooms_lie_side_by_side_and_are_used_again() -> None:
    canvas = Canvas((2, 12))
    first = canvas.divide(3)
    assert all(room is not None and room.shape == (2, 12) for room in first)
    for number, room in enumerate(first):
        assert room is not None
        room[:] = number
    again = canvas.divide(2)
    assert [int(room[0, 0]) for room in again if room is not None] == [0, 1]
    assert np.shares_memory(again[1], first[1])
    assert Canvas(None).divide(2) == [None, None]


def test_pictures_are_the_same_with_and_without_rooms_and_threads(tmp_path: Path) -> None:
    visual = Patches(kind="patches", size=16, patch=8, crop=0.5, flip=True)
    samples = [(str(number), pair(number)) for number in range(9)]
    samples[4] = ("4", {**pair(4), "jpg": b"", "png": b"", "webp": b""})
    write(tmp_path / "a.tar", samples)
    index_folder(tmp_path, "captions")
    found = []
    for threads, rooms in ((1, []), (1, Canvas(visual.room).divide(18)), (3, Canvas(visual.room).divide(18))):
        set_threads(threads)
        bad = BadSamples([])
        read = read_many(source(tmp_path, visual), 18, bad, rooms)
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


def test_pictures_that_lie_as_they_are_packed_are_not_copied() -> None:
    arena = Arena(1, 2)
    desk = Desk(arena, 0)
    set_room(desk.room)
    try:
        canvas = Canvas((1, 2, 2, 3))
        for times, masked in ((1, False), (2, False), (1, True)):
            packer = Packer(2, 2, 3)
            for number, room in enumerate(canvas.divide(3)):
                assert room is not None
                room[:] = number
                picture = PatchTokens(room, 1)
                for _ in range(times):
                    shown = picture.without(np.array([3])) if masked and number == 1 else picture
                    packer.add(Sequence(np.zeros(1, np.int64), shown))
            batch = packer.finish(3, canvas)
            assert (batch.visual_features is canvas.whole) is not masked
            opened = desk.pack(batch).open()
            assert opened.visual_features[:, 0, 0, 0].tolist() == [0, 1, 2]
            assert opened.visual_features[:, 1, 1, 2].tolist() == [0, MID_GREY if masked else 1, 2]
            rows = [4 * number + patch for number in range(3) for _ in range(times) for patch in range(4)]
            assert opened.visual_rows.tolist() == rows
            assert sum(arena._used) == 1, "all lies in one slot"
            del opened, batch
            gc.collect()
            assert sum(arena._used) == 0
    finally:
        set_room(lambda shape, kind: None)
