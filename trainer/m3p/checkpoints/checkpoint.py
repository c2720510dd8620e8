"""Checkpoints: whole or absent, one form for every ZeRO stage and number of ranks, written while training goes on.

Training stands still while each rank copies what it holds (nobody is sent anything) to its own memory. A thread then writes
that rank's share and flushes it; when all ranks have, rank 0 writes state.json, gives the folder its name, and points
`latest` at it. The newest whole checkpoint is the one that counts, whatever `latest` says: to go back, remove newer ones.
DeepSpeed's own form is not used: it can be read only by as many ranks of the same stage, and is pickled.
"""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m3p.checkpoints import files
from m3p.checkpoints.files import FORMAT_VERSION, Reader, State, read_state
from m3p.checkpoints.fragment import Checkpointed, Progress
from m3p.distributed import Ranks, all_reduce_max, broadcast_object
from m3p.errors import UserError
from m3p.keys import key
from m3p.terminal import warn

__all__ = [
    "FORMAT_VERSION",
    "Checkpoints",
    "State",
    "load_weights",
    "newest_whole",
    "read_state",
    "read_weights",
    "say_passed_over",
    "why_not_whole",
]

BYTES_OF_PARAMETER = 12
"""Weight and two moments in float32."""
HEADER_BYTES = 1 << 20
"""For headers and state.json."""
LONGEST_WRITE = timedelta(hours=6)

Share = tuple[dict[str, Tensor], dict[str, tuple[int, tuple[int, ...]]]]


class Checkpoints:
    """Writes the checkpoints of one run; every rank calls every method.

    Args:
        run: the run folder.
        owner: name of this start of the run; two starts never write into one unfinished folder.
        keep: newest checkpoints that are kept. keep_every: those at multiples of this many steps are kept too.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, run: Path, owner: str, keep: int, keep_every: int | None, ranks: Ranks) -> None:
        self.folder = run / "checkpoints"
        self._owner, self._keep, self._keep_every, self._ranks = owner, keep, keep_every, ranks
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        # The writing threads talk through their own group: what they send must not fall between training's collectives.
        self._group = dist.new_group(backend="gloo", timeout=LONGEST_WRITE)
        if ranks.rank == 0:
            files.remove_partial(self.folder)

    def save(self, engine: Checkpointed, state: State) -> None:
        """Copy everything, and write it in the background. Waits for the previous save. Raises UserError: no space."""
        self.finish()
        self._check_space(engine.parameters())
        share = _copy_share(engine, self._ranks)
        self._pending = self._thread.submit(self._write, share, state)

    def poll(self) -> None:
        """Raise the UserError of a background save that failed; all ranks raise at the same call."""
        if self._pending is not None and not all_reduce_max(0 if self._pending.done() else 1)[0]:
            self.finish()

    def finish(self) -> None:
        """Wait for the save that is being written, if any. Raises UserError if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _check_space(self, parameters: int) -> None:
        needed = BYTES_OF_PARAMETER * parameters + HEADER_BYTES
        free = broadcast_object(shutil.disk_usage(self.folder).free if self._ranks.rank == 0 else 0)
        if free < needed:
            raise UserError(
                f"{self.folder}: a checkpoint takes {needed:,} bytes and {free:,} are free, so none was written; the earlier "
                "ones are kept. Make room (run.keep_checkpoints is how many stay), then start again"
            )

    def _write(self, share: Share, state: State) -> None:
        """Write this rank's share; rank 0 makes the whole of it. Every rank's thread ends alike."""
        name = f"step-{state.step:08d}"
        aside = self.folder / f".{name}.{self._owner}.partial"
        file = files.share_name(self._ranks.rank)
        entry, error = _attempt(lambda: _write_share(aside / file, share))
        outcomes = self._gather((file, entry, error))
        error = next((error for _, _, error in outcomes if error), None)
        if error is None and self._ranks.rank == 0:
            complete = state.model_copy(update={"files": {file: entry for file, entry, _ in outcomes}})
            _, error = _attempt(lambda: self._publish(aside, name, complete))
        error = self._gather(error)[0] or error
        if error is not None:
            if self._ranks.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise UserError(
                f"{self.folder / name} could not be written: {error}. The earlier checkpoints are kept; "
                "mend the cause and start again"
            )

    def _publish(self, aside: Path, name: str, state: State) -> None:
        files.write_state(aside, state)
        files.publish(aside, name)
        files.prune(self.folder, state.step, self._keep, self._keep_every)

    def _gather(self, value: Any) -> list[Any]:
        every: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(every, value, group=self._group)
        return every


def newest_whole(run: Path, ranks: Ranks | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a run or None, and why newer ones are not whole.

    Sizes and hashes are compared; the ranks share the hashing and agree. Every rank calls it, or one process alone.
    Raises UserError for checkpoints of another format: they are whole, and going on without them would lose them.
    """
    folder = run / "checkpoints"
    candidates = files.checkpoints_in(folder)[::-1]
    reasons: list[str] = []
    for path in broadcast_object(candidates) if ranks else candidates:
        problem = why_not_whole(path, ranks)
        if problem is None:
            return path, reasons
        reasons.append(problem)
    return None, reasons


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
        size = file.stat().st_size if file.is_file() else None
        if size != entry.bytes:
            return f"{file}: {'missing' if size is None else f'{size:,} bytes'}, should have {entry.bytes:,}"
        if number % ranks == rank and files.describe(file) != entry:
            return f"{file}: its content is not what was written"
    return None


def _copy_share(engine: Checkpointed, ranks: Ranks) -> Share:
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, tuple[int, tuple[int, ...]]] = {}
    for fragment in engine.fragments():
        if len(fragment.saved):
            tensors |= {f"{kind}/{fragment.name}": tensor for kind, tensor in fragment.copy().items()}
            pieces[fragment.name] = (fragment.saved.start, fragment.shape)
    tensors["random/cpu"] = torch.get_rng_state()
    if ranks.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(ranks.device)
    return tensors, pieces


def _write_share(path: Path, share: Share) -> files.FileEntry:
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write_share(path, *share)


def _attempt(action: Any) -> tuple[Any, str | None]:
    """Return the result and None, or None and why it failed, to be told to the other ranks."""
    from safetensors import SafetensorError

    try:
        return action(), None
    except (OSError, SafetensorError) as error:
        return None, str(error)
