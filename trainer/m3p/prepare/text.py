"""Plain text in many languages to one source of passages a language."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from m3p.data.languages import LANGUAGE_TAG
from m3p.data.records import says_something
from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from m3p.prepare.lines import OTHERS, check_no_document, check_once, files_of, listed, numbered_lines, plain_name
from m3p.prepare.shards import ShardWriter
from m3p.prepare.staging import staged_folder
from m3p.prepare.text_formats import TextFormats
from m3p.terminal import say
from m3p.unicode_text import HALF, is_unicode

MARKER = "*/manifest.json"

SENTENCE_END = re.compile(r"""[.!?։؟।॥۔။።]+["'»”’)\]]*\s+|[。！？｡]+[」』”’）]*\s*""")
"""Full stops of the scripts of the world: those that a space follows, and those of Chinese and Japanese."""


DOCUMENT = re.compile(r"<doc( [^>]*)?>|</doc>")
"""A line that WikiExtractor writes before or after an article."""


def passages(paragraph: str, limit: int) -> Iterator[str]:
    """Cut `paragraph` into passages of at most `limit` characters, at sentence ends where there are any.

    A sentence that is longer is cut at a space, and one without spaces (Thai, Japanese) anywhere.
    """
    start = 0
    while len(paragraph) - start > limit:
        window = paragraph[start : start + limit + 1]
        ends = [match.end() for match in SENTENCE_END.finditer(window) if match.end() <= limit]
        cut = ends[-1] if ends else window.rfind(" ", 1) + 1 or limit
        yield paragraph[start : start + cut].strip()
        start += cut
    yield paragraph[start:].strip()


class Paragraphs:
    """The paragraphs of a text file, one a line; blank lines are dropped.

    Lines that WikiExtractor writes around articles are left out, and of lines that are JSON objects the field `text` is read;
    what was met is counted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = self.docs = self.objects = 0
        """Lines that are not blank, those of them that are left out, and those of JSON."""
        self.unread: set[str] = set()
        """Fields of the JSON that nothing is read from."""
        self.formats = TextFormats(path)
        """What other lines look like."""

    def __iter__(self) -> Iterator[str]:
        """Yield the paragraphs. Raises UserError for invalid UTF-8, and JSON without a text or cut off."""
        for number, line in numbered_lines(self.path):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.path}, line {number}: byte {error.start + 1} is not valid UTF-8 ({error.reason}). Convert the "
                    "file, for instance with iconv."
                ) from None
            paragraph = " ".join(text.split())
            if not self.lines:
                check_no_document(self.path, number, line, "with a field `text`, or plain text, one paragraph a line")
            self.lines += bool(paragraph)
            if DOCUMENT.fullmatch(paragraph):
                self.docs += 1
            elif paragraph.startswith("{") and paragraph.endswith("}") and (fields := _object(line)) is not None:
                yield from self._texts(fields, number)
            elif self.objects and paragraph.startswith('{"'):
                raise UserError(
                    f"{self.path}, line {number}: no whole JSON object, as the lines before it are (was the file cut?): copy it "
                    "again, or leave the line out."
                )
            elif says_something(paragraph):
                self.formats.add(text)
                yield paragraph

    def _texts(self, fields: dict[str, object], number: int) -> Iterator[str]:
        """Yield the paragraphs of a JSON object."""
        text = fields.get("text")
        if not isinstance(text, str):
            names = ", ".join(map(repr, list(fields)[:8]))
            raise UserError(
                f"{self.path}, line {number}: a JSON object with the fields {names}; the rule is "
                "plain text, one paragraph a line, or objects with a field `text`."
            )
        if not is_unicode(text):
            raise UserError(
                f"{self.path}, line {number}: its text holds {HALF}; the rule is Unicode text: mend it, or leave the line out."
            )
        self.objects += 1
        self.unread.update(name for name in fields if name != "text")
        yield from filter(None, (" ".join(line.split()) for line in text.splitlines()))

    def notes(self) -> Iterator[str]:
        """Yield what is worth saying of the file once it is read."""
        if self.docs:
            yield f"{self.path}: {self.docs:,} lines <doc ...> and </doc> (WikiExtractor's) were left out."
        if self.objects:
            fields = f"; not read: {', '.join(sorted(self.unread)[:8])}" if self.unread else ""
            yield f"{self.path}: {self.objects:,} lines are JSON objects, of which the field text was read{fields}."
        yield from self.formats.notes()


def read_paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a text file. Raises UserError as `Paragraphs` does."""
    yield from Paragraphs(path)


def _object(line: bytes) -> dict[str, object] | None:
    """Return the JSON object that a line is, or None where it is none."""
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


def prepare_text(
    folder: Path,
    output: Path,
    max_characters: int = 1000,
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Write FOLDER/LANG.txt (or .txt.gz, .txt.xz) as the source OUTPUT/LANG, for each language; return the manifests.

    Raises UserError for no files, names that are no language tag, invalid UTF-8, files of other formats, or one without text.
    """
    manifests = {}
    paths = _find_texts(folder)
    with staged_folder(output, MARKER, overwrite) as staged:
        for path in paths:
            language = _language(path)
            paragraphs = Paragraphs(path)
            with ShardWriter(staged / language, "text", samples_per_shard, language=language) as writer:
                for paragraph in paragraphs:
                    for passage in passages(paragraph, max_characters):
                        writer.write({"txt": passage.encode()})
                paragraphs.formats.check()
                if not writer.samples:
                    raise UserError(f"{path} holds no text: remove it, or put one paragraph on a line.")
            manifests[language] = writer.manifest
            for note in paragraphs.notes():
                say(note)
    return manifests


def _find_texts(folder: Path) -> list[Path]:
    """Return the text files of a folder, and say what else it holds. Raises UserError for none, or wrong names."""
    found, others = list[Path](), list[Path]()
    for path in files_of(folder):
        (found if plain_name(path).endswith(".txt") else others).append(path)
    if not found:
        holds = f" (it holds {listed(others)})" if others else ""
        raise UserError(
            f"{folder} holds no LANG.txt{holds}: give a folder with one text file a language, such as de.txt or de.txt.gz."
        )
    if wrong := [path for path in found if not LANGUAGE_TAG.fullmatch(_language(path))]:
        raise UserError(f"{folder}: {listed(wrong)}: the rule is LANG.txt with a language tag, such as de.txt.")
    if no_files := [path for path in found if not path.is_file()]:
        raise UserError(f"{folder}: {listed(no_files)}: the rule is a text file; take away what is none.")
    if packed := [path for path in found if path.suffix in OTHERS]:
        raise UserError(
            f"{folder}: {listed(packed)}: this compression is not read: unpack, or compress with gzip or xz."
        )
    check_once(found, "they are one language")
    if others:
        say(f"{folder}: not read: {listed(others)}; read are LANG.txt, LANG.txt.gz, LANG.txt.xz and LANG.txt.bz2.")
    return found


def _language(path: Path) -> str:
    return plain_name(path).removesuffix(".txt")
