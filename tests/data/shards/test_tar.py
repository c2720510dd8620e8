import contextlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.shards.tar import BLOCK, TarError, head_sum, head_sums, walk

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=160)
CONTENTS = st.binary(max_size=1500)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def pack(files: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), CONTENTS), max_size=4), FORMATS)
def test_finds_what_tarfile_finds(files: list[tuple[list[str], bytes]], form: int) -> None:
    archive = pack([("/".join(parts), content) for parts, content in files], form)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    found = list(walk(archive, whole=True))
    assert [(member.name, member.data, member.size) for member in found] == expected
    assert [member.start for member in found[1:]] == [member.end for member in found[:-1]]


def test_ustar_prefix_is_part_of_the_name() -> None:
    name = "a" * 120 + "/" + "b" * 90 + ".jpg"
    assert [member.name for member in walk(pack([(name, b"x")]), whole=True)] == [name]


def test_passes_over_folders_and_links() -> None:
    links = pack([("link", b"")], kind=tarfile.SYMTYPE) + pack([("folder", b"")], kind=tarfile.DIRTYPE)
    joined = links.replace(bytes(512), b"") + pack([("a.txt", b"hello")])
    assert [member.name for member in walk(joined, whole=True)] == ["a.txt"]


def test_reads_sizes_in_base_256() -> None:
    header = bytearray(pack([("a.bin", b"x" * 600)]))
    header[124:136] = b"\x80" + (600).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    assert [member.size for member in walk(bytes(header), whole=True)] == [600]


def test_pax_size_overrides_the_header() -> None:
    archive = pack([("a.bin", b"12345")])
    record = b"11 size=5\n"
    record = b"%d size=5\n" % len(record)
    extended = bytearray(pack([("ext", record)])[:1024])
    extended[156:157] = b"x"
    extended[148:156] = b" " * 8
    extended[148:156] = b"%06o\0 " % sum(extended[:512])
    [member] = walk(bytes(extended) + archive, whole=True)
    assert (member.name, member.size, member.start, member.data) == ("a.bin", 5, 0, 1536)


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 1024])
def test_says_that_an_archive_is_cut_off(cut: int) -> None:
    archive = pack([("a.txt", b"x" * 600)])
    with pytest.raises(TarError):
        list(walk(archive[:cut], whole=True))


def test_says_that_the_end_marker_is_missing() -> None:
    with pytest.raises(TarError, match="end-of-archive"):
        list(walk(pack([("a.txt", b"x" * 600)])[:1536], whole=True))


def test_refuses_zeros_inside_a_span() -> None:
    with pytest.raises(TarError, match="end-of-archive"):
        list(walk(pack([("a.txt", b"x")]), whole=False))


def test_refuses_sparse_files() -> None:
    with pytest.raises(TarError, match="sparse"):
        list(walk(pack([("a.txt", b"")], kind=tarfile.GNUTYPE_SPARSE), whole=True))


@given(st.binary(max_size=1200))
def test_noise_raises_only_tar_errors(noise: bytes) -> None:
    with contextlib.suppress(TarError):
        list(walk(noise, whole=False))


@given(st.data())
def test_a_changed_byte_raises_only_tar_errors(data: st.DataObject) -> None:
    archive = bytearray(pack([("n" * 150 + ".txt", b"hello"), ("b.txt", b"x" * 513)], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TarError):
        list(walk(bytes(archive), whole=True))


@given(st.lists(st.binary(min_size=BLOCK, max_size=BLOCK), min_size=1, max_size=4))
def test_sums_of_many_headers_are_those_of_each(headers: list[bytes]) -> None:
    together = head_sums(np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK))
    assert together.tolist() == [head_sum(header) for header in headers] == [(sum(h) + 1) % 65_521 for h in headers]
