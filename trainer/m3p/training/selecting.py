"""Evaluation during training: scores checkpoints as they are written, keeps the best, and says when it is time to stop.

What is scored is the checkpoint on the disk, by the function that scores it later too: the figures are those of the checkpoint,
whatever the engine, and training's random numbers are left as they are.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from m3p.checkpoints.selection import Scored, best_of, read_selection, write_selection
from m3p.distributed import Ranks
from m3p.recipe.recipe import RunConfig
from m3p.terminal import warn

Score = Callable[[Path, str], Scored]
"""Scores a checkpoint's folder on an evaluation of the recipe."""


def score_checkpoint(checkpoint: Path, evaluation: str) -> Scored:
    """Score a checkpoint; every rank calls it. Rank 0 prints the table, writes evaluation/NAME-step-N.json and the curves."""
    from m3p.retrieval.evaluate import evaluate_run  # late: most runs evaluate at their end alone

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        (result,) = evaluate_run(checkpoint, [evaluation])
    assert result.step is not None
    return Scored(
        step=result.step,
        checkpoint=checkpoint.name,
        evaluation=evaluation,
        scoring=result.scoring,
        mean_recall=result.mean.mean_recall,
        languages={name: of.mean_recall for name, of in result.languages.items()},
    )


class Selection:
    """Chooses among the checkpoints of one run; every rank calls every method, and all come to the same answers.

    Where the recipe asks for no selection, nothing is done.

    Args:
        first: steps done before this start. What later checkpoints reached, which this start makes again, is forgotten.
    """

    def __init__(self, run: RunConfig, ranks: Ranks, first: int, score: Score = score_checkpoint) -> None:
        self._run, self._ranks, self._score = run, ranks, score
        self._on = run.select_on
        found = read_selection(run.folder) if self._on is not None else []
        self._scored = [one for one in found if one.evaluation == self._on and one.step <= first]
        self._write()

    def due(self, step: int) -> bool:
        """Say whether the checkpoint of `step` is to be scored."""
        every = self._run.select_every or self._run.checkpoint_every
        return self._on is not None and step > 0 and (step % every == 0 or step == self._run.steps)

    def after(self, step: int) -> bool:
        """Score the checkpoint of `step`, which is on the disk, unless that was done before; say whether to stop training."""
        if self._on is None or not self.due(step):
            return False
        if not any(one.step == step for one in self._scored):
            self._scored.append(self._score(self._run.folder / "checkpoints" / f"step-{step:08d}", self._on))
            self._write()
        return self._patience_ends(step)

    def _write(self) -> None:
        if self._ranks.rank == 0 and self._on is not None:
            write_selection(self._run.folder, self._scored)

    def _patience_ends(self, step: int) -> bool:
        best = best_of(self._scored)
        since = sum(best.step < one.step <= step for one in self._scored)
        if self._run.patience is None or since < self._run.patience:
            return False
        if self._ranks.rank == 0:
            warn(
                f"step {step}: {since} evaluations on {self._on} in a row were no better than {best.mean_recall:.1f} of "
                f"step {best.step} (run.patience): training ends here"
            )
        return True
