"""Builds the network that a recipe describes, with its starting weights."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from m3p.errors import UserError
from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape
from m3p.model.flops import NetworkSizes, measure_network
from m3p.model.heads import EmbeddingHead, HeadOwner
from m3p.model.huggingface import check_weights, read_shape, read_weights
from m3p.model.m3p import M3P
from m3p.model.weight_files import WeightFiles
from m3p.terminal import warn
from m3p.visual.source import VisualSource
from m3p.vocabulary import (
    SENTENCEPIECE_FILE,
    TOKENIZER_FILE,
    check_one_vocabulary,
    has_vocabulary,
    row_order,
    same_vocabulary,
    vocabulary_file,
)


def build_model(
    config: ModelConfig,
    vocabulary: int,
    visual: VisualSource | None,
    tasks: Iterable[HeadOwner],
    seed: int,
    load: bool = True,
    say: Callable[[str], None] = warn,
) -> M3P:
    """Return the network, float32 on the CPU, the same for the same `seed`.

    `vocabulary` is the tokenizer's; the heads are those of `tasks`, in that order, which must be the same on every rank;
    `load=False` leaves the weights of `initialise` out (a checkpoint replaces them). `say` gets a line where rows of its
    word table are left out.
    Raises UserError where tokenizer and starting weights do not fit.
    """
    if config.initialise is not None and load:
        WeightFiles(config.initialise)  # that they are missing is said before a network is built
    shape = read_encoder_shape(config, vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = M3P(config, shape, vocabulary, visual, tasks)
    if config.initialise is not None and load:
        _check_vocabulary(config, config.initialise)
        _say_padding(config.initialise, vocabulary, say)
        own = config.initialise if has_vocabulary(config.initialise) else config.tokenizer
        order = None if own is None else row_order(own)
        weights = read_weights(config.initialise, shape, vocabulary, order)
        check_weights(config.initialise, weights, model.state_dict())
        _, unexpected = model.load_state_dict(weights, strict=False)
        assert all(name.startswith("heads.") for name in unexpected), unexpected
    freeze(model, config)
    return model


def network_sizes(
    config: ModelConfig, vocabulary: int, visual: VisualSource | None, tasks: Iterable[HeadOwner]
) -> NetworkSizes:
    """Return the sizes that work and memory follow from. Raises UserError as `build_model`."""
    return measure_network(config, read_encoder_shape(config, vocabulary), vocabulary, visual, tasks)


def read_encoder_shape(config: ModelConfig, vocabulary: int) -> EncoderShape:
    """Return the sizes that the recipe gives, or those of `initialise`. Raises UserError."""
    if config.initialise is None:
        assert config.shape is not None, "the recipe gives one of the two"
        return config.shape
    shape, words = read_shape(config.initialise)
    if words < vocabulary or (words > vocabulary and not _is_own(config, config.initialise)):
        raise UserError(
            f"model.initialise = {config.initialise}: {_misfit(config, config.initialise, words, vocabulary)}"
        )
    if config.layers is not None:
        if config.layers > shape.layers:
            raise UserError(f"model.layers = {config.layers}: {config.initialise} has {shape.layers}; lower it")
        shape = shape.model_copy(update={"layers": config.layers})
    return shape


def _say_padding(start: Path, vocabulary: int, say: Callable[[str], None]) -> None:
    """Say that rows of the word table belong to no piece of the tokenizer, where there are some."""
    _, words = read_shape(start)
    if words > vocabulary:
        say(
            f"model.initialise = {start}: the last {words - vocabulary} of the {words} rows of its word table belong to no piece "
            f"of the tokenizer's {vocabulary} (padding, as a rule) and are left out"
        )


def _is_own(config: ModelConfig, start: Path) -> bool:
    """Tell whether the tokenizer is the one that the weights of `start` were trained with; then rows beyond it are padding."""
    return config.tokenizer is None or (has_vocabulary(start) and same_vocabulary(start, config.tokenizer))


def _misfit(config: ModelConfig, start: Path, words: int, vocabulary: int) -> str:
    """Return why a word table and a tokenizer do not fit, and the way out."""
    said = f"its {words} words are not the tokenizer's {vocabulary}"
    if not has_vocabulary(start):
        return f"{said}; copy the model's own {SENTENCEPIECE_FILE} or {TOKENIZER_FILE} into it, and leave model.tokenizer out"
    if config.tokenizer is None:
        return f"{said}: {vocabulary_file(start)} is not of this model; put back the model's own"
    return f"{said}; leave model.tokenizer out to use the folder's own"


def _check_vocabulary(config: ModelConfig, start: Path) -> None:
    """Raise UserError where the vocabulary has other words for the rows of the word table, though as many, or is two."""
    if has_vocabulary(start):
        check_one_vocabulary(start)
    if config.tokenizer is not None and has_vocabulary(start) and not same_vocabulary(start, config.tokenizer):
        raise UserError(
            f"model.tokenizer = {config.tokenizer}: its {vocabulary_file(config.tokenizer).name} is another one than "
            f"{vocabulary_file(start)}, which the weights of model.initialise were trained with; leave model.tokenizer out to "
            "use the folder's own"
        )


def freeze(model: M3P, config: ModelConfig) -> None:
    """Keep the parts that the recipe freezes out of training. Raises UserError for layers that there are not."""
    parts: dict[str, list[nn.Module]] = {
        "words": [model.text.words],
        "positions": [model.text.positions],
        "encoder": [model.encoder],
        "text": [model.text, model.encoder],
        "text_projection": [head.text_projection for head in model.heads.values() if isinstance(head, EmbeddingHead)],
        "visual": [] if model.visual is None else [model.visual],
        "heads": [*model.heads.values()],
    }
    for name in config.freeze:
        shared = {id(parameter) for parameter in model.text.parameters()} if name == "heads" else set[int]()
        for part in parts[name]:
            for parameter in part.parameters():
                if id(parameter) not in shared:  # the word table, which a decoder is tied to
                    parameter.requires_grad_(False)
    if config.freeze_layers > len(model.encoder.layers):
        raise UserError(
            f"model.freeze_layers = {config.freeze_layers}: the encoder has {len(model.encoder.layers)}; lower it"
        )
    for layer in model.encoder.layers[: config.freeze_layers]:
        layer.requires_grad_(False)
