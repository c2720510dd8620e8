import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.shards.index import index_tar
from m3p.data.shards.sample_members import members, split_name
from m3p.errors import BadSample
from tests.data.shards.tars import pair, spans, write_tar


@given(st.binary(max_size=1500), st.integers(0, 3000))
def test_a_broken_span_is_a_bad_sample(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    tar = tmp_path_factory.mktemp("index") / "a.tar"
    write_tar(tar, pair("a"))
    index_tar(tar, "captions")
    [span] = spans(tar)
    broken = (span[:at] + noise + span[at + len(noise) :])[: len(span)]
    with contextlib.suppress(BadSample):
        assert set(members(broken)) <= {"jpg", "json"}


@pytest.mark.parametrize("span", [b"", b"\0" * 512, b"x" * 512, b"x" * 100])
def test_no_sample_in_these(span: bytes) -> None:
    with pytest.raises(BadSample):
        members(span)


def test_a_span_of_two_samples_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pair("a") + pair("b"))
    index_tar(tmp_path / "a.tar", "captions")
    with pytest.raises(BadSample, match="two samples"):
        members(b"".join(spans(tmp_path / "a.tar")))


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("a.txt", b"2")])
    index_tar(tmp_path / "a.tar", "text")
    with pytest.raises(BadSample, match=r"two members named 'a\.txt'"):
        members(spans(tmp_path / "a.tar")[0])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("x.y/a.JPG", ("x.y/a", "jpg")),
        ("./a.regions.npz", ("./a", "regions.npz")),
        ("readme", None),
        ("x/._a.jpg", None),
        ("a.", None),
    ],
)
def test_keys_end_at_the_first_dot_of_the_base_name(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts
