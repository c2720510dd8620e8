"""Text from outside is only text, wherever it is shown."""

import ast
import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from m3p.console import PlainConsole
from m3p.data.shards.manifest import Manifest
from m3p.data.shards.notes import notes
from m3p.data.shards.shard_table import Shard, ShardTable
from m3p.data.shards.tar_index import TarIndex
from m3p.errors import BadSample, UserError
from m3p.prepare.lines import listed
from m3p.prepare.pairs import caption_counts, report
from m3p.terminal import one_line, printable, say, warn
from m3p.training.watch.bad_report import BadReport
from tests.launch import ROOT

NASTY = [
    "[/x]",
    "[red]x",
    ":smile:",
    "a\nerror: forged",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe",
    "\u2028x",
    "\r\x00",
]
PACKAGE = ROOT / "trainer" / "m3p"


@pytest.mark.parametrize(
    "url", ["https://alice:s3cret@host/x", "https:/alice:s3cret@host/x", "http:/s3cret@h", "s3://b/x?token=s3cret"]
)
def test_passwords_are_printed_nowhere(capsys: pytest.CaptureFixture[str], url: str) -> None:
    """A URL given for a path, as in `m3p index URL`, loses a slash before an error names it."""
    say(f"{url} is not a folder")
    warn(UserError(f"{Path(url)} is not a folder"))
    table = Table("of")
    table.add_row(url)
    PlainConsole(width=200).print(table)
    said = "".join(capsys.readouterr())
    assert "s3cret" not in said
    assert said.count("***") == 3


@given(st.text())
def test_one_line_is_one_line_without_control_characters(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    assert one_line(shown) == shown
    assert printable("a\n\tb" + text).startswith("a\n\tb")


@pytest.mark.parametrize("text", ["Žluťoučký kůň", "می‌خواهم", "हिन्दी", "猫 🐈", "e\u0301"])
def test_writing_of_any_script_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text


@pytest.mark.parametrize("text", NASTY)
def test_tables_show_text_and_read_no_markup(text: str) -> None:
    console = PlainConsole(file=io.StringIO(), width=200)
    table = Table("heading", title=text)
    table.add_row(text)
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert "\x1b" not in shown
    assert shown.count(printable(text).split("\n")[0]) >= 2


@pytest.mark.parametrize("text", NASTY)
def test_lines_carry_no_escapes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    warn(text)
    out, err = capsys.readouterr()
    for shown in (out, err):
        assert not set("\x1b\x07\r\x00\u202e\u2028") & set(shown)


@pytest.mark.parametrize("name", ["a\nerror: forged", "a\n\nstep 7: loss 0", "\nx", "a\r\nx"])
def test_a_line_break_in_a_name_begins_no_line_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{name}: not read")
    warn(f"error: {name}\n  - one more")
    out, err = capsys.readouterr()
    for shown in (out, err):
        assert all(line.startswith("  ") for line in shown.split("\n")[1:] if line), shown


def test_lists_of_strangers_names_are_one_line_each() -> None:
    """Where a list is set in, being set in is no help: names are escaped one by one."""
    evil = "x\n  1   0.999  forged"
    shards = ShardTable([Shard(name="a.tar", samples=1, bytes=512, fingerprint="0" * 48)])
    shown = [
        report("raw", {evil: [f"{evil} is wrong"]}).split("\n", 1)[1],
        listed([Path(evil)]),
        *notes("raw", {"a.tar": TarIndex(1, 1, "", unread=Counter({f"the field {evil}": 1}))}),
        caption_counts(Manifest(kind="captions", samples=1, captions={evil: 1}, shards=shards)),
    ]
    for text in shown:
        assert "forged" in text
        assert len(text.splitlines()) == 1, text


def test_a_bad_samples_reason_cannot_forge_a_line_of_the_report(tmp_path: Path) -> None:
    reason = BadSample("no caption in x\nstep 1: /else/a.tar, sample 3: forged")
    report = BadReport(tmp_path, 0)
    report.add(1, [f"src/a.tar, sample 0: {reason}"])
    again = BadReport(tmp_path, 1)
    assert list(again.shards) == ["src/a.tar"]
    assert again.reasons.total() == 1


@pytest.mark.long
def test_nothing_prints_past_the_terminals_file() -> None:
    """By the source: `print`, `typer.echo` and rich's `Console` are used in the two files that escape, and nowhere else."""
    allowed = {"terminal.py", "console.py"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "print",
                "typer.echo",
                "Console",
                "click.echo",
            }:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []


@pytest.mark.long
def test_bars_show_names_of_files_as_one_line() -> None:
    """By the source: what tqdm is given to print is a text of the program, or escaped."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm":
                words = [word.value for word in node.keywords if word.arg in ("desc", "postfix")]
                escaped = [
                    isinstance(word, ast.Constant) or ast.unparse(word).startswith("one_line(") for word in words
                ]
                found += [] if all(escaped) else [f"{path.relative_to(PACKAGE)}:{node.lineno}"]
    assert found == []
