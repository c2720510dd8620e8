"""Fine-tuning: starting weights from another run, one of its checkpoints, or an exported folder (`model.weights`)."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3p.checkpoints.files import STATE_FILE, read_state
from m3p.checkpoints.read import read_newest, read_weights, why_not_whole
from m3p.checkpoints.resumable import check_vocabulary
from m3p.checkpoints.selection import opened
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.stored_files import read_object
from m3p.vocabulary import has_vocabulary, same_vocabulary, vocabulary_file

EXPORTED = "m3p.safetensors"
"""All weights of a run by our names, in a folder that `m3p export` wrote."""
RECORD = "m3p.json"
"""What is known of these weights, beside them."""

Found = tuple[dict[str, Tensor], list[str] | None]
"""Weights by name, and the languages whose captions they were trained on; None where that was not recorded."""


class Start(NamedTuple):
    """With what weights a run starts."""

    source: str
    """What was loaded."""
    captioned: list[str] | None
    """The languages whose captions the weights were trained on; None where that was not recorded."""
    fresh: list[str]
    """Heads that start from nothing, as a whole or in part."""

    @property
    def lines(self) -> dict[str, str]:
        """What the table at the start of a run says of it."""
        return {"starts from": self.source, "fresh heads": ", ".join(self.fresh) or "none"}


def start_from(model: nn.Module, path: Path, ranks: Ranks | None, tokenizer: Path | None = None) -> Start:
    """Put the weights that `path` has into a plain network; heads that they lack stay fresh. Every rank calls it.

    `tokenizer` is the folder of the recipe's vocabulary; None where `path` is known to have the same.
    Raises UserError where there are no weights, where they are damaged, or another network's or vocabulary's.
    """
    found, captioned = _read(path, ranks, tokenizer)
    own = dict(model.named_parameters())
    wrong = [f"{name} {list(t.shape)}" for name, t in found.items() if name in own and own[name].shape != t.shape]
    wrong += [f"{name} is missing" for name in own if name not in found and not name.startswith("heads.")]
    if wrong:
        raise UserError(
            f"model.weights = {path}: {len(wrong)} tensors do not fit this recipe's model, such as {wrong[0]}; "
            "use the model and visual sections of the run that wrote it"
        )
    with torch.no_grad():
        for name in own.keys() & found.keys():
            own[name].copy_(found[name])
    fresh = [name.split(".")[1] for name in own if name not in found]
    return Start(
        f"{path}: {len(own.keys() & found.keys())} of {len(own)} tensors", captioned, list(dict.fromkeys(fresh))
    )


def _read(path: Path, ranks: Ranks | None, tokenizer: Path | None) -> Found:
    path = opened(path)
    if (path / EXPORTED).is_file():
        return _read_exported(path, tokenizer)
    if (path / STATE_FILE).is_file():
        problem = why_not_whole(path, ranks)
        if problem is not None:
            raise UserError(f"model.weights = {path} is not whole: {problem}; name another one, or put a copy back")
        return _read_checkpoint(path, tokenizer)
    try:
        return read_newest(path, lambda newest: _read_checkpoint(newest, tokenizer), ranks)[1]
    except UserError as error:
        raise UserError(f"model.weights = {path}: {error}") from error


def _read_checkpoint(path: Path, tokenizer: Path | None) -> Found:
    state = read_state(path)
    if tokenizer is not None:
        check_vocabulary(path, state, tokenizer)
    return read_weights(path), state.captioned


def _read_exported(path: Path, tokenizer: Path | None) -> Found:
    if tokenizer is not None and has_vocabulary(path) and not same_vocabulary(path, tokenizer):
        raise UserError(
            f"model.weights = {path}: its vocabulary, {vocabulary_file(path)}, is another one than "
            f"{vocabulary_file(tokenizer)}; set model.tokenizer={path}"
        )
    try:
        return load_file(path / EXPORTED), _captioned(path / RECORD)
    except SafetensorError as error:
        raise UserError(f"model.weights = {path}: {EXPORTED} cannot be read ({error}); export it again") from error


def _captioned(record: Path) -> list[str] | None:
    """Return the captioned languages of an export's record; None for an export of an earlier version, which has no record."""
    if not record.is_file():
        return None
    try:
        languages = read_object(record)["captioned_languages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} cannot be read ({error}): export the run again") from error
    return None if languages is None else [str(language) for language in languages]
