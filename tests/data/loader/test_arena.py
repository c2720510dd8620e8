import gc
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from m3p.batch import Allocate, Batch, Sequence, allocate_nothing
from m3p.data.loader.arena import SLOT_ALIGNMENT, SLOT_ALIGNMENT_OFFSET, Arena, PackedBatch, SlotWriter
from m3p.packing import Packer
from m3p.visual.regions import RegionTokens


def packed(number: int, allocate: Allocate = allocate_nothing) -> Batch:
    visual = RegionTokens(np.full((3, 12), number, np.float32), np.zeros((3, 4), np.float32))
    packer = Packer(12, allocate=allocate)
    packer.add(Sequence(np.array([0, number, 2]), visual))
    packer.target("task", slots=np.array([number]))
    packer.names.append(str(number))
    return packer.finish(1)


@pytest.fixture
def slots() -> tuple[Arena, SlotWriter]:
    made = Arena(2, 3)
    return made, SlotWriter(made, 1)


def assert_same(found: Batch, wanted: Batch) -> None:
    for name, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name), value), name
    assert torch.equal(found.targets["task"]["slots"], wanted.targets["task"]["slots"])
    assert (found.names, found.samples, found.longest) == (wanted.names, wanted.samples, wanted.longest)


def test_a_packed_batch_opens_to_the_batch_that_was_packed(slots: tuple[Arena, SlotWriter]) -> None:
    made, writer = slots
    batch = packed(7, writer.allocate)
    found = writer.pack(batch).open()
    assert_same(found, batch)
    assert list(made._used) == [0, 0, 0, 1, 0, 0]
    assert len(pickle.dumps(writer.pack(batch))) < 1000, "notes where it lies, and no tensor"


def test_a_micro_batch_that_fills_a_large_gpu_needs_no_pipe(slots: tuple[Arena, SlotWriter]) -> None:
    regions = RegionTokens(np.zeros((20_000, 2048), np.float32), np.zeros((20_000, 4), np.float32))
    packer = Packer(2048, allocate=slots[1].allocate)
    packer.add(Sequence(np.array([0, 2]), regions))
    assert len(pickle.dumps(slots[1].pack(packer.finish(1)))) < 1000


def test_what_is_packed_lies_off_a_multiple_of_32(slots: tuple[Arena, SlotWriter]) -> None:
    for shape in ((3, 8, 8, 3), (1, 7), (5, 16, 16, 3)):
        tensor = slots[1].allocate(shape, torch.uint8)
        assert tensor is not None
        assert tensor.data_ptr() % SLOT_ALIGNMENT == SLOT_ALIGNMENT_OFFSET


def test_slots_come_back_when_tensors_are_gone_and_not_before(slots: tuple[Arena, SlotWriter]) -> None:
    made, writer = slots
    held = [writer.pack(packed(number, writer.allocate)).open() for number in range(3)]
    part = held[0].visual_features[1:2]
    without_slot = writer.pack(packed(9, writer.allocate)).open()
    assert [int(batch.visual_features[0, 0]) for batch in [*held, without_slot]] == [0, 1, 2, 9]
    held.clear()
    gc.collect()
    assert sum(made._used) == 1, "a view keeps its slot"
    del part
    gc.collect()
    assert sum(made._used) == 0


def test_a_batch_too_large_for_a_slot_travels_all_the_same(slots: tuple[Arena, SlotWriter]) -> None:
    slots[0].slot = 16
    assert slots[1].allocate((17,), torch.uint8) is None
    assert_same(slots[1].pack(packed(5, slots[1].allocate)).open(), packed(5))


def test_what_a_forked_process_writes_is_seen(slots: tuple[Arena, SlotWriter]) -> None:
    made, writer = slots
    child = os.fork()
    if child == 0:
        sent: PackedBatch = writer.pack(packed(42, writer.allocate))
        os._exit(0 if sent._slot == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    lies = made.borrow(3)[SLOT_ALIGNMENT_OFFSET : SLOT_ALIGNMENT_OFFSET + 3 * 12 * 4].view(np.float32)
    assert lies.min() == lies.max() == 42


def limited(gibibytes: int, slots: int) -> "subprocess.CompletedProcess[str]":
    """Make an arena in a process that may have so much address space."""
    program = (
        "import resource, torch; from m3p.data.loader.arena import Arena; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({gibibytes} * 2**30,) * 2); print(Arena(1, {slots}).slot)"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.program
def test_short_address_space_makes_smaller_slots_and_says_so() -> None:
    done = limited(12, 15)
    assert int(done.stdout) in (2**28, 2**29)
    assert "address space is short" in done.stderr
    assert "lower them" in limited(12, 1000).stderr
    assert "lower them" in limited(12, 10**12).stderr
