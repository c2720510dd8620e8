import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PvtConfig,
    PvtModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from m3p.errors import UserError
from m3p.visual.tower.embedder import GridTower
from m3p.visual.tower.folder import (
    grid_tokens,
    make_tower,
    tower_facts,
    tower_files,
    tower_hash,
    tower_layers,
    write_tower,
)
from m3p.visual.tower.pixels import preprocessor_file
from m3p.visual.tower.source import Tower
from tests.visual.tower.test_pixels import numbers
from tests.visual.tower.towers import NAMES, SIZE, grid_by_transformers

Towers = Callable[[str], Path]


@pytest.fixture
def vit(towers: Towers, tmp_path: Path) -> Path:
    """A ViT's folder to be changed."""
    return Path(shutil.copytree(towers("vit"), tmp_path / "vit"))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_grid_is_the_one_that_transformers_gives(towers: Towers, name: str) -> None:
    folder = towers(name)
    facts, model = tower_facts(folder), make_tower(folder, weights=True)
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32))
    with torch.inference_mode():
        grid = grid_tokens(model, pixels, facts.prefix)
    assert grid.shape == (2, facts.tokens, facts.width)
    wanted = grid_by_transformers(folder, pixels, facts.tokens)
    assert float(wanted.std()) > 0.01
    torch.testing.assert_close(grid, wanted, rtol=0, atol=1e-5)
    stored = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8))
    prepared = numbers(facts.preparation, stored[0].numpy())
    with torch.inference_mode():
        seen = GridTower(model, facts)(stored)
    torch.testing.assert_close(seen, grid_by_transformers(folder, prepared, facts.tokens), rtol=0, atol=1e-5)


def test_facts_are_those_of_the_network(towers: Towers) -> None:
    facts, model = tower_facts(towers("vit")), make_tower(towers("vit"))
    assert (facts.side, facts.tokens, facts.width, facts.prefix, facts.layers) == (4, 16, 16, 1, 3)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.unused == {"pooler.dense.weight", "pooler.dense.bias"}
    patches = 2 * 16 * 16 * (3 * 8 * 8)
    layer = 17 * (4 * 2 * 16 * 16 + 2 * 2 * 16 * 24) + 2 * 2 * 17 * 17 * 16
    pooler = 2 * 16 * 16
    assert facts.flops == patches + 3 * layer + pooler


def test_training_can_begin_at_stages_where_a_tower_has_them(towers: Towers) -> None:
    found = {name: len(tower_layers(make_tower(towers(name)))) for name in NAMES}
    assert found == {"vit": 3, "dinov2": 3, "clip": 3, "siglip": 3, "swin": 2, "convnext": 3, "efficientnet": 7}


@pytest.mark.long
def test_training_begins_at_a_layer_only_where_layers_are_used_in_their_order(towers: Towers, tmp_path: Path) -> None:
    """PVT holds the patch embeddings of its stages in a list of their own, before the blocks of all stages."""
    assert all(tower_facts(towers(name)).in_order for name in NAMES)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    folder = keep(PvtModel(PvtConfig(image_size=SIZE, **sizes)), tmp_path / "pvt")
    assert not tower_facts(folder).in_order
    assert Tower(kind="tower", folder=folder, tokens=1, trained="all").facts.tokens == 1
    with pytest.raises(UserError, match=r"visual.trained = 1: .* does not use its layers in the order .* none or all"):
        assert Tower(kind="tower", folder=folder, tokens=1, trained=1).facts


def test_loading_draws_no_random_number(towers: Towers) -> None:
    before = torch.get_rng_state()
    make_tower(towers("clip"), weights=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_hash_tells_another_tower_apart_wherever_it_lies(vit: Path, towers: Towers) -> None:
    assert tower_hash(vit) == tower_hash(towers("vit"))
    weights = load_file(vit / "model.safetensors")
    weights["layernorm.bias"][0] += 1e-3
    save_file(weights, vit / "model.safetensors", {"format": "pt"})
    assert tower_hash(vit) != tower_hash(towers("vit"))
    assert [path.name for path in tower_files(vit)] == [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ]


def test_of_two_files_of_settings_the_one_that_transformers_reads_is_hashed_and_exported(
    vit: Path, tmp_path: Path
) -> None:
    """`transformers` 5 writes processor_config.json, and reads it before a preprocessor_config.json that an older one left."""
    settings = json.loads((vit / "preprocessor_config.json").read_text()) | {"image_mean": [0.1, 0.2, 0.3]}
    (vit / "processor_config.json").write_text(json.dumps({"processor_class": "ViTProcessor"}))
    assert preprocessor_file(vit).name == "preprocessor_config.json"
    before = tower_hash(vit), tower_facts(vit).preparation
    (vit / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert tower_facts(vit).preparation != before[1], "transformers reads the second file"
    assert tower_hash(vit) != before[0]
    write_tower(make_tower(vit, weights=True), vit, tmp_path / "written")
    assert tower_facts(tmp_path / "written").preparation == tower_facts(vit).preparation
    assert {path.name for path in tower_files(tmp_path / "written")} == {path.name for path in tower_files(vit)}


def open_tower(folder: Path) -> None:
    """Read a tower's settings, then its weights, as a run does."""
    tower_facts(folder)
    make_tower(folder, weights=True)


def drop(folder: Path, name: str) -> None:
    """Take a tensor out of a folder's weights."""
    weights = load_file(folder / "model.safetensors")
    del weights[next(key for key in weights if key.endswith(name))]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def rename_all(folder: Path) -> None:
    """Put the weights of a folder under the names that they have as a part of another model."""
    weights = load_file(folder / "model.safetensors")
    renamed = {f"eyes.{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def change(folder: Path, file: str, **fields: object) -> None:
    """Change fields of a JSON file of a folder."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.long
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing: want a local"),
        (lambda f: (f / "config.json").write_text("[1"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_text(" " * 2**21), "a config has at most 1,048,576"),
        (lambda f: change(f, "config.json", model_type="nobody"), "config.json: no model that `transformers` knows"),
        (lambda f: change(f, "config.json", model_type="xlm-roberta"), "is no vision model that takes square pictures"),
        (lambda f: change(f, "config.json", model_type="siglip2_vision_model"), "is no vision model that takes square"),
        (
            lambda f: change(f, "config.json", model_type="vit_mae"),
            'config.json: vit_mae hides parts of a picture at random, .* set model_type to "vit"',
        ),
        (
            lambda f: change(f, "config.json", model_type="yolos", image_size=[SIZE, SIZE]),
            "yolos has tokens of detections behind those of the",
        ),
        (lambda f: change(f, "config.json", image_size=48), "cannot take a picture of 32 x 32 pixels"),
        (lambda f: change(f, "config.json", hidden_size="wide"), "config.json: no model that `transformers` knows"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing: it says how"),
        (lambda f: change(f, "preprocessor_config.json", do_resize=False), "do_resize is false"),
        (
            lambda f: change(f, "preprocessor_config.json", size={"height": 32, "width": 48}),
            "want height and width alike",
        ),
        (lambda f: change(f, "preprocessor_config.json", size={"height": 9999, "width": 9999}), "at most 4096"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is a pickle, which runs code"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "its weights cannot be read"),
        (
            lambda f: change(f, "config.json", transformers_weights="other.safetensors"),
            "config.json: transformers_weights = 'other.safetensors', but what is read here is model.safetensors",
        ),
        (lambda f: drop(f, "layer.1.intermediate.dense.weight"), "1 weights of the vision model are missing, such as"),
        (rename_all, r"its vision part has other names .*vision_model.save_pretrained\('NEW_FOLDER'\)"),
        (lambda f: change(f, "config.json", intermediate_size=32), "its weights cannot be read"),
        (
            lambda f: (f / "config.json").write_text(json.dumps({"model_type": "metaclip_2", "vision_config": {}})),
            "no model of its own for metaclip_2_vision_model; .* write clip, clip_vision_model and clip_text_model",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(
    vit: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(vit)
    with pytest.raises(UserError, match=message):
        open_tower(vit)


def keep(model: Any, folder: Path, **options: Any) -> Path:
    """Write a tower with pictures of the usual size into `folder`; return the folder."""
    model.save_pretrained(folder, **options)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


SMALL: dict[str, Any] = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    **{"image_size": SIZE, "patch_size": 8},
}
OTHERS: dict[str, Callable[[Path], Path]] = {
    "fp16": lambda folder: keep(ViTModel(ViTConfig(**SMALL)).half(), folder),
    "sharded": lambda folder: keep(ViTModel(ViTConfig(**SMALL)), folder, max_shard_size="8KB"),
    "with a classifier": lambda folder: keep(ViTForImageClassification(ViTConfig(**SMALL)), folder),
    "two tokens in front": lambda folder: keep(DeiTModel(DeiTConfig(**SMALL)), folder),
    "registers": lambda folder: keep(DINOv3ViTModel(DINOv3ViTConfig(**SMALL, num_register_tokens=3)), folder),
}


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_folders_of_other_kinds_give_the_grid_of_transformers(tmp_path: Path, name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folder = OTHERS[name](tmp_path / "tower")
    facts, model = tower_facts(folder), make_tower(folder, weights=True)
    assert facts.side == 4
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(tower_files(folder)) == (3 if name != "sharded" else 3 + len(list(folder.glob("*.safetensors"))))
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32))
    with torch.inference_mode():
        found = grid_tokens(model, pixels, facts.prefix)
    torch.testing.assert_close(found, grid_by_transformers(folder, pixels, facts.tokens), rtol=0, atol=1e-5)


def test_a_model_of_timm_is_refused_by_that_name(vit: Path) -> None:
    change(vit, "config.json", model_type="timm_wrapper")
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(
        UserError, match="a model of timm, which prepares pictures in its own way; take a folder of a model"
    ):
        open_tower(vit)


def test_a_part_that_is_not_used_may_be_missing(vit: Path) -> None:
    drop(vit, "pooler.dense.weight")
    make_tower(vit, weights=True)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("vit", "num_hidden_layers", 10**6),
        ("vit", "hidden_size", 10**9),
        ("swin", "depths", [1, 10**6]),
        ("clip", "vision_config", {"intermediate_size": 10**12}),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str, value: object
) -> None:
    folder = Path(shutil.copytree(towers(name), tmp_path / name))
    config = json.loads((folder / "config.json").read_text())
    config[field] = config[field] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.AutoModel.from_config", lambda *_, **__: pytest.fail("a network was built"))
    wrong = next(iter(value)) if isinstance(value, dict) else field
    for read in (tower_facts, make_tower):
        with pytest.raises(UserError, match=rf"config.json: {wrong} = 10+: at most [\d,]+; put back"):
            read(folder)


def test_sizes_of_another_model_are_said(vit: Path) -> None:
    config = json.loads((vit / "config.json").read_text()) | {"intermediate_size": 48}
    (vit / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"their sizes are not those in config\.json: put back"):
        make_tower(vit, weights=True)
