import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from m3p.batch import Batch, Packer, Sequence, set_room
from m3p.data.loader.arena import LINE, OFF, Arena, Desk, Parcel
from m3p.visual.regions import RegionTokens


def packed(number: int) -> Batch:
    visual = RegionTokens(np.full((3, 12), number, np.float32), np.zeros((3, 4), np.float32))
    packer = Packer(12)
    packer.add(Sequence(np.array([0, number, 2]), visual))
    packer.target("task", slots=np.array([number]))
    packer.names.append(str(number))
    return packer.finish(1)


@pytest.fixture
def room() -> Iterator[tuple[Arena, Desk]]:
    made = Arena(2, 3)
    desk = Desk(made, 1)
    set_room(desk.room)
    yield made, desk
    set_room(lambda shape, kind: None)


def assert_same(found: Batch, wanted: Batch) -> None:
    for name, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name), value), name
    assert torch.equal(found.targets["task"]["slots"], wanted.targets["task"]["slots"])
    assert (found.names, found.samples, found.longest) == (wanted.names, wanted.samples, wanted.longest)


def test_a_parcel_opens_to_the_batch_that_was_packed(room: tuple[Arena, Desk]) -> None:
    made, desk = room
    batch = packed(7)
    found = desk.pack(batch).open()
    assert_same(found, batch)
    assert list(made._used) == [0, 0, 0, 1, 0, 0]
    assert len(pickle.dumps(desk.pack(batch))) < 1000, "notes where it lies, and no tensor"


def test_a_micro_batch_that_fills_a_large_gpu_needs_no_pipe(room: tuple[Arena, Desk]) -> None:
    regions = RegionTokens(np.zeros((20_000, 2048), np.float32), np.zeros((20_000, 4), np.float32))
    packer = Packer(2048)
    packer.add(Sequence(np.array([0, 2]), regions))
    assert len(pickle.dumps(room[1].pack(packer.finish(1)))) < 1000


def test_what_is_packed_lies_off_a_multiple_of_32(room: tuple[Arena, Desk]) -> None:
    for shape in ((3, 8, 8, 3), (1, 7), (5, 16, 16, 3)):
        tensor = room[1].room(shape, torch.uint8)
        assert tensor is not None
        assert tensor.data_ptr() % LINE == OFF


def test_slots_come_back_when_tensors_are_gone_and_not_before(room: tuple[Arena, Desk]) -> None:
    made, desk = room
    held = [desk.pack(packed(number)).open() for number in range(3)]
    part = held[0].visual_features[1:2]
    without_room = desk.pack(packed(9)).open()
    assert [int(batch.visual_features[0, 0]) for batch in [*held, without_room]] == [0, 1, 2, 9]
    held.clear()
    gc.collect()
    assert sum(made._used) == 1, "a view keeps its slot"
    del part
    gc.collect()
    assert sum(made._used) == 0


def test_a_batch_too_large_for_a_slot_travels_all_the_same(room: tuple[Arena, Desk]) -> None:
    room[0].slot = 16
    assert room[1].room((17,), torch.uint8) is None
    assert_same(room[1].pack(packed(5)).open(), packed(5))


def test_what_a_forked_process_writes_is_seen(room: tuple[Arena, Desk]) -> None:
    made, desk = room
    child = os.fork()
    if child == 0:
        parcel: Parcel = desk.pack(packed(42))
        os._exit(0 if parcel._slot == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    lies = made.borrow(3)[OFF : OFF + 3 * 12 * 4].view(np.float32)
    assert lies.min() == lies.max() == 42


def limited(gibibytes: int, slots: int) -> "subprocess.CompletedProcess[str]":
    """Make an arena in a process that may have so much address space."""
    program = (
        "import resource, torch; from m3p.data.loader.arena import Arena; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({gibibytes} * 2**30,) * 2); print(Arena(1, {slots}).slot)"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_short_address_space_makes_smaller_slots_and_says_so() -> None:
    done = limited(12, 15)
    assert int(done.stdout) in (2**28, 2**29)
    assert "address space is short" in done.stderr
    assert "lower them" in limited(12, 1000).stderr
    assert "lower them" in limited(12, 10**12).stderr
