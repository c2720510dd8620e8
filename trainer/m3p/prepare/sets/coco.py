"""Captions of MSCOCO and Flickr30K in the two JSON files in which they are handed round.

dataset_coco.json, dataset_flickr30k.json   Karpathy's splits: {"images": [{"filename", "filepath"?, "split", "imgid",
                                            "cocoid"?, "sentences": [{"raw"}, ...]}]}
captions_train2017.json                     {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]};
                                            STAIR's Japanese captions have this form too
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from m3p.errors import UserError
from m3p.prepare.pairs import Entry

LARGEST_FILE = 2**30
"""Bytes of a JSON file that is read: Karpathy's of MSCOCO has 144 MB."""


def read_coco(source: Path, splits: Collection[str], language: str) -> Iterator[Entry]:
    """Yield a record a picture, with all its captions in `language`. `splits`: of Karpathy's file, which has all of them.

    Raises UserError for a file of neither form, and for splits that it does not have.
    """
    content = _load(source)
    images = content.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
        raise UserError(f"{source} has no list `images` of objects: give dataset_*.json (Karpathy) or captions_*.json.")
    if "annotations" in content:
        if splits:
            raise UserError(f"{source} is of one split, as its name says: leave out --split {' '.join(splits)}.")
        yield from _annotated(source, images, content["annotations"], language)
    else:
        yield from _karpathy(source, images, splits, language)


def _karpathy(source: Path, images: list[dict[str, Any]], splits: Collection[str], language: str) -> Iterator[Entry]:
    """Yield the pictures of the `splits`. Raises UserError where a picture names none, or none is of a split."""
    counts = Counter(str(image.get("split")) for image in images)
    listed = ", ".join(f"{name} {number:,}" for name, number in counts.most_common(8))
    missing = [split for split in splits if split not in counts]
    if missing or not splits:
        wrong = f"has no split {', '.join(missing)}" if missing else "holds all splits"
        raise UserError(f"{source} {wrong}: say --split (MSCOCO: train and restval are trained on); it has {listed}.")
    for number, image in enumerate(images):
        if image.get("split") not in splits:
            continue
        sentences, name = image.get("sentences"), image.get("filename")
        where = f"picture {number} ({name!r})"
        if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
            yield Entry(where, f"sentences are {str(sentences)[:60]!r}; the rule is a list of objects with `raw`")
            continue
        identity = image.get("cocoid", image.get("imgid"))
        path = f"{image['filepath']}/{name}" if image.get("filepath") else name
        captions = {language: [one.get("raw") for one in sentences]}
        yield Entry(where, {"id": identity, "image": path, "captions": captions})


def _annotated(source: Path, images: list[dict[str, Any]], annotations: object, language: str) -> Iterator[Entry]:
    """Yield the pictures that have captions. Raises UserError for captions of pictures that are not listed."""
    captions: dict[Any, list[Any]] = {}
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise UserError(f"{source}: annotations is no list of objects with image_id and caption.")
    for one in annotations:
        captions.setdefault(str(one.get("image_id")), []).append(one.get("caption"))
    known = {str(image.get("id")) for image in images}
    if strangers := [name for name in captions if name not in known]:
        raise UserError(
            f"{source}: {len(strangers):,} pictures have captions but are not among its images, such as {strangers[0]!r}: "
            "copy the file again."
        )
    for number, image in enumerate(images):
        texts = captions.get(str(image.get("id")))
        where = f"picture {number} ({image.get('file_name')!r})"
        if texts is None:
            yield Entry(where, "it has no caption; the rule is one or more annotations with its id")
        else:
            yield Entry(where, {"id": image.get("id"), "image": image.get("file_name"), "captions": {language: texts}})


def _load(source: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises UserError."""
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise UserError(f"{source} {what}: give dataset_*.json (Karpathy) or captions_*.json.")
    with source.open("rb") as file:
        text = file.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise UserError(f"{source} has more than {LARGEST_FILE:,} bytes; no file of captions has.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: broken JSON ({error}): copy it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} is no JSON object: give dataset_*.json (Karpathy) or captions_*.json.")
    return content
