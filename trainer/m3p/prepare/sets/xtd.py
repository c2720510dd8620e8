"""XTD: a caption of 1,000 pictures of MSCOCO in eleven languages (arXiv 2012.05107), as its repository has it.

XTD10/test_image_names.txt      COCO_val2014_000000000042.jpg, one a line
XTD10/test_1kcaptions_zh.txt    the caption of line n's picture; es, it, ko, pl, ru, tr, zh
MIC/test_1kcaptions_de.txt      de, en, fr
STAIR/test_1kcaptions_jp.txt    Japanese, whose language tag is ja
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m3p.errors import UserError
from m3p.prepare.pairs import Entry
from m3p.prepare.published import HUMAN, Published, coco_id, coco_images, one_of, origin_of, text_lines

LIST = "test_image_names.txt"
TAGS = {"jp": "ja"}
"""Languages whose file has another name than their tag."""


def xtd(
    folder: Annotated[
        Path, typer.Argument(help="adobe-research/Cross-lingual-Test-Dataset-XTD10, or one folder of it.")
    ],
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Only this one; may be given again.")
    ] = None,
) -> Published:
    """XTD's captions of MSCOCO to shards: all languages that the folder has, or those named."""
    listed = one_of(folder / LIST, folder / "XTD10" / LIST, wanted="give the folder of XTD's repository.")
    files = _files(folder, languages)
    origin = origin_of("xtd", HUMAN, "test", "Adobe's, see its LICENSE.md")
    return Published(str(folder), _entries(listed, files), origin)


def _files(folder: Path, languages: list[str] | None) -> dict[str, Path]:
    """Return the caption files by language tag. Raises UserError where one is missing, or stands there twice."""
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("test_1kcaptions_*.txt"), *folder.glob("*/test_1kcaptions_*.txt")]):
        code = path.stem.rpartition("_")[2]
        if other := found.get(TAGS.get(code, code)):
            raise UserError(f"{folder} holds {other} and {path}, both of {code}: take one of them away.")
        found[TAGS.get(code, code)] = path
    missing = sorted(set(languages or ()) - found.keys())
    if missing or not found:
        raise UserError(
            f"{folder} has no captions in {', '.join(missing) or 'any language'} (test_1kcaptions_LANG.txt)"
            + (f"; it has {', '.join(found)}." if found else ".")
        )
    return {language: path for language, path in found.items() if languages is None or language in languages}


def _entries(listed: Path, files: dict[str, Path]) -> Iterator[Entry]:
    """Yield a record a picture. Raises UserError for files of other lengths."""
    names = text_lines(listed)
    texts = {language: text_lines(path) for language, path in files.items()}
    for language, lines in texts.items():
        if len(lines) != len(names):
            raise UserError(
                f"{files[language]} has {len(lines):,} lines, but {listed} {len(names):,}: copy both again."
            )
    for number, name in enumerate(names):
        record = {"id": name.rpartition(".")[0] or name, "image": coco_images(name), "published_id": coco_id(name)}
        captions = {language: [lines[number]] for language, lines in texts.items()}
        yield Entry(f"line {number + 1} ({name!r})", {**record, "captions": captions})
