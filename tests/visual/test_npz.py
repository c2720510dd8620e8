import io
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from numpy.typing import NDArray

from m3p.visual.npz import read_npz, read_shapes

ARRAYS: dict[str, NDArray[Any]] = {
    "boxes": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "features": np.arange(15, dtype=np.float16).reshape(3, 5),
    "class_ids": np.arange(3, dtype=np.int32),
}


def saved(arrays: Mapping[str, Any], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(buffer, **arrays)
    return buffer.getvalue()


def by_numpy(data: bytes) -> dict[str, NDArray[Any]]:
    with np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False) as content:
        return by_name(content)


def by_name(content: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: content[name] for name in content}


def outcome(read: Callable[[bytes], dict[str, NDArray[Any]]], data: bytes) -> dict[str, NDArray[Any]] | None:
    """What it reads, or None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(data)
        except Exception:  # numpy's parsers raise nearly anything; the caller makes it a bad sample
            return None


def assert_same(found: Any, wanted: dict[str, NDArray[Any]]) -> None:
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_savez_writes_is_viewed_and_not_copied() -> None:
    found = read_npz(memoryview(saved(ARRAYS)))
    assert isinstance(found, dict)
    assert list(found) == list(ARRAYS)
    assert_same(found, ARRAYS)
    assert not any(array.flags.owndata for array in found.values())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float64(3),
        np.arange(3, dtype=">f4"),
        np.array(["a"]),
    ],
    ids=["empty", "other order", "lone number", "other byte order", "words"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_unusual_is_what_numpy_reads(array: NDArray[Any], compressed: bool) -> None:
    data = saved({**ARRAYS, "other": array}, compressed)
    found = read_npz(data)
    assert_same(found, by_numpy(data))


def test_objects_are_never_unpickled() -> None:
    found = read_npz(saved({"other": np.array([{}], object)}))
    with pytest.raises(ValueError, match="pickle"):
        found["other"]


@pytest.mark.long
@settings(max_examples=300)
@given(st.data())
def test_of_broken_bytes_it_reads_and_refuses_what_numpy_does(data: st.DataObject) -> None:
    content = bytearray(saved(ARRAYS))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) - 30, len(content)))]
    found, wanted = (outcome(read, bytes(content)) for read in (lambda data: by_name(read_npz(data)), by_numpy))
    assert (found is None) == (wanted is None)
    if wanted is not None:
        assert_same(found, wanted)


def bomb(shape: tuple[int, int], kind: int, real: int) -> bytes:
    """An npz whose features say they have `shape`, with `real` bytes of zeros behind that."""
    head, file = io.BytesIO(), io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", kind) as archive, archive.open("features.npy", "w", force_zip64=True) as member:
        member.write(head.getvalue())
        for _ in range(real // 2**20):
            member.write(bytes(2**20))
    return file.getvalue()


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "kind", "real"),
    [
        ((2**16, 2048), zipfile.ZIP_DEFLATED, 2**28),
        ((2**16, 2048), zipfile.ZIP_BZIP2, 2**28),
        ((2**16, 2048), zipfile.ZIP_LZMA, 2**28),
        ((2**40, 2048), zipfile.ZIP_DEFLATED, 2**20),
        ((2**40, 2048), zipfile.ZIP_STORED, 2**20),
        ((2**62, 2**62), zipfile.ZIP_DEFLATED, 2**20),
        ((512, 1024), zipfile.ZIP_BZIP2, 2**20),
    ],
)
def test_sizes_are_looked_at_before_anything_is_unpacked(shape: tuple[int, int], kind: int, real: int) -> None:
    data = bomb(shape, kind, real)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bytes|compressed in another way"):
        read_npz(data)["features"]
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@pytest.mark.long
def test_a_size_that_lies_is_no_way_around() -> None:
    """The directory of the zip says few bytes; many would come."""
    data = bytearray(bomb((2**16, 2048), zipfile.ZIP_DEFLATED, 2**27))
    whole = (2**27 + 128).to_bytes(8, "little")
    while (place := data.find(whole)) >= 0:
        data[place : place + 8] = (1000).to_bytes(8, "little")
    for place in (data.find(whole[:4]),):
        if place >= 0:
            data[place : place + 4] = (1000).to_bytes(4, "little")
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        read_npz(bytes(data))["features"]


@pytest.mark.long
def test_shapes_are_read_from_headers_alone() -> None:
    assert read_shapes(saved(ARRAYS, compressed=True)) == {name: array.shape for name, array in ARRAYS.items()}
    with pytest.raises(ValueError, match="are the most"):
        read_shapes(bomb((2**16, 2048), zipfile.ZIP_DEFLATED, 2**28))
