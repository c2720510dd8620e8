"""Export of a run folder that was written here, not trained (tests/test_trained_run.py exports a trained one)."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, XLMRobertaForMaskedLM, XLMRobertaModel

from m3p.batch import Sequence
from m3p.checkpoints.files import FORMAT_VERSION, State, share_name, write_share, write_state
from m3p.checkpoints.resumable import visual_fingerprints, vocabulary_hash
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.export import export_run
from m3p.export_check import find_texts
from m3p.export_files import write_sentence_transformers, write_tokenizer
from m3p.model.build import build_model
from m3p.model.encoder import EncoderShape
from m3p.model.huggingface import write_folder
from m3p.model.m3p import M3P
from m3p.objectives.tasks.contrastive import ContrastiveHead
from m3p.packing import Packer
from m3p.prepare.staging import staged_folder
from m3p.prepare.tokenizer import prepare_tokenizer
from m3p.recipe.load import dump_recipe, parse_recipe
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.scoring import scorer_of
from m3p.retrieval.search import search
from m3p.runs import load_exported, open_run
from tests.tiny import tiny_recipe


def write_run(tiny: Path, run: Path, *overrides: str, visual: str = "regions") -> M3P:
    """Write what `m3p export` reads of a run; return its network."""
    recipe = parse_recipe(tiny_recipe(tiny.parent, visual), "tiny", overrides)
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
    data = {"model.tokenizer": vocabulary_hash(recipe.tokenizer_folder)}
    if recipe.visual is not None:
        data |= visual_fingerprints(recipe.visual)
    state = State(format_version=FORMAT_VERSION, step=3, ranks=1, order_version=1, recipe={}, data=data)
    write_state(folder, state.model_copy(update={"files": {share_name(0): entry}}))
    return model.eval()


def other_vocabulary(tiny: Path, folder: Path) -> Path:
    """Write a vocabulary of the same size and other words."""
    texts = folder / "texts.txt"
    folder.mkdir()
    texts.write_text("\n".join("".join(letters) for letters in itertools.permutations("zebrakux", 4)))
    size = Tokenizer(parse_recipe(tiny_recipe(tiny.parent), "tiny").tokenizer_folder).size
    prepare_tokenizer([texts], folder / "tokenizer", vocabulary=size - 2)  # `<pad>` and `<mask>` are no pieces
    assert Tokenizer(folder / "tokenizer").size == size
    return folder / "tokenizer"


def flip(path: Path) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def ours(model: M3P, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
    packer = Packer(*model.features)
    packer.add(Sequence(tokens))
    with torch.inference_mode():
        return model.encode(packer.finish(1))[0]


@pytest.mark.long
@pytest.mark.parametrize("with_head", [True, False])
def test_transformers_gives_the_same_hidden_states(tiny: Path, tmp_path: Path, with_head: bool) -> None:
    only_contrast = [
        "objectives.multilingual_text.weight=0",
        "objectives.image_caption.tasks={contrastive: 1}",
        "objectives.code_switched.tasks={contrastive: 1}",
    ]
    model = write_run(tiny, tmp_path / "run", *([] if with_head else only_contrast))
    export_run(tmp_path / "run", tmp_path / "out")
    names = {
        "config.json",
        "model.safetensors",
        "sentencepiece.bpe.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "m3p.safetensors",
        "recipe.yaml",
        "m3p.json",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    (architecture,) = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert architecture == ("XLMRobertaForMaskedLM" if with_head else "XLMRobertaModel")
    theirs = XLMRobertaModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    text = "dog cat tree moon"
    tokens = Tokenizer(tmp_path / "out").encode(text, 64)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == tokens.tolist()
    with torch.inference_mode():
        hidden = theirs(torch.from_numpy(tokens)[None]).last_hidden_state[0]
    torch.testing.assert_close(hidden, ours(model, tokens), atol=1e-5, rtol=0)


@pytest.mark.long
def test_the_weights_of_the_checkpoint_are_those_exported(tiny: Path, tmp_path: Path) -> None:
    model = write_run(tiny, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    loaded = opened.model
    assert opened.step == 3
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


@pytest.mark.long
def test_an_export_that_differs_is_not_called_done(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tiny, tmp_path / "run")

    def damaged(folder: Path, weights: dict[str, torch.Tensor], shape: EncoderShape) -> None:
        write_folder(folder, {**weights, "text.norm.bias": weights["text.norm.bias"] + 0.01}, shape)

    monkeypatch.setattr("m3p.export.write_folder", damaged)
    with pytest.raises(
        UserError, match=r"^\S+/out: its hidden states differ from the run's by .*; nothing was written"
    ):
        export_run(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "no half of an export stays, under any name"


def test_a_folder_with_something_in_it_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match=r"is not empty; name a new folder"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_two_exports_do_not_write_into_one_folder(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    with staged_folder(tmp_path / "out", "*", overwrite=False) as other:
        (other / "mine").touch()
        with pytest.raises(UserError, match="another command is writing it"):
            export_run(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give a folder that is new or empty"):
        export_run(tmp_path / "run", tmp_path / "file")


def test_another_vocabulary_of_the_same_size_is_refused(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    other = other_vocabulary(tiny, tmp_path / "other")
    recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny", [f"model.tokenizer={other}"])
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    with pytest.raises(UserError, match=rf"step-00000003 was trained with another vocabulary .* than {other}/sentence"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_newer_checkpoint_that_is_not_whole_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tiny, tmp_path / "run")
    good = tmp_path / "run" / "checkpoints" / "step-00000003"
    shutil.copytree(good, damaged := good.with_name("step-00000009"))
    flip(damaged / share_name(0))
    assert open_run(tmp_path / "run").step == 3
    said = capsys.readouterr().err
    assert said.startswith("step-00000003 is read, for a newer one is not whole: ")
    assert f"{damaged / share_name(0)}: its content is not what was written" in said
    flip(good / share_name(0))
    with pytest.raises(UserError, match=r"no checkpoint is whole:\n.*step-00000009.*\n.*step-00000003.*\nPut a copy"):
        open_run(tmp_path / "run")


@pytest.mark.long
def test_an_export_needs_nothing_of_what_the_run_started_from(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "first")
    export_run(tmp_path / "first", tmp_path / "start")
    settings = ["model.shape=null", "model.tokenizer=null", f"model.initialise={tmp_path / 'start'}", "model.layers=1"]
    model = write_run(tiny, tmp_path / "run", *settings)
    export_run(tmp_path / "run", tmp_path / "out")
    (tmp_path / "start").rename(tmp_path / "moved")
    recipe, loaded = load_exported(tmp_path / "out")
    assert recipe.tokenizer_folder == tmp_path / "out"
    back = dict(loaded.named_parameters())
    assert all(torch.equal(parameter, back[name]) for name, parameter in model.named_parameters())


@pytest.mark.long
def test_a_model_of_few_positions_is_compared_too(tiny: Path, tmp_path: Path) -> None:
    short = [f"objectives.{name}.max_tokens=4" for name in ("multilingual_text", "image_caption", "code_switched")]
    write_run(tiny, tmp_path / "run", "model.shape.positions=6", *short)
    assert "hidden states differ" in export_run(tmp_path / "run", tmp_path / "out")


@pytest.mark.long
def test_autotokenizer_cuts_long_texts_to_the_positions(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    theirs, text = AutoTokenizer.from_pretrained(tmp_path / "out"), "dog and cat. " * 60
    ids = theirs(text, truncation=True)["input_ids"]
    assert (len(ids), theirs.model_max_length) == (64, 64)  # 66 positions
    assert ids == Tokenizer(tmp_path / "out").encode(text, 64).tolist()
    model = XLMRobertaModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    model(**theirs([text, "dog"], truncation=True, padding=True, return_tensors="pt"))


def test_a_typed_mask_is_one_to_transformers(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer(tmp_path / "out")
    wanted = [*ours.encode("dog", 64)[:-1].tolist(), ours.mask, *ours.encode("tree", 64)[1:].tolist()]
    assert theirs("dog <mask> tree")["input_ids"] == wanted


@pytest.mark.program
def test_the_folder_needs_no_sentencepiece_and_is_readable_by_all(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", "sentence-transformers")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    program = (
        "import sys; sys.modules['sentencepiece'] = None; from transformers import AutoTokenizer; "
        "print(AutoTokenizer.from_pretrained(sys.argv[1])('dog').input_ids)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.stdout == f"{Tokenizer(tmp_path / 'out').encode('dog', 64).tolist()}\n", done.stderr


@pytest.mark.long
@pytest.mark.parametrize(("pooling", "centre"), [("first", False), ("mean", False), ("mean", True)])
@pytest.mark.parametrize("installed", [True, False])
def test_text_embeddings_of_sentence_transformers_are_ours(
    tiny: Path,
    tmp_path: Path,
    pooling: str,
    centre: bool,
    installed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if installed:
        pytest.importorskip("sentence_transformers")
    else:
        monkeypatch.setattr("m3p.export_check.find_spec", lambda name: None)
    write_run(tiny, tmp_path / "run", f"model.pooling={pooling}", "model.projection=8", f"model.text_centre={centre}")
    said = export_run(tmp_path / "run", tmp_path / "out", "sentence-transformers")
    assert "LOAD REPORT" not in caplog.text
    assert re.search(r"embeddings differ from the run's by at most \d\.\de-0\d in ", said)
    assert said.endswith("in sentence-transformers" if installed else "in its modules in plain torch")
    if installed:
        from sentence_transformers import SentenceTransformer

        texts = [
            "dog cat",
            "Hund Baum Stein",
            "犬 猫",
            "tree house " * 40,
        ]  # the last one is longer than training allows
        found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
        np.testing.assert_allclose(found, scorer_of(open_run(tmp_path / "run")).embed_texts(texts), atol=1e-5)
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    assert open_run(tmp_path / "out").step == 3


@pytest.mark.long
def test_a_wrong_projection_is_not_called_done(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tiny, tmp_path / "run")
    monkeypatch.setattr("m3p.export_check.find_spec", lambda name: None)

    def damaged(head: ContrastiveHead, max_tokens: int, output: Path) -> None:
        write_sentence_transformers(head, max_tokens, output)
        save_file(
            {"linear.weight": head.text.weight.detach().flip(0).contiguous()}, output / "2_Dense" / "model.safetensors"
        )

    monkeypatch.setattr("m3p.export.write_sentence_transformers", damaged)
    with pytest.raises(UserError, match=r"its embeddings differ from the run's by .*; nothing was written"):
        export_run(tmp_path / "run", tmp_path / "out", "sentence-transformers")


def test_a_run_without_a_contrastive_task_has_no_space_for_texts(tiny: Path, tmp_path: Path) -> None:
    matching = [f"objectives.{name}.tasks={{matching: 1}}" for name in ("image_caption", "code_switched")]
    write_run(tiny, tmp_path / "run", *matching, "evaluation={}")
    with pytest.raises(UserError, match=r"--format sentence-transformers: .* trains no task that embeds texts alone"):
        export_run(tmp_path / "run", tmp_path / "out", "sentence-transformers")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_an_error_that_names_the_text_and_both_cuts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tiny, tmp_path / "run")

    def damaged(tokenizer: Tokenizer, max_tokens: int, output: Path) -> None:
        write_tokenizer(tokenizer, max_tokens, output)
        content = json.loads((output / "tokenizer.json").read_text())
        content["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})
        (output / "tokenizer.json").write_text(json.dumps(content))

    monkeypatch.setattr("m3p.export.write_tokenizer", damaged)
    message = (
        r"AutoTokenizer cuts ['\"].+['\"] to \[0, .*, 2\], the run's tokenizer to \[0, .*, 2\]; nothing was written"
    )
    with pytest.raises(UserError, match=message):
        export_run(tmp_path / "run", tmp_path / "out")


def test_texts_of_every_language_of_the_run_are_compared(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny")
    texts = find_texts(recipe)
    assert {"en", "de", "ja", "many scripts"} == set(texts.found)
    assert not texts.missing
    moved = parse_recipe(tiny_recipe(tmp_path / "elsewhere"), "tiny", [f"model.tokenizer={recipe.tokenizer_folder}"])
    assert set(find_texts(moved).found) == {"many scripts"}
    assert "evaluation.train.path" in find_texts(moved).missing


def test_reranking_without_the_task_is_refused(tiny: Path, tmp_path: Path) -> None:
    contrast = [f"objectives.{name}.tasks={{contrastive: 1}}" for name in ("image_caption", "code_switched")]
    write_run(tiny, tmp_path / "run", *contrast)
    with pytest.raises(UserError, match=r"--rerank 5: scores by matching, but no active objective of .*run trains it"):
        evaluate_run(tmp_path / "run", options=Options(rerank=5))


@pytest.mark.long
def test_a_run_without_a_dual_encoder_is_scored_by_its_cross_encoder(tiny: Path, tmp_path: Path) -> None:
    matching = [f"objectives.{name}.tasks={{matching: 1}}" for name in ("image_caption", "code_switched")]
    write_run(tiny, tmp_path / "run", *matching)
    (evaluation,) = evaluate_run(tmp_path / "run")
    assert evaluation.scoring == "cross"
    assert (tmp_path / "run" / "evaluation" / "train.json").is_file()
    with pytest.raises(
        UserError, match=r"scores by contrastive, but no active objective .* score otherwise \(--scoring\)"
    ):
        evaluate_run(tmp_path / "run", options=Options(scoring="dual"))


def test_a_query_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"query 'a\\udcff' holds half a character"):
        search(tmp_path, "a\udcff", "", 3)
