"""The checkpoint that a validation figure chose: selection.jsonl of a run has the figures, `checkpoints/best` names the best."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from m3p import atomic
from m3p.errors import UserError
from m3p.stored_files import read_bounded

SELECTION = "selection.jsonl"
BEST = "best"
"""File in the folder of the checkpoints that holds the name of the best one."""


CHECKPOINT = r"^step-[0-9]{1,20}$"
"""What a checkpoint's folder is called: a name that is read from a file leads nowhere else."""


class Scored(BaseModel):
    """What a checkpoint reached on the evaluation that chooses: a line of selection.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    checkpoint: str = Field(pattern=CHECKPOINT)
    """Name of its folder."""
    evaluation: str
    """Name of the evaluation in the recipe."""
    scoring: str
    mean_recall: float
    """Mean over languages, in percent."""
    languages: dict[str, float]
    """Mean recall of each language, in percent."""


def read_selection(run: Path) -> list[Scored]:
    """Return what the checkpoints of a run reached, in the order of their steps. Raises UserError: damaged."""
    path = run / SELECTION
    if not path.is_file():
        return []
    try:
        return [Scored.model_validate_json(line) for line in read_bounded(path).splitlines()]
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be read ({why}): put back a copy, or move it away; the evaluations are then made again as they come"
        ) from error


def write_selection(run: Path, scored: Sequence[Scored]) -> None:
    """Write selection.jsonl, and have `checkpoints/best` name the best of those that are still there, if any is."""
    pointer = run / "checkpoints" / BEST
    atomic.write_text(run / SELECTION, "".join(f"{one.model_dump_json()}\n" for one in scored))
    there = [one for one in scored if (pointer.parent / one.checkpoint).is_dir()]
    if there:
        atomic.write_text(pointer, f"{best_of(there).checkpoint}\n")
    else:
        pointer.unlink(missing_ok=True)


def best_of(scored: Sequence[Scored]) -> Scored:
    """Return the best of them, of equals the first."""
    return max(scored, key=lambda one: (one.mean_recall, -one.step))


def best_checkpoint(checkpoints: Path) -> Path | None:
    """Return the checkpoint that `best` in the folder of checkpoints names; None where there is none.

    Raises UserError for a file that names no checkpoint.
    """
    pointer = checkpoints / BEST
    if not pointer.is_file():
        return None
    name = read_bounded(pointer).decode("utf-8", "replace").strip()
    if not re.fullmatch(CHECKPOINT, name):
        raise UserError(f"{pointer} names {name[:40]!r}, which is no checkpoint: remove it, or write step-... into it")
    return checkpoints / name


def opened(path: Path) -> Path:
    """Return the checkpoint that `path` names where it is `checkpoints/best` of a run, else `path`. Raises UserError."""
    return best_checkpoint(path.parent) or path if path.name == BEST and path.is_file() else path


def chosen(run: Path) -> Path:
    """Return what stands for a run that is done: the checkpoint that it has chosen, else the run folder. Raises UserError."""
    return best_checkpoint(run / "checkpoints") or run


def selected_on(checkpoint: Path) -> str | None:
    """Return the evaluation that chose a checkpoint; None where it is not the best of its run, or nothing was chosen."""
    best = best_checkpoint(checkpoint.parent)
    if best is None or best.name != checkpoint.name:
        return None
    found = [one.evaluation for one in read_selection(checkpoint.parents[1]) if one.checkpoint == checkpoint.name]
    return found[-1] if found else None
