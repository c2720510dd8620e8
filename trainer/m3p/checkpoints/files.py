"""The files of a checkpoint: one share a rank (safetensors), and state.json, which says that the folder is whole.

    step-00001000/rank-00000.safetensors   fragments of the float32 weights, exp_avg and exp_avg_sq; the rank's random state
    step-00001000/state.json               written last: what `State` holds, and each share's size and SHA-256

Every file is flushed to disk before the folder gets its name, so a folder with that name is whole unless a disk spoils it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from m3p import atomic
from m3p.atomic import sync_file, sync_folder
from m3p.errors import OneRankError, UserError, out_of_files
from m3p.stored_files import open_tensors, read_object

FORMAT_VERSION = 2
STATE_FILE = "state.json"
_NAME = re.compile(r"step-([0-9]+)")


class FileEntry(BaseModel):
    """Size and content of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class State(BaseModel):
    """What state.json says of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    step: int
    """Steps that are done."""
    updates: int = 0
    """Updates that the optimizer made; fewer than steps where some were skipped."""
    ranks: int
    """That wrote it; any number of any ZeRO stage and precision reads it."""
    order_version: int
    recipe: dict[str, Any]
    """The resolved recipe of the run."""
    data: dict[str, str]
    """Fingerprints of sources, tokenizer and word lists, by recipe field."""
    guard: dict[str, Any] = {}
    """What the guard against bad steps remembers."""
    loss_scale: dict[str, float] = {}
    """Of fp16; empty in other precisions."""
    captioned: list[str] | None = None
    """Languages whose captions training saw, in the runs that it started from too; None in older checkpoints."""
    files: dict[str, FileEntry] = Field({}, description="Every other file of the folder.")


def share_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def write_share(
    path: Path, tensors: Mapping[str, Tensor], pieces: Mapping[str, tuple[int, tuple[int, ...]]]
) -> FileEntry:
    """Write a rank's share and flush it to disk; return its size and hash.

    `tensors`: "KIND/NAME" -> flat [n]. `pieces`: NAME -> (place of the first element, shape of the whole parameter).
    """
    save_file(dict(tensors), path, {"pieces": json.dumps(pieces)})
    sync_file(path)
    return describe(path)


def describe(path: Path) -> FileEntry:
    """Read a file and return its size and hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=file.tell(), sha256=digest)


def write_state(folder: Path, state: State) -> None:
    """Write state.json, with a hash of itself, and flush file and folder to disk."""
    content = state.model_dump(mode="json")
    raw = {**content, "sha256": _hash(content)}
    with (folder / STATE_FILE).open("w") as file:
        json.dump(raw, file, indent=1)
    sync_file(folder / STATE_FILE)
    sync_folder(folder)


def read_state(folder: Path) -> State:
    """Return what a checkpoint says of itself. Raises UserError: unreadable, damaged, or of another format."""
    path = folder / STATE_FILE
    try:
        raw = read_object(path)
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format {version}, but this program reads {FORMAT_VERSION}; go on with the one that wrote it"
            )
        if raw.pop("sha256", None) != _hash(raw):
            raise UserError(f"{path}: its content is not what was written")
        return State.model_validate(raw)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def publish(aside: Path, name: str) -> None:
    """Give the finished folder `aside` its name beside it, then make `latest` name it. Each of the two is one rename."""
    parent = aside.parent
    damaged = parent / f"{aside.stem}.damaged.partial"
    _take_name(aside, parent / name, damaged)
    sync_folder(parent)
    pointer = parent / f"{aside.stem}.latest.partial"
    pointer.write_text(name + "\n")
    atomic.publish(pointer, parent / "latest")
    shutil.rmtree(damaged, ignore_errors=True)


def _take_name(aside: Path, final: Path, damaged: Path) -> None:
    """Rename `aside` to `final`; one that is there already is damaged, or the same of a start that has lost its folder."""
    for attempts_left in (2, 1, 0):
        try:
            if final.exists():
                os.replace(final, damaged)
            os.replace(aside, final)
            return
        except OSError as error:  # another start did it at the same moment
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not attempts_left:
                raise
            shutil.rmtree(damaged, ignore_errors=True)


def remove_partial(parent: Path) -> None:
    """Remove what killed saves left behind."""
    for path in parent.glob(".*.partial"):
        _remove(path)


def prune(parent: Path, step: int, keep: int, keep_every: int | None, best: Path | None = None) -> None:
    """Remove all but the `keep` newest checkpoints up to `step`, those at multiples of `keep_every`, and the `best`."""
    old = [path for path in checkpoints_in(parent) if step_of(path) <= step][:-keep]
    for path in old:
        if path != best and not (keep_every and step_of(path) % keep_every == 0):
            gone = path.with_name(f".{path.name}.old.partial")  # so that a half-removed one has no name
            with suppress(FileNotFoundError):  # a start that has lost its folder may be at it too
                os.replace(path, gone)
            _remove(gone)


def _remove(path: Path) -> None:
    """Remove a folder with all in it, a file, or a link without what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint."""
    found = _NAME.fullmatch(folder.name)
    assert found is not None, folder
    return int(found[1])


def checkpoints_in(parent: Path) -> list[Path]:
    """Return the checkpoints, the oldest first, whole or not. What has another name, such as a user's copy, is none."""
    return sorted((path for path in parent.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


class Reader:
    """Reads parameters of a checkpoint whole or in part, from the shares that its state.json names, however many.

    Raises UserError where one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shares: list[Any] = []
        self._pieces: list[dict[str, tuple[int, list[int]]]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Parameter name -> shape."""
        for path in [folder / name for name in sorted(read_state(folder).files)]:
            try:
                share = open_tensors(path)
                share.__enter__()
                self._pieces.append(json.loads(share.metadata()["pieces"]))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
                if isinstance(error, OSError) and (too_many := out_of_files(error)):
                    raise OneRankError(too_many) from error
                raise UserError(
                    f"{path}: cannot be read ({error}); remove {folder} to go on from an earlier one"
                ) from error
            self._shares.append(share)
            self.shapes |= {name: tuple(shape) for name, (_, shape) in self._pieces[-1].items()}
        if not self._shares:
            raise UserError(f"{folder}: its {STATE_FILE} names no share of a checkpoint")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for share in self._shares:
            share.__exit__(kind, error, tb)

    def whole(self, kind: str, name: str) -> Tensor:
        """Return one tensor in its own shape, float32."""
        shape = self.shapes[name]
        return self.part(kind, name, range(torch.Size(shape).numel())).view(shape)

    def part(self, kind: str, name: str, wanted: range) -> Tensor:
        """Return the elements `wanted` of a flattened tensor."""
        out = torch.empty(len(wanted), dtype=torch.float32)
        found = 0
        for share, pieces in zip(self._shares, self._pieces, strict=True):
            if name not in pieces:
                continue
            stored = share.get_slice(f"{kind}/{name}")
            start = pieces[name][0]
            first, last = max(start, wanted.start), min(start + stored.get_shape()[0], wanted.stop)
            if first < last:
                out[first - wanted.start : last - wanted.start] = stored[first - start : last - start]
                found += last - first
        if found != len(wanted):
            raise UserError(
                f"{self._folder}: {kind} of {name} is not complete; remove the folder to go on from an earlier one"
            )
        return out

    def extra(self, rank: int, prefix: str) -> dict[str, Tensor]:
        """Return the tensors "PREFIX/NAME" that rank `rank` stored, by NAME; empty where there was no such rank."""
        if rank >= len(self._shares):
            return {}
        share = self._shares[rank]
        names = [key.removeprefix(f"{prefix}/") for key in share.keys() if key.startswith(f"{prefix}/")]  # noqa: SIM118
        return {name: share.get_tensor(f"{prefix}/{name}") for name in names}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
