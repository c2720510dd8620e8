"""Fine-tuning: starting weights from another run, one of its checkpoints, or an exported folder (`model.weights`)."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.errors import UserError
from trainer.training.checkpoint import newest_whole, read_weights
from trainer.training.checkpoint_files import STATE_FILE
from trainer.training.distributed import Ranks

EXPORTED = "m3p.safetensors"
"""All weights of a run by our names, in a folder that `m3p export` wrote."""


def start_from(model: nn.Module, path: Path, ranks: Ranks | None) -> None:
    """Put the weights that `path` has into a plain network; heads that they lack stay fresh. Every rank calls it.

    Raises UserError where there are none, or where they are another network's.
    """
    found = _read(path, ranks)
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


def _read(path: Path, ranks: Ranks | None) -> dict[str, Tensor]:
    if (path / EXPORTED).is_file():
        try:
            return load_file(path / EXPORTED)
        except SafetensorError as error:
            raise UserError(f"model.weights = {path}: {EXPORTED} cannot be read ({error}); export it again") from error
    if (path / STATE_FILE).is_file():
        return read_weights(path)
    newest, problems = newest_whole(path, ranks)
    if newest is None:
        raise UserError(
            f"model.weights = {path}: {problems[0] if problems else 'holds no weights'}; name a run folder with a whole "
            "checkpoint, one of its checkpoints (RUN/checkpoints/step-...), or a folder that `m3p export` wrote"
        )
    return read_weights(newest)
