"""COCO-CN: Chinese captions of pictures of MSCOCO (arXiv 1805.08661), as its archive has them.

coco-cn_train.txt                        a picture of the split a line: COCO_train2014_000000000009
imageid.human-written-caption.txt        COCO_train2014_000000000009#0<TAB>CAPTION, or #zhm#0
imageid.manually-translated-caption.txt  the same; five of each test picture, translated from MSCOCO's
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m3p.errors import UserError
from m3p.prepare.pairs import Entry
from m3p.prepare.published import (
    HUMAN,
    HUMAN_TRANSLATION,
    Published,
    check_script,
    coco_id,
    coco_images,
    one_of,
    origin_of,
    text_lines,
)

FILES = {False: "imageid.human-written-caption.txt", True: "imageid.manually-translated-caption.txt"}


def coco_cn(
    folder: Annotated[Path, typer.Argument(help="The folder of its archive, coco-cn-version1805v1.1.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    translated: Annotated[
        bool, typer.Option("--translated", help="Take the captions that were translated, of test pictures alone.")
    ] = False,
) -> Published:
    """COCO-CN's Chinese captions of MSCOCO to shards."""
    source = HUMAN_TRANSLATION if translated else HUMAN
    origin = origin_of("coco-cn", source, split, file=FILES[translated])
    return Published(str(folder), read_coco_cn(folder, split, translated), origin, "zh")


def read_coco_cn(folder: Path, split: str, translated: bool) -> Iterator[Entry]:
    """Yield a record a picture of the split's list. Raises UserError for files that are missing or of another form."""
    listed = one_of(
        folder / f"coco-cn_{split}.txt", wanted=f"give the folder of COCO-CN's archive, which holds {FILES[False]}."
    )
    captions = _captions(one_of(folder / FILES[translated], wanted="give the folder of COCO-CN's archive, unpacked."))
    names = [line.split("#")[0].split(".")[0] for line in text_lines(listed) if line]
    if not names:
        raise UserError(f"{listed} names no picture: copy it again.")
    if not any(name in captions for name in names):
        raise UserError(
            f"{folder / FILES[translated]} has captions of none of the {len(names):,} pictures of {listed.name}"
            + (": only those of test were translated; say --split test." if translated else ": copy the archive again.")
        )
    check_script(str(folder / FILES[translated]), [text for name in names for text in captions.get(name, ())], "zh")
    return _entries(names, captions)


def _entries(names: list[str], captions: dict[str, list[str]]) -> Iterator[Entry]:
    for number, name in enumerate(names, 1):
        if name not in captions:
            yield Entry(f"picture {number} ({name!r})", "it has no caption in the file of captions")
            continue
        record = {"id": name, "image": coco_images(f"{name}.jpg"), "captions": {"zh": captions[name]}}
        yield Entry(f"picture {number} ({name!r})", record | {"published_id": coco_id(name)})


def _captions(path: Path) -> dict[str, list[str]]:
    """Return the captions by picture. Raises UserError for a line that is none."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path), 1):
        tag, *text = line.split(maxsplit=1) if line else [""]
        name, sign, _ = tag.partition("#")
        if line and not (sign and text and coco_id(name)):
            raise UserError(
                f"{path}, line {number}: {line[:60]!r}; the rule is IMAGE#NUMBER, a tab, a caption: give {path.name} of COCO-CN."
            )
        if line:
            found.setdefault(name, []).append(text[0])
    return found
