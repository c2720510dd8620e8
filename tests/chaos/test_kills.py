"""Kill -9 at any instant, as often as you like: the final weights are those of the run that nobody disturbed."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import (
    Job,
    assert_equal,
    fork,
    kill,
    last_step,
    metrics_file,
    newest_step,
    run,
    start,
    tensors,
    wait_for_step,
)
from tests.launch import ROOT

pytestmark = pytest.mark.launcher

EVERY = 6
SETTINGS = (f"run.checkpoint_every={EVERY}", "model.dropout=0.1", "run.keep_checkpoints=2")
ZERO = ROOT / "ds_configs" / "zero2.json"
OUTSIDE = ("one rank", "all ranks", "launcher", "worker")
INSIDE: dict[str, dict[str, Any]] = {
    "half a share": {"point": "share"},
    "half a share of one rank": {"point": "share", "rank": 1},
    "before state.json": {"point": "state", "rank": 0},
    "before the folder's name": {"point": "rename", "of": "folder", "after": False, "rank": 0},
    "before latest": {"point": "rename", "of": "latest", "after": False, "rank": 0},
    "after latest": {"point": "rename", "of": "latest", "after": True, "rank": 0},
    "half a removal": {"point": "prune", "rank": 0},
}
IN_CI = ("one rank", "half a share of one rank", "launcher", "before latest", "worker")


def test_five_kills(tiny: Path, tmp_path: Path) -> None:
    survive(tiny, tmp_path, list(IN_CI), steps=42, seed=random.SystemRandom().randrange(10**6))


@pytest.mark.slow
def test_twenty_five_kills(tiny: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    kinds = [*OUTSIDE, *INSIDE] * 2 + ["all ranks", "one rank", "half a share"]
    random.Random(seed).shuffle(kinds)
    survive(tiny, tmp_path, kinds, 300, seed)


def survive(tiny: Path, tmp_path: Path, kinds: list[str], steps: int, seed: int) -> None:
    """Train to the end through all these kills, and compare."""
    rng = random.Random(seed)
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    settings = (*SETTINGS, f"run.steps={steps}", f"run.folder={folder}")
    print(f"seed {seed}")
    run(
        tiny, ZERO, 2, [], *settings, f"run.folder={undisturbed}", "data.workers=0", name="undisturbed", folder=tmp_path
    )
    for number, kind in enumerate(kinds):
        done = newest_step(folder)
        # So that something is left to train for those who come after.
        ahead = max(1, (steps - done) // (EVERY * (len(kinds) - number + 1)))
        save = min(done + EVERY * ahead, steps - EVERY) if done < steps - EVERY else steps
        faults = [{**INSIDE[kind], "step": save}] if kind in INSIDE else []
        before = metrics_file(folder)
        # Loader processes change nothing in the training, and cost time where nobody kills them.
        workers = f"data.workers={int(kind == 'worker')}"
        if kind in INSIDE:
            codes, text = fork(tiny, ZERO, 2, faults, *settings, workers, name=f"kill-{number}", folder=tmp_path)
            assert -signal.SIGKILL in codes or newest_step(folder) == steps, text[-4000:]
        else:
            job = start(tiny, ZERO, 2, faults, *settings, workers, name=f"kill-{number}", folder=tmp_path)
            step = rng.randint(min(done + 1, steps - 1), max(done + 1, min(save, steps - 1)))
            wait_for_step(job, folder, step, before)
            time.sleep(rng.random() * 0.1)
            orphans = strike(job, kind, rng)
            job.wait()
            if kind == "launcher":
                # They train on, as after a lost node; but not so far that nothing is left for those who come after.
                end, leash = time.monotonic() + rng.random() * 2, rng.randint(step, max(step, save))
                while time.monotonic() < end and last_step(folder) < leash:
                    time.sleep(0.01)
                kill(orphans)
        print(f"kill {number}: {kind}, from step {done}; newest checkpoint now {newest_step(folder)}")
    text = run(tiny, ZERO, 2, [], *settings, "data.workers=0", name="end", folder=tmp_path)
    assert (folder / "status").read_text() == "done\n", text[-4000:]
    name = f"checkpoints/step-{steps:08d}"
    assert_equal(tensors(folder / name), tensors(undisturbed / name))
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{steps:08d}\n"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "latest", f"step-{steps - EVERY:08d}", f"step-{steps:08d}",
    ]  # fmt: skip


def strike(job: Job, kind: str, rng: random.Random) -> list:  # type: ignore[type-arg]
    """Kill what `kind` says; return the ranks and workers that were alive before."""
    tree = job.tree()
    victims = {
        "one rank": tree["rank"],
        "all ranks": tree["rank"],
        "launcher": tree["launcher"],
        "worker": tree["worker"],
    }[kind]
    assert victims or job.process.poll() is not None, f"no {kind} to kill"
    kill(victims if kind == "all ranks" or not victims else [rng.choice(victims)])
    return tree["rank"] + tree["worker"]
