"""WIT's TSV files, packed, and IGLUE's JSON lines of it."""

import gzip
import json
from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, picture, run, stored

COLUMNS = [
    "language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title",
    "caption_reference_description", "caption_attribution_description", "caption_alt_text_description", "mime_type",
    "original_height", "original_width", "is_main_image", "attribution_passes_lang_id", "page_changed_recently",
    "context_page_description", "context_section_description",
]  # fmt: skip
URL = "http://upload.wikimedia.org/wikipedia/commons/c/c0/Viborg_%28aviser%29.jpg"


def table(path: Path, *rows: dict[str, str]) -> Path:
    lines = ["\t".join(COLUMNS), *("\t".join(row.get(column, "") for column in COLUMNS) for row in rows)]
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    return path


def row(language: str, caption: str, url: str = URL) -> dict[str, str]:
    return {"language": language, "image_url": url, "caption_reference_description": caption, "page_title": "x"}


def test_lines_of_one_url_are_one_picture_in_all_languages(tmp_path: Path) -> None:
    path = table(
        tmp_path / "wit_v1.train.all-00000-of-00010.tsv.gz",
        row("da", "Eksemplarer"), row("en", "Copies"), row("en", "Copies"), row("en", "A paper"), row("fr", ""),
    )  # fmt: skip
    picture(tmp_path / "images" / "Viborg_(aviser).jpg", 5)
    said = run("wit", path, "--images", tmp_path / "images", output=tmp_path / "out")
    assert "1 lines have no caption_reference_description and are left out" in said
    assert stored(tmp_path / "out")[URL]["captions"] == {"da": ["Eksemplarer"], "en": ["Copies", "A paper"]}
    assert (origin(tmp_path / "out")["caption_source"], origin(tmp_path / "out")["licence"]) == ("web", "CC BY-SA 3.0")


def test_iglues_lines_find_their_pictures_by_number(tmp_path: Path) -> None:
    for language in ("da", "de"):
        line = {**row(language, f"caption {language}"), "image_idx": 57, "wit_ix": "wit-test_15"}
        (tmp_path / f"test_{language}.jsonl").write_text(json.dumps(line) + "\n")
    picture(tmp_path / "images" / "57.jpg", 5)
    files = [tmp_path / f"test_{language}.jsonl" for language in ("da", "de")]
    run("wit", *files, "--images", tmp_path / "images", "--split", "test", output=tmp_path / "out")
    assert stored(tmp_path / "out")[URL]["captions"] == {"da": ["caption da"], "de": ["caption de"]}


def test_wrong_files_and_missing_pictures_say_so(tmp_path: Path) -> None:
    path = table(tmp_path / "wit.tsv.gz", row("da", "x"), row("", "x"))
    (tmp_path / "images").mkdir()
    with pytest.raises(
        UserError, match=r"(?s)wit\.tsv\.gz, line 3: .*language ''.*line 2: image 'Viborg_%28.* does not exist"
    ):
        run("wit", path, "--images", tmp_path / "images", output=tmp_path / "out")
    (tmp_path / "other.tsv").write_text("caption\turl\na dog\thttp://x/y.jpg\n")
    with pytest.raises(UserError, match=r"other\.tsv has no column language and no column image_url: give WIT's TSV"):
        run("wit", tmp_path / "other.tsv", "--images", tmp_path / "images", output=tmp_path / "out")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(
        UserError, match=r"wit\.tsv\.gz cannot be read .*: give WIT's TSV files, or IGLUE's JSON lines, or copy"
    ):
        run("wit", path, "--images", tmp_path / "images", output=tmp_path / "out")


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"language": True}, "language True; the rule is that a line of WIT has both"),
        ({"language": ["da"]}, "the rule is that a line of WIT has both"),
        ({"image_url": ["x"]}, "the rule is that a line of WIT has both"),
        ({"image_url": {"x": 1}}, "the rule is that a line of WIT has both"),
        ({"caption_reference_description": {"x": 1}}, "the rule is text, or a list of texts"),
    ],
)
def test_fields_of_any_kind_are_named(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "test_da.jsonl").write_text(json.dumps({**row("da", "x"), **changes}) + "\n")
    with pytest.raises(UserError) as caught:
        run("wit", tmp_path / "test_da.jsonl", "--images", tmp_path / "images", output=tmp_path / "out")
    assert says in str(caught.value)
