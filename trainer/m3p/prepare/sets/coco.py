"""Captions of MSCOCO in the two JSON files in which they are handed round; other sets of captions have these forms too.

dataset_coco.json, dataset_flickr30k.json   Karpathy's splits: {"images": [{"filename", "filepath"?, "split", "imgid",
                                            "cocoid"?, "sentences": [{"raw"}, ...]}]}
captions_train2017.json                     {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]};
                                            the Japanese captions of STAIR and YJ have this form
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import UserError
from m3p.prepare.pairs import Entry
from m3p.prepare.published import HUMAN, JUDGED, Published, check_script, coco_id, coco_images, origin_of
from m3p.terminal import warn

LARGEST_FILE = 2**30
"""Bytes of a JSON file that is read: Karpathy's of MSCOCO has 144 MB."""
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Split of Karpathy's file; may be given again (train, restval).")
]
CaptionsFile = Annotated[
    Path, typer.Argument(metavar="FILE.json", help="dataset_*.json (Karpathy) or captions_*.json.")
]


def coco(
    source: CaptionsFile,
    split: Splits = None,
    language: Annotated[str, typer.Option(help="Language of the captions.")] = "en",
    caption_source: Annotated[
        str | None,
        typer.Option(help="Who wrote them; without it human for MSCOCO's own, the English ones, else not stated."),
    ] = None,
) -> Published:
    """MSCOCO's captions to shards: Karpathy's dataset_coco.json, or captions_*.json."""
    entries = read_coco(source, split or [], language)
    # Captions in other languages are translations as a rule, and nothing in the file says whose.
    own, licence = (HUMAN, "CC BY 4.0") if language == "en" else (NOT_STATED, NOT_STATED)
    origin = origin_of("coco", caption_source or own, " ".join(split or []), licence, file=source.name)
    return Published(str(source), entries, origin, language)


def read_coco(
    source: Path,
    splits: Collection[str],
    language: str,
    name_of: Callable[[str], str] = coco_id,
    dataset: str = "coco",
) -> Iterator[Entry]:
    """Yield a record a picture, with all its captions in `language`.

    Args:
        source: the JSON file.
        splits: of Karpathy's file, which has all of them.
        language: of the captions.
        name_of: gives the published id of a picture from its file's name.
        dataset: the name that Karpathy's file has for the set.

    Raises UserError for a file of neither form or of another set or language, and for splits that it does not have.
    """
    content = load_json(source)
    _check_set(source, content, dataset)
    images = content.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
        raise UserError(f"{source} has no list `images` of objects: give dataset_*.json (Karpathy) or captions_*.json.")
    if "annotations" in content:
        if splits:
            raise UserError(f"{source} is of one split, as its name says: leave out --split {' '.join(splits)}.")
        annotations = content["annotations"]
        listed = annotations[:JUDGED] if isinstance(annotations, list) else []
        check_script(str(source), [one.get("caption") for one in listed if isinstance(one, dict)], language)
        return _annotated(source, images, annotations, language)
    _check_splits(source, images, splits)
    return _karpathy([image for image in images if image.get("split") in splits], language, name_of)


def _check_set(source: Path, content: dict[str, Any], dataset: str) -> None:
    """Raise UserError for Karpathy's file of another set, and for a file in MSCOCO's form where it is of another set."""
    told = content.get("dataset")
    if isinstance(told, str) and told != dataset:
        raise UserError(
            f"{source} is of {told}, as it says itself, not of {dataset}: give dataset_{dataset}.json (m3p prepare coco and "
            "flickr30k read Karpathy's files of their own sets alone)."
        )
    if dataset != "coco" and "annotations" in content:
        raise UserError(
            f"{source} has the form of MSCOCO's captions_*.json, not of dataset_{dataset}.json: give m3p prepare coco."
        )


def _check_splits(source: Path, images: list[dict[str, Any]], splits: Collection[str]) -> None:
    """Raise UserError where no split is named, or one that no picture is of."""
    counts = Counter(str(image.get("split")) for image in images)
    listed = ", ".join(f"{name} {number:,}" for name, number in counts.most_common(8))
    missing = [split for split in splits if split not in counts]
    if missing or not splits:
        wrong = f"has no split {', '.join(missing)}" if missing else "holds all splits"
        raise UserError(f"{source} {wrong}: say --split (MSCOCO: train and restval are trained on); it has {listed}.")
    if "train" in splits and "restval" in counts and "restval" not in splits:
        warn(
            f"{source}: the {counts['restval']:,} pictures of restval, which published systems train on too, are left out: add "
            "--split restval to take them"
        )


def _karpathy(images: list[dict[str, Any]], language: str, name_of: Callable[[str], str]) -> Iterator[Entry]:
    """Yield the `images` of Karpathy's form."""
    for number, image in enumerate(images):
        sentences, name = image.get("sentences"), image.get("filename")
        where = f"picture {number} ({name!r})"
        if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
            yield Entry(where, f"sentences are {str(sentences)[:60]!r}; the rule is a list of objects with `raw`")
        elif not isinstance(name, str):
            yield Entry(where, f"filename is {name!r}; the rule is text")
        else:
            inside = [f"{image['filepath']}/{name}"] if image.get("filepath") else []
            captions = {language: [one.get("raw") for one in sentences]}
            yield _entry(where, image.get("cocoid", image.get("imgid")), inside, name, captions, name_of)


def _entry(
    where: str,
    identity: object,
    inside: list[str],
    name: str,
    captions: dict[str, list[Any]],
    name_of: Callable[[str], str],
) -> Entry:
    """Return a record; `inside` are paths at which its picture may lie besides those of `name`."""
    published = name_of(name)
    names = coco_images(name) if published.startswith("coco/") else [name]
    record = {"id": identity, "image": [*inside, *names], "captions": captions}
    return Entry(where, record | ({"published_id": published} if published else {}))


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
        name = image.get("file_name")
        texts, where = captions.get(str(image.get("id"))), f"picture {number} ({name!r})"
        if texts is None:
            yield Entry(where, "it has no caption; the rule is one or more annotations with its id")
        elif not isinstance(name, str):
            yield Entry(where, f"file_name is {name!r}; the rule is text")
        else:
            yield _entry(where, image.get("id"), [], name, {language: texts}, coco_id)


def load_json(source: Path, wanted: str = "dataset_*.json (Karpathy) or captions_*.json") -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises UserError, which names the file that is `wanted`."""
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise UserError(f"{source} {what}: give {wanted}.")
    with source.open("rb") as file:
        text = file.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise UserError(f"{source} has more than {LARGEST_FILE:,} bytes; no file of captions has.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: broken JSON ({error}): copy it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} is no JSON object: give {wanted}.")
    return content
