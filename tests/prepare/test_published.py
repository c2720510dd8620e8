"""Names that pictures have in several sets, and sets of which only region features are there."""

import json
from pathlib import Path

import pytest

from m3p.data.sample import BadSamples
from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from m3p.prepare.published import coco_id, coco_images, flickr30k_id, flickr_or_coco
from tests.data.broken import PATCHES, REGIONS, source
from tests.prepare.sets.raw import picture, region_features, run, stored


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("COCO_train2014_000000000009.jpg", "coco/9"),
        ("val2014/COCO_val2014_000000391895.jpg", "coco/391895"),
        ("000000391895.jpg", "coco/391895"),
        ("391895", "coco/391895"),
        ("dog.jpg", ""),
    ],
)
def test_a_picture_of_coco_has_one_name_in_every_spelling(name: str, published: str) -> None:
    assert coco_id(name) == published


def test_places_of_pictures() -> None:
    assert coco_images("COCO_val2014_000000000042.jpg")[:3] == [
        "COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg", "000000000042.jpg"
    ]  # fmt: skip
    assert coco_images("dog.jpg") == ["dog.jpg"]
    # A number of Flickr is none of MSCOCO, whose picture of that number is another one.
    assert flickr_or_coco("36979.jpg") == {"image": "36979.jpg", "published_id": "flickr30k/36979"}
    assert flickr30k_id("flickr30k-images/1000092795.jpg") == "flickr30k/1000092795"


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    images = [
        {"imgid": number, "sentences": [{"raw": f"picture {number}"}], "split": "val", "filename": f"100{number}.jpg"}
        for number in range(3)
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    for number in range(3):
        region_features(tmp_path / "regions" / f"100{number}.npz", number + 1)
    return tmp_path / "dataset_flickr30k.json"


def test_features_without_pictures_are_a_source(karpathy: Path) -> None:
    out = karpathy.parent / "out"
    run("flickr30k", karpathy, "--split", "val", "--regions", karpathy.parent / "regions", output=out)
    manifest = Manifest.load(out)
    assert (manifest.samples, manifest.without_picture, manifest.region_features) == (3, 3, 4)
    assert stored(out)["1"]["files"] == ["regions.npz"]
    sample = source(out, REGIONS).read(0, bad := BadSamples([]))
    assert (len(sample.picture.features), bad.seen) == (2, [])


def test_features_without_pictures_are_refused_where_pixels_are_wanted(karpathy: Path) -> None:
    out = karpathy.parent / "out"
    run("flickr30k", karpathy, "--split", "val", "--regions", karpathy.parent / "regions", output=out)
    REGIONS.check_source(str(out), 4, Manifest.load(out).without_picture)
    with pytest.raises(
        UserError,
        match=r"visual\.kind needs pictures, but 3 samples of .* have stored features alone: use kind: regions, or",
    ):
        PATCHES.check_source(str(out), 4, Manifest.load(out).without_picture)


def test_neither_pictures_nor_features_is_a_mistake(karpathy: Path) -> None:
    with pytest.raises(UserError, match=r"give the folder of its pictures \(--images\), of their region features"):
        run("flickr30k", karpathy, "--split", "val", output=karpathy.parent / "out")


def test_the_licence_can_be_said(karpathy: Path) -> None:
    for number in range(3):
        picture(karpathy.parent / "images" / f"100{number}.jpg", 60 * number)
    words = ("--split", "val", "--images", karpathy.parent / "images", "--licence", "for research alone")
    run("flickr30k", karpathy, *words, output=karpathy.parent / "out")
    assert Manifest.load(karpathy.parent / "out").origin["licence"] == "for research alone"
