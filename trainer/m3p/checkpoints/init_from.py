"""Fine-tuning: starting weights from another run, one of its checkpoints, or an exported folder (`model.weights`)."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3p.checkpoints.files import STATE_FILE, read_state
from m3p.checkpoints.read import read_newest, read_weights, why_not_whole
from m3p.checkpoints.resumable import check_vocabulary, visual_fingerprints
from m3p.checkpoints.selection import opened
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.recipe.load import load_recipe
from m3p.stored_files import read_object
from m3p.visual.pretrained import Frozen, keeps_weights
from m3p.visual.source import VisualSource
from m3p.vocabulary import has_vocabulary, same_vocabulary, vocabulary_file

EXPORTED = "m3p.safetensors"
"""All weights of a run by our names, in a folder that `m3p export` wrote."""
RECIPE = "recipe.yaml"
"""The resolved recipe, in a run folder and in an export."""
RECORD = "m3p.json"
"""What is known of these weights, beside them."""


class Found(NamedTuple):
    """What a run, a checkpoint or an export holds."""

    weights: dict[str, Tensor]
    """By name."""
    captioned: list[str] | None
    """Languages whose captions they were trained on; None where that was not recorded."""
    seen_by: dict[str, str]
    """Hashes of the files that its visual source named, by recipe field; a frozen tower's weights stand nowhere else."""


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


def start_from(
    model: nn.Module,
    path: Path,
    ranks: Ranks | None,
    tokenizer: Path | None = None,
    visual: VisualSource | None = None,
) -> Start:
    """Put the weights that `path` has into a plain network; heads that they lack stay fresh. Every rank calls it.

    A tower that was frozen there and is trained here starts from its folder, which must be the same.

    Args:
        tokenizer: the folder of the recipe's vocabulary; None where `path` is known to have the same.
        visual: the recipe's visual source; None where `path` is known to have the same.

    Raises UserError where there are no weights, where they are damaged, or another network's, vocabulary's or tower's.
    """
    read = _read(path, ranks, tokenizer)
    found, captioned = read.weights, read.captioned
    own = dict(model.named_parameters())
    loaded = _loaded(model) if visual is not None else set()
    if visual is not None and not loaded & found.keys():
        _check_tower(model, path, read, visual)
    wrong = [f"{name} {list(t.shape)}" for name, t in found.items() if name in own and own[name].shape != t.shape]
    wrong += [f"{name} is missing" for name in own.keys() - loaded - found.keys() if not name.startswith("heads.")]
    if wrong:
        raise UserError(
            f"model.weights = {path}: {len(wrong)} tensors do not fit this recipe's model, such as {wrong[0]}; "
            "use the model and visual sections of the run that wrote it"
        )
    with torch.no_grad():
        for name in own.keys() & found.keys():
            own[name].copy_(found[name])
    fresh = [name.split(".")[1] for name in own if name not in found and name not in loaded]
    return Start(
        f"{path}: {len(own.keys() & found.keys())} of {len(own)} tensors", captioned, list(dict.fromkeys(fresh))
    )


def _loaded(model: nn.Module) -> set[str]:
    """Return the names of the weights that the network has from files which the recipe names, and trains."""
    parts = [(name, module) for name, module in model.named_modules() if keeps_weights(module)]
    return {f"{name}.{inner}" for name, module in parts for inner, _ in module.named_parameters()}


def _check_tower(model: nn.Module, path: Path, found: Found, visual: VisualSource) -> None:
    """Raise UserError where the network sees by another tower than the weights of `path` were trained with."""
    for prefix, part in model.named_modules():
        own = dict(part.module.named_parameters(prefix)) if isinstance(part, Frozen) else {}
        trained = own.keys() & found.weights.keys()
        if any(not torch.equal(own[name].cpu(), found.weights[name]) for name in trained):
            raise UserError(
                f"model.weights = {path}: its vision tower was trained, and visual.trained = none would take that of "
                f"visual.folder as it is; set visual.trained as it was there, or export it (m3p export {path} --output FOLDER) "
                "and set visual.folder=FOLDER/vision_tower"
            )
        if trained:
            return
    for field, now in visual_fingerprints(visual).items():
        then = found.seen_by.get(field, now)
        if then != now:
            raise UserError(
                f"model.weights = {path}: it was trained with another {field} (hash {then}) than the one that it names now (hash "
                f"{now}); name the folder that it was trained with"
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
    return Found(read_weights(path), state.captioned, state.data)


def _read_exported(path: Path, tokenizer: Path | None) -> Found:
    if tokenizer is not None and has_vocabulary(path) and not same_vocabulary(path, tokenizer):
        raise UserError(
            f"model.weights = {path}: its vocabulary, {vocabulary_file(path)}, is another one than "
            f"{vocabulary_file(tokenizer)}; set model.tokenizer={path}"
        )
    try:
        return Found(load_file(path / EXPORTED), _captioned(path / RECORD), _seen_by(path))
    except SafetensorError as error:
        raise UserError(f"model.weights = {path}: {EXPORTED} cannot be read ({error}); export it again") from error


def _seen_by(export: Path) -> dict[str, str]:
    """Return the hashes of the files that the visual source of an export names; they are in its folder."""
    visual = load_recipe(export / RECIPE).visual if (export / RECIPE).is_file() else None
    return {} if visual is None else visual_fingerprints(visual.exported_to(export))


def _captioned(record: Path) -> list[str] | None:
    """Return the captioned languages of an export's record; None for an export of an earlier version, which has no record."""
    if not record.is_file():
        return None
    try:
        languages = read_object(record)["captioned_languages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} cannot be read ({error}): export the run again") from error
    return None if languages is None else [str(language) for language in languages]
