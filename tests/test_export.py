"""Export of a run folder that was written here, not trained (tests/test_trained_run.py exports a trained one)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import XLMRobertaForMaskedLM, XLMRobertaModel, XLMRobertaTokenizer

from tests.tiny import tiny_recipe
from trainer.batch import Packer, Sequence
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.export import export_run, load_exported
from trainer.model.build import build_model
from trainer.model.encoder import EncoderShape
from trainer.model.huggingface import write_folder
from trainer.model.m3p import M3P
from trainer.recipe import dump_recipe, parse_recipe
from trainer.retrieval.evaluate import load_run
from trainer.training.checkpoint_files import FORMAT_VERSION, State, share_name, write_share, write_state


def write_run(tiny: Path, run: Path, *overrides: str) -> M3P:
    """Write what `m3p export` reads of a run; return its network."""
    recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny", overrides)
    model = build_model(recipe.model, Tokenizer(recipe.tokenizer_folder).size, recipe.visual, recipe.tasks, seed=7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    folder = run / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    entry = write_share(
        folder / share_name(0),
        {f"weight/{name}": weight.reshape(-1) for name, weight in weights.items()},
        {name: (0, tuple(weight.shape)) for name, weight in weights.items()},
    )
    state = State(format_version=FORMAT_VERSION, step=3, ranks=1, order_version=1, recipe={}, data={})
    write_state(folder, state.model_copy(update={"files": {share_name(0): entry}}))
    return model.eval()


def ours(model: M3P, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
    packer = Packer(*model.features)
    packer.add(Sequence(tokens))
    with torch.inference_mode():
        return model.encode(packer.finish(1))[0]


@pytest.mark.parametrize("with_head", [True, False])
def test_transformers_gives_the_same_hidden_states(tiny: Path, tmp_path: Path, with_head: bool) -> None:
    only_contrast = [
        "objectives.multilingual_text.weight=0",
        "objectives.image_caption.tasks={contrastive: 1}",
        "objectives.code_switched.tasks={contrastive: 1}",
    ]
    model = write_run(tiny, tmp_path / "run", *([] if with_head else only_contrast))
    export_run(tmp_path / "run", tmp_path / "out")
    names = {"config.json", "model.safetensors", "sentencepiece.bpe.model", "m3p.safetensors", "recipe.yaml"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    (architecture,) = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert architecture == ("XLMRobertaForMaskedLM" if with_head else "XLMRobertaModel")
    theirs = XLMRobertaModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    text = "dog cat tree moon"
    tokens = Tokenizer(tmp_path / "out").encode(text, 64)
    assert XLMRobertaTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == tokens.tolist()
    with torch.inference_mode():
        hidden = theirs(torch.from_numpy(tokens)[None]).last_hidden_state[0]
    torch.testing.assert_close(hidden, ours(model, tokens), atol=1e-5, rtol=0)


def test_the_weights_of_the_checkpoint_are_those_exported(tiny: Path, tmp_path: Path) -> None:
    model = write_run(tiny, tmp_path / "run")
    _, loaded, step = load_run(tmp_path / "run")
    assert step == 3
    assert not loaded.training
    export_run(tmp_path / "run", tmp_path / "out")
    theirs = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "out")
    words = theirs.roberta.embeddings.word_embeddings.weight
    assert torch.equal(words, model.text.words.weight)
    assert torch.equal(loaded.text.words.weight, words)
    assert theirs.lm_head.decoder.weight is words


def test_the_whole_network_comes_back(tiny: Path, tmp_path: Path) -> None:
    model = write_run(tiny, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    _, loaded = load_exported(tmp_path / "out")
    own = dict(model.named_parameters())
    back = dict(loaded.named_parameters())
    assert own.keys() == back.keys()
    assert any(name.startswith("visual.") for name in own)
    assert all(torch.equal(own[name], back[name]) for name in own)


def test_an_export_that_differs_is_not_called_done(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tiny, tmp_path / "run")

    def spoilt(folder: Path, weights: dict[str, torch.Tensor], shape: EncoderShape) -> None:
        write_folder(folder, {**weights, "text.norm.bias": weights["text.norm.bias"] + 0.01}, shape)

    monkeypatch.setattr("trainer.export.write_folder", spoilt)
    with pytest.raises(UserError, match=r"its hidden states differ from the run's by .*; do not use it"):
        export_run(tmp_path / "run", tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match=r"is not empty; name a new folder"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
