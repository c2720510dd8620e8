import contextlib
import io
import pickle
import pickletools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.prepare.region_formats.plain_pickle import NotPlain, load_plain

INFO: dict[str, Any] = {
    "bbox": np.arange(8, dtype=np.float32).reshape(2, 4),
    "objects": np.array([5, 1599]),
    "cls_prob": np.asfortranarray(np.linspace(0, 1, 6, dtype=np.float16).reshape(2, 3)),
    "num_boxes": 2,
    "image_width": np.int64(640),
    "image_height": 480.0,
    "name": "ä",
    "nothing": None,
}


@pytest.mark.parametrize("protocol", range(pickle.DEFAULT_PROTOCOL + 1))
@pytest.mark.parametrize("wrapped", [False, True])
def test_dicts_of_arrays_and_numbers_come_back(protocol: int, wrapped: bool) -> None:
    found = load_plain(pickle.dumps(np.array(INFO) if wrapped else INFO, protocol=protocol))
    assert found.keys() == INFO.keys()
    for name, value in INFO.items():
        np.testing.assert_array_equal(found[name], value)
        assert getattr(found[name], "dtype", None) == getattr(value, "dtype", None)


def test_the_names_of_numpy_before_version_2_are_known() -> None:
    content = pickle.dumps(INFO, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(load_plain(content)["bbox"], INFO["bbox"])


class Calls:
    """Pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "ran"
    content = pickle.dumps({"bbox": Calls(exec, (f"open({str(trace)!r}, 'w')",))}, protocol=protocol)
    with pytest.raises(NotPlain):
        load_plain(content)
    assert not trace.exists()


def global_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (global_of("os", "system") + b"(S'true'\ntR.", "it names os.system"),
        (global_of("numpy", "ndarray") + b")R.", "calls what cannot be called"),
        (b"S'x'\n)R.", "calls what cannot be called"),
        (global_of("numpy", "dtype") + b"}b.", "gives a state to what has none"),
        (b"}(K\x01K\x02u.", "keys other than texts"),
        (b"}K\x01K\x02s.", "keys other than texts"),
        (b"(K\x01K\x02d.", "keys other than texts"),
        (b"}))s.", "keys other than texts"),
        (b"\x80\x05\x96" + (2**50).to_bytes(8, "little") + b".", "BYTEARRAY8|cannot be read"),
        (b"P1\n.", "PERSID"),
        (b"\x8b\x50\x00\x00\x00" + b"\x7f" * 80 + b".", "a number of many digits|cannot be read"),
        (b"I" + b"9" * 1000 + b"\n.", "a number of many digits"),
        (b"", "cannot be read"),
    ],
)
def test_what_is_no_plain_data_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(NotPlain, match=reason):
        load_plain(content)


def test_an_array_is_as_large_as_its_content() -> None:
    content = pickle.dumps(np.zeros(3, np.float32), protocol=2)
    assert b"K\x03\x85" in content
    with pytest.raises(NotPlain, match="another size than its content"):
        load_plain(content.replace(b"K\x03\x85", b"K\x7f\x85"))
    with pytest.raises(NotPlain, match="the rule is numbers"):
        load_plain(pickle.dumps(np.array(["a"]), protocol=2))
    with pytest.raises(NotPlain, match="several objects"):
        load_plain(pickle.dumps(np.array([{}, {}]), protocol=2))


def test_lists_that_hold_one_another_are_not_walked() -> None:
    nested: Any = []
    for _ in range(100):
        nested = [nested, nested]  # 2**100 leaves
    assert isinstance(load_plain(pickle.dumps({"bbox": nested}))["bbox"], list)
    with pytest.raises(NotPlain):  # nor shown as text, as the name of a type
        load_plain(pickle.dumps(Calls(np.dtype, (nested,)), 2))


def test_a_place_in_the_memo_costs_no_memory() -> None:
    content = b"]r\xff\xff\xff\x7f."  # LONG_BINPUT 2**31 - 1: C's reader makes a table of as many places
    pickletools.dis(content, out=io.StringIO())
    assert load_plain(content) == []


@given(st.binary(max_size=60))
def test_random_bytes_are_plain_or_refused(content: bytes) -> None:
    before = set(sys.modules)
    with contextlib.suppress(NotPlain):
        load_plain(content)
    assert set(sys.modules) == before
