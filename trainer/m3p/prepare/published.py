"""What all importers of published sets share: what one makes of the files it is given, and names that several sets have."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import UserError
from m3p.prepare.lines import numbered_lines
from m3p.prepare.pairs import Entry

HUMAN = "human"
"""Written by people who saw the picture."""
HUMAN_TRANSLATION = "human translation"
"""Translated by people from English captions."""
MACHINE_TRANSLATION = "machine translation"
"""Translated by a program from English captions."""
WEB = "web"
"""Texts that stand beside the picture on a web page."""
JUDGED = 200
"""Captions by which the language of a file is judged."""
_KANA, _HAN = re.compile(r"[\u3040-\u30ff]"), re.compile(r"[\u4e00-\u9fff]")
_COCO = re.compile(r"(?:COCO_(?P<folder>train|val|test)20\d\d_)?0*(?P<number>\d+)")


class Published(NamedTuple):
    """What an importer makes of the files of a set."""

    name: str
    """What messages call it: as a rule the path of its file or folder."""
    entries: Iterable[Entry]
    """Its records."""
    origin: Mapping[str, str]
    """What the manifest says of it: `origin_of`."""
    language: str | None = None
    """Of captions that name none."""
    has_pictures: bool = False
    """Whether the records bring the bytes of their pictures, so that no folder of pictures is needed."""
    images: Path | None = None
    """Folder of the pictures where none is named on the command line."""


def origin_of(
    name: str, caption_source: str, split: str = "", licence: str = NOT_STATED, **more: str
) -> dict[str, str]:
    """Return what a manifest says of a set, fields without a value left out. `licence` is that of the captions."""
    told = {"set": name, "split": split, **more, "caption_source": caption_source, "licence": licence}
    return {field: value for field, value in told.items() if value}


def coco_id(file_name: str) -> str:
    """Return the name of a picture of MSCOCO in all sets that caption it, from its file's name in any year's spelling.

    COCO_train2014_000000000009.jpg, 000000000009.jpg and 9 are coco/9. "" where it is not spelt so.
    """
    found = _COCO.fullmatch(PurePosixPath(file_name).stem)
    return f"coco/{found['number']}" if found else ""


def flickr30k_id(file_name: str) -> str:
    """Return the name of a picture of Flickr30K in all sets that caption it, from its file's name."""
    return f"flickr30k/{PurePosixPath(file_name).stem}"


def flickr_or_coco(file_name: str) -> dict[str, object]:
    """Return `image` and `published_id` of a record of a set that has pictures of Flickr30K and of MSCOCO (COCO_val2014_...)."""
    if file_name.startswith("COCO_"):
        return {"image": coco_images(file_name), "published_id": coco_id(file_name)}
    return {"image": file_name, "published_id": flickr30k_id(file_name)}


def coco_images(file_name: str) -> list[str]:
    """Return the paths at which a picture of MSCOCO may lie: as it is named, and in the folders of the published archives."""
    found = _COCO.fullmatch(PurePosixPath(file_name).stem)
    if not found:
        return [file_name]
    name = PurePosixPath(file_name).name
    if found["folder"]:
        return [file_name, f"{found['folder']}2014/{name}", *_plain(found["number"])]
    return [file_name, *_plain(found["number"])]


def _plain(number: str) -> list[str]:
    """Return the paths of a picture in the archives of 2017, whose splits are others."""
    name = f"{int(number):012d}.jpg"
    return [name, f"train2017/{name}", f"val2017/{name}", f"test2017/{name}"]


def check_script(name: str, captions: Sequence[object], language: str) -> None:
    """Raise UserError where most of the first captions are not in the letters of their language.

    Japanese has kana, Chinese has Chinese characters and no kana, English neither; other languages are not judged. `name` is
    what messages call the file.
    """
    some = [str(caption) for caption in captions[:JUDGED]]
    kana = sum(bool(_KANA.search(text)) for text in some)
    chinese = sum(bool(_HAN.search(text)) and not _KANA.search(text) for text in some)
    wrong, lack = {
        "ja": (len(some) - kana, "no Japanese letter (kana)"),
        "zh": (len(some) - chinese, "no Chinese letter, or Japanese ones"),
        "en": (kana + chinese, "Japanese or Chinese letters"),
    }.get(language.partition("-")[0], (0, ""))
    if 2 * wrong > len(some):
        raise UserError(
            f"{name}: {wrong} of its first {len(some)} captions have {lack}, and they are to be in {language}: it is "
            "another file, or in another language (--language, where the command has it; stair and yj read Japanese ones)."
        )


def text_lines(path: Path) -> list[str]:
    """Return the lines of a text file, compressed or not; empty ones stand for themselves. Raises UserError."""
    lines = []
    for number, line in numbered_lines(path):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid UTF-8 ({error.reason}): copy it again.") from None
    return lines


def one_of(*paths: Path, wanted: str) -> Path:
    """Return the first of `paths` that is a file. Raises UserError, which says what is `wanted`."""
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"{paths[0]} does not exist: {wanted}")
