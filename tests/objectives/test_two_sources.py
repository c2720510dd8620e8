"""One picture in two sources, English and Japanese captions of MSCOCO: its captions are right for it, and it is no mismatch."""

import json
from pathlib import Path

import pytest

from m3p.data.sample import BadSamples
from m3p.data.tokenizer import Tokenizer
from m3p.objectives import OBJECTIVES
from m3p.objectives.objective import Context, Objective
from m3p.visual.patches import Patches
from m3p.visual.regions import Regions
from tests.prepare.sets.raw import picture, region_features, run

PATCHES = Patches(kind="patches", size=16, patch=8, crop=1.0, flip=False)
REGIONS = Regions(kind="regions", feature_size=4, classes=5)
NAMED, UNNAMED = "COCO_val2014_{:012d}.jpg", "p{}.jpg"
"""Names of files that say which picture of MSCOCO it is, and that do not."""


def source(folder: Path, command: str, numbers: range, *words: object, name: str = NAMED) -> dict[str, str]:
    """Prepare captions of some pictures as a source of its own."""
    images = [{"id": number, "file_name": name.format(number)} for number in numbers]
    word = "絵の" if command == "stair" else command
    texts = [{"image_id": number, "caption": f"{word} {number}"} for number in numbers]
    (folder / f"{command}.json").write_text(json.dumps({"images": images, "annotations": texts}))
    run(command, folder / f"{command}.json", *words, output=folder / command)
    return {"path": str(folder / command)}


def objective(sources: list[dict[str, str]], visual: Patches | Regions, tokenizer: Tokenizer) -> Objective:
    fields = {"batch_size": 4, "sources": sources, "tasks": {"contrastive": 1.0, "matching": 1.0}}
    config = OBJECTIVES["image_caption"].model_validate(fields)
    return config.build(Context("image_caption", 0, tokenizer, visual, 1))


@pytest.mark.parametrize("other", ["equal", "unnamed", "resized", "features"])
def test_captions_of_one_picture_in_two_sources_are_no_negatives(
    tmp_path: Path, tokenizer: Tokenizer, other: str
) -> None:
    """The pictures of the second source are the same files (with names of their set, or without), others of the same pictures, or
    features of another detector.
    """
    numbers = range(2)
    for number in numbers:
        picture(tmp_path / "large" / UNNAMED.format(number), 90 * number)
        picture(tmp_path / "large" / f"COCO_val2014_{number:012d}.jpg", 90 * number)
        picture(tmp_path / "small" / f"COCO_val2014_{number:012d}.jpg", 90 * number + 9)
        region_features(tmp_path / "one" / f"{number}.npz", number + 1)
        region_features(tmp_path / "two" / f"{number}.npz", number + 1.5)
    words = {
        "equal": [("--images", "large"), ("--images", "large")],
        "unnamed": [("--images", "large"), ("--images", "large")],
        "resized": [("--images", "large"), ("--images", "small")],
        "features": [("--regions", "one"), ("--regions", "two")],
    }[other]
    sources = [
        source(tmp_path, command, numbers, option, tmp_path / folder, name=UNNAMED if other == "unnamed" else NAMED)
        for command, (option, folder) in zip(("coco", "stair"), words, strict=True)
    ]
    made = objective(sources, REGIONS if other == "features" else PATCHES, tokenizer)
    targets = made.batch(range(4), range(4)).targets["contrastive"]
    ids = [made.mix.read(position, BadSamples([])).id for position in range(4)]
    assert sorted(ids) == ["0", "0", "1", "1"]
    for one in range(4):
        for two in range(4):
            names = ("pictures", "contents", "published")
            same = any(targets[name][one] == targets[name][two] for name in names)
            assert same == (ids[one] == ids[two])


def test_a_picture_is_no_mismatch_of_itself(tmp_path: Path, tokenizer: Tokenizer) -> None:
    picture(tmp_path / "large" / "COCO_val2014_000000000000.jpg", 90)
    picture(tmp_path / "small" / "COCO_val2014_000000000000.jpg", 99)
    sources = [
        source(tmp_path, "coco", range(1), "--images", tmp_path / "large"),
        source(tmp_path, "stair", range(1), "--images", tmp_path / "small"),
    ]
    made = objective(sources, PATCHES, tokenizer)
    assert made.batch(range(2), range(2)).targets["matching"]["labels"].tolist() == [1.0, 1.0]
