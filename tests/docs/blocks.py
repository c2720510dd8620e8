"""The commands, examples, names and links of README and docs, as the tests of this folder read them.

A block of commands (```bash) says in a comment in front of it how it is tested: `<!-- test: CLASS ... -->`, with one of

    run [with ARGUMENT ...]  run as it stands, in a folder with tiny data and a tiny trained run; the arguments are added to
                             each command, so that a training of minutes takes seconds
    options                  parsed by the program's own parser: it exists, and so does each option; recipes it names load
    cluster                  the same for what needs Slurm: the scripts it names are read by `bash -n` too
    setup                    what installs: the files and extras that it names exist
    in CHANGE                run in a copy of the tree with a change of docs/extending.md (tests/docs/test_extending.py)

Blocks of other languages need no comment: console (`$ command`, then what it prints, compared), python (run), yaml (a part of
a recipe, validated), json (parsed), text (shown only), diff (tests/docs/test_extending.py).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data_shards" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
"""Every page that a reader is given."""
CLASSES = {"run", "options", "cluster", "setup", "in"}
"""Ways to test a block of commands."""
LANGUAGES = {"bash", "console", "python", "yaml", "json", "text", "diff"}
"""Languages that a block may have."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*)\s*$")
_COMMENT = re.compile(r"<!-- test: (?P<words>.+?) -->")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")
_HEADING = re.compile(r"^#+ +(?P<text>.+?) *#*$")


class Block(NamedTuple):
    """A fenced block of a page."""

    path: Path
    line: int
    """Number of its first line in the page, from 1."""
    language: str
    words: list[str]
    """Words of the `test:` comment in front of it; empty where there is none."""
    text: str

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, of whatever indentation. Raises ValueError for one that has no end."""
    comment, lines = list[str](), path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            found = _COMMENT.search(lines[number])
            if found or lines[number].strip():
                comment = found["words"].split() if found else []
            number += 1
            continue
        first = number + 1
        end = next((n for n in range(first, len(lines)) if lines[n].strip() == fence["ticks"]), None)
        if end is None:
            raise ValueError(f"{path}:{first}: a block that does not end")
        text = "\n".join(line.removeprefix(fence["indent"]) for line in lines[first:end]) + "\n"
        yield Block(path, first + 1, fence["language"], comment, text)
        comment, number = [], end + 1


def prose(path: Path) -> list[str]:
    """Return the lines of a page with those of fenced blocks blanked, so that line numbers stay."""
    lines, inside = list[str](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line)
        if inside:
            lines.append("")
            inside = "" if line.strip() == inside else inside
        elif fence:
            lines.append("")
            inside = fence["ticks"]
        else:
            lines.append(line)
    return lines


def links(path: Path) -> Iterator[str]:
    """Yield the targets of a page's links and pictures."""
    for line in prose(path):
        yield from (found["target"] for found in _LINK.finditer(line))


def code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the code between single backticks in a page's text, with its line."""
    for number, line in enumerate(prose(path), start=1):
        yield from ((number, found["code"]) for found in _CODE.finditer(line))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = (_HEADING.match(line) for line in prose(path))
    texts = (re.sub(r"[^\w\- ]", "", found["text"].replace("`", "")) for found in headings if found)
    return {text.strip().lower().replace(" ", "-") for text in texts}


def commands(text: str) -> list[str]:
    """Return the commands of a bash block: lines joined where they end in a backslash, without comments and blanks."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines) if line]
