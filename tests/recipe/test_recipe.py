from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.recipe.load import dump_recipe, load_recipe, parse_recipe
from m3p.training.deepspeed.config import read_deepspeed_config
from tests.launch import ROOT
from tests.tiny import tiny_recipe

SHIPPED = sorted((ROOT / "trainer" / "m3p" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_right_and_opens_with_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.plan().turns_per_step >= 1
    head = path.read_text().partition("\nrun:")[0]
    assert "trainer/run.py --recipe" in head or "sbatch" in head


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_no_shipped_deepspeed_file_sets_what_is_the_recipes(path: Path) -> None:
    assert "zero_optimization" in read_deepspeed_config(path)


def test_dumping_and_loading_gives_the_same_recipe(tmp_path: Path) -> None:
    recipe = parse_recipe(tiny_recipe(tmp_path), "tiny")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_null_that_is_not_the_default_is_kept(tmp_path: Path) -> None:
    recipe = parse_recipe(tiny_recipe(tmp_path), "tiny", ["run.spike=null"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path).run.spike is None


def test_the_patience_of_later_steps_is_at_most_that_of_the_first(tmp_path: Path) -> None:
    raw = tiny_recipe(tmp_path)
    assert parse_recipe(raw, "tiny", ["run.timeout_seconds=900"]).run.stall_seconds == 300
    assert parse_recipe(raw, "tiny", ["run.timeout_seconds=60"]).run.stall_seconds == 60
    (line,) = mistakes(tmp_path, "run.timeout_seconds=60", "run.stall_seconds=61")
    assert "run.stall_seconds = 61: above run.timeout_seconds = 60" in line


def test_a_warm_up_that_reaches_into_the_decay_is_refused(tmp_path: Path) -> None:
    settings = ("schedule.shape=wsd", "schedule.decay=0.5", "run.steps=20")
    (line,) = mistakes(tmp_path, *settings, "schedule.warmup_steps=11")
    assert "schedule.warmup_steps = 11: with schedule.decay = 0.5 the rate falls after step 10 of 20" in line
    parse_recipe(tiny_recipe(tmp_path), "tiny", [*settings, "schedule.warmup_steps=10"])


def test_overrides_reach_sections_lists_and_values_of_any_type(tmp_path: Path) -> None:
    overrides = ["run.seed=7", "objectives.image_caption.sources.0.languages=[de, ja]", "model.dropout=0.25"]
    recipe = parse_recipe(tiny_recipe(tmp_path), "tiny", overrides)
    assert recipe.run.seed == 7
    assert recipe.model.dropout == 0.25
    assert recipe.active_objectives["image_caption"].sources[0].languages == ["de", "ja"]


def test_an_override_changes_one_of_the_places_that_an_anchor_fills(tmp_path: Path) -> None:
    raw = tiny_recipe(tmp_path)
    raw["objectives"]["code_switched"]["tasks"] = raw["objectives"]["image_caption"]["tasks"] = {"contrastive": 1.0}
    found = parse_recipe(raw, "tiny", ["objectives.image_caption.tasks.contrastive=0.5"]).active_objectives
    assert found["image_caption"].tasks == {"contrastive": 0.5}
    assert found["code_switched"].tasks == {"contrastive": 1.0}


@pytest.mark.long
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed", "not of the form section.key=value"),
        ("objectives.image_caption.sources.3.path=x", "'3' is not a place in a list of 1"),
        ("objectives.image_caption.sources.².path=x", "'²' is not a place in a list of 1"),
        ("run.seed.deeper=1", "seed is a value, not a section"),
        ("run.seed=[1", "the value is not YAML"),
        ("run.seed=" + "[" * 5000, "the value is not YAML"),
        ("run.folder=2024-09-31", "a text that looks like a date or a number wants quotes"),
        ("objectives.image_caption.weight=.inf", "weight = inf: input should be a finite number"),
        ("objectives.image_caption.sources.0.weight=.inf", "weight = inf: input should be a finite number"),
        ("objectives.image_caption.sources.0.weight=1e400", "weight = '1e400': input should be a finite number"),
        ("objectives.image_caption.sources.0.languages=[]", "should have at least 1 item"),
        (f"data.window={10**30}", "input should be less than or equal to 1000000"),
        (f"run.steps={10**30}", "input should be less than or equal to 1000000000"),
        (f"run.seed={2**64}", "input should be less than 9223372036854775808"),
        ("run.timeout_seconds=.inf", "timeout_seconds = inf: input should be a finite number"),
        ("run.timeout_seconds=1.0e+10", "input should be less than or equal to 1000000"),
        ("optimizer.learning_rate=.inf", "learning_rate = inf: input should be a finite number"),
        ("optimizer.weight_decay=.inf", "weight_decay = inf: input should be a finite number"),
        ("optimizer.clip=.inf", "clip = inf: input should be a finite number"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(tmp_path: Path, override: str, message: str) -> None:
    raw = tiny_recipe(tmp_path)
    raw["run"]["seed"] = 0
    with pytest.raises(UserError) as caught:
        parse_recipe(raw, "tiny", [override])
    assert message in str(caught.value)


def mistakes(tmp_path: Path, *overrides: str) -> list[str]:
    """Return the lines of the message that a wrong recipe gives."""
    with pytest.raises(UserError) as caught:
        parse_recipe(tiny_recipe(tmp_path), "tiny", overrides)
    first, *lines = str(caught.value).splitlines()
    assert first == f"tiny has {len(lines)} mistake(s):"
    return lines


def test_field_mistakes_and_impossible_combinations_come_together(tmp_path: Path) -> None:
    lines = mistakes(
        tmp_path,
        "run.sed=1",
        "model.pooling=last",
        "run.stop_after=99",
        "schedule.warmup_steps=20",
        "objectives.code_switched.batch_size=1",
        "objectives.multilingual_text.max_tokens=100",
        "objectives.image_captoin.weight=1",
    )
    text = "\n".join(lines)
    for part in (
        "run.sed: there is no such field; did you mean seed?",
        "model.pooling = 'last'",
        "stop_after = 99 is beyond steps = 20",
        "objectives.image_captoin: there is no such field; did you mean image_caption?",
    ):
        assert part in text


def test_an_evaluation_wants_a_task_that_scores(tmp_path: Path) -> None:
    none = [f"objectives.{name}.tasks={{masked_words: 1}}" for name in ("image_caption", "code_switched")]
    (line,) = mistakes(tmp_path, *none)
    assert line.endswith(
        "evaluation.train: scores by contrastive or matching, but no active objective trains it; "
        "give tasks.contrastive or tasks.matching a weight"
    )
    raw, matching = tiny_recipe(tmp_path), ["objectives.image_caption.tasks={matching: 1}", none[1]]
    assert parse_recipe(raw, "tiny", matching).evaluation
    (line,) = mistakes(tmp_path, *matching, "evaluation.train.rerank=5")
    assert "evaluation.train: scores by contrastive, but no active objective trains it" in line


def test_combinations_over_sections(tmp_path: Path) -> None:
    lines = mistakes(
        tmp_path,
        "schedule.warmup_steps=20",
        "objectives.code_switched.batch_size=1",
        "objectives.multilingual_text.max_tokens=100",
        "visual=null",
    )
    text = "\n".join(lines)
    assert "schedule.warmup_steps = 20: not below run.steps = 20" in text
    assert text.count("objectives.code_switched.batch_size = 1") == 2  # matching and contrastive
    assert "objectives.multilingual_text.max_tokens = 100: model.shape.positions = 66 holds 64 tokens" in text
    assert "visual: missing" in text


def test_a_task_of_another_objective_is_refused(tmp_path: Path) -> None:
    assert "tasks.matching does not exist here; possible: masked_words" in "\n".join(
        mistakes(tmp_path, "objectives.multilingual_text.tasks={matching: 1}")
    )


def test_an_objective_at_weight_0_is_left_out(tmp_path: Path) -> None:
    recipe = parse_recipe(tiny_recipe(tmp_path), "tiny", ["objectives.code_switched.weight=0"])
    assert list(recipe.active_objectives) == ["multilingual_text", "image_caption"]
    assert recipe.plan().turns_per_step == 2


def test_fields_of_earlier_versions_are_taken_under_their_new_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tiny_recipe(tmp_path)
    for section in raw["objectives"].values():
        section["most_tokens"] = section.pop("max_tokens", 24)
    recipe = parse_recipe(raw, "old.yaml", ["run.most_skipped=3", "data.most_bad=0.5"])
    assert (recipe.run.max_skipped, recipe.data.max_bad_share) == (3, 0.5)
    said = capsys.readouterr().err
    assert "old.yaml: run.most_skipped is called max_skipped now" in said
    for name in raw["objectives"]:
        assert f"objectives.{name}.most_tokens is called max_tokens now" in said


def test_tasks_that_the_rest_of_the_recipe_cannot_serve_are_refused(tmp_path: Path) -> None:
    raw = tiny_recipe(tmp_path)
    apart = ["model.encode_pictures=false", "model.pooling=mean", "objectives.code_switched.weight=0"]
    lines = mistakes(tmp_path, *apart)
    assert [line.split(":")[0].strip("- ") for line in lines] == [
        f"objectives.image_caption.tasks.{task}" for task in ("masked_words", "masked_regions", "matching")
    ]
    assert "model.encode_pictures = false never encodes together" in lines[0]
    alone = "objectives.image_caption.tasks={contrastive: 1.0, cosine: 4.0}"
    parse_recipe(raw, "tiny", [*apart, alone])
    lone = ("objectives.code_switched.tasks={cosine: 1.0}", "objectives.image_caption.weight=0", "evaluation={}")
    (line,) = mistakes(tmp_path, *lone)
    assert "tasks.cosine: reads what the head of contrastive gives; give tasks.contrastive a weight too" in line
