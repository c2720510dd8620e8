"""The resume oracle: the same batches on every number of ranks, the exact state restored, the same losses."""

import json
from pathlib import Path
from typing import Any

import pytest

from m3p.checkpoints.read import newest_whole
from m3p.data.order.plan import MicroBatchPlan
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.training.build_objectives import build_objectives
from tests.batches import sequences
from tests.chaos.harness import assert_equal, kill, newest_step, run, start, tensors, wait_for_step
from tests.launch import metrics
from tests.test_equality import zero

pytestmark = pytest.mark.launcher

# (ranks, ZeRO stage, where to stop): every part has other ranks and another stage than the one before.
PARTS = [(2, 1, 5), (1, 3, 10), (3, 2, 15)]
STEPS = "run.steps=15"


def batches(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Return what the ranks together saw, by step and objective: samples, words and features, sorted."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("batches-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            seen = found.setdefault((line["step"], line["objective"]), {"names": [], "words": [], "features": []})
            for name in seen:
                seen[name] = sorted([*seen[name], *line[name]])
    return found


def digests(folder: Path) -> dict[str, list[str]]:
    """Return each rank's digests of its micro-batches, in order."""
    return {
        path.name: [json.loads(line)["digest"] for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("batches-*.jsonl"))
    }


def test_other_ranks_and_stages_go_on_as_if_nothing_had_changed(tiny: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    record = {"point": "record", "folder": str(tmp_path / "seen-whole")}
    run(tiny, zero(tmp_path, 1), 2, [record], STEPS, f"run.folder={whole}", name="whole", folder=tmp_path)
    seen: dict[tuple[int, str], Any] = {}
    for number, (ranks, stage, stop) in enumerate(PARTS):
        before, _ = newest_whole(parted)
        folder = tmp_path / f"seen-{number}"
        fault = [{"point": "record", "folder": str(folder)}]
        settings = (STEPS, f"run.stop_after={stop}", f"run.folder={parted}")
        run(tiny, zero(tmp_path, stage), ranks, fault, *settings, name=f"part-{number}", folder=tmp_path)
        if before is not None:
            assert_equal(tensors(folder), tensors(before))
        seen |= batches(folder)
    assert seen == batches(tmp_path / "seen-whole")
    assert_losses(metrics(parted), metrics(whole), 1e-4)


def undisturbed(recipe: Recipe, step: int) -> dict[tuple[int, str], dict[str, list[Any]]]:
    """Return what a lone rank takes from the data in a step (from 1), computed here without training."""
    sizes = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
    plan, objectives = MicroBatchPlan(recipe.plan(), 1, 0, sizes), build_objectives(recipe)
    found: dict[tuple[int, str], dict[str, list[Any]]] = {}
    for number in range(plan.first_of_step(step - 1), plan.first_of_step(step)):
        place = plan.locate(number)
        batch = objectives[place.turn.objective].batch(place.turn.positions, place.positions)
        seen = found.setdefault((step, place.turn.objective), {"names": [], "words": [], "features": []})
        seen["names"] += batch.names
        seen["words"] += sequences(batch)
        seen["features"] += batch.visual_features[batch.visual_rows].double().sum(1).tolist()
    return {place: {kind: sorted(all_of) for kind, all_of in seen.items()} for place, seen in found.items()}


def test_two_ranks_killed_in_mid_epoch_go_on_as_one_with_the_remaining_samples(tiny: Path, tmp_path: Path) -> None:
    settings = ("run.checkpoint_every=4", f"run.folder={tmp_path / 'run'}", "data.workers=1", "run.steps=200")
    record = [{"point": "record", "folder": str(tmp_path / "two")}]
    job = start(tiny, zero(tmp_path, 1), 2, record, *settings, name="two", folder=tmp_path)
    wait_for_step(job, tmp_path / "run", 6, None)
    kill(job.tree()["rank"])
    assert job.wait() != 0
    done = newest_step(tmp_path / "run")
    assert done >= 4
    record = [{"point": "record", "folder": str(tmp_path / "one")}]
    stop = f"run.stop_after={done + 4}"
    run(tiny, zero(tmp_path, 1), 1, record, *settings, stop, name="one", folder=tmp_path)
    recipe = load_recipe(tiny)
    wanted = [undisturbed(recipe, step) for step in range(1, done + 5)]
    before, after = batches(tmp_path / "two"), batches(tmp_path / "one")
    for step, turns in enumerate(wanted, start=1):
        for place, turn in turns.items():
            assert (before if step <= done else after)[place] == turn, place
    assert {step for step, _ in after} == set(range(done + 1, done + 5)), "no step again, none left out"
    # In mid-epoch: the pairs of an epoch (30) are spread over the two starts.
    assert (done * 7) % 30, done


@pytest.mark.slow  # weights after kills are compared in test_kills.py too
def test_the_same_ranks_get_the_same_micro_batches_and_end_bit_equal(tiny: Path, tmp_path: Path) -> None:
    settings = ("run.steps=12", "model.dropout=0.1", "data.workers=1", "run.join_turns=true")
    record = [{"point": "record", "folder": str(tmp_path / "seen-whole")}]
    stage = zero(tmp_path, 3)
    run(tiny, stage, 2, record, *settings, f"run.folder={tmp_path / 'whole'}", name="whole", folder=tmp_path)
    record = [{"point": "record", "folder": str(tmp_path / "seen")}]
    parted = f"run.folder={tmp_path / 'parted'}"
    for stop in (5, 12):
        run(tiny, stage, 2, record, *settings, parted, f"run.stop_after={stop}", name=f"to-{stop}", folder=tmp_path)
    assert digests(tmp_path / "seen") == digests(tmp_path / "seen-whole")
    name = "checkpoints/step-00000012"
    assert_equal(tensors(tmp_path / "parted" / name), tensors(tmp_path / "whole" / name))
    assert_losses(metrics(tmp_path / "parted"), metrics(tmp_path / "whole"), 0.0)


def assert_losses(found: list[Any], wanted: list[Any], tolerance: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert any("contrastive" in name for name in other["losses"])
        for name, loss in other["losses"].items():
            assert one["losses"][name] == pytest.approx(loss, rel=tolerance), (one["step"], name)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=tolerance), one["step"]
