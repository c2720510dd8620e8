"""Runs are trained once, go on after a kill, and are compared; training itself is stood in for by a function."""

import io
import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from m3p.ablation.ablate import ablate, launcher
from m3p.ablation.report import Report, Row, tables
from m3p.ablation.variants import Trial, Variant
from m3p.console import PlainConsole
from m3p.data.shards.index_folder import index_folder
from m3p.errors import UserError
from m3p.recipe.load import dump_recipe, load_recipe
from m3p.retrieval.metrics import rank_both_ways
from m3p.retrieval.pool import Pool
from m3p.retrieval.result import Conditions, Evaluation
from tests.tiny import tiny_recipe

Command = tuple[Path, list[str], list[str], int, Path]
RECORDS = [{"id": f"p{number}", "captions": {"en": f"thing {number}", "de": f"Ding {number}"}} for number in range(60)]


class Trainer:
    """Stands in for training: writes what a finished run leaves; runs without dropout find more pictures."""

    def __init__(self, recipe: Path, dies_at: int | None = None) -> None:
        self.recipe, self.dies_at = recipe, dies_at
        self.started: list[str] = []

    def __call__(self, trial: Trial, overrides: Sequence[str]) -> int:
        recipe = load_recipe(self.recipe, overrides)
        self.started.append(f"{recipe.run.folder.parent.name}/{recipe.run.folder.name}")
        if len(self.started) - 1 == self.dies_at:
            return -9
        recipe.run.folder.mkdir(parents=True)
        (recipe.run.folder / "recipe.yaml").write_text(dump_recipe(recipe))
        evaluation(recipe.run.seed, 3.0 if recipe.model.dropout == 0 else 0.0).save(
            recipe.run.folder / "evaluation" / "train.json"
        )
        (recipe.run.folder / "status").write_text("done\n")
        return 0


def evaluation(seed: int, skill: float) -> Evaluation:
    pool, rng = Pool.of(RECORDS, ["en", "de"]), np.random.default_rng(seed)
    found = {}
    for language in pool.captions:
        right = pool.right(language)
        found[language] = rank_both_ways(rng.normal(size=right.shape) + skill * right, right)
    conditions = Conditions(
        dataset="toys", split="dev", scoring="dual", caption_source="human", captioned_languages=["en"],
        system=f"run-{seed}-{skill}", step=1, seed=seed,
    )  # fmt: skip
    return Evaluation.of(pool, found, conditions)


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    fields = tiny_recipe(tiny.parent)
    fields["run"]["evaluate"] = True
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.long
def test_variants_are_trained_once_and_compared_with_the_first(recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe)
    report = ablate(recipe, [], ["model.dropout=0.5,0.0"], 3, tmp_path / "out", trainer)
    assert trainer.started[:2] == ["00-model.dropout_0.5/seed-0", "01-model.dropout_0.0/seed-0"]
    assert len(trainer.started) == 6
    rows = {(row.languages, row.variant): row for row in report.evaluations["train"]}
    better = rows["en", "model.dropout=0.0"]
    assert better.difference == pytest.approx(better.mean_recall - rows["en", "model.dropout=0.5"].mean_recall)
    assert better.interval is not None
    assert better.interval[0] > 0
    assert len(better.by_seed) == 3
    assert rows["en", "model.dropout=0.5"].difference is None
    again = ablate(recipe, [], ["model.dropout=0.5,0.0"], 3, tmp_path / "out", trainer)
    assert (again, len(trainer.started)) == (report, 6)


@pytest.mark.long
def test_a_folder_for_every_run_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.folder=x: every run has a folder of its own.*--folder"):
        ablate(recipe, ["run.folder=x"], ["model.dropout=0.5,0.0"], 1, tmp_path / "out", Trainer(recipe))


def test_runs_that_have_chosen_a_checkpoint_are_compared_by_it(recipe: Path, tmp_path: Path) -> None:
    class Choosing(Trainer):
        def __call__(self, trial: Trial, overrides: Sequence[str]) -> int:
            code, results = super().__call__(trial, overrides), trial.folder / "evaluation"
            (results / "train.json").rename(results / "train-step-00000004.json")
            (trial.folder / "checkpoints" / "step-00000004").mkdir(parents=True)
            (trial.folder / "checkpoints" / "best").write_text("step-00000004\n")
            return code

    asked = ["model.dropout=0.5,0.0"]
    found = ablate(recipe, ["run.select_on=train"], asked, 1, tmp_path / "out", Choosing(recipe))
    plain = ablate(recipe, [], asked, 1, tmp_path / "plain", Trainer(recipe))
    assert found.evaluations == plain.evaluations


@pytest.mark.long
def test_the_same_command_goes_on_after_a_kill(recipe: Path, tmp_path: Path) -> None:
    command = (recipe, ["run.steps=9"], ["model.dropout=0.5,0.0"], 2, tmp_path / "out")
    with pytest.raises(UserError, match=r"dropout=0.5 with seed 1 is not complete \(exit code -9\)"):
        ablate(*command, Trainer(recipe, dies_at=2))
    trainer = Trainer(recipe)
    report = ablate(*command, trainer)
    assert trainer.started == ["00-model.dropout_0.5/seed-1", "01-model.dropout_0.0/seed-1"]
    whole = ablate(recipe, ["run.steps=9"], ["model.dropout=0.5,0.0"], 2, tmp_path / "once", Trainer(recipe))
    assert report.evaluations == whole.evaluations


@pytest.mark.long
def test_several_runs_train_at_a_time_and_give_the_same_report(recipe: Path, tmp_path: Path) -> None:
    together, trainer = threading.Barrier(2, timeout=10), Trainer(recipe)

    def meet(trial: Trial, overrides: Sequence[str]) -> int:
        together.wait()  # raises unless two runs are in training at once
        return trainer(trial, overrides)

    side_by_side = ablate(recipe, [], ["model.dropout=0.5,0.0"], 2, tmp_path / "out", meet, jobs=2)
    in_turn = ablate(recipe, [], ["model.dropout=0.5,0.0"], 2, tmp_path / "turn", Trainer(recipe))
    assert side_by_side.evaluations == in_turn.evaluations


@pytest.mark.long
def test_after_a_failure_no_other_run_starts(recipe: Path, tmp_path: Path) -> None:
    started = []

    def fail(trial: Trial, overrides: Sequence[str]) -> int:
        started.append(trial.seed)
        time.sleep(0.05)  # until both have started
        return 3

    with pytest.raises(UserError, match=r"dropout=0.5 with seed 0 is not complete \(exit code 3\)"):
        ablate(recipe, [], ["model.dropout=0.5,0.0"], 9, tmp_path / "out", fail, jobs=2)
    assert len(started) < 5


@pytest.mark.program
def test_runs_side_by_side_share_the_processors_and_write_logs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = [sys.executable, "-c", "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[-1]); sys.exit(4)"]
    trial = Trial(Variant("dropout=0", ()), 7, tmp_path / "00-dropout_0" / "seed-7")
    assert launcher(lambda: program, tmp_path / "recipe.yaml", "zero1", 3)(trial, ["run.seed=7"]) == 4
    log = tmp_path / "00-dropout_0" / "seed-7.log"
    assert log.read_text() == "3 run.seed=7\n"
    assert capsys.readouterr().out.splitlines() == [
        f"dropout=0, seed 7: trains; messages in {log}",
        "dropout=0, seed 7: ended with exit code 4",
    ]


@pytest.mark.long
def test_differences_of_chance_alone_are_called_none(recipe: Path, tmp_path: Path) -> None:
    report = ablate(recipe, [], ["model.dropout=0.5,0.4"], 3, tmp_path / "out", Trainer(recipe))
    assert {row.verdict for row in report.evaluations["train"] if row.difference is not None} == {"none"}


@pytest.mark.long
def test_runs_of_another_recipe_are_not_taken_for_these(recipe: Path, tmp_path: Path) -> None:
    ablate(recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out", Trainer(recipe))
    with pytest.raises(UserError, match="trained by another recipe"):
        ablate(recipe, ["run.steps=19"], ["model.dropout=0.5,0.0"], 1, tmp_path / "out", Trainer(recipe))


def copied(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a recipe of captions in a folder of their own, and that folder."""
    shards = tmp_path / "own"
    shutil.copytree(tiny.parent / "shards" / "train", shards)
    fields: dict[str, Any] = tiny_recipe(tiny.parent)
    fields["run"]["evaluate"] = True
    fields["objectives"]["image_caption"]["sources"] = [{"path": str(shards), "languages": ["en"]}]
    recipe = tmp_path / "of_own_data.yaml"
    recipe.write_text(yaml.safe_dump(fields))
    return recipe, shards


def drop_last_shard(shards: Path) -> None:
    """Take a shard out of a source, and index what is left."""
    sorted(shards.glob("*.tar"))[-1].unlink()
    index_folder(shards, "captions")


@pytest.mark.long
def test_runs_of_other_data_are_not_taken_for_these(tiny: Path, tmp_path: Path) -> None:
    recipe, shards = copied(tiny, tmp_path)
    command: Command = (recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out")
    trainer = Trainer(recipe)
    ablate(*command, trainer)
    drop_last_shard(shards)
    with pytest.raises(
        UserError, match=r"(?s)made of something else.*content of objectives.image_caption.sources, folder 0: \w+ then"
    ):
        ablate(*command, trainer)
    shutil.move(tmp_path / "out" / "00-model.dropout_0.5", tmp_path / "away")  # the way out
    shutil.move(tmp_path / "out" / "01-model.dropout_0.0", tmp_path / "away too")
    ablate(*command, trainer)
    assert len(trainer.started) == 4


@pytest.mark.long
def test_runs_of_other_code_are_not_taken_for_these(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command: Command = (recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out")
    ablate(*command, Trainer(recipe))
    monkeypatch.setattr("m3p.ablation.made_of.code_hash", lambda folder: "another")
    with pytest.raises(UserError, match=r"code of m3p: [0-9a-f]{16} then, another now"):
        ablate(*command, Trainer(recipe))


@pytest.mark.long
def test_runs_in_another_precision_are_not_taken_for_these(recipe: Path, tmp_path: Path) -> None:
    """As where an ablation that was cut off goes on on a machine with a GPU, or with another file of settings."""
    command: Command = (recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"bf16": {"enabled": False}}))
    with pytest.raises(UserError, match="is not complete"):
        ablate(*command, Trainer(recipe, dies_at=1), ds_config=settings)
    settings.write_text(json.dumps({"bf16": {"enabled": True}}))
    with pytest.raises(UserError, match=r"made of something else .*\n  - precision: float32 then, bfloat16 now\n"):
        ablate(*command, Trainer(recipe), ds_config=settings)


@pytest.mark.long
def test_a_run_that_does_not_say_what_it_is_made_of_is_not_taken(recipe: Path, tmp_path: Path) -> None:
    command: Command = (recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out")
    ablate(*command, Trainer(recipe))
    note = tmp_path / "out" / "00-model.dropout_0.5" / "seed-0.made-of.json"
    whole = note.read_text()
    note.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        ablate(*command, Trainer(recipe))
    note.unlink()
    with pytest.raises(UserError, match=r"was not noted: there is no seed-0\.made-of\.json"):
        ablate(*command, Trainer(recipe))
    note.write_text(whole)
    ablate(*command, Trainer(recipe))


@pytest.mark.long
def test_a_run_from_before_a_field_existed_counts_as_one_with_its_default(recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe)
    ablate(recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out", trainer)
    record = tmp_path / "out" / "00-model.dropout_0.5" / "seed-0" / "recipe.yaml"
    lines = record.read_text().splitlines(keepends=True)
    older = [line for line in lines if "picture_dropout" not in line]
    assert len(older) == len(lines) - 1
    record.write_text("".join(older))
    ablate(recipe, [], ["model.dropout=0.5,0.0"], 1, tmp_path / "out", trainer)
    assert len(trainer.started) == 2


def test_every_variant_is_checked_before_the_first_is_trained(recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe)
    with pytest.raises(UserError, match=r"model\.dropout = 3"):
        ablate(recipe, [], ["model.dropout=0.5,3"], 1, tmp_path / "out", trainer)
    assert trainer.started == []


def test_a_variant_that_would_not_be_scored_is_not_trained(recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe)
    with pytest.raises(UserError, match=r"run.evaluate=false: run.evaluate = false: no run would be scored"):
        ablate(recipe, [], ["run.evaluate=true,false"], 1, tmp_path / "out", trainer)
    assert trainer.started == []


@pytest.mark.long
def test_a_field_that_the_recipe_leaves_out_may_be_varied(recipe: Path, tmp_path: Path) -> None:
    """How long the runs are, by epochs in place of steps: without either the recipe is none."""
    trainer = Trainer(recipe)
    ablate(recipe, ["run.steps=null"], ["run.epochs=2,4"], 1, tmp_path / "out", trainer)
    assert trainer.started == ["00-run.epochs_2/seed-0", "01-run.epochs_4/seed-0"]


def test_variants_can_be_told_apart_in_a_narrow_terminal() -> None:
    names = ["code_switched.switching.word_rate=0.3", "code_switched.switching.word_rate=0.45"]
    row = {"languages": "all languages", "mean_recall": 1.0, "by_seed": (1.0, 1.0, 1.0)}
    rows = [Row.model_validate({**row, "variant": name}) for name in names]
    console = PlainConsole(file=io.StringIO(), width=60)
    for table in tables(Report(recipe="r", overrides=[], seeds=[0, 1, 2], evaluations={"dev": rows})):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert "…" not in shown


@pytest.mark.long
def test_table_json_and_page_say_the_same(recipe: Path, tmp_path: Path) -> None:
    report = ablate(recipe, [], ["model.dropout=0.5,0.0"], 2, tmp_path / "out", Trainer(recipe))
    console = PlainConsole(file=io.StringIO(), width=200)
    for table in tables(report):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    page = (tmp_path / "out" / "ablation.html").read_text()
    stored = json.loads((tmp_path / "out" / "ablation.json").read_text())
    for row in stored["evaluations"]["train"]:
        assert f"{row['mean_recall']:.1f}" in shown
        assert f"<td>{row['mean_recall']:.1f}</td>" in page
    assert "with few seeds it is too narrow" in page
