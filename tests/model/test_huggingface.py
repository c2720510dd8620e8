import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from m3p.batch import Sequence
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape
from m3p.model.huggingface import read_shape, read_weights, write_folder
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.packing import Packer

VOCABULARY, LAYERS = 50, 3
LENGTHS = [7, 1, 20, 3, 36, 20]
"""Ragged, and up to the last of the positions below."""
REAL_TEXTS = [
    "A dog on a red sofa.",
    "Zwei Hunde laufen über den Strand und spielen mit einem Ball, den ein Kind nach der Schule weit ins Wasser wirft.",
    "犬が公園で走っています",
    "a",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as `transformers` writes it; every weight is large enough that a wrong place would show."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=38,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaForMaskedLM(config)
    for name, parameter in model.named_parameters():
        norm = name.lower().replace("_", "").endswith("layernorm.weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.25)
    path = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(path)
    return path


def ours(folder: Path, **settings: object) -> M3P:
    config = ModelConfig.model_validate({"initialise": folder, **settings})
    _, vocabulary = read_shape(folder)
    return build_model(config, vocabulary, None, [TASKS["masked_words"]], seed=1).eval()


def sentences(vocabulary: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, vocabulary, (length,), generator=generator) for length in LENGTHS]


def forward_ours(model: M3P, texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states [T, width] and logits [T, vocabulary] of every slot, packed."""
    packer = Packer(1)
    for text in texts:
        packer.add(Sequence(text.numpy()))
    slots = torch.arange(sum(map(len, texts)))
    packer.target("masked_words", slots=slots.numpy())  # without labels the head gives logits
    batch = packer.finish(len(texts))
    with torch.inference_mode():
        hidden, _, _ = model.encode(batch)
        return hidden, model(batch).tasks["masked_words"]


def forward_theirs(model: XLMRobertaForMaskedLM, texts: list[Tensor], layer: int = -1) -> tuple[Tensor, Tensor]:
    """The same from `transformers`, whose sentences are padded to one length."""
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    with torch.inference_mode():
        out = model.eval()(ids, attention_mask=real, output_hidden_states=True)
    return out.hidden_states[layer][real.bool()], out.logits[real.bool()]


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_hidden_states_and_logits_are_those_of_transformers(folder: Path) -> None:
    hidden, logits = forward_ours(ours(folder), sentences(VOCABULARY))
    their_hidden, their_logits = forward_theirs(XLMRobertaForMaskedLM.from_pretrained(folder), sentences(VOCABULARY))
    assert their_logits.std() > 0.5, "the weights must be able to tell"
    assert_equal(hidden, their_hidden)
    assert_equal(logits, their_logits)


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes",
    [
        {
            "num_hidden_layers": 24,
            "hidden_size": 32,
            "num_attention_heads": 16,
            "intermediate_size": 128,
        },  # XLM-R large
        {
            "num_hidden_layers": 12,
            "hidden_size": 24,
            "num_attention_heads": 12,
            "vocab_size": 9016,
        },  # XLM-V: many words
    ],
    ids=["large", "xlm-v"],
)
def test_xlm_r_of_other_sizes_computes_the_same(tmp_path: Path, sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    given = {
        "vocab_size": VOCABULARY,
        "intermediate_size": 48,
        "max_position_embeddings": 38,
        "type_vocab_size": 1,
        **sizes,
    }
    theirs = XLMRobertaForMaskedLM(XLMRobertaConfig(**given, layer_norm_eps=1e-5)).eval()
    theirs.save_pretrained(tmp_path)
    texts = sentences(given["vocab_size"])
    for found, wanted in zip(forward_ours(ours(tmp_path), texts), forward_theirs(theirs, texts), strict=True):
        assert_equal(found, wanted)


def test_an_encoder_that_computes_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    ModernBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match=r"model_type is 'modernbert', but only 'xlm-roberta' and 'bert' .* XLM-V"):
        read_shape(tmp_path)


def test_what_differs_is_rounding(folder: Path) -> None:
    model, theirs = ours(folder).double(), XLMRobertaForMaskedLM.from_pretrained(folder).double()
    hidden, logits = forward_ours(model, sentences(VOCABULARY))
    their_hidden, their_logits = forward_theirs(theirs, sentences(VOCABULARY))
    torch.testing.assert_close(hidden, their_hidden, atol=1e-12, rtol=0)
    torch.testing.assert_close(logits, their_logits, atol=1e-12, rtol=0)


def test_hidden_states_and_logits_of_a_real_encoder(xlmr_folder: Path) -> None:
    model, theirs = ours(xlmr_folder), XLMRobertaForMaskedLM.from_pretrained(xlmr_folder).float()
    share_word_head(model, theirs)
    tokenizer = Tokenizer(xlmr_folder)
    texts = [torch.from_numpy(tokenizer.encode(text, 64)) for text in REAL_TEXTS]
    hidden, logits = forward_ours(model, texts)
    their_hidden, their_logits = forward_theirs(theirs, texts)
    assert_equal(hidden, their_hidden)
    assert_equal(logits, their_logits)


def share_word_head(model: M3P, theirs: XLMRobertaForMaskedLM) -> None:
    """Give both networks one random word head, of logits around 1: the real folder has none."""
    torch.manual_seed(0)
    mine = model.get_submodule("heads.masked_words")
    with torch.no_grad():
        for name in ("dense.weight", "dense.bias", "norm.bias", "bias"):
            torch.nn.init.normal_(mine.get_parameter(name), std=0.05)
        torch.nn.init.constant_(mine.get_parameter("norm.weight"), 0.5)
        for name in ("dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"):
            theirs.lm_head.get_parameter(name.replace("norm.", "layer_norm.")).copy_(mine.get_parameter(name))


def test_the_first_layers_alone_are_the_first_layers(folder: Path) -> None:
    model = ours(folder, layers=2)
    hidden, _ = forward_ours(model, sentences(VOCABULARY))
    theirs, _ = forward_theirs(XLMRobertaForMaskedLM.from_pretrained(folder), sentences(VOCABULARY), layer=2)
    assert len(model.encoder.layers) == 2
    assert_equal(hidden, theirs)


def test_more_layers_than_there_are_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model.layers = 4: .* has 3; lower it"):
        ours(folder, layers=4)


def test_another_vocabulary_than_the_tokenizers_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"its 50 words are not the tokenizer's 51; copy the model's own"):
        build_model(ModelConfig(initialise=folder), 51, None, [TASKS["masked_words"]], seed=1)


@pytest.mark.parametrize("with_head", [True, False])
def test_what_is_written_is_read_again_and_transformers_takes_it(folder: Path, tmp_path: Path, with_head: bool) -> None:
    shape, _ = read_shape(folder)
    weights = {
        n: t for n, t in read_weights(folder, shape, VOCABULARY).items() if with_head or not n.startswith("heads.")
    }
    write_folder(tmp_path, weights, shape)
    again = read_weights(tmp_path, shape, VOCABULARY)
    assert read_shape(tmp_path) == (shape, VOCABULARY)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    kind = XLMRobertaForMaskedLM if with_head else XLMRobertaModel
    model, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not {name for name in report["missing_keys"] if "pooler" not in name}
    if with_head:
        assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
        reference = XLMRobertaForMaskedLM.from_pretrained(folder)
        _, logits = forward_theirs(model, sentences(VOCABULARY))
        assert torch.equal(logits, forward_theirs(reference, sentences(VOCABULARY))[1])


def test_half_precision_files_are_read_as_float32(folder: Path, tmp_path: Path) -> None:
    halved = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halved, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    shape, _ = read_shape(tmp_path)
    weights = read_weights(tmp_path, shape, VOCABULARY)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def set_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def drop_config_field(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "hidden_size"}))


def drop_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["roberta.encoder.layer.1.attention.self.key.bias"]
    save_file(tensors, path)


def cut_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["roberta.encoder.layer.1.output.dense.bias"] = tensors["roberta.encoder.layer.1.output.dense.bias"][
        1:
    ].clone()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config.json is missing: model.initialise wants a local"),
        (lambda f: (f / "config.json").write_text("{"), r"config.json: not JSON"),
        (lambda f: set_config(f, model_type="roberta"), r"model_type is 'roberta', but only 'xlm-roberta' and 'bert'"),
        (drop_config_field, r"config.json: no field 'hidden_size'"),
        (lambda f: (f / "config.json").write_text("[]"), r"config.json: not a JSON object of fields"),
        (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), r"config.json: not JSON"),
        (lambda f: set_config(f, hidden_act="relu"), r"config.json: hidden_act is 'relu', but .* 'gelu' alone"),
        (lambda f: set_config(f, vocab_size="x"), r"config.json: vocab_size = 'x': want a whole number"),
        (
            lambda f: set_config(f, num_hidden_layers="many"),
            r"num_hidden_layers = 'many': Input should be a valid integer",
        ),
        (lambda f: set_config(f, num_attention_heads=5), r"num_attention_heads = 5: .* does not divide width = 32"),
        (
            lambda f: set_config(f, hidden_size=64),
            r"hidden_size is not that of model.safetensors: embeddings.word_embeddings.weight is \[50,",
        ),
        (lambda f: set_config(f, vocab_size=60), r"config.json: vocab_size is not that of model.safetensors"),
        (
            lambda f: set_config(f, max_position_embeddings=40),
            r"config.json: max_position_embeddings is not that of model",
        ),
        (
            lambda f: set_config(f, intermediate_size=40),
            r"config.json: intermediate_size is not that of model.safetensors",
        ),
        (
            cut_tensor,
            r"a size is not that of its weights: encoder.layers.1.down.bias is \[31\] there, want \[32\]",
        ),
        (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors is missing: save the model with"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), r"model.safetensors: not a readable safetensors"),
        (drop_tensor, r"model.safetensors: no tensor 'encoder.layer.1.attention.self.key.bias'"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_with_its_fault(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(UserError, match=message):
        ours(copy)


@pytest.mark.parametrize(
    "field",
    [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
    ],
)
@pytest.mark.parametrize("with_weights", [True, False])
def test_absurd_sizes_are_refused_before_anything_is_built(
    folder: Path, tmp_path: Path, field: str, with_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, copy := tmp_path / "copy")
    if not with_weights:
        (copy / "model.safetensors").unlink()
    monkeypatch.setattr("m3p.model.build.M3P", lambda *_: pytest.fail("a network was built"))
    set_config(copy, **{field: 10**9})
    with pytest.raises(UserError, match=rf"config.json: {field} = 1000000000: "):
        read_shape(copy)
    set_config(copy, **{field: 900})  # a size that exists, of another model
    with pytest.raises(UserError, match=rf"config.json: {field} |is missing"):
        ours(copy)


def test_a_config_that_never_ends_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text(" " * (1 << 21))
    with pytest.raises(UserError, match=r"has 2,097,152 bytes; a config has at most"):
        read_shape(tmp_path)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write other tensors into model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def under_other_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tied weights the names of the head, where the word table is not saved."""
    other = {
        "roberta.embeddings.word_embeddings.weight": "lm_head.decoder.weight",
        "lm_head.bias": "lm_head.decoder.bias",
    }
    return {other.get(name, name): tensor for name, tensor in tensors.items()}


def with_both_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Save the tied weights twice, as older versions of `transformers` did."""
    word = tensors["roberta.embeddings.word_embeddings.weight"]
    return {**tensors, "lm_head.decoder.weight": word.clone()}


@pytest.mark.parametrize("change", [under_other_names, with_both_names])
def test_tied_weights_are_found_under_either_name(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    shutil.copytree(folder, copy := tmp_path / "copy")
    rewrite(copy, change)
    wanted = ours(folder).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours(copy).state_dict().items())


def test_sharded_weights_are_those_of_one_file(folder: Path, tmp_path: Path) -> None:
    XLMRobertaForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    wanted = ours(folder).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours(tmp_path).state_dict().items())
    set_config(tmp_path, hidden_size=64)
    with pytest.raises(UserError, match=r"hidden_size is not that of model.safetensors.index.json"):
        read_shape(tmp_path)
    set_config(tmp_path, hidden_size=32)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002-of-.* is missing, which model.safetensors.index.json names"):
        ours(tmp_path)


@pytest.mark.parametrize("name", ["../stolen.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_names_files_of_its_folder_alone(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"want safetensors files of the same folder"):
        ours(tmp_path)


def test_pickles_are_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    model = XLMRobertaForMaskedLM.from_pretrained(folder)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, which runs code .*save_pretrained") as raised:
        ours(tmp_path)
    match = re.search(r'python -c "(.*)", and', str(raised.value))
    assert match is not None
    command = match.group(1).replace("NEW_FOLDER", str(tmp_path / "new"))
    exec(command)  # the way out, walked
    wanted = ours(folder).state_dict()
    found = ours(tmp_path / "new").state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if not name.startswith("heads."))


def test_rows_beyond_the_vocabulary_are_left_out_and_said(xlmr_folder: Path, tmp_path: Path) -> None:
    vocabulary = Tokenizer(xlmr_folder).size
    theirs = XLMRobertaForMaskedLM.from_pretrained(xlmr_folder)
    theirs.resize_token_embeddings(vocabulary, pad_to_multiple_of=64)
    theirs.save_pretrained(tmp_path)
    rows = theirs.config.vocab_size
    assert rows > vocabulary
    shutil.copy(xlmr_folder / "sentencepiece.bpe.model", tmp_path)
    said: list[str] = []
    config = ModelConfig(initialise=tmp_path)
    model = build_model(config, vocabulary, None, [TASKS["masked_words"]], seed=1, say=said.append).eval()
    assert said == [
        f"model.initialise = {tmp_path}: the last {rows - vocabulary} of the {rows} rows of its word table belong to no piece "
        f"of the tokenizer's {vocabulary} (padding, as a rule) and are left out"
    ]
    hidden, logits = forward_ours(model, sentences(vocabulary))
    their_hidden, their_logits = forward_theirs(theirs, sentences(vocabulary))
    assert_equal(hidden, their_hidden)
    assert_equal(logits, their_logits[:, :vocabulary])


def test_too_few_rows_for_the_folders_own_vocabulary_is_no_circle(xlmr_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(xlmr_folder, copy := tmp_path / "copy")
    theirs = XLMRobertaModel.from_pretrained(copy)
    theirs.resize_token_embeddings(100)
    theirs.save_pretrained(copy)
    with pytest.raises(UserError, match=r"its 100 words are not .*sentencepiece.bpe.model is not of this model"):
        build_model(ModelConfig(initialise=copy), Tokenizer(copy).size, None, [], seed=1)


@pytest.mark.parametrize("with_head", [True, False])
def test_bert_with_the_vocabulary_of_xlmr(xlmr_folder: Path, tmp_path: Path, with_head: bool) -> None:
    """As multilingual-e5-small and multilingual MiniLM are published: positions from 0, two token types, padded words."""
    tokenizer = Tokenizer(xlmr_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.size + 35,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=36,
        layer_norm_eps=1e-12,
    )
    theirs = BertForMaskedLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.25)
    (theirs if with_head else theirs.bert).save_pretrained(tmp_path)
    shutil.copy(xlmr_folder / "sentencepiece.bpe.model", tmp_path)
    model = build_model(ModelConfig(initialise=tmp_path), tokenizer.size, None, [TASKS["masked_words"]], seed=1).eval()
    assert model.text.positions.num_embeddings == 38
    hidden, logits = forward_ours(model, sentences(tokenizer.size))
    their_hidden, their_logits = forward_theirs(theirs, sentences(tokenizer.size))
    assert_equal(hidden, their_hidden)
    if with_head:
        torch.testing.assert_close(logits, their_logits[:, : tokenizer.size], atol=1e-4, rtol=0)


def test_norms_as_mbert_has_them_are_read(tmp_path: Path) -> None:
    """Models converted from TensorFlow call them gamma and beta, and older configs leave the epsilon out."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=36,
    )  # fmt: skip
    theirs = BertForMaskedLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.25)
    theirs.save_pretrained(tmp_path)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields.pop("layer_norm_eps") == 1e-12
    (tmp_path / "config.json").write_text(json.dumps(fields))
    shape, words = read_shape(tmp_path)
    assert shape.layer_norm_eps == 1e-12
    found = read_weights(tmp_path, shape, words)
    own = dict(theirs.named_parameters())
    assert torch.equal(found["text.norm.weight"], own["bert.embeddings.LayerNorm.weight"])
    last = "bert.encoder.layer.1.output.LayerNorm.bias"
    assert torch.equal(found["encoder.layers.1.feed_forward_norm.bias"], own[last])
    assert torch.equal(found["heads.masked_words.norm.weight"], own["cls.predictions.transform.LayerNorm.weight"])


def test_other_padding_is_refused_for_positions_are_counted_from_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "pad_token_id": 0}))
    with pytest.raises(UserError, match="pad_token_id is 0, but the encoder computes 1 alone"):
        read_shape(tmp_path)


def test_sizes_are_read_from_the_config(folder: Path) -> None:
    shape, vocabulary = read_shape(folder)
    assert shape == EncoderShape(layers=3, width=32, heads=4, feed_forward=48, positions=38, layer_norm_eps=1e-5)
    assert vocabulary == VOCABULARY
