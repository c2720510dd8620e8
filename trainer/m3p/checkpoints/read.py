"""Reads checkpoints: which one of a run counts, its weights, and what an engine needs to go on from it.

The newest whole checkpoint is the one that counts, whatever `latest` says: to go back, remove newer ones. A run that trains on
may prune a checkpoint between the moment it is chosen and the moment it is read; `read_newest` then takes the next.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m3p.checkpoints import files
from m3p.checkpoints.files import Reader, State, read_state, step_of
from m3p.checkpoints.fragment import Checkpointed, Progress
from m3p.distributed import Ranks, all_reduce_max, broadcast_object
from m3p.errors import UserError
from m3p.keys import key
from m3p.terminal import warn

T = TypeVar("T")
ATTEMPTS = 20
"""Times that the newest checkpoint is looked for, where each one that was found has been pruned before it was read."""


def newest_whole(run: Path, ranks: Ranks | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a run or None, and why newer ones are not whole.

    Sizes and hashes are compared; the ranks share the hashing and agree. Every rank calls it, or one process alone.
    Raises UserError for checkpoints of another format: they are whole, and going on without them would lose them.
    """
    for _ in range(ATTEMPTS):
        candidates = files.checkpoints_in(run / "checkpoints")[::-1]
        reasons: list[str] = []
        pruned = False
        for path in broadcast_object(candidates) if ranks else candidates:
            problem = why_not_whole(path, ranks) or _other_step(path)
            if problem is None:
                return path, reasons
            gone = broadcast_object(not path.exists()) if ranks else not path.exists()
            pruned |= gone
            reasons += [] if gone else [problem]
        if not pruned:
            break
    return None, reasons


def read_newest(run: Path, read: Callable[[Path], T], ranks: Ranks | None = None) -> tuple[Path, T]:
    """Return the newest whole checkpoint of a run, and what `read` makes of it; say which newer ones are passed over.

    Where it is pruned while `read` is at it, on any rank, all take the one that is the newest by then.
    Raises UserError where none is whole, and what `read` raises.
    """
    for _ in range(ATTEMPTS):
        newest, problems = newest_whole(run, ranks)
        if newest is None:
            raise none_whole(run, problems)
        error: Exception | None = None
        try:
            found = read(newest)
        except (UserError, OSError) as caught:
            error = caught
        pruned = int(error is not None and not newest.exists())
        if all_reduce_max(pruned)[0] if ranks else pruned:
            continue
        if error is not None:
            raise error
        if ranks is None or ranks.rank == 0:
            say_passed_over(newest, problems)
        return newest, found
    raise UserError(
        f"{run / 'checkpoints'}: each checkpoint was removed before it was read, {ATTEMPTS} times; try again"
    )


def none_whole(run: Path, problems: list[str]) -> UserError:
    """Return the error for a run without a whole checkpoint; `problems` are those of the checkpoints that it has."""
    if not problems:
        return UserError(
            f"{run} holds no checkpoint of a run; name a run folder, one of its checkpoints (RUN/checkpoints/step-...) or a "
            "folder that `m3p export` wrote; m3p train trains a run"
        )
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return UserError(
        f"{run / 'checkpoints'}: no checkpoint is whole:\n{lines}\nPut a copy back, or remove them and train anew"
    )


def why_not_whole(path: Path, ranks: Ranks | None = None) -> str | None:
    """Return why a checkpoint is not whole, or None; the same on all ranks. Called and raises as `newest_whole`."""
    first = _first_problem(path, ranks.rank if ranks else 0, ranks.world_size if ranks else 1)
    if ranks is None:
        return first
    every: list[str | None] = [None] * ranks.world_size
    dist.all_gather_object(every, first)
    return next((problem for problem in every if problem), None)


def say_passed_over(newest: Path, problems: list[str]) -> None:
    """Print why checkpoints newer than `newest` are not read: what follows is not of the last step that was saved."""
    for problem in problems:
        warn(f"{newest.name} is read, for a newer one is not whole: {problem}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the float32 weights of a checkpoint by our names; the tied word weight stands once. Raises UserError."""
    with Reader(path) as reader:
        return {name: reader.whole("weight", name) for name in reader.shapes}


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a checkpoint into a plain network. Raises UserError where the network is another one."""
    weights = read_weights(path)
    own = dict(model.named_parameters())
    wrong = sorted(weights.keys() ^ own.keys())
    wrong += sorted(name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape)
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise UserError(
            f"{path} holds another network than the recipe describes; they differ in {shown}. Set another run.folder"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def restore(path: Path, state: State, engine: Checkpointed, ranks: Ranks) -> None:
    """Put moments, master weights and random state back; the network had its weights before the engine was made."""
    with Reader(path) as reader, torch.no_grad():
        for fragment in engine.fragments():
            for kind, tensor in fragment.tensors.items():
                if len(fragment.tensors) > 1:  # a frozen weight is there already, in the network's precision
                    tensor.copy_(
                        reader.part(kind, fragment.name, range(fragment.start, fragment.start + fragment.numel))
                    )
        engine.set_progress(Progress(state.updates, state.loss_scale))
        random = reader.extra(ranks.rank, "random")
    if state.ranks != ranks.world_size or ranks.device.type not in {"cpu", *random}:
        # Dropout follows a generator a rank; other ranks than those that were saved start new ones.
        torch.manual_seed(key("dropout", state.recipe["run"]["seed"], ranks.rank, state.step))
        return
    torch.set_rng_state(random["cpu"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], ranks.device)


def _first_problem(path: Path, rank: int, ranks: int) -> str | None:
    try:
        state = read_state(path)
    except UserError as error:
        if ": format " in str(error):
            raise
        return str(error)
    for number, (name, entry) in enumerate(sorted(state.files.items())):
        file = path / name
        try:
            size = file.stat().st_size if file.is_file() else None
            if size != entry.bytes:
                return f"{file}: {'missing' if size is None else f'{size:,} bytes'}, should have {entry.bytes:,}"
            if number % ranks == rank and files.describe(file) != entry:
                return f"{file}: its content is not what was written"
        except FileNotFoundError:  # removed in this moment
            return f"{file}: missing"
    return None


def _other_step(path: Path) -> str | None:
    """Return what is wrong with the name of a whole checkpoint, or None: a copy renamed to a later step is not the newest."""
    try:
        step = read_state(path).step
    except UserError as error:  # removed in this moment
        return str(error)
    if step == step_of(path):
        return None
    return f"{path} holds step {step}, so it was renamed; name it step-{step:08d} to go on from it, or otherwise to keep it"
