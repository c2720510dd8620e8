import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.huggingface import write_folder
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS, choose_tasks
from m3p.visual.regions import Regions

VOCABULARY = 20
SHAPE = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 12, "positions": 10}
REGIONS = Regions(kind="regions", feature_size=5, classes=3)


def build(seed: int = 0, load: bool = True, **settings: Any) -> M3P:
    fields = {"shape": SHAPE, "tokenizer": "t"} if "initialise" not in settings else {}
    config = ModelConfig.model_validate({**fields, **settings})
    return build_model(config, VOCABULARY, REGIONS, TASKS.values(), seed, load)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to start from."""
    model = build(seed=5)
    folder = tmp_path_factory.mktemp("start")
    assert ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t"}).shape is not None
    shape = ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t"}).shape
    assert shape is not None
    write_folder(folder, model.state_dict(), shape)
    return folder


def different(one: M3P, other: M3P) -> set[str]:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return {name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])}


def test_the_seed_alone_makes_the_weights() -> None:
    torch.manual_seed(1)
    one = build(seed=3)
    torch.manual_seed(2)
    assert not different(one, build(seed=3))
    drawn = {name for name, parameter in one.named_parameters() if parameter.ndim > 1}
    eyes = {"heads.contrastive.text.weight", "heads.contrastive.image.weight"}
    tied = {"heads.masked_words.weight"}
    assert different(one, build(seed=4)) == drawn - eyes | tied


def test_building_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(seed=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("projection", "identity"), [(None, True), (8, True), (4, False)])
def test_a_projection_of_the_width_starts_as_identity(projection: int | None, identity: bool) -> None:
    head = build(projection=projection).heads["contrastive"]
    for name in ("text", "image"):
        weight = head.get_parameter(f"{name}.weight")
        assert weight.shape == (projection or 8, 8)
        assert torch.equal(weight, torch.eye(len(weight), 8)) == identity


def test_weights_of_a_folder_replace_the_encoders_alone(start: Path) -> None:
    source, model = build(seed=5), build(seed=6, initialise=start)
    kept = different(source, model)
    assert kept
    assert all(name.startswith(("visual.", "heads.masked_regions", "heads.matching")) for name in kept)


def test_a_checkpoint_will_bring_the_weights_so_they_are_not_read(start: Path) -> None:
    assert not different(build(seed=6, initialise=start, load=False), build(seed=6))


def test_another_vocabulary_than_the_starts_own_is_refused(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, own := tmp_path / "start")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"words")
    build(initialise=own, tokenizer=tmp_path)  # a folder without a vocabulary says nothing against any
    (own / "sentencepiece.bpe.model").write_bytes(b"words")
    build(initialise=own, tokenizer=tmp_path)
    (own / "sentencepiece.bpe.model").write_bytes(b"other")
    with pytest.raises(UserError, match=rf"model\.tokenizer = {tmp_path}: .* is another one than {own}/sentencepiece"):
        build(initialise=own, tokenizer=tmp_path)
    build(initialise=own, tokenizer=tmp_path, load=False)


@pytest.mark.parametrize(
    ("freeze", "parts"),
    [
        ([], ()),
        (["words"], ("text.words.",)),
        (["positions", "encoder"], ("text.positions.", "encoder.")),
        (["visual"], ("visual.",)),
        (["heads"], ("heads.",)),
    ],
)
def test_frozen_parts_are_not_trained_and_the_rest_is(freeze: list[str], parts: tuple[str, ...]) -> None:
    model = build(freeze=freeze)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(parts)} if parts else not frozen


def test_the_lowest_layers_are_frozen_and_there_must_be_so_many() -> None:
    model = build(freeze_layers=1)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.layers.0.")} != set()
    with pytest.raises(UserError, match=r"model\.freeze_layers = 3: the encoder has 2"):
        build(freeze_layers=3)


def test_frozen_heads_leave_the_word_table_that_they_share() -> None:
    model = build(freeze=["heads"])
    assert model.text.words.weight.requires_grad
    assert not model.get_parameter("heads.masked_words.bias").requires_grad


def test_a_kept_temperature_is_not_trained() -> None:
    assert not build(learn_temperature=False).get_parameter("heads.contrastive.log_scale").requires_grad
    assert build().get_parameter("heads.contrastive.log_scale").requires_grad


def test_heads_exist_for_the_tasks_in_use_and_in_one_order() -> None:
    config = ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t"})
    assert list(build_model(config, VOCABULARY, None, choose_tasks({"contrastive", "masked_words"}), 0).heads) == [
        "masked_words",
        "contrastive",
    ]
