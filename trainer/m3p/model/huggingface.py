"""To and from a local `transformers` XLM-RoBERTa folder: config.json, model.safetensors, sentencepiece.bpe.model."""

import filecmp
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m3p.errors import UserError
from m3p.model.encoder import EncoderShape

Weights = dict[str, Tensor]
VOCABULARY = "sentencepiece.bpe.model"

_EMBEDDINGS = {
    "text.words.weight": "embeddings.word_embeddings.weight",
    "text.positions.weight": "embeddings.position_embeddings.weight",
    "text.types.weight": "embeddings.token_type_embeddings.weight",
    "text.norm.weight": "embeddings.LayerNorm.weight",
    "text.norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_WORD_HEAD = {
    "heads.masked_words.dense.weight": "lm_head.dense.weight",
    "heads.masked_words.dense.bias": "lm_head.dense.bias",
    "heads.masked_words.norm.weight": "lm_head.layer_norm.weight",
    "heads.masked_words.norm.bias": "lm_head.layer_norm.bias",
    "heads.masked_words.bias": "lm_head.bias",
}
_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
    "layer_norm_eps": "layer_norm_eps",
}
_DIMENSIONS = {
    "text.words.weight": ("vocab_size", "hidden_size"),
    "text.positions.weight": ("max_position_embeddings", "hidden_size"),
    "encoder.layers.0.up.weight": ("intermediate_size", "hidden_size"),
}
"""Tensors that show which field of config.json is wrong."""


def read_shape(folder: Path) -> tuple[EncoderShape, int]:
    """Return the encoder's sizes and the vocabulary of `folder`. Raises UserError."""
    config, path = _read_config(folder), folder / "config.json"
    try:
        shape = EncoderShape.model_validate({mine: config[theirs] for mine, theirs in _SIZES.items()})
        words = config["vocab_size"]
    except KeyError as error:
        raise UserError(f"{path}: no field {error}; want the config of an XLM-RoBERTa model") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = first["loc"] or ("heads",)  # the one rule on two fields: the heads divide the width
        field = _SIZES[str(place[0])]
        text = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {field} = {config[field]!r}: {text}; put back the model's own config.json") from error
    if not isinstance(words, int):
        raise UserError(f"{path}: vocab_size = {words!r}: want a whole number; put back the model's own config.json")
    return shape, words


def read_weights(folder: Path, layers: int) -> Weights:
    """Return our names -> tensors (float32) of the text encoder, and of the word head where the folder has one.

    Raises UserError where tensors are missing.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: save the model with safe_serialization=True, in one file")
    try:
        theirs = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    theirs = {name.removeprefix("roberta."): tensor for name, tensor in theirs.items()}
    ours: Weights = {}
    try:
        for mine, name in _EMBEDDINGS.items():
            ours[mine] = theirs[name]
        for layer in range(layers):
            ours |= _read_layer(theirs, layer)
        if "lm_head.dense.weight" in theirs:
            ours |= {mine: theirs[name] for mine, name in _WORD_HEAD.items()}
    except KeyError as error:
        raise UserError(f"{path}: no tensor {error}; want the weights of an XLM-RoBERTa model") from error
    return {name: tensor.float() for name, tensor in ours.items()}


def check_weights(folder: Path, weights: Weights, own: Mapping[str, Tensor]) -> None:
    """Raise UserError where tensors of `folder` have other sizes than the network `own`, made as config.json says."""
    for name in [*(name for name in _DIMENSIONS if name in own), *own]:
        found, wanted = list(weights.get(name, own[name]).shape), list(own[name].shape)
        if found != wanted:
            fields = _DIMENSIONS.get(name, ())
            wrong = [field for field, a, b in zip(fields, found, wanted, strict=False) if a != b]
            raise UserError(
                f"{folder / 'config.json'}: {wrong[0] if wrong else 'a size'} is not that of model.safetensors: {name} is "
                f"{found} there, want {wanted}; put back the config.json that belongs to the weights"
            )


def same_vocabulary(folder: Path, tokenizer: Path) -> bool:
    """Tell whether `tokenizer` holds the vocabulary of `folder`; one that has none of its own goes with any."""
    own = folder / VOCABULARY
    return not own.is_file() or filecmp.cmp(own, tokenizer / VOCABULARY, shallow=False)


def write_folder(folder: Path, weights: Weights, shape: EncoderShape) -> None:
    """Write the text encoder and word head as an XLM-RoBERTa folder that `transformers` loads.

    `weights` has our names; a masked-words head becomes XLMRobertaForMaskedLM's, without one the model is
    XLMRobertaModel. The tied decoder weight is not written twice: `transformers` ties it when loading.
    """
    from safetensors.torch import save_file

    with_head = "heads.masked_words.bias" in weights
    prefix = "roberta." if with_head else ""
    theirs = {prefix + name: weights[mine] for mine, name in _EMBEDDINGS.items()}
    for layer in range(shape.layers):
        theirs |= {prefix + name: tensor for name, tensor in _write_layer(weights, layer).items()}
    if with_head:
        theirs |= {name: weights[mine] for mine, name in _WORD_HEAD.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.contiguous().clone() for name, t in theirs.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    architecture = "XLMRobertaForMaskedLM" if with_head else "XLMRobertaModel"
    config = _config(shape, len(weights["text.words.weight"]), architecture)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: model.initialise wants a local `transformers` XLM-RoBERTa folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of bytes that are no text too
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object of fields; want the config of an XLM-RoBERTa model")
    if config.get("model_type") != "xlm-roberta":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}, but only 'xlm-roberta' can be loaded")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path}: hidden_act is {config['hidden_act']!r}, but the encoder computes 'gelu' alone")
    return config


def _read_layer(theirs: Weights, layer: int) -> Weights:
    ours: Weights = {}
    base = f"encoder.layer.{layer}."
    for kind in ("weight", "bias"):
        parts = [theirs[f"{base}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
        ours[f"encoder.layers.{layer}.qkv.{kind}"] = torch.cat(parts)
        for mine, name in _LAYER.items():
            ours[f"encoder.layers.{layer}.{mine}.{kind}"] = theirs[f"{base}{name}.{kind}"]
    return ours


def _write_layer(ours: Weights, layer: int) -> Weights:
    theirs: Weights = {}
    base = f"encoder.layer.{layer}."
    for kind in ("weight", "bias"):
        qkv = ours[f"encoder.layers.{layer}.qkv.{kind}"].chunk(3)
        for part, tensor in zip(("query", "key", "value"), qkv, strict=True):
            theirs[f"{base}attention.self.{part}.{kind}"] = tensor
        for mine, name in _LAYER.items():
            theirs[f"{base}{name}.{kind}"] = ours[f"encoder.layers.{layer}.{mine}.{kind}"]
    return theirs


def _config(shape: EncoderShape, vocabulary: int, architecture: str) -> dict[str, object]:
    return {
        "model_type": "xlm-roberta",
        "architectures": [architecture],
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.positions,
        "layer_norm_eps": shape.layer_norm_eps,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
