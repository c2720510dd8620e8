"""Records of strangers: whatever a shard says, a sample is used or named as bad; nothing else happens."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3p.batch import Picture
from m3p.data.loader.picture_buffer import PictureMemory
from m3p.data.order.shuffle import Place
from m3p.data.records import Members, passage, read_record
from m3p.data.sample import BadSamples, Sample
from m3p.data.source import Source, SourceConfig
from m3p.errors import BadSample, UserError
from m3p.keys import key
from m3p.prepare.shards import ShardWriter
from m3p.visual.regions import RegionTokens

GOOD = {"captions": {"en": ["a dog"], "de": "ein Hund"}}


def no_picture(members: Members, draw: Iterator[float] | None, into: PictureMemory | None = None) -> Picture:
    return RegionTokens(np.zeros((1, 1), np.float32), np.zeros((1, 4), np.float32))


def source(folder: Path, *samples: dict[str, bytes], languages: list[str] | None = None) -> Source:
    """A source of one shard with `samples`, and a good one behind them."""
    with ShardWriter(folder, "captions", 100) as writer:
        for members in (*samples, {"jpg": b"", "json": json.dumps(GOOD).encode()}):
            writer.write(members)
    config = SourceConfig(path=str(folder), languages=languages)
    return Source(folder, config, (0, "image_caption", 0), 1, no_picture)


def read(folder: Path, record: bytes, languages: list[str] | None = None) -> tuple[Sample, list[str]]:
    """Read a sample with this record; return what came, and why it is not the one asked for."""
    bad = BadSamples([])
    found = source(folder, {"jpg": b"", "json": record}, languages=languages)
    return found.read_place(Place(0, 0, 0), bad, augment=True), bad.seen


def as_json(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_captions_are_texts_or_lists_of_texts(tmp_path: Path) -> None:
    sample, bad = read(tmp_path, as_json(id="x", concept="dogs"))
    assert bad == []
    assert sample.captions == {"en": ["a dog"], "de": ["ein Hund"]}
    assert sample.concept == "dogs"
    assert sample.name.endswith("shard-000000.tar/x")


def test_without_a_concept_every_picture_is_its_own(tmp_path: Path) -> None:
    sample, _ = read(tmp_path, as_json())
    assert sample.concept == sample.name


@pytest.mark.parametrize("nothing", [b"null", b'""', b"NaN"])
@pytest.mark.parametrize("field", ["id", "concept"])
def test_an_id_or_concept_that_says_nothing_is_none(tmp_path: Path, field: str, nothing: bytes) -> None:
    record = b'{"%s": %s, "captions": {"en": "a dog"}}' % (field.encode(), nothing)
    made, bad = source(tmp_path, *[{"jpg": b"", "json": record}] * 2), BadSamples([])
    found = [made.read_place(Place(0, 0, number), bad, augment=True) for number in range(3)]
    assert bad.seen == []
    assert len({sample.name for sample in found}) == len({sample.concept for sample in found}) == 3
    assert {sample.id for sample in found} == {""}


def test_pictures_of_two_folders_of_one_name_are_not_one(tmp_path: Path) -> None:
    found = []
    for parent in "ab":
        (tmp_path / parent).mkdir()
        found.append(source(tmp_path / parent / "train").read_place(Place(0, 0, 0), BadSamples([]), augment=True))
    assert found[0].name != found[1].name
    assert found[0].concept != found[1].concept


@pytest.mark.parametrize(
    "content", [b'{"similarity": NaN, "captions": {"en": "a dog"}}', b'\xef\xbb\xbf{"captions": {"en": "a dog"}}']
)
def test_what_pandas_and_windows_write_is_read(tmp_path: Path, content: bytes) -> None:
    sample, bad = read(tmp_path, content)
    assert (sample.captions, bad) == ({"en": ["a dog"]}, [])


def test_the_captions_of_other_languages_are_left_alone(tmp_path: Path) -> None:
    sample, bad = read(tmp_path, as_json(captions={"en": "a dog", "fr": [""]}), languages=["en"])
    assert (sample.captions, bad) == ({"en": ["a dog"]}, [])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{", "json cannot be read"),
        (b"\xff\xfe", "json cannot be read"),
        (b"[" * 100_000, "json cannot be read"),
        (b'{"captions": ' + b"9" * 5000 + b"}", "json cannot be read"),
        (b"[]", "json is not an object"),
        (b"{}", "no captions"),
        (as_json(captions=[]), "captions is not an object"),
        (as_json(captions={}), "no caption"),
        (as_json(captions={"en": []}), "captions.en is not a list of texts, or one of them is empty"),
        (as_json(captions={"en": ["a", " "]}), "captions.en is not"),
        (as_json(captions={"en": [1]}), "captions.en is not"),
        (as_json(captions={"en": ["a dog", "\u200b\x07 \u202e"]}), "or one of them is empty"),
        (as_json(captions={"en": "a\0 dog"}), "or holds characters of 0"),
        (as_json(captions={"x" * 101: "a dog"}), "'xxx.*' and more, which is no code of a language"),
        (as_json(captions={"en": None}), "captions.en is not"),
        (as_json(captions={"en": ["a \ud800 dog"]}), "captions is not Unicode"),
        (as_json(captions={"\ud800": []}), "captions is not Unicode"),
        (as_json(concept="\udfff"), "concept is not Unicode"),
        (as_json(id="\udfff"), "id is not Unicode"),
    ],
)
def test_a_record_that_cannot_be_used_is_replaced_and_its_fault_named(
    tmp_path: Path, record: bytes, reason: str
) -> None:
    sample, bad = read(tmp_path, record)
    assert sample.name == f"{tmp_path}/shard-000000.tar#1"
    assert len(bad) == 1
    assert bad[0].startswith(f"{tmp_path}/shard-000000.tar, sample 0: ")
    assert re.search(reason, bad[0]), bad[0]


TEXTS = st.text(st.characters(exclude_categories=()), max_size=5)
"""Halves of surrogate pairs too."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
CAPTIONS = st.dictionaries(st.sampled_from(["en", "de"]), TEXTS | st.lists(TEXTS, max_size=2) | VALUES)


@pytest.mark.long
@settings(max_examples=150)
@given(st.fixed_dictionaries({"captions": CAPTIONS | VALUES}, optional={"id": VALUES, "concept": VALUES}) | VALUES)
def test_any_json_is_used_or_named(tmp_path_factory: pytest.TempPathFactory, record: Any) -> None:
    sample, bad = read(tmp_path_factory.mktemp("any"), json.dumps(record).encode())
    assert len(bad) <= 1
    assert "".join(bad).encode() is not None, "it is written to a file"
    for texts in sample.captions.values():
        assert all(text.strip() and text.encode() for text in texts)
    key(sample.concept, sample.name)


def test_too_many_in_a_row_are_given_up_with_the_last_reason(tmp_path: Path) -> None:
    found = source(tmp_path)
    config = SourceConfig(path=str(tmp_path))

    def refuse(members: Members, draw: Iterator[float] | None, into: PictureMemory | None = None) -> Picture:
        raise BadSample("too dark")

    dark = Source(found.folder, config, (0, "image_caption", 0), 1, refuse)
    with pytest.raises(UserError, match=r": 1 bad samples in a row; the last: .*shard-000000\.tar, sample 0: too dark"):
        dark.read(0, BadSamples([]))


def test_a_language_that_no_caption_has_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no caption in tlh .*; it has captions in de, en"):
        source(tmp_path, languages=["en", "tlh"])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_text_file_in_two_bytes_a_letter_is_bad(encoding: str) -> None:
    with pytest.raises(BadSample, match="txt holds characters of 0, as texts in UTF-16 do"):
        read_record({"txt": "a dog".encode(encoding)}, "en")
    with pytest.raises(BadSample, match="txt holds characters of 0, as texts in UTF-16 do"):
        passage("a dog".encode(encoding))


def test_the_mark_in_front_of_a_text_file_is_no_part_of_it() -> None:
    assert passage("\ufeffa dog\n".encode()) == "a dog"
    assert read_record({"txt": "\ufeffa dog".encode()}, "en").captions == {"en": ["a dog"]}


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\x07\x1b", "\u202e\u00ad", "\ufeff", "\u2028"])
def test_a_text_of_nothing_but_spaces_and_control_characters_is_none(text: str) -> None:
    with pytest.raises(BadSample, match="an empty text"):
        passage(text.encode())
    for found in ("a" + text, text + "\u732b", "\u202e" + text + "e\u0301", text + "\ue000"):
        assert passage(found.encode()) == found.strip().removeprefix("\ufeff")
