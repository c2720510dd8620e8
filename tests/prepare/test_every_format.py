"""Every published format of captions and of region features: one command to shards that a network trains on and is scored on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from m3p.data.loader.loader import MicroBatches
from m3p.data.order.plan import MicroBatchPlan
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.objectives.tasks import TASKS
from m3p.recipe.load import load_recipe
from m3p.retrieval.blocks import Blocks
from m3p.retrieval.metrics import recalls
from m3p.retrieval.pictures import load_pictures
from m3p.retrieval.ranking import Ranker, Way
from m3p.retrieval.scoring import Scorer
from m3p.training.build_objectives import build_objectives
from tests.prepare.region_formats import test_bottom_up as bottom_up
from tests.prepare.region_formats import test_m3p_hdf5 as hdf5
from tests.prepare.region_formats import test_mmf as mmf
from tests.prepare.region_formats import test_vinvl as vinvl
from tests.prepare.region_formats import test_volta_lmdb as volta
from tests.prepare.sets.raw import picture, run
from tests.prepare.sets.test_coco import annotated, karpathy
from tests.prepare.sets.test_coco_cn import archive as coco_cn
from tests.prepare.sets.test_japanese import annotations
from tests.prepare.sets.test_multi30k import raw as multi30k
from tests.prepare.sets.test_open_clip import table as open_clip
from tests.prepare.sets.test_parquet import hub
from tests.prepare.sets.test_wit import row, table
from tests.prepare.sets.test_xflickrco import iglue
from tests.prepare.sets.test_xm3600 import archive as xm3600
from tests.prepare.sets.test_xtd import repository as xtd
from tests.prepare.test_linked import URLS, tars, translations

__all__ = ["annotated", "coco_cn", "hub", "iglue", "karpathy", "multi30k", "open_clip", "tars", "xm3600", "xtd"]

FORMATS = {
    "img2dataset": ("tars", "cc3m FILES"),
    "translations of CC3M": ("tars", "cc3m FILES --captions HOME/de.jsonl"),
    "Multi30K Task 1": ("multi30k", "multi30k FILES/task1 --task 1 --images FILES/flickr30k-images"),
    "Multi30K Task 2": ("multi30k", "multi30k FILES/task2 --task 2 --images FILES/flickr30k-images"),
    "Karpathy": ("karpathy", "coco FILES --split train --split restval --images HOME/images"),
    "Karpathy, Flickr30K": ("karpathy_flickr30k", "flickr30k FILES --split train --images HOME/images/train2014"),
    "MSCOCO": ("annotated", "coco FILES --images HOME/images"),
    "STAIR": ("stair", "stair FILES --images HOME/images"),
    "YJ": ("yj", "yj FILES --images HOME/images"),
    "COCO-CN": ("coco_cn", "coco-cn FILES --images HOME/images"),
    "xFlickr&CO": ("iglue", "xflickrco FILES/xFlickrCO --images HOME/images"),
    "XTD": ("xtd", "xtd FILES --images HOME/images"),
    "Crossmodal-3600": ("xm3600", "xm3600 FILES/captions.jsonl --images HOME/images"),
    "WIT": ("wit", "wit FILES --images HOME/images"),
    "open_clip": ("open_clip", "open-clip FILES"),
    "datasets": ("hub", "parquet FILES/set --split train --language en"),
    "CLIP_benchmark": ("tars", "clip-benchmark FILES --set cc3m"),
}
"""Name -> the fixture that writes its files, and the command; FILES is what the fixture returns, HOME its folder."""
STORED = ("mmf", "bottom-up", "m3p-hdf5", "volta-lmdb", "vinvl", "npz of MMF", "npz of UNITER")
"""Formats of region features; here they come without pictures, as they are handed round."""


@pytest.fixture
def karpathy_flickr30k(karpathy: Path) -> Path:
    path = karpathy.with_name("dataset_flickr30k.json")
    path.write_text(json.dumps({**json.loads(karpathy.read_text()), "dataset": "flickr30k"}))
    return path


@pytest.fixture
def stair(tmp_path: Path) -> Path:
    return japanese(tmp_path / "stair_captions_v1.2_train.json")


@pytest.fixture
def yj(tmp_path: Path) -> Path:
    return japanese(tmp_path / "yjcaptions26k_clean.json")


def japanese(captions: Path) -> Path:
    """Write a file of captions and its pictures."""
    for number in (9, 57870):
        picture(captions.parent / "images" / f"COCO_train2014_{number:012d}.jpg", number % 200)
    return annotations(captions)


@pytest.fixture
def wit(tmp_path: Path) -> Path:
    for number in range(2):
        picture(tmp_path / "images" / f"{number}.jpg", 90 * number)
    rows = [row("da", f"billede {number}", f"http://upload.wikimedia.org/{number}.jpg") for number in range(2)]
    return table(tmp_path / "wit_v1.train.all-00000-of-00010.tsv.gz", *rows)


def score(tiny: Path, shards: Path, home: Path, visual: str) -> int:
    """Train two steps on `shards` and score them, each way of scoring; return how many pictures there are."""
    recipe = load_recipe(
        tiny,
        [
            f"visual={visual}",
            f"objectives.image_caption.sources=[{{path: {shards}}}]",
            "objectives.image_caption.batch_size=2",
            "objectives.image_caption.tasks={masked_words: 1, matching: 1, contrastive: 1}",
            "objectives.multilingual_text.weight=0",
            "objectives.code_switched.weight=0",
            f"evaluation={{own: {{path: {shards}, seen_in_training: true}}}}",
        ],
    )
    objective = {"image_caption": build_objectives(recipe)["image_caption"]}
    plan = MicroBatchPlan(recipe.plan(), 1, 0, {"image_caption": 2})
    tokenizer = Tokenizer(recipe.tokenizer_folder)
    model = build_model(recipe.model, tokenizer.size, recipe.visual, recipe.tasks, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for batch in MicroBatches(plan, objective).make(range(2)):
        output = model(batch)
        losses = [TASKS[name].loss(output.tasks[name], output.targets[name]) for name in output.tasks]
        loss = torch.stack(losses).sum() + output.touch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert len(losses) == 3
        assert torch.isfinite(loss)
    pictures = load_pictures(recipe, "own", recipe.evaluation["own"])
    scorer = Scorer(model.eval(), tokenizer, 32, 8)
    for way in (Way("dual"), Way("cross"), Way("rerank", 2)):
        found = Ranker(scorer, pictures, way, Blocks(home / "blocks" / way.scoring)).rank()
        for ranks in found.ranks.values():
            assert 0 <= recalls(ranks)["mean_recall"] <= 100
    return len(pictures.pool.images)


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_captions_of_every_format_train_and_score(
    name: str, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fixture, command = FORMATS[name]
    files: Path = request.getfixturevalue(fixture)
    translations(tmp_path / "de.jsonl", *({"url": url, "caption": {"de": f"Bild {n}"}} for n, url in enumerate(URLS)))
    first, *words = command.replace("FILES", str(files)).replace("HOME", str(tmp_path)).split()
    run(first, *words, output=tmp_path / "out")
    assert score(tiny, tmp_path / "out", tmp_path, "{kind: patches, size: 16, patch: 8}") >= 2


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, (_, command) in FORMATS.items() if "--images" in command])
def test_a_picture_that_is_missing_is_named(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fixture, command = FORMATS[name]
    files: Path = request.getfixturevalue(fixture)
    for path in [*tmp_path.rglob("*.jpg")]:
        path.unlink()
    first, *words = command.replace("FILES", str(files)).replace("HOME", str(tmp_path)).split()
    with pytest.raises(UserError, match=r"(?s)image '[^']*' does not exist \(looked for .*Nothing was written") as told:
        run(first, *words, output=tmp_path / "out")
    assert len(str(told.value).splitlines()) > 3, "all of them at once"
    assert not (tmp_path / "out").exists()


def twice(path: Path, *fields: str) -> None:
    """Repeat the first entry of lists in a JSON file."""
    content = json.loads(path.read_text())
    for field in fields:
        content[field].append(content[field][0])
    path.write_text(json.dumps(content))


def lines_twice(path: Path) -> None:
    """Make all lines of a text file the first one."""
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{lines[0]}\n" for _ in lines))


REPEATED: dict[str, tuple[Callable[[Path], None], str]] = {
    "Karpathy": (lambda files: twice(files, "images"), r"picture 3 .*: id '400000' is that of picture 0 .* again"),
    "MSCOCO": (lambda files: twice(files, "images"), r"picture 3 .*: id '0' is that of picture 0 .* again"),
    "STAIR": (lambda files: twice(files, "images"), r"picture 2 .*: id '9' is that of picture 0 .* again"),
    "XTD": (
        lambda files: lines_twice(files / "XTD10/test_image_names.txt"),
        "line 2 .*: id '.*' is that of line 1 .* again",
    ),
    "COCO-CN": (
        lambda files: lines_twice(files / "coco-cn_train.txt"),
        "picture 2 .*: id '.*' is that of picture 1 .* again",
    ),
    "Multi30K Task 1": (
        lambda files: lines_twice(files / "task1/image_splits/train.txt"),
        r"line 3: id '1000092795' is that of line 1 again",
    ),
}
"""Name -> how a picture gets into the files twice, and what is said of it."""


@pytest.mark.parametrize("name", REPEATED)
def test_an_id_that_comes_twice_is_named(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (fixture, command), (repeat, message) = FORMATS[name], REPEATED[name]
    files: Path = request.getfixturevalue(fixture)
    repeat(files)
    first, *words = command.replace("FILES", str(files)).replace("HOME", str(tmp_path)).split()
    with pytest.raises(UserError, match=message):
        run(first, *words, output=tmp_path / "out")


def test_tars_of_img2dataset_are_indexed_where_they_are(tars: Path, tiny: Path, tmp_path: Path) -> None:
    index_folder(tars, "captions")
    assert score(tiny, tars, tmp_path, "{kind: patches, size: 16, patch: 8}") == 5


def stored_regions(name: str, home: Path) -> tuple[Path, list[str]]:
    """Write the features of two pictures; return the file or folder, and what the pictures are called."""
    source, names = home / "source", ["000000000001", "000000000002"]
    source.mkdir()
    if name == "mmf":
        for one in names:
            mmf.save(source, one)
    elif name == "bottom-up":
        source = source / "all.tsv"
        source.write_text("\n".join(bottom_up.row(image_id=one) for one in names))
    elif name == "vinvl":
        vinvl.write(source, [("k0", vinvl.predicted()), ("k1", vinvl.predicted())])
        names = ["k0", "k1"]
    elif name == "volta-lmdb":
        volta.write(source, {one: volta.row(features=mmf.FEATURES + place) for place, one in enumerate(names)})
    else:
        source = source / "train_0.h5"
        hdf5.write(source, image_id=np.array([f"{one}.jpg".encode() for one in names]))
    return source, names


def named_npz(name: str, home: Path) -> tuple[Path, list[str]]:
    """Write a folder of ID.npz with the names of MMF or UNITER."""
    folder, names = home / "regions", ["1", "2"]
    folder.mkdir()
    boxes = mmf.BOXES / [640, 480, 640, 480]
    for place, one in enumerate(names):
        features = mmf.FEATURES + place
        if name.endswith("MMF"):
            np.savez(
                folder / one, features=features, bbox=mmf.BOXES, cls_prob=mmf.PROBS, image_width=640, image_height=480
            )
        else:
            seven = np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float16)
            np.savez(folder / one, features=features, norm_bb=seven, soft_labels=mmf.PROBS, conf=np.ones(2))
    return folder, names


@pytest.mark.long
@pytest.mark.parametrize("name", STORED)
def test_features_of_every_format_train_and_score_without_pictures(name: str, tiny: Path, tmp_path: Path) -> None:
    if name.startswith("npz"):
        regions, names = named_npz(name, tmp_path)
    else:
        (source, names), regions = stored_regions(name, tmp_path), tmp_path / "regions"
        run("import-regions", source, output=regions)
    images = [{"id": one, "file_name": f"{one}.jpg"} for one in names]
    annotated = [{"image_id": one, "caption": f"picture {one}"} for one in names]
    (tmp_path / "captions_x.json").write_text(json.dumps({"images": images, "annotations": annotated}))
    run("coco", tmp_path / "captions_x.json", "--regions", regions, output=tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.without_picture == 2
    visual = f"{{kind: regions, feature_size: {manifest.region_features}, classes: 0}}"
    assert score(tiny, tmp_path / "out", tmp_path, visual) >= 1
