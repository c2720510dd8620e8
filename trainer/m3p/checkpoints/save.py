"""Writes checkpoints: whole or absent, one form for every ZeRO stage and number of ranks, while training goes on.

Training stands still while each rank copies what it holds (nobody is sent anything) to its own memory. A thread then writes
that rank's share and flushes it; when all ranks have, rank 0 writes state.json, gives the folder its name, and points
`latest` at it. DeepSpeed's own form is not used: it can be read only by as many ranks of the same stage, and is pickled.
"""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m3p.checkpoints import files
from m3p.checkpoints.files import State
from m3p.checkpoints.fragment import Checkpointed
from m3p.checkpoints.selection import best_checkpoint
from m3p.distributed import Ranks, broadcast_object
from m3p.errors import UserError

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
        keep: newest checkpoints that are kept. keep_every: those at multiples of this many steps are kept too, and the
            one that `best` names.

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

    @property
    def writes(self) -> bool:
        """Whether this rank still writes a save in the background."""
        return self._pending is not None and not self._pending.done()

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
        files.prune(self.folder, state.step, self._keep, self._keep_every, best_checkpoint(self.folder))

    def _gather(self, value: Any) -> list[Any]:
        every: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(every, value, group=self._group)
        return every


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
