"""Checkpoints: whole or absent.

checkpoints/step-00001000/ holds DeepSpeed's own files (`deepspeed/`), the random state of each rank, `weights.safetensors`
(the whole network in float32, for evaluation and export, whatever the ZeRO stage) and `state.json`, written last.
It is written aside and renamed, and only then named by `latest`.
"""

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import UserError
from trainer.training.distributed import Ranks

if TYPE_CHECKING:
    from trainer.training.engine import Engine

FORMAT_VERSION = 1


class State(BaseModel):
    """What state.json says of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    step: int
    """Steps that are done."""
    ranks: int
    stage: int
    """ZeRO stage."""
    precision: str
    order_version: int
    recipe: dict[str, Any]
    """The resolved recipe of the run."""
    data: dict[str, str]
    """Fingerprint of each source."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder = run / "checkpoints"
        self._keep = keep

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint, or None."""
        whole = sorted(path for path in self.folder.glob("step-*") if (path / "state.json").is_file())
        named = self.folder / "latest"
        if named.is_file() and (self.folder / named.read_text().strip()) in whole:
            return self.folder / named.read_text().strip()
        return whole[-1] if whole else None

    def save(self, engine: "Engine", ranks: Ranks, state: State) -> None:
        """Write a checkpoint after `state.step`. Every rank calls it."""
        name = f"step-{state.step:08d}"
        aside = self.folder / f".{name}.partial"
        if ranks.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        engine.deepspeed.save_checkpoint(str(aside / "deepspeed"), tag="state", client_state={}, save_latest=False)
        torch.save(_random_states(ranks), aside / f"random-{ranks.rank}.pt")
        weights = gather_weights(engine.deepspeed.module, keep=ranks.rank == 0)
        dist.barrier()
        if ranks.rank == 0:
            save_file(weights, aside / "weights.safetensors")
            (aside / "state.json").write_text(state.model_dump_json(indent=1) + "\n")
            self._publish(aside, name)
        dist.barrier()

    def load(self, path: Path, engine: "Engine", ranks: Ranks) -> None:
        """Put engine and random state back to where `path` left them. Every rank calls it."""
        loaded, _ = engine.deepspeed.load_checkpoint(
            str(path / "deepspeed"), tag="state", load_lr_scheduler_states=False
        )
        if loaded is None:
            raise UserError(
                f"{path}: DeepSpeed finds no state in it; remove the folder to go on from an earlier checkpoint"
            )
        random = torch.load(path / f"random-{ranks.rank}.pt", weights_only=True)
        torch.set_rng_state(random["cpu"])
        if ranks.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], ranks.device)

    def _publish(self, aside: Path, name: str) -> None:
        final = self.folder / name
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        pointer = self.folder / ".latest.partial"
        pointer.write_text(name + "\n")
        os.replace(pointer, self.folder / "latest")
        for old in sorted(self.folder.glob("step-*"))[: -self._keep]:
            shutil.rmtree(old)


def read_state(path: Path) -> State:
    """Return what a checkpoint says of itself. Raises UserError for another format."""
    raw = json.loads((path / "state.json").read_text())
    if raw.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: format {raw.get('format_version')}, but this program reads {FORMAT_VERSION}")
    return State.model_validate(raw)


def check_resumable(path: Path, found: State, now: State) -> None:
    """Raise UserError where going on from `path` would not be the same run. The message names what differs."""
    differences = [
        f"{name}: {getattr(found, name)} then, {getattr(now, name)} now"
        for name in ("ranks", "stage", "precision", "order_version")
        if getattr(found, name) != getattr(now, name)
    ]
    differences += _differences(_that_matters(found.recipe), _that_matters(now.recipe))
    differences += _differences(found.data, now.data)
    if differences:
        lines = "\n".join(f"  - {line}" for line in differences)
        raise UserError(
            f"{path} was written by another run than this one would be:\n{lines}\n"
            "Put these back to go on, or set another run.folder to start anew."
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the float32 weights of a checkpoint by our names; the tied word weight stands once."""
    return load_file(path / "weights.safetensors")


def gather_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Return all weights in float32 on the CPU, from any ZeRO stage. Every rank calls it; only one that keeps gets them."""
    from deepspeed.utils import safe_get_full_fp32_param  # takes seconds, and reading a checkpoint does not need it

    weights = {}
    for name, parameter in model.named_parameters():  # a tied weight comes once
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if full is None:
            with _whole(parameter):
                full = parameter.detach().clone()
        if keep:
            weights[name] = full.float().cpu().contiguous()
    return weights


def _whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """ZeRO-3 scatters parameters; this gathers one."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext()


def _random_states(ranks: Ranks) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return states


# What may change from one start to the next without changing the training.
_FREE = (
    "run.folder",
    "run.stop_after",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.timeout_seconds",
    "run.evaluate",
)


def _that_matters(recipe: dict[str, Any]) -> dict[str, Any]:
    flat = _flatten(recipe)
    free = (
        *_FREE,
        "evaluation.",
        "data.workers",
        "data.prefetch",
        "data.cache_folder",
        "data.cache_bytes",
        "data.most_bad",
    )
    return {name: value for name, value in flat.items() if not name.startswith(free)}


def _flatten(node: Any, name: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        inner = {f"{name}.{key}" if name else key: value for key, value in node.items()}
    elif isinstance(node, list):
        inner = {f"{name}.{number}": value for number, value in enumerate(node)}
    else:
        return {name: node}
    return {place: value for key, child in inner.items() for place, value in _flatten(child, key).items()}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = sorted(then.keys() | now.keys())
    missing = "not set"
    return [
        f"{name}: {then.get(name, missing)} then, {now.get(name, missing)} now"
        for name in names
        if then.get(name, missing) != now.get(name, missing)
    ]
