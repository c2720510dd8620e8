import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m3p.checkpoints import files
from m3p.checkpoints.files import FORMAT_VERSION, STATE_FILE, Reader, State, read_state
from m3p.checkpoints.fragment import Fragment, Progress
from m3p.checkpoints.read import load_weights, newest_whole, read_newest, read_weights, restore
from m3p.checkpoints.save import Checkpoints
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.training.deepspeed import fragments

RANKS = Ranks(0, 0, 1, torch.device("cpu"), "python")


class FakeEngine:
    """A network of five numbers under plain AdamW: what ZeRO 0 in float32 is to a checkpoint."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), fused=True)
        self._inside = SimpleNamespace(module=self.module, optimizer=self.optimizer, basic_optimizer=self.optimizer)
        fragments.make_moments(self._inside)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.module(torch.arange(4.0)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def everything(self) -> list[torch.Tensor]:
        states = self.optimizer.state.values()
        return [p.detach() for p in self.module.parameters()] + [t for s in states for t in s.values()]

    def fragments(self) -> Iterator[Fragment]:
        return fragments.fragments(self._inside)

    def parameters(self) -> int:
        return 5

    def progress(self) -> Progress:
        return Progress(fragments.updates(self._inside))

    def set_progress(self, progress: Progress) -> None:
        assert progress.loss_scale == {}
        fragments.set_updates(self._inside, progress.updates)


@pytest.fixture
def engine(alone: None) -> FakeEngine:
    return FakeEngine()


def make(run: Path, keep: int = 2, owner: str = "us") -> Checkpoints:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Checkpoints(run, owner, keep, None, RANKS)


def state(step: int, engine: Any) -> State:
    recipe = {"run": {"seed": 0}}
    count = engine.progress().updates
    return State(
        format_version=FORMAT_VERSION, step=step, updates=count, ranks=1, order_version=1, recipe=recipe, data={}
    )


def save(checkpoints: Checkpoints, engine: Any, step: int) -> None:
    checkpoints.save(engine, state(step, engine))
    checkpoints.finish()


def load(path: Path) -> FakeEngine:
    engine = FakeEngine()
    load_weights(engine.module, path)
    restore(path, read_state(path), engine, RANKS)
    return engine


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_saved_comes_back_and_goes_on_alike(engine: FakeEngine, tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    assert newest_whole(tmp_path) == (None, [])
    engine.train(3)
    torch.manual_seed(3)
    save(checkpoints, engine, 5)
    expected = torch.rand(4)
    found, problems = newest_whole(tmp_path)
    assert found is not None
    assert (found.name, problems) == ("step-00000005", [])
    assert read_state(found).updates == 3
    torch.manual_seed(99)
    again = load(found)
    assert torch.equal(torch.rand(4), expected), "dropout goes on where it was"
    for one in (engine, again):
        one.train(2)
    assert all(torch.equal(a, b) for a, b in zip(engine.everything(), again.everything(), strict=True))


def test_training_goes_on_while_a_copy_is_written(engine: FakeEngine, tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    engine.train()
    before = [tensor.clone() for tensor in engine.everything()]
    checkpoints.save(engine, state(1, engine))
    engine.train(20)
    checkpoints.finish()
    found, _ = newest_whole(tmp_path)
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(load(found).everything(), before, strict=True))


def test_only_the_newest_are_kept(engine: FakeEngine, tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    for step in (5, 10, 15):
        save(checkpoints, engine, step)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000015"]


class Kill(BaseException):
    """Stands for the end of the process: nothing that catches errors catches it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Callable[[], int]:
    """Let the process die before its `moment`-th change of the disk; the answer says how many there were."""
    count = itertools.count()
    seen = [0]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] = next(count) + 1
            if seen[0] >= moment:
                raise Kill
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "fsync"), (files, "save_file"), (json, "dump"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))
    return lambda: seen[0]


@pytest.mark.long
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(engine: FakeEngine, tmp_path: Path) -> None:
    """Old or new, its weights and its state are of one step; and the next save works and cleans up."""
    for moment in itertools.count(1):
        run = tmp_path / str(moment)
        checkpoints = make(run, keep=1)
        save(checkpoints, engine, 5)
        engine.train()
        with pytest.MonkeyPatch.context() as patch:
            changes = killed_at(patch, moment)
            try:
                save(checkpoints, engine, 10)
            except Kill:
                pass
            else:
                assert changes() < moment
                break
        found, _ = newest_whole(run)
        assert found is not None, moment
        assert read_state(found).step in (5, 10)
        assert load(found).progress().updates == read_state(found).updates
        for step in (10, 15):
            save(make(run, keep=1), engine, step)
        assert names(run) == ["latest", "step-00000015"], moment
    assert moment > 12, "the save was really interrupted"


def test_partial_folders_are_not_checkpoints_and_are_cleared_away(engine: FakeEngine, tmp_path: Path) -> None:
    save(make(tmp_path), engine, 5)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000005", folder / ".step-00000020.them.partial")
    shutil.copytree(folder / "step-00000005", folder / "step-00000010")
    (folder / "step-00000010" / STATE_FILE).unlink()
    found, problems = newest_whole(tmp_path)
    assert found == folder / "step-00000005"
    assert len(problems) == 1
    make(tmp_path)
    assert ".step-00000020.them.partial" not in names(tmp_path)


def test_two_starts_never_write_into_one_folder(engine: FakeEngine, tmp_path: Path) -> None:
    ours, theirs = make(tmp_path, owner="us"), make(tmp_path, owner="them")
    for checkpoints in (ours, theirs):
        checkpoints.save(engine, state(5, engine))
    for checkpoints in (ours, theirs):
        checkpoints.finish()
    assert newest_whole(tmp_path)[1] == []
    assert names(tmp_path) == ["latest", "step-00000005"]


def test_a_write_that_fails_is_said_and_leaves_the_earlier_one(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make(tmp_path)
    save(checkpoints, engine, 5)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    checkpoints.save(engine, state(10, engine))
    with pytest.raises(
        UserError, match=r"step-00000010 could not be written: .*No space left.*earlier checkpoints are kept"
    ):
        checkpoints.finish()
    assert names(tmp_path) == ["latest", "step-00000005"]


def test_space_is_looked_at_before(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"takes 1,048,636 bytes and 1,000 are free, so none was written"):
        save(make(tmp_path), engine, 5)
    assert names(tmp_path) == []


def test_another_network_is_refused(engine: FakeEngine, tmp_path: Path) -> None:
    save(make(tmp_path), engine, 5)
    found, _ = newest_whole(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match="another network than the recipe describes; they differ in bias, weight"):
        load_weights(torch.nn.Linear(5, 2), found)


def test_shares_of_other_ranks_make_one_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    entries: dict[str, files.FileEntry] = {}
    for rank, (first, last) in enumerate([(0, 5), (5, 5), (5, 12)]):
        part = {"weight/w": whole.view(-1)[first:last].clone()} if last > first else {}
        name = files.share_name(rank)
        entries[name] = files.write_share(tmp_path / name, part, {"w": (first, (3, 4))} if part else {})
    nothing = State(format_version=FORMAT_VERSION, step=1, ranks=3, order_version=1, recipe={}, data={}, files=entries)
    files.write_state(tmp_path, nothing)
    files.write_share(
        tmp_path / files.share_name(9), {"weight/w": -whole.view(-1)}, {"w": (0, (3, 4))}
    )  # of no state.json
    assert torch.equal(read_weights(tmp_path)["w"], whole)
    with Reader(tmp_path) as reader:
        for first, last in itertools.combinations(range(13), 2):
            assert torch.equal(reader.part("weight", "w", range(first, last)), whole.view(-1)[first:last])
    fewer = {name: entry for name, entry in entries.items() if name != files.share_name(2)}
    files.write_state(tmp_path, nothing.model_copy(update={"files": fewer}))
    with pytest.raises(UserError, match="weight of w is not complete"):
        read_weights(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match=f"format 99, but this program reads {FORMAT_VERSION}"):
        read_state(tmp_path)


def test_a_copy_beside_the_checkpoints_is_none(engine: FakeEngine, tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep=1)
    save(checkpoints, engine, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000001", folder / "step-00000001.bak")
    assert newest_whole(tmp_path) == (folder / "step-00000001", [])
    save(checkpoints, engine, 2)
    assert names(tmp_path) == ["latest", "step-00000001.bak", "step-00000002"]


def test_the_newest_are_those_of_the_highest_steps(tmp_path: Path) -> None:
    for step in (99_999_998, 99_999_999, 100_000_000):  # as texts, the last comes first
        (tmp_path / f"step-{step:08d}").mkdir()
    files.prune(tmp_path, 100_000_000, keep=2, keep_every=None)
    assert [path.name for path in files.checkpoints_in(tmp_path)] == ["step-99999999", "step-100000000"]


def test_a_renamed_copy_is_not_the_newest(engine: FakeEngine, tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    save(checkpoints, engine, 4)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000004", folder / "step-00000099")
    save(checkpoints, engine, 8)
    found, problems = newest_whole(tmp_path)
    assert found == folder / "step-00000008"
    assert problems == [
        f"{folder / 'step-00000099'} holds step 4, so it was renamed; "
        "name it step-00000004 to go on from it, or otherwise to keep it"
    ]


def test_a_checkpoint_that_is_pruned_while_it_is_read_gives_way_to_the_next(engine: FakeEngine, tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep=1)
    save(checkpoints, engine, 1)
    seen = []

    def read(path: Path) -> list[str]:
        seen.append(path.name)
        if len(seen) < 3:
            save(checkpoints, engine, len(seen) + 1)
        return sorted(read_weights(path))

    newest, weights = read_newest(tmp_path, read)
    assert (newest.name, weights) == ("step-00000003", ["bias", "weight"])
    assert seen == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_checkpoint_that_is_pruned_between_two_openings_of_a_file_gives_way_to_the_next(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make(tmp_path, keep=1)
    save(checkpoints, engine, 1)
    from_file = torch.UntypedStorage.from_file

    def pruned(path: str, **options: Any) -> Any:
        """As safetensors calls it, with the file open already."""
        if "step-00000001" in path:
            save(checkpoints, engine, 2)
        return from_file(path, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", pruned)
    newest, weights = read_newest(tmp_path, lambda path: sorted(read_weights(path)))
    assert (newest.name, weights) == ("step-00000002", ["bias", "weight"])


def test_a_checkpoint_is_not_called_damaged_where_too_many_files_are_open(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make(tmp_path), engine, 1)

    def full(path: str, **options: Any) -> torch.UntypedStorage:
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: Too many open files (24)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", full)
    with pytest.raises(UserError, match=r"Too many open files: allow more \(`ulimit -n 65536`\)"):
        read_newest(tmp_path, read_weights)


def test_a_checkpoint_that_is_pruned_while_it_is_hashed_is_no_damaged_one(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make(tmp_path, keep=1)
    save(checkpoints, engine, 1)
    describe = files.describe

    def slow(path: Path) -> files.FileEntry:
        if path.parent.name == "step-00000001":
            monkeypatch.setattr(files, "describe", describe)
            save(checkpoints, engine, 2)
        return describe(path)

    monkeypatch.setattr(files, "describe", slow)
    assert newest_whole(tmp_path) == (tmp_path / "checkpoints" / "step-00000002", [])


def test_a_pruned_link_is_removed_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (real := tmp_path / "elsewhere" / "step-00000001").mkdir(parents=True)
    (parent := tmp_path / "checkpoints").mkdir()
    (parent / "step-00000001").symlink_to(real)
    (parent / "step-00000002").mkdir()
    files.prune(parent, 2, keep=1, keep_every=None)
    assert [path.name for path in parent.iterdir()] == ["step-00000002"]
    assert real.is_dir()
    (parent / ".step-1.old.partial").symlink_to(real)
    files.remove_partial(parent)
    assert [path.name for path in parent.iterdir()] == ["step-00000002"]
