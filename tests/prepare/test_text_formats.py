"""Text files that are tables, markup or other people's JSON are refused by name, and never become passages."""

from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.prepare.text import Paragraphs, prepare_text

SENTENCE = "Ein Satz, der gut ist."


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (f"17\t{SENTENCE}", "several columns between tabs"),  # Leipzig's corpora
        (f"17\tdeu\t{SENTENCE}", "several columns between tabs"),  # Tatoeba
        (f'<s id="17">{SENTENCE} &amp; mehr</s>', "markup"),
        (f"<p>{SENTENCE}</p>", "markup"),
        (f"{{'text': '{SENTENCE}'}}", "dictionaries of Python"),
        (f'["{SENTENCE}", "Und noch einer."]', "lists of texts"),
        (f"{SENTENCE} ||| A sentence. ||| 0.5", r"columns between \|\|\|"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, line: str, rule: str) -> None:
    raw, output = tmp_path / "raw", tmp_path / "output"
    raw.mkdir()
    (raw / "de.txt").write_text(f"{line}\n" * 6)
    with pytest.raises(UserError, match=rf"de\.txt: 6 of 6 lines .*{rule}.*the rule is plain text"):
        prepare_text(raw, output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{SENTENCE}\n{SENTENCE}\n\n" for n in range(5)),
            "times of subtitles",
        ),
        ("WEBVTT\n\n" + f"00:01.000 --> 00:02.000 align:start\n{SENTENCE}\n\n" * 5, "times of subtitles"),
        (f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 9\r\n\r\n{SENTENCE}\r\n\r\n" * 5, "records of a crawl"),
    ],
    ids=["srt", "vtt", "wet"],
)
def test_lines_between_text_refuse_a_file(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "de.txt").write_text(text)
    with pytest.raises(UserError, match=rf"de\.txt: 5 of \d+ lines .*{rule}"):
        prepare_text(tmp_path, tmp_path / "output")


@pytest.mark.parametrize("header", ["id,text", "id;lang;sentence", '"text","label"'])
def test_a_table_under_a_line_of_names_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "de.txt").write_text(f'{header}\n1,"{SENTENCE}"\n')
    with pytest.raises(UserError, match=r"line 1: .* names the columns of a table"):
        prepare_text(tmp_path, tmp_path / "output")


def test_an_object_that_was_cut_off_is_no_paragraph(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text(f'{{"text": "{SENTENCE}"}}\n{{"text": "Ein Sa')
    with pytest.raises(UserError, match=r"line 2: no whole JSON object"):
        list(Paragraphs(tmp_path / "de.txt"))


def test_a_few_such_lines_are_counted_and_plain_text_is_text(tmp_path: Path) -> None:
    plain = [
        SENTENCE,
        'Er sagte: "Ja."',
        "a < b und c > d",
        "[Musik]",
        "A --> B",
        "Karl & Karla",
        "text",
        "Text, der mit Komma beginnt",
    ]
    odd = ["Name\tAlter", "<b>fett</b>", '"Ganz in Anführungszeichen."', "Karl &amp; Karla"]
    (tmp_path / "de.txt").write_text("\n".join([*plain, *odd]))
    paragraphs = Paragraphs(tmp_path / "de.txt")
    assert list(paragraphs) == [*plain, "Name Alter", *odd[1:]]
    assert [note.partition(": ")[2] for note in paragraphs.notes()] == [
        "1 of 12 lines have several columns between tabs; they are taken as text.",
        "1 of 12 lines are markup (XML, HTML); they are taken as text.",
        "1 of 12 lines stand in quotes as a whole; they are taken as text.",
        "1 of 12 lines have letters written as in HTML (&amp;); they are taken as text.",
    ]
