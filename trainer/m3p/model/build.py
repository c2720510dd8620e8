"""Builds the network that a recipe describes, with its starting weights."""

from collections.abc import Iterable
from pathlib import Path

import torch

from m3p.errors import UserError
from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape
from m3p.model.flops import NetworkSizes, measure_network
from m3p.model.heads import HeadOwner
from m3p.model.huggingface import VOCABULARY, check_weights, read_shape, read_weights, same_vocabulary
from m3p.model.m3p import M3P
from m3p.visual.source import VisualSource


def build_model(
    config: ModelConfig,
    vocabulary: int,
    visual: VisualSource | None,
    tasks: Iterable[HeadOwner],
    seed: int,
    load: bool = True,
) -> M3P:
    """Return the network, float32 on the CPU, the same for the same `seed`.

    `vocabulary` is the tokenizer's; the heads are those of `tasks`, in that order, which must be the same on every rank;
    `load=False` leaves the weights of `initialise` out (a checkpoint replaces them).
    Raises UserError where tokenizer and starting weights do not fit.
    """
    shape = read_encoder_shape(config, vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = M3P(config, shape, vocabulary, visual, tasks)
    if config.initialise is not None and load:
        _check_vocabulary(config, config.initialise)
        weights = read_weights(config.initialise, shape.layers)
        check_weights(config.initialise, weights, model.state_dict())
        _, unexpected = model.load_state_dict(weights, strict=False)
        assert all(name.startswith("heads.") for name in unexpected), unexpected
    _freeze(model, config)
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
    if words != vocabulary:
        raise UserError(
            f"model.initialise = {config.initialise}: its {words} words are not the tokenizer's {vocabulary}; "
            "leave model.tokenizer out to use the folder's own"
        )
    if config.layers is not None:
        if config.layers > shape.layers:
            raise UserError(f"model.layers = {config.layers}: {config.initialise} has {shape.layers}; lower it")
        shape = shape.model_copy(update={"layers": config.layers})
    return shape


def _check_vocabulary(config: ModelConfig, start: Path) -> None:
    """Raise UserError where `model.tokenizer` has other words for the rows of the word table, though as many."""
    if config.tokenizer is not None and not same_vocabulary(start, config.tokenizer):
        raise UserError(
            f"model.tokenizer = {config.tokenizer}: its {VOCABULARY} is another one than {start / VOCABULARY}, which the "
            "weights of model.initialise were trained with; leave model.tokenizer out to use the folder's own"
        )


def _freeze(model: M3P, config: ModelConfig) -> None:
    parts = {"words": model.text.words, "positions": model.text.positions, "encoder": model.encoder}
    for name in config.freeze:
        parts[name].requires_grad_(False)
