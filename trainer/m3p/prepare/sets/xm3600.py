"""Crossmodal-3600: about two captions in each of 36 languages for 3,600 pictures of Open Images (arXiv 2205.12522).

captions.jsonl  {"image/key": "0008ebe299cd65ab", "image/locale": "fr", "fr": {"caption": ["...", "..."],
                "caption/tokenized": [...], "caption/tokenized/lowercase": [...]}, "de": {...}, ...}

The key `id` in it is the language Indonesian. The pictures are KEY.jpg.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m3p.errors import UserError
from m3p.prepare.captions import read_jsonl
from m3p.prepare.pairs import Entry
from m3p.prepare.published import HUMAN, Published, origin_of


def xm3600(
    source: Annotated[Path, typer.Argument(metavar="captions.jsonl", help="As its archive captions.zip holds it.")],
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Only this one; may be given again.")
    ] = None,
) -> Published:
    """Crossmodal-3600's captions to shards: all languages, or those named."""
    if not source.is_file():
        raise UserError(f"{source} does not exist: give captions.jsonl of Crossmodal-3600's captions.zip.")
    return Published(str(source), _entries(source, languages), origin_of("xm3600", HUMAN, "test", "CC BY 4.0"))


def _entries(source: Path, languages: list[str] | None) -> Iterator[Entry]:
    """Yield a record a picture, with its captions in `languages` (None: in all that it has)."""
    for where, record in read_jsonl(source):
        if isinstance(record, str):
            yield Entry(where, record)
            continue
        key = record.get("image/key")
        if not isinstance(key, str):
            yield Entry(where, f"image/key is {key!r}; the rule is text: give captions.jsonl of Crossmodal-3600")
            continue
        captions = {
            name: value["caption"] for name, value in record.items() if isinstance(value, dict) and value.get("caption")
        }
        if missing := sorted(set(languages or ()) - captions.keys()):
            yield Entry(where, f"it has no caption in {', '.join(missing)}; it has {', '.join(captions)}")
            continue
        chosen = {name: texts for name, texts in captions.items() if languages is None or name in languages}
        images = [f"{key}.jpg", f"images/{key}.jpg"]
        yield Entry(where, {"id": key, "image": images, "captions": chosen, "published_id": f"xm3600/{key}"})
