"""Multi30K's captions as github.com/multi30k/dataset publishes them, beside a folder of Flickr30K's (or MSCOCO's) pictures.

    data/task1/raw/train.en.gz       one caption a picture in en, de, fr and cs: translations of the English one
    data/task1/image_splits/train.txt
    data/task2/raw/train.1.en.gz     five captions a picture in en and de, written independently of each other
    data/task2/image_splits/train_images.txt

Line n of a caption file belongs to line n of the list of pictures. The two tasks are different sets: never mixed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from m3p.errors import UserError
from m3p.prepare.lines import check_once, files_of, plain_name
from m3p.prepare.pairs import Entry
from m3p.prepare.published import (
    HUMAN,
    HUMAN_TRANSLATION,
    Published,
    flickr_or_coco,
    origin_of,
    text_lines,
)
from m3p.terminal import warn

SOURCES = {1: HUMAN_TRANSLATION, 2: HUMAN}
"""Who wrote the captions of a task; those of Task 1 in English alone are no translations."""
WORDS = {1: "translations of the English captions", 2: "written independently in each language"}
"""The same in the words of messages."""
_NAME = re.compile(r"(?P<split>.+?)(?:\.(?P<number>[1-5]))?\.(?P<language>[a-z]{2})")


def multi30k(
    folder: Annotated[Path, typer.Argument(help="data/task1 or data/task2 of github.com/multi30k/dataset.")],
    task: Annotated[
        int, typer.Option(min=1, max=2, help="1: translations, a caption a picture; 2: written independently, five.")
    ],
    split: Annotated[
        str, typer.Option(help="As its list of pictures is called: train, val, test_2016_flickr.")
    ] = "train",
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Only this one; may be given again.")
    ] = None,
) -> Published:
    """Multi30K to shards: Task 1 in en, de, fr and cs, or Task 2 in en and de. The manifest says which."""
    # The English captions of Task 1 are Flickr30K's own, from which the others were translated.
    source = HUMAN if languages is not None and set(languages) == {"en"} else SOURCES[task]
    origin = origin_of("multi30k", source, split, task=str(task))
    return Published(str(folder), read_multi30k(folder, task, split, languages), origin)


class CaptionFile(NamedTuple):
    """One of the files of a split."""

    language: str
    number: int
    """1 to 5 in Task 2; 0 in Task 1."""
    path: Path


def read_multi30k(folder: Path, task: int, split: str, languages: list[str] | None = None) -> Iterator[Entry]:
    """Yield a record a picture of `folder` (data/task1 or data/task2). Raises UserError for files that do not belong together."""
    names = text_lines(_image_list(folder, task, split))
    files = _caption_files(folder, task, split, languages)
    texts = [text_lines(file.path) for file in files]
    for file, lines in zip(files, texts, strict=True):
        if len(lines) != len(names):
            raise UserError(
                f"{file.path} has {len(lines):,} lines, but the list of pictures of {split} {len(names):,}: they are not of one "
                "split: copy both again."
            )
    for number, name in enumerate(names):
        captions: dict[str, list[str]] = {}
        for file, lines in zip(files, texts, strict=True):
            captions.setdefault(file.language, []).append(lines[number])
        # test_2017_mscoco's list names the caption of MSCOCO too: COCO_train2014_000000000009.jpg#48
        image = name.partition("#")[0]
        record = {"id": image.rpartition(".")[0] or image, "captions": captions, **flickr_or_coco(image)}
        yield Entry(f"line {number + 1}", record)


def _image_list(folder: Path, task: int, split: str) -> Path:
    """Return the list of the pictures of a split."""
    path = folder / "image_splits" / (f"{split}.txt" if task == 1 else f"{split}_images.txt")
    if not path.is_file():
        lists = sorted(other.name for other in (folder / "image_splits").glob("*.txt"))
        raise UserError(
            f"{path} does not exist: give the folder of Task {task} (data/task{task} of multi30k/dataset) and one of its splits"
            + (f"; image_splits holds {', '.join(lists)}." if lists else ".")
        )
    return path


def _caption_files(folder: Path, task: int, split: str, languages: list[str] | None) -> list[CaptionFile]:
    """Return the caption files of a split, by language and number. Raises UserError for those of the other task."""
    found, other = list[Path](), list[Path]()
    for path in files_of(folder / "raw"):
        match = _NAME.fullmatch(plain_name(path))
        if match and match["split"] == split:
            (found if (match["number"] is None) == (task == 1) else other).append(path)
    if not found:
        if other:
            raise UserError(
                f"{folder}/raw holds {other[0].name}, a file of Task {3 - task}: {WORDS[3 - task]}. Say --task "
                f"{3 - task}, or give the folder of Task {task}, {WORDS[task]}."
            )
        raise UserError(f"{folder}/raw holds no captions of {split}, such as {split}.en.gz or {split}.1.en.gz.")
    check_once(found, "they are one file")
    files = [_caption_file(path) for path in found]
    chosen = sorted(file for file in files if languages is None or file.language in languages)
    if missing := sorted(set(languages or ()) - {file.language for file in chosen}):
        has = ", ".join(sorted({file.language for file in files}))
        raise UserError(f"{folder}/raw has no captions of {split} in {', '.join(missing)}; it has {has}.")
    _say_missing(folder, split, chosen)
    return chosen


def _say_missing(folder: Path, split: str, files: list[CaptionFile]) -> None:
    """Say which of the five files of a language of Task 2 are not there: its pictures have fewer captions than published."""
    for language in sorted({file.language for file in files if file.number}):
        numbers = {file.number for file in files if file.language == language}
        if missing := [f"{split}.{number}.{language}" for number in range(1, 6) if number not in numbers]:
            warn(
                f"{folder}/raw: {', '.join(missing)} not there: pictures have {len(numbers)} captions in {language}, "
                "where the published set has 5"
            )


def _caption_file(path: Path) -> CaptionFile:
    match = _NAME.fullmatch(plain_name(path))
    assert match is not None, "chosen by it"
    return CaptionFile(match["language"], int(match["number"] or 0), path)
