import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.errors import UserError
from trainer.training import checkpoint
from trainer.training.checkpoint import (
    FORMAT_VERSION,
    Checkpoints,
    State,
    check_resumable,
    read_state,
    read_weights,
)
from trainer.training.distributed import Ranks

RANKS = Ranks(0, 0, 1, torch.device("cpu"), "python")
RECIPE: dict[str, Any] = {
    "run": {"folder": "runs/a", "steps": 20, "seed": 0, "checkpoint_every": 5},
    "optimizer": {"learning_rate": 0.1},
    "objectives": {"image_caption": {"sources": [{"path": "a"}, {"path": "b"}]}},
    "data": {"workers": 1, "window": 4},
    "evaluation": {"dev": {"path": "d"}},
}


def state(step: int = 0, **changes: Any) -> State:
    fields = {"ranks": 2, "stage": 1, "precision": "float32", "order_version": 1, "recipe": RECIPE, "data": {"a": "ff"}}
    return State.model_validate({"format_version": FORMAT_VERSION, "step": step, **fields, **changes})


def with_recipe(**sections: dict[str, Any]) -> State:
    recipe = {name: {**fields, **sections.get(name, {})} for name, fields in RECIPE.items()}
    return state(recipe={**recipe, **{name: fields for name, fields in sections.items() if name not in recipe}})


class Kill(BaseException):
    """Stands for the end of the process: nothing that catches errors catches it."""


class FakeDeepSpeed:
    """Saves one number, as DeepSpeed saves its state."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1)
        self.number = 0.0

    def save_checkpoint(self, folder: str, tag: str, client_state: object, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir(parents=True)
        (Path(folder) / tag / "number").write_text(str(self.number))

    def load_checkpoint(self, folder: str, tag: str, load_lr_scheduler_states: bool) -> tuple[str | None, None]:
        path = Path(folder) / tag / "number"
        if not path.is_file():
            return None, None
        self.number = float(path.read_text())
        return folder, None


@pytest.fixture
def engine(alone: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    def weights(model: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor]:
        return {"number": torch.tensor([fake.deepspeed.number])}

    fake = SimpleNamespace(deepspeed=FakeDeepSpeed())
    monkeypatch.setattr(checkpoint, "gather_weights", weights)
    return fake


def save(checkpoints: Checkpoints, engine: Any, step: int) -> None:
    engine.deepspeed.number = float(step)
    checkpoints.save(engine, RANKS, state(step))


def test_what_is_saved_comes_back(engine: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    torch.manual_seed(3)
    save(checkpoints, engine, 5)
    expected = torch.rand(4)
    found = checkpoints.latest()
    assert found is not None
    assert found.name == "step-00000005"
    assert read_state(found) == state(5)
    assert read_weights(found)["number"].item() == 5.0
    engine.deepspeed.number = -1.0
    torch.manual_seed(99)
    checkpoints.load(found, engine, RANKS)
    assert engine.deepspeed.number == 5.0
    assert torch.equal(torch.rand(4), expected), "dropout goes on where it was"


def test_only_the_newest_are_kept(engine: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        save(checkpoints, engine, step)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["latest", "step-00000010", "step-00000015"]


def killed_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Callable[[], int]:
    """Let the process die before its `moment`-th change of the disk; the answer says how many there were."""
    count = itertools.count()
    seen = [0]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] = next(count) + 1
            if seen[0] == moment:
                raise Kill
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (os, "replace"),
        (os, "unlink"),
        (os, "rmdir"),
        (os, "mkdir"),
        (torch, "save"),
        (checkpoint, "save_file"),
        (Path, "write_text"),
    ):
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))
    return lambda: seen[0]


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(engine: Any, tmp_path: Path) -> None:
    """Old or new, its weights and its state are of one step; and the next save works and cleans up."""
    for moment in itertools.count(1):
        run = tmp_path / str(moment)
        checkpoints = Checkpoints(run, keep=1)
        save(checkpoints, engine, 5)
        with pytest.MonkeyPatch.context() as patch:
            changes = killed_at(patch, moment)
            try:
                save(checkpoints, engine, 10)
            except Kill:
                pass
            else:
                assert changes() < moment
                break
        found = Checkpoints(run, keep=1).latest()
        assert found is not None, moment
        step = read_state(found).step
        assert step in (5, 10)
        checkpoints.load(found, engine, RANKS)
        assert engine.deepspeed.number == read_weights(found)["number"].item() == step, moment
        for again in (10, 15):
            save(Checkpoints(run, keep=1), engine, again)
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["latest", "step-00000015"], moment
    assert moment > 8, "the save was really interrupted"


def folder_of(checkpoints: Checkpoints, step: int, whole: bool = True) -> Path:
    path = checkpoints.folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "weights.safetensors").touch()
    if whole:
        (path / "state.json").write_text(state(step).model_dump_json())
    return path


def test_partial_folders_are_not_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    folder_of(checkpoints, 10, whole=False)
    (checkpoints.folder / ".step-00000020.partial").mkdir()
    assert checkpoints.latest() is None
    whole = folder_of(checkpoints, 5)
    assert checkpoints.latest() == whole


@pytest.mark.parametrize("named", ["step-00000099\n", "step-00000010\n", "", "\n", "../checkpoints\n"])
def test_a_name_that_points_nowhere_is_passed_over(tmp_path: Path, named: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    whole = folder_of(checkpoints, 5)
    folder_of(checkpoints, 10, whole=False)
    (checkpoints.folder / "latest").write_text(named)
    assert checkpoints.latest() == whole


def test_the_named_one_goes_before_a_newer_one(tmp_path: Path) -> None:
    """So one can go back by hand."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    older, _ = folder_of(checkpoints, 5), folder_of(checkpoints, 10)
    (checkpoints.folder / "latest").write_text("step-00000005\n")
    assert checkpoints.latest() == older


def test_a_checkpoint_without_deepspeeds_files_says_so(engine: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, engine, 5)
    found = checkpoints.latest()
    assert found is not None
    shutil.rmtree(found / "deepspeed")
    with pytest.raises(UserError, match="DeepSpeed finds no state in it; remove the folder"):
        checkpoints.load(found, engine, RANKS)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match=f"format 99, but this program reads {FORMAT_VERSION}"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (state(ranks=3), "ranks: 2 then, 3 now"),
        (state(stage=3), "stage: 1 then, 3 now"),
        (state(precision="bfloat16"), "precision: float32 then, bfloat16 now"),
        (state(order_version=2), "order_version: 1 then, 2 now"),
        (state(data={"a": "ee"}), "a: ff then, ee now"),
        (state(data={"a": "ff", "b": "11"}), "b: not set then, 11 now"),
        (with_recipe(run={"seed": 3}), "run.seed: 0 then, 3 now"),
        (with_recipe(run={"steps": 30}), "run.steps: 20 then, 30 now"),
        (with_recipe(data={"window": 8}), "data.window: 4 then, 8 now"),
        (with_recipe(optimizer={"clip": 1.0}), "optimizer.clip: not set then, 1.0 now"),
        (
            with_recipe(objectives={"image_caption": {"sources": [{"path": "a"}, {"path": "c"}]}}),
            "objectives.image_caption.sources.1.path: b then, c now",
        ),
        (
            with_recipe(objectives={"image_caption": {"sources": [{"path": "a"}]}}),
            "objectives.image_caption.sources.1.path: b then, not set now",
        ),
    ],
)
def test_what_would_make_another_run_of_it_is_named(tmp_path: Path, now: State, line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_resumable(tmp_path, state(), now)
    assert [text.strip() for text in str(caught.value).splitlines()[1:-1]] == [f"- {line}"]
    assert "set another run.folder" in str(caught.value)


@pytest.mark.parametrize(
    "now",
    [
        state(10),
        with_recipe(run={"folder": "elsewhere", "stop_after": 7, "checkpoint_every": 1, "keep_checkpoints": 9}),
        with_recipe(run={"timeout_seconds": 5, "evaluate": False}),
        with_recipe(data={"workers": 8, "prefetch": 2, "most_bad": 1.0}),
        with_recipe(evaluation={"test": {"path": "e"}}),
    ],
)
def test_what_does_not_matter_may_change(tmp_path: Path, now: State) -> None:
    check_resumable(tmp_path, state(), now)


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_resumable(tmp_path, state(), with_recipe(run={"seed": 1}, optimizer={"learning_rate": 0.2}))
    assert "run.seed" in str(caught.value)
    assert "optimizer.learning_rate" in str(caught.value)
