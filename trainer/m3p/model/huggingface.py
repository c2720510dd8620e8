"""To and from a local `transformers` folder: an XLM-RoBERTa, or a BERT with XLM-R's vocabulary or a WordPiece one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from m3p.errors import UserError
from m3p.model.encoder import PAD, EncoderShape
from m3p.model.weight_files import WeightFiles
from m3p.transformers_folder import CONFIG_FILE, has_weights, read_json

Weights = dict[str, Tensor]

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
    "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
}
"""Tensors that show which field of config.json is wrong."""
_ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""What the encoder computes; a config says nothing, or this."""
_DEFAULTS = {"layer_norm_eps": 1e-12}
"""Fields that older configs leave out, with the values of `transformers`."""
MAX_WORDS = 1 << 24


def read_shape(folder: Path) -> tuple[EncoderShape, int]:
    """Return the encoder's sizes, in our terms, and the rows of the word table of `folder`. Raises UserError.

    `model_type: bert` (mBERT, LaBSE, multilingual-e5-small, multilingual MiniLM) counts positions from 0; ours, as
    XLM-R's, from 2, so that its table has two rows more here.
    """
    config, path = {**_DEFAULTS, **_read_config(folder)}, folder / "config.json"
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
    if not isinstance(words, int) or not 4 < words <= MAX_WORDS:
        raise UserError(
            f"{path}: vocab_size = {words!r}: want a whole number up to {MAX_WORDS:,}; put back the model's own config.json"
        )
    if has_weights(folder):
        _check_sizes(path, config, WeightFiles(folder))
    return shape.model_copy(update={"positions": shape.positions + _shift(config)}), words


def _shift(config: Mapping[str, Any]) -> int:
    """Return how many rows our table of positions has before the first one of the folder's."""
    return PAD + 1 if config["model_type"] == "bert" else 0


def read_weights(folder: Path, shape: EncoderShape, vocabulary: int, order: Sequence[int] | None = None) -> Weights:
    """Return our names -> tensors (float32) of the text encoder, and of the word head where the folder has one.

    Of the word table the first `vocabulary` rows, those beyond being padding; or the rows `order`, where the folder's vocabulary
    has other ids than ours. Raises UserError where tensors are missing.
    """
    files, config = WeightFiles(folder), _read_config(folder)
    rows = slice(vocabulary) if order is None else torch.tensor(order)
    ours: Weights = {}
    try:
        for mine, name in _EMBEDDINGS.items():
            ours[mine] = files.read(name)
        for layer in range(shape.layers):
            ours |= _read_layer(files, layer)
        if "lm_head.dense.weight" in files:
            ours |= {mine: files.read(name) for mine, name in _WORD_HEAD.items()}
            ours["heads.masked_words.bias"] = ours["heads.masked_words.bias"][rows]
    except KeyError as error:
        raise UserError(
            f"{folder / files.name}: no tensor {error}; want the weights of an XLM-RoBERTa model"
        ) from error
    ours["text.words.weight"] = ours["text.words.weight"][rows]
    ours["text.types.weight"] = ours["text.types.weight"][:1]  # a text alone is of the first type
    positions = ours["text.positions.weight"]
    ours["text.positions.weight"] = torch.cat([positions.new_zeros(_shift(config), positions.shape[1]), positions])
    return {name: tensor.float() for name, tensor in ours.items()}


def check_weights(folder: Path, weights: Weights, own: Mapping[str, Tensor]) -> None:
    """Raise UserError where tensors of `folder` have other sizes than the network `own`, made as config.json says."""
    for name, tensor in own.items():
        found, wanted = list(weights.get(name, tensor).shape), list(tensor.shape)
        if found != wanted:
            raise UserError(
                f"{folder / 'config.json'}: a size is not that of its weights: {name} is {found} there, want {wanted}; put "
                "back the config.json that belongs to the weights"
            )


def _check_sizes(path: Path, config: Mapping[str, Any], files: WeightFiles) -> None:
    """Raise UserError where the sizes in config.json are not those in the headers of the weights."""
    if config["num_hidden_layers"] > files.layers:
        raise UserError(
            f"{path}: num_hidden_layers = {config['num_hidden_layers']}: {files.name} has {files.layers}; put back the "
            "config.json that belongs to the weights"
        )
    for name, fields in _DIMENSIONS.items():
        found = files.shapes.get(name)
        wanted = [config.get(field, 1 if field == "type_vocab_size" else None) for field in fields]
        if found is not None and found != wanted:
            wrong = next((field for field, a, b in zip(fields, found, wanted, strict=False) if a != b), fields[0])
            raise UserError(
                f"{path}: {wrong} is not that of {files.name}: {name} is {found} there, want {wanted}; put back the "
                "config.json that belongs to the weights"
            )


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
    path = folder / CONFIG_FILE
    config = read_json(path, "model.initialise wants a local `transformers` XLM-RoBERTa folder")
    if config.get("model_type") not in ("xlm-roberta", "bert"):
        raise UserError(
            f"{path}: model_type is {config.get('model_type')!r}, but only 'xlm-roberta' and 'bert' can be loaded: XLM-R of any "
            "size, XLM-V, multilingual E5 and MiniLM, mBERT, LaBSE"
        )
    # XLM-R counts positions from the one behind its padding.
    for field, only in (_ONLY | ({"pad_token_id": PAD} if config["model_type"] == "xlm-roberta" else {})).items():
        if config.get(field, only) != only:
            raise UserError(f"{path}: {field} is {config[field]!r}, but the encoder computes {only!r} alone")
    return config


def _read_layer(files: WeightFiles, layer: int) -> Weights:
    ours: Weights = {}
    base = f"encoder.layer.{layer}."
    for kind in ("weight", "bias"):
        parts = [files.read(f"{base}attention.self.{part}.{kind}") for part in ("query", "key", "value")]
        ours[f"encoder.layers.{layer}.qkv.{kind}"] = torch.cat(parts)
        for mine, name in _LAYER.items():
            ours[f"encoder.layers.{layer}.{mine}.{kind}"] = files.read(f"{base}{name}.{kind}")
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
