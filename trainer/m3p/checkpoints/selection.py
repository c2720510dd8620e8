"""The checkpoint that a validation figure chose: selection.jsonl of a run has the figures, `checkpoints/best` names the best."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from m3p import atomic
from m3p.errors import UserError

SELECTION = "selection.jsonl"
BEST = "best"
"""File in the folder of the checkpoints that holds the name of the best one."""


class Scored(BaseModel):
    """What a checkpoint reached on the evaluation that chooses: a line of selection.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    checkpoint: str
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
        return [Scored.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except ValidationError as error:
        raise UserError(
            f"{path} cannot be read ({error}): put back a copy, or move it away; the evaluations are then made again as they come"
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
    """Return the checkpoint that `best` in the folder of checkpoints names; None where there is none."""
    pointer = checkpoints / BEST
    return checkpoints / pointer.read_text().strip() if pointer.is_file() else None


def selected_on(checkpoint: Path) -> str | None:
    """Return the evaluation that chose a checkpoint; None where it is not the best of its run, or nothing was chosen."""
    best = best_checkpoint(checkpoint.parent)
    if best is None or best.name != checkpoint.name:
        return None
    found = [one.evaluation for one in read_selection(checkpoint.parents[1]) if one.checkpoint == checkpoint.name]
    return found[-1] if found else None
