import gc
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from m3p.batch import Allocate, Batch, Sequence, allocate_nothing
from m3p.data.loader.arena import TENSOR_ALIGNMENT, TENSOR_ALIGNMENT_OFFSET, Arena, BufferWriter, PackedBatch
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
def buffers() -> tuple[Arena, BufferWriter]:
    made = Arena(2, 3)
    return made, BufferWriter(made, 1)


def assert_same(found: Batch, wanted: Batch) -> None:
    for name, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name), value), name
    assert torch.equal(found.targets["task"]["slots"], wanted.targets["task"]["slots"])
    assert (found.names, found.samples, found.longest) == (wanted.names, wanted.samples, wanted.longest)


def test_a_packed_batch_opens_to_the_batch_that_was_packed(buffers: tuple[Arena, BufferWriter]) -> None:
    made, writer = buffers
    batch = packed(7, writer.allocate)
    found = writer.pack(batch).open()
    assert_same(found, batch)
    assert list(made._used) == [0, 0, 0, 1, 0, 0]
    assert len(pickle.dumps(writer.pack(batch))) < 1000, "notes where it lies, and no tensor"


def test_a_micro_batch_that_fills_a_large_gpu_needs_no_pipe(buffers: tuple[Arena, BufferWriter]) -> None:
    regions = RegionTokens(np.zeros((20_000, 2048), np.float32), np.zeros((20_000, 4), np.float32))
    packer = Packer(2048, allocate=buffers[1].allocate)
    packer.add(Sequence(np.array([0, 2]), regions))
    assert len(pickle.dumps(buffers[1].pack(packer.finish(1)))) < 1000


def test_what_is_packed_lies_off_a_multiple_of_32(buffers: tuple[Arena, BufferWriter]) -> None:
    for shape in ((3, 8, 8, 3), (1, 7), (5, 16, 16, 3)):
        tensor = buffers[1].allocate(shape, torch.uint8)
        assert tensor is not None
        assert tensor.data_ptr() % TENSOR_ALIGNMENT == TENSOR_ALIGNMENT_OFFSET


@pytest.mark.long
def test_buffers_come_back_when_tensors_are_gone_and_not_before(buffers: tuple[Arena, BufferWriter]) -> None:
    made, writer = buffers
    held = [writer.pack(packed(number, writer.allocate)).open() for number in range(3)]
    part = held[0].visual_features[1:2]
    without_buffer = writer.pack(packed(9, writer.allocate)).open()
    assert [int(batch.visual_features[0, 0]) for batch in [*held, without_buffer]] == [0, 1, 2, 9]
    held.clear()
    gc.collect()
    assert sum(made._used) == 1, "a view keeps its buffer"
    del part
    gc.collect()
    assert sum(made._used) == 0


def test_a_batch_too_large_for_a_buffer_travels_all_the_same(buffers: tuple[Arena, BufferWriter]) -> None:
    buffers[0].buffer = 16
    assert buffers[1].allocate((17,), torch.uint8) is None
    assert_same(buffers[1].pack(packed(5, buffers[1].allocate)).open(), packed(5))


def test_what_a_forked_process_writes_is_seen(buffers: tuple[Arena, BufferWriter]) -> None:
    made, writer = buffers
    child = os.fork()
    if child == 0:
        sent: PackedBatch = writer.pack(packed(42, writer.allocate))
        os._exit(0 if sent._buffer == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    lies = made.borrow(3)[TENSOR_ALIGNMENT_OFFSET : TENSOR_ALIGNMENT_OFFSET + 3 * 12 * 4].view(np.float32)
    assert lies.min() == lies.max() == 42


def limited(gibibytes: int, buffers: int) -> "subprocess.CompletedProcess[str]":
    """Make an arena in a process that may have so much address space."""
    program = (
        "import resource, torch; from m3p.data.loader.arena import Arena; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({gibibytes} * 2**30,) * 2); print(Arena(1, {buffers}).buffer)"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.program
def test_short_address_space_makes_smaller_buffers_and_says_so() -> None:
    done = limited(12, 15)
    assert int(done.stdout) in (2**28, 2**29)
    assert "address space is short" in done.stderr
    assert "lower them" in limited(12, 1000).stderr
    assert "lower them" in limited(12, 10**12).stderr
