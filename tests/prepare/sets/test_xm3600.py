"""Crossmodal-3600's captions.jsonl, in which `id` is a language."""

import json
from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, picture, run, stored

KEYS = ["0008ebe299cd65ab", "0013ea2087020901"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    lines = []
    for number, key in enumerate(KEYS):
        line = {"image/key": key, "image/locale": "fr"}
        for language, texts in {
            "fr": ["un chien", "chien brun"],
            "id": ["anjing"],
            "quz": ["alqu"],
            "fil": ["aso"],
        }.items():
            line[language] = {  # type: ignore[assignment]
                "caption": texts, "caption/tokenized": texts, "caption/tokenized/lowercase": texts
            }  # fmt: skip
        lines.append(json.dumps(line))
        picture(tmp_path / "images" / f"{key}.jpg", 70 * number)
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def prepare(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    run("xm3600", folder / "captions.jsonl", "--images", folder / "images", *words, output=folder / "out")
    return stored(folder / "out")


def test_every_language_and_indonesian_among_them(archive: Path) -> None:
    found = prepare(archive)
    assert found[KEYS[0]]["captions"] == {
        "fr": ["un chien", "chien brun"],
        "id": ["anjing"],
        "quz": ["alqu"],
        "fil": ["aso"],
    }
    assert origin(archive / "out")["captions_per_picture"] == "fil 1, fr 2, id 1, quz 1"


def test_a_language_that_is_missing_and_a_key_that_comes_twice(archive: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: it has no caption in de; it has fr, id, quz, fil"):
        prepare(archive, "--language", "de")
    path = archive / "captions.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + '\n{"captions": {"en": "a dog"}}\n')
    with pytest.raises(
        UserError, match=r"(?s)line 3: id '0008ebe299cd65ab' is that of line 1 again.*line 4: image/key is None"
    ):
        prepare(archive)
