"""Lines of raw files in strange encodings, compressions and names."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.prepare.captions import read_jsonl
from m3p.prepare.dictionary import read_rows
from m3p.prepare.lines import numbered_lines
from m3p.prepare.text import prepare_text

PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
LINES = [f"line {number}".encode() * 50 for number in range(400)]
CONTENT = b"\n".join(LINES)


def read(path: Path) -> list[bytes]:
    return [line.rstrip(b"\n") for _, line in numbered_lines(path)]


@pytest.mark.parametrize("ending", PACK)
def test_several_streams_are_read_and_one_cut_or_followed_by_anything_else_is_refused(
    tmp_path: Path, ending: str
) -> None:
    path, packed = tmp_path / f"en.txt.{ending}", PACK[ending](CONTENT)
    path.write_bytes(packed)
    assert read(path) == LINES
    path.write_bytes(PACK[ending](CONTENT + b"\n") + packed)
    assert read(path) == [*LINES, *LINES]
    for broken in (packed[:-9], packed + b"junk", packed + packed[: len(packed) // 2], b"junk", b"\xff" + packed[1:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"cannot be unpacked \(.+\): copy it again"):
            read(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32"])
def test_text_in_two_bytes_a_letter_is_refused_and_the_way_out_leads_out(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "en.txt"
    path.write_bytes("A dog.\nA cat.\n".encode(encoding))
    with pytest.raises(UserError, match=r"en\.txt, line 1: holds bytes of 0, .* with iconv"):
        prepare_text(tmp_path / "raw", tmp_path / "out")
    path.write_bytes(path.read_bytes().decode(encoding).encode())
    assert prepare_text(tmp_path / "raw", tmp_path / "out")["en"].samples == 2


@pytest.mark.parametrize(
    "content", ['[{"text": "A dog."}]\n', '[\n {"text": "A dog."}\n]\n', '{\n "text": "A dog."\n}\n']
)
def test_a_json_document_is_no_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "en.txt").write_text(content)
    with pytest.raises(UserError, match=r"line 1: begins a JSON document; .* one JSON object a line"):
        prepare_text(tmp_path, tmp_path / "out")


def test_two_files_of_one_language_in_small_and_large_letters_are_refused(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("Hund\n")
    (tmp_path / "DE.txt").write_text("Katze\n")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("file names are the same in small and large letters here")
    with pytest.raises(UserError, match="keep one of them"):
        prepare_text(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_document_is_no_list_of_records_and_the_way_out_leads_out(tmp_path: Path, indent: int | None) -> None:
    records = [{"id": "a", "image": "a.png", "captions": {"en": "a dog"}}]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(records, indent=indent))
    with pytest.raises(UserError, match=r"begins a JSON document; .* with id, image and captions: .* jq -c '\.\[\]'"):
        list(read_jsonl(path))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))  # what `jq -c '.[]'` writes
    assert [entry.record for entry in read_jsonl(path)] == records


def test_a_field_that_stands_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "image": "a.png", "captions": {"en": "a dog", "en": "a cat"}}\n')
    (entry,) = read_jsonl(path)
    assert "the field 'en' stands twice in one object" in str(entry.record)


def test_lines_of_old_macs_are_lines(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "en.txt"
    path.write_bytes(b"One.\rTwo.\r\rThree.")
    assert [(number, line.strip()) for number, line in numbered_lines(path)] == [
        (1, b"One."), (2, b"Two."), (3, b""), (4, b"Three."),
    ]  # fmt: skip
    assert prepare_text(tmp_path / "raw", tmp_path / "out")["en"].samples == 3
    path.write_bytes(b"dog\tHund\rcat\tKatze\r")
    assert [row[:2] for row in read_rows(path)] == [("dog", "Hund"), ("cat", "Katze")]
    path.write_bytes(b"dog\t Hund\r\ncat\tKat\rze\r\n")  # a stray one inside a line ends no line
    assert [row[0] for row in read_rows(path)] == ["dog", "cat"]


def test_lines_of_nothing_but_control_characters_are_blank(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "en.txt").write_text("One.\n\u200b\n\x07\x1b\nTwo.\n")
    assert prepare_text(tmp_path / "raw", tmp_path / "out")["en"].samples == 2
