import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from m3p.checkpoints.files import read_state
from m3p.checkpoints.read import newest_whole
from m3p.prepare import pairs
from m3p.prepare.regions import pack_regions
from m3p.training.losses import Figures
from m3p.training.watch.loss_guard import ENOUGH, Guard, Verdict
from tests.chaos.harness import fork, run
from tests.launch import ROOT, launch, metrics
from tests.test_equality import zero
from tests.tiny import make_tiny


def step(loss: float, *tasks: str) -> Figures:
    """The losses of a step of `tasks`; "a/b" if none is named."""
    return Figures(dict.fromkeys(tasks or ("a/b",), 1.0), loss)


def test_a_spike_is_called_after_enough_steps_and_refused_where_asked(tmp_path: Path) -> None:
    for skip in (False, True):
        guard = Guard(tmp_path, max_skipped=2, spike=3.0, skip_spikes=skip)
        for _ in range(ENOUGH):
            assert guard.judge(step(100.0)) == Verdict()
            guard.made(step(1.0))
        assert guard.judge(step(2.9)) == Verdict()
        words = "loss spike: 3.1, the median of recent steps is 1"
        assert guard.judge(step(3.1)) == (Verdict(refused=words) if skip else Verdict(warning=words))
        assert guard.judge(step(3.1)).apply == (not skip)


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 2, None, False)
    assert guard.judge(step(1.0)).apply
    verdict = guard.judge(Figures({"a/b": 1.0, "a/c": float("nan")}, float("nan")))
    assert not verdict.apply
    assert verdict.refused == "loss not finite: a/c is nan"


def test_a_resumed_guard_judges_as_the_old_one(tmp_path: Path) -> None:
    guard, other = (Guard(tmp_path, 2, 2.0, True) for _ in range(2))
    for number in range(40):
        guard.made(step(1.0 + number / 10))
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.judge(step(5.6)).apply
    assert not guard.judge(step(9.0)).apply
    assert other.judge(step(9.0)) == guard.judge(step(9.0))


def test_steps_of_other_objectives_are_no_measure(tmp_path: Path) -> None:
    guard, pairs = Guard(tmp_path, 2, 3.0, True), ("pairs/x", "pairs/y")
    for _ in range(ENOUGH):
        guard.made(step(1.0))
        assert guard.judge(step(10.0, *pairs)).apply
        guard.made(step(10.0, *pairs))
    assert guard.judge(step(29.0, *pairs)).apply
    assert guard.judge(step(31.0, *pairs)).refused == "loss spike: 31, the median of recent steps is 10"
    assert not guard.judge(step(4.0)).apply


def assert_nobody_waits(folder: Path, ranks: int, refused: tuple[int, ...]) -> None:
    """Check what the steps of a run asked of other ranks: the main thread waits twice a step, and never from CPU to CPU.

    It waits where it reads a number after a collective: for the gradient norm, and for the end of the step with all figures and
    a wish to stop. Left out are the first step, the last, which saves, and those `refused`, of which all samples are told.
    """
    for rank in range(ranks):
        before_steps = [json.loads(line) for line in (folder / f"events-{rank}.jsonl").read_text().splitlines()]
        steps = dict(enumerate(before_steps))  # what came before step n + 1 is that of step n
        assert steps.keys() == set(range(10))
        for number in set(range(2, 10)) - set(refused):
            main = [kind for thread, kind in steps[number] if thread == "MainThread"]
            assert "host" not in main
            waits = [before == "device" and now == "read" for before, now in itertools.pairwise(main)]
            assert sum(waits) == 2, (number, main)
            assert "host" in [kind for thread, kind in steps[number] if thread.startswith("exchange")]


@pytest.mark.launcher
def test_poisoned_steps_make_no_update_and_training_goes_on(tiny: Path, tmp_path: Path) -> None:
    seen: list[list[Any]] = []
    for ranks, stage, offload in [(1, 0, False), (2, 2, False), (2, 3, True)]:
        folder = tmp_path / f"{stage}"
        faults = [{"point": "poison", "step": 5, "what": "batch"}, {"point": "poison", "step": 7, "what": "gradient"}]
        faults = [{**fault, "rank": ranks - 1} for fault in faults]
        count: dict[str, Any] = {"point": "collectives", "folder": str(tmp_path / f"collectives-{stage}")}
        settings, faults = ("run.steps=10", f"run.folder={folder}"), [count, *faults]
        text = run(tiny, zero(tmp_path, stage, offload), ranks, faults, *settings, name=f"{stage}", folder=tmp_path)
        assert "step 5 makes no update" in text
        assert "step 7 makes no update" in text
        batch, gradient = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
        assert "image_caption/contrastive is nan" in batch["reason"]
        (one,) = batch["micro_batches"]
        assert one["objective"] == "image_caption"
        assert one["turn"] % 3 == 1
        assert one["rank"] == ranks - 1
        assert one["samples"]
        assert all("/train/shard-" in name and "/p0" in name for name in one["samples"])
        assert gradient["reason"].startswith("gradient not finite")
        newest, _ = newest_whole(folder)
        assert newest is not None
        assert read_state(newest).updates == 8
        if ranks > 1 and not offload:  # what is offloaded is waited for, parameter by parameter
            assert_nobody_waits(tmp_path / f"collectives-{stage}", ranks, refused=(5, 7))
        seen.append([line for line in metrics(folder) if line["step"] != 5])
    for other in seen:  # and what follows is the same in every stage: nothing of the NaN stays behind
        for one, same in zip(other, seen[0], strict=True):
            for name, loss in same["losses"].items():
                assert one["losses"][name] == pytest.approx(loss, rel=1e-4), (one["step"], name)


@pytest.mark.launcher
def test_too_many_in_a_row_end_the_run(tiny: Path, tmp_path: Path) -> None:
    fault = [{"point": "poison", "step": 4, "until": 99, "what": "batch"}]
    settings = ("run.max_skipped=3", f"run.folder={tmp_path / 'run'}")
    zero1 = ROOT / "ds_configs" / "zero1.json"
    codes, text = fork(tiny, zero1, 2, fault, *settings, name="run", folder=tmp_path)
    assert all(codes)
    assert "3 steps in a row without an update (run.max_skipped)" in text
    assert "Traceback" not in text
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 3


@pytest.mark.launcher
def test_a_nan_region_is_reported_with_shard_and_key_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def pack(arrays: Any) -> bytes:
        """Spoil the fourth picture's regions as the shard is written; preparing refuses them where it reads."""
        if next(calls) == 3:
            arrays["features"][1, 2] = float("nan")
        return pack_regions(arrays)

    monkeypatch.setattr(pairs, "pack_regions", pack)
    recipe = make_tiny(tmp_path)
    settings = ("run.steps=10", "data.max_bad_share=0.5", f"run.folder={tmp_path / 'run'}")
    launch(recipe, ROOT / "ds_configs" / "zero1.json", 2, *settings)
    bad = (tmp_path / "run" / "bad_samples.txt").read_text()
    assert "train/shard-000000.tar, sample 3: NaN, infinity" in bad
    assert "(id 'p003')" in bad
    assert len(metrics(tmp_path / "run")) == 10
    assert all(line["loss"] is not None for line in metrics(tmp_path / "run"))
