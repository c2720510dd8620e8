"""Plain text in many languages to one source of passages a language."""

import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from m3p.data.languages import LANGUAGE_TAG
from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from m3p.prepare.shards import ShardWriter
from m3p.prepare.staging import staged_folder

MARKER = "*/manifest.json"

SENTENCE_END = re.compile(r"""[.!?։؟।॥۔။።]+["'»”’)\]]*\s+|[。！？｡]+[」』”’）]*\s*""")
"""Full stops of the scripts of the world: those that a space follows, and those of Chinese and Japanese."""


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


def read_paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a text file, one a line, blank ones dropped. Raises UserError for invalid UTF-8."""
    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=None)
    with path.open("rb") as file, bar:
        for number, line in enumerate(file, start=1):
            try:
                paragraph = " ".join(line.decode("utf-8-sig" if number == 1 else "utf-8").split())
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: byte {error.start + 1} is not valid UTF-8 ({error.reason}). Convert the "
                    "file, for instance with iconv."
                ) from None
            if paragraph:
                yield paragraph
            bar.update(len(line))


def prepare_text(
    folder: Path,
    output: Path,
    max_characters: int = 1000,
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Write FOLDER/LANG.txt as the source OUTPUT/LANG, for each language; return the manifests by language.

    Raises UserError for no files, names that are no language tag, invalid UTF-8, or a file without text.
    """
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"{folder} holds no LANG.txt: give a folder with one text file a language, such as de.txt.")
    wrong = [path.name for path in paths if not LANGUAGE_TAG.fullmatch(path.stem)]
    if wrong:
        raise UserError(f"{folder}: {', '.join(wrong)}: the rule is LANG.txt with a language tag, such as de.txt.")
    no_files = [path.name for path in paths if not path.is_file()]
    if no_files:
        raise UserError(f"{folder}: {', '.join(no_files)}: the rule is a text file; take away what is none.")
    manifests = {}
    with staged_folder(output, MARKER, overwrite) as staged:
        for path in paths:
            with ShardWriter(staged / path.stem, "text", samples_per_shard, language=path.stem) as writer:
                for paragraph in read_paragraphs(path):
                    for passage in passages(paragraph, max_characters):
                        writer.write({"txt": passage.encode()})
                if not writer.samples:
                    raise UserError(f"{path} holds no text: remove it, or put one paragraph on a line.")
            manifests[path.stem] = writer.manifest
    return manifests
