"""The grid of fine-tuning: what is trained and scored, once; the table; and what is refused. Training is stood in for."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from m3p.ablation import finetune as module
from m3p.ablation.finetune import finetune, queries, trained, ways
from m3p.ablation.grid import baselines, grid_tables
from m3p.ablation.variants import Trial
from m3p.data.shards.index_folder import index_folder
from m3p.errors import UserError
from m3p.recipe.load import load_recipe
from m3p.retrieval.evaluate import Options
from m3p.retrieval.metrics import rank_both_ways
from m3p.retrieval.pool import Pool
from m3p.retrieval.result import ALL_LANGUAGES, Conditions, Evaluation
from tests.ablation.test_ablate import Trainer
from tests.tiny import tiny_recipe

LANGUAGES, SETTINGS = ["en", "de", "ja"], ["none", "en", "each", "all"]
OVERRIDES = ["objectives.code_switched.weight=0"]
RECORDS = [{"id": f"p{number}", "captions": {code: f"{code} {number}" for code in LANGUAGES}} for number in range(80)]


class Scorer:
    """Stands in for `evaluate_run`: finds more in the languages whose captions the run saw."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.checkpoints: set[str] = set()

    def __call__(self, path: Path, options: Options) -> list[Evaluation]:
        assert options.given is not None
        assert options.json_file is not None
        ((split, config),) = options.given.items()
        if path.parent.name == "checkpoints":
            self.checkpoints.add(path.name)
            path = path.parents[1]
        assert config.languages in (LANGUAGES, [path.name])
        self.asked.append((path.name, str(options.scoring)))
        seen = {"start": [], "all": LANGUAGES}.get(path.name, [path.name])
        pool, found = Pool.of(RECORDS, config.languages), {}
        for language in pool.captions:
            right, rng = pool.right(language), np.random.default_rng(LANGUAGES.index(language))
            skill = 0.5 + 1.0 * bool(seen) + 1.5 * (language in seen)
            found[language] = rank_both_ways(rng.normal(size=right.shape) + skill * right, right)
        conditions = Conditions(dataset="toys", split=split, scoring="dual", captioned_languages=seen, system=path.name)
        result = Evaluation.of(pool, found, conditions)
        result.save(options.json_file)
        return [result]


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Scorer:
    found = Scorer()
    monkeypatch.setattr(module, "evaluate_run", found)
    return found


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    fields: dict[str, Any] = tiny_recipe(tiny.parent)
    fields["model"]["weights"] = str(tmp_path / "start")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


class Tuner(Trainer):
    """Writes what a finished run leaves, and notes the languages of its captions."""

    def __init__(self, recipe: Path, dies_at: int | None = None) -> None:
        super().__init__(recipe, dies_at)
        self.languages: dict[str, list[str] | None] = {}

    def __call__(self, trial: Trial, overrides: Sequence[str]) -> int:
        made = load_recipe(self.recipe, overrides)
        assert not made.run.evaluate
        self.languages[made.run.folder.name] = made.active_objectives["image_caption"].sources[0].languages
        return super().__call__(trial, overrides)


@pytest.mark.long
def test_each_run_is_trained_once_on_its_captions_and_scored_once_in_every_way(
    recipe: Path, tmp_path: Path, scorer: Scorer
) -> None:
    tuner, folder = Tuner(recipe), tmp_path / "out"
    grid = finetune(recipe, OVERRIDES, LANGUAGES, SETTINGS, folder, tuner)
    assert tuner.languages == {"en": ["en"], "de": ["de"], "ja": ["ja"], "all": LANGUAGES}
    assert sorted(scorer.asked) == sorted(
        (run, way) for run in ("start", "en", "de", "ja", "all") for way in ("dual", "cross", "rerank")
    )
    table = {row.languages: row for row in grid.evaluations["train"]["dual"]}
    assert list(table) == [*LANGUAGES, ALL_LANGUAGES]
    assert table["de"].recalls["each"] == table["de"].recalls["all"], "the run of its own language"
    assert table["en"].recalls["each"] == table["en"].recalls["en"]
    difference = table[ALL_LANGUAGES].differences["all"]
    recalls = table[ALL_LANGUAGES].recalls
    assert difference.value == pytest.approx(recalls["all"].value - recalls["en"].value, abs=1e-3)
    assert difference.interval[0] > 0
    assert table["en"].differences["all"].as_difference().startswith("none (")
    stored = json.loads((folder / "finetune.json").read_text())
    assert stored == json.loads(grid.model_dump_json())
    assert [len(shown.columns) for shown in grid_tables(grid)] == [1 + 4 + 3] * 3


@pytest.mark.long
def test_a_run_that_has_chosen_a_checkpoint_is_scored_by_it(recipe: Path, tmp_path: Path, scorer: Scorer) -> None:
    class Choosing(Tuner):
        def __call__(self, trial: Trial, overrides: Sequence[str]) -> int:
            code = super().__call__(trial, overrides)
            (trial.folder / "checkpoints" / "step-00000004").mkdir(parents=True)
            (trial.folder / "checkpoints" / "best").write_text("step-00000004\n")
            return code

    words = [*OVERRIDES, "run.select_on=train"]
    grid = finetune(recipe, words, LANGUAGES, ["en"], tmp_path / "out", Choosing(recipe))
    assert {"checkpoints were chosen by their figures on it" in str(shown.title) for shown in grid_tables(grid)} == {
        True
    }
    assert scorer.checkpoints == {"step-00000004"}
    assert {name for name, _ in scorer.asked} == {"en"}


@pytest.mark.long
def test_the_same_command_goes_on_after_a_kill(recipe: Path, tmp_path: Path, scorer: Scorer) -> None:
    command = (recipe, OVERRIDES, LANGUAGES, SETTINGS, tmp_path / "out")
    with pytest.raises(UserError, match=r"the run of de with seed 0 is not complete \(exit code -9\)"):
        finetune(*command, Tuner(recipe, dies_at=1))
    assert scorer.asked == []
    again = Tuner(recipe)
    first = finetune(*command, again)
    assert list(again.languages) == ["de", "ja", "all"]
    asked = len(scorer.asked)
    assert finetune(*command, Tuner(recipe)) == first
    assert len(scorer.asked) == asked


@pytest.mark.long
def test_a_result_of_other_weights_data_settings_or_code_is_made_again(
    tiny: Path, tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test"
    shutil.copytree(tiny.parent / "shards" / "train", test)
    fields: dict[str, Any] = tiny_recipe(tiny.parent)
    fields["model"]["weights"] = str(tmp_path / "start")
    fields["evaluation"]["train"]["path"] = str(test)
    recipe = tmp_path / "recipe.yaml"
    only = [*OVERRIDES, "objectives.image_caption.tasks={contrastive: 1}"]

    def score(*more: str) -> int:
        """Return how many results are made by a grid that trains nothing."""
        recipe.write_text(yaml.safe_dump(fields))
        before = len(scorer.asked)
        finetune(recipe, [*only, *more], LANGUAGES, ["none"], tmp_path / "out", Tuner(recipe))
        return len(scorer.asked) - before

    assert (score(), score()) == (1, 0)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "m3p.safetensors").write_bytes(b"others")
    assert (score(), score()) == (1, 0)
    assert "scored again, since it was made of something else: weights: " in capsys.readouterr().out
    assert (score("evaluation.train.batch_size=4"), score("evaluation.train.batch_size=4")) == (1, 0)
    sorted(test.glob("*.tar"))[-1].unlink()
    index_folder(test, "captions")
    assert (score("evaluation.train.batch_size=4"), score("evaluation.train.batch_size=4")) == (1, 0)
    monkeypatch.setattr("m3p.ablation.made_of.code_hash", lambda folder: "another")
    assert (score("evaluation.train.batch_size=4"), score("evaluation.train.batch_size=4")) == (1, 0)


def test_a_run_that_is_there_for_each_alone_is_asked_in_its_own_language() -> None:
    assert [queries(run, LANGUAGES, SETTINGS) for run in ("none", "en", "de", "all")] == [
        LANGUAGES, LANGUAGES, ["de"], LANGUAGES
    ]  # fmt: skip
    assert queries("en", LANGUAGES, ["each"]) == ["en"]


def test_settings_share_runs_and_are_compared_with_one_run_before_them() -> None:
    assert trained(["en", "de"], ["none", "en", "each"]) == {"en": ["en"], "de": ["de"]}
    assert baselines(SETTINGS) == {"en": "none", "each": "en", "all": "en"}
    assert baselines(["each", "all"]) == {"all": "each"}


def test_only_ways_that_the_tasks_train_are_scored(recipe: Path) -> None:
    only = "objectives.image_caption.tasks={%s: 1}"
    assert ways(load_recipe(recipe, [*OVERRIDES, only % "contrastive"])) == ["dual"]
    assert ways(load_recipe(recipe, [*OVERRIDES, only % "matching"])) == ["cross"]


@pytest.mark.parametrize(
    ("overrides", "languages", "settings", "message"),
    [
        (OVERRIDES, ["en", "de"], ["none", "cs"], "--settings cs: it is none, each, all, or one of"),
        (OVERRIDES, ["en", "en"], ["all"], "--languages en,en"),
        ([*OVERRIDES, "model.weights=null"], ["en"], ["none"], "name it in model.weights"),
        ([], ["en", "de"], ["all"], "set objectives.code_switched.weight=0"),
        ([*OVERRIDES, "evaluation={}"], ["en"], ["en"], "no `evaluation` section"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(
    recipe: Path, tmp_path: Path, overrides: list[str], languages: list[str], settings: list[str], message: str
) -> None:
    tuner = Tuner(recipe)
    with pytest.raises(UserError, match=message):
        finetune(recipe, overrides, languages, settings, tmp_path / "out", tuner)
    assert tuner.started == []


@pytest.mark.long
def test_with_the_ways_out_that_are_named_there_is_a_grid(recipe: Path, tmp_path: Path, scorer: Scorer) -> None:
    def go(folder: str, settings: list[str], *overrides: str, languages: list[str] = LANGUAGES) -> None:
        finetune(recipe, overrides, languages, settings, tmp_path / folder, Tuner(recipe))

    with pytest.raises(UserError, match=r"set objectives\.code_switched\.weight=0$") as caught:
        go("switched", ["all"])
    go("switched", ["all"], str(caught.value).rpartition("set ")[2])
    with pytest.raises(UserError, match=r"name it in model\.weights, or leave none out"):
        go("none", ["none", "all"], *OVERRIDES, "model.weights=null")
    go("none", ["all"], *OVERRIDES, "model.weights=null")
    go("named", ["none", "all"], *OVERRIDES, f"model.weights={tmp_path / 'start'}")
    with pytest.raises(UserError, match="no `evaluation` section: add one"):
        go("asked", ["all"], *OVERRIDES, "evaluation={}")
    with pytest.raises(UserError, match="--settings all,all: name one or more, each once"):
        go("twice", ["all", "all"], *OVERRIDES)
    with pytest.raises(UserError, match="--settings cs: it is none, each, all, or one of --languages en,de,ja"):
        go("twice", ["cs"], *OVERRIDES)
    for setting in ("each", "de"):
        go(setting, [setting], *OVERRIDES)
