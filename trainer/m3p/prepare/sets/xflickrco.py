"""xFlickr&CO: a caption in each of eight languages for 1,000 pictures of Flickr30K and 1,000 of MSCOCO, as IGLUE has it
(arXiv 2201.11732).

annotations/de/test.jsonl                  {"sentences": ["..."], "id": "1007129816" or 24, "img_path": "1007129816.jpg"}
annotations/de/train_100.jsonl             few-shot samples, in some languages
annotations_machine-translate/de/test_gmt.jsonl  the English captions, translated by a program
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from m3p.errors import UserError
from m3p.prepare.captions import read_jsonl
from m3p.prepare.pairs import Entry
from m3p.prepare.published import HUMAN, MACHINE_TRANSLATION, Published, flickr_or_coco, origin_of
from m3p.terminal import warn

FOLDERS = {False: "annotations", True: "annotations_machine-translate"}


def xflickrco(
    folder: Annotated[Path, typer.Argument(help="datasets/xFlickrCO of github.com/e-bug/iglue.")],
    split: Annotated[str, typer.Option(help="test, or a few-shot set such as train_100.")] = "test",
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Only this one; may be given again.")
    ] = None,
    machine_translated: Annotated[
        bool, typer.Option("--machine-translated", help="Take English captions that a program translated.")
    ] = False,
) -> Published:
    """xFlickr&CO's captions to shards: all languages that have the split, or those named."""
    files = _files(folder, split, languages, machine_translated)
    origin = origin_of("xflickrco", MACHINE_TRANSLATION if machine_translated else HUMAN, split)
    return Published(str(folder), _entries(files), origin)


def _files(folder: Path, split: str, languages: list[str] | None, machine: bool) -> dict[str, Path]:
    """Return the files of the split by language. Raises UserError where there are none, or one that was named is missing."""
    name = f"{split}_gmt.jsonl" if machine else f"{split}.jsonl"
    found = {path.parent.name: path for path in sorted((folder / FOLDERS[machine]).glob(f"*/{name}"))}
    missing = sorted(set(languages or ()) - found.keys())
    if missing or not found:
        way_out = "leave the language out" if found else "give the folder datasets/xFlickrCO of e-bug/iglue"
        has = f"; it has {', '.join(found)}" if found else ""
        raise UserError(
            f"{folder / FOLDERS[machine]} has no {name} in {', '.join(missing) or 'any language'}{has}: {way_out}."
        )
    return {language: path for language, path in found.items() if languages is None or language in languages}


def _entries(files: dict[str, Path]) -> Iterator[Entry]:
    """Yield a record a picture with its captions in all languages, and one for each line that is wrong."""
    captions: dict[str, dict[str, list[Any]]] = {}
    for language, path in files.items():
        for where, record in read_jsonl(path):
            place = f"{path.parent.name}/{path.name}, {where}"
            if isinstance(record, str):
                yield Entry(place, record)
                continue
            name, texts = record.get("img_path"), record.get("sentences")
            if not isinstance(name, str) or not isinstance(texts, list):
                yield Entry(
                    place, f"img_path is {name!r} and sentences {texts!r}; the rule is text and a list of texts"
                )
            elif language in captions.setdefault(name, {}):
                yield Entry(place, f"img_path {name!r} stands in the file twice; the rule is a line a picture")
            else:
                captions[name][language] = texts
    _say_missing(files, captions)
    for name, texts_of in captions.items():
        identity = name.rpartition(".")[0] or name
        yield Entry(name, {"id": identity, "captions": texts_of, **flickr_or_coco(name)})


def _say_missing(files: dict[str, Path], captions: dict[str, dict[str, list[Any]]]) -> None:
    """Say in which languages pictures lack a caption that they have in others: a file was cut, or is of another split."""
    for language, path in files.items():
        missing = [name for name, texts in captions.items() if language not in texts]
        if missing:
            warn(
                f"{path}: {len(missing):,} of the {len(captions):,} pictures that the other languages have are not in it, such "
                f"as {missing[0]!r}: in {language} fewer queries are asked"
            )
