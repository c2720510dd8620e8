from pathlib import Path

import pytest
import torch

from m3p.ablation.made_of import weights_fact
from m3p.checkpoints.init_from import start_from
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.export import export_run
from m3p.model.build import build_model
from m3p.model.m3p import M3P
from m3p.recipe.load import parse_recipe
from m3p.visual.tower.folder import make_tower
from tests.test_export import flip, other_vocabulary, write_run
from tests.tiny import tiny_recipe
from tests.visual.tower.towers import make_tower_folder


def fresh(tiny: Path, *overrides: str) -> M3P:
    recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny", overrides)
    vocabulary = Tokenizer(recipe.tokenizer_folder).size
    return build_model(recipe.model, vocabulary, recipe.visual, recipe.tasks, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["run", "checkpoint", "best", "exported"])
def test_a_run_a_checkpoint_and_an_export_give_the_same_start(tiny: Path, tmp_path: Path, kind: str) -> None:
    wanted = dict(write_run(tiny, tmp_path / "run").named_parameters())
    if kind == "exported":
        export_run(tmp_path / "run", tmp_path / "exported")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    checkpoint.with_name("best").write_text(f"{checkpoint.name}\n")
    places = {"checkpoint": checkpoint, "best": checkpoint.with_name("best")}
    path = places.get(kind, tmp_path / kind)
    assert weights_fact(path) == weights_fact(path if kind == "exported" else checkpoint)
    model = fresh(tiny)
    start_from(model, path, None)
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())


def test_heads_that_the_other_run_lacks_stay_fresh(tiny: Path, tmp_path: Path) -> None:
    text_alone = ["objectives.image_caption.tasks={contrastive: 1}", "objectives.code_switched.weight=0"]
    write_run(tiny, tmp_path / "run", *text_alone)
    model, untouched = fresh(tiny), fresh(tiny)
    start = start_from(model, tmp_path / "run", None)
    assert start.lines["fresh heads"] == "masked_regions, matching"
    assert start.lines["starts from"].startswith(f"{tmp_path / 'run'}: ")
    own, before = dict(model.named_parameters()), dict(untouched.named_parameters())
    same = {name for name in own if torch.equal(own[name], before[name])}
    assert same == {name for name in own if name.startswith(("heads.matching.", "heads.masked_regions."))}


def test_another_size_is_refused(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.weights = .*run: \d+ tensors do not fit this recipe's model, such as"):
        start_from(fresh(tiny, "model.shape.width=8"), tmp_path / "run", None)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_without_weights_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.weights = .*holds no checkpoint of a run; name a run folder"):
        start_from(fresh(tiny), tmp_path / name, None)


def test_a_spoilt_export_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "m3p.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"m3p\.safetensors cannot be read .*; export it again"):
        start_from(fresh(tiny), tmp_path, None)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["run", "checkpoint", "exported"])
def test_another_vocabulary_of_the_same_size_is_refused(tiny: Path, tmp_path: Path, kind: str) -> None:
    write_run(tiny, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "exported")
    path = tmp_path / "run" / "checkpoints" / "step-00000003" if kind == "checkpoint" else tmp_path / kind
    start_from(fresh(tiny), path, None, tiny.parent / "shards" / "tokenizer")
    other = other_vocabulary(tiny, tmp_path / "other")
    message = r"its vocabulary, .* is another one than" if kind == "exported" else "was trained with another vocabulary"
    with pytest.raises(UserError, match=rf"{message} .*{other}/sentencepiece\.bpe\.model"):
        start_from(fresh(tiny), path, None, other)


def test_a_checkpoint_that_is_not_whole_is_refused(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    flip(path / "rank-00000.safetensors")
    with pytest.raises(
        UserError, match=r"step-00000003 is not whole: .*rank-00000.* is not what was written; name anoth"
    ):
        start_from(fresh(tiny), path, None)
    with pytest.raises(
        UserError,
        match=r"model\.weights = .*no checkpoint is whole:\n.*rank-00000.* is not what was written\nPut a copy",
    ):
        start_from(fresh(tiny), tmp_path / "run", None)


def test_a_newer_checkpoint_that_is_not_whole_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tiny, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "step-00000009"
    damaged.mkdir()
    start_from(fresh(tiny), tmp_path / "run", None)
    said = capsys.readouterr().err
    assert said.startswith(f"step-00000003 is read, for a newer one is not whole: {damaged}")


def seeing(folder: Path, trained: object) -> list[str]:
    """Return overrides by which pictures are seen by the tower in `folder`."""
    tasks = "{masked_regions: 0, matching: 0, contrastive: 1, masked_words: 1}"
    return [
        f"visual={{kind: tower, folder: {folder}, tokens: 4, trained: {trained}}}",
        *(f"objectives.{name}.tasks={tasks}" for name in ("image_caption", "code_switched")),
    ]


@pytest.mark.long
@pytest.mark.parametrize("exported", [False, True])
def test_weights_of_a_run_go_with_the_tower_that_they_were_trained_with(
    tiny: Path, tmp_path: Path, exported: bool
) -> None:
    tower, other = (make_tower_folder(tmp_path / name, name) for name in ("clip", "siglip"))

    def start(run: str, folder: Path, trained: object) -> M3P:
        recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny", seeing(folder, trained))
        model = build_model(recipe.model, Tokenizer(recipe.tokenizer_folder).size, recipe.visual, recipe.tasks, seed=1)
        path = tmp_path / (f"{run}-exported" if exported else run)
        begun = start_from(model, path, None, None, recipe.visual)
        assert begun.fresh == []
        return model

    for trained in ("none", "all"):
        write_run(tiny, tmp_path / trained, *seeing(tower, trained))
        if exported:
            export_run(tmp_path / trained, tmp_path / f"{trained}-exported")
    start("none", tower, "none")
    with pytest.raises(UserError, match=r"was trained with another visual.folder \(hash \w+\) than the one"):
        start("none", other, "none")
    # The second stage of many: a tower that was frozen is trained too, from its own folder.
    begun, plain = dict(start("none", tower, "all").named_parameters()), make_tower(tower, weights=True)
    for name, parameter in plain.named_parameters():
        assert torch.equal(begun[f"visual.tower.model.{name}"], parameter)
    with pytest.raises(UserError, match=r"was trained with another visual.folder"):
        start("none", other, "all")
    start("all", tower, "all")
    with pytest.raises(UserError, match=r"its vision tower was trained, and visual.trained = none would take that of"):
        start("all", tower, "none")
    if exported:  # the way out
        start("all", tmp_path / "all-exported" / "vision_tower", "none")
