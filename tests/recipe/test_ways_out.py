"""Each way out that a message about a recipe names is gone: the message, then what it says, then a recipe that is right."""

import re
from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.recipe.load import load_recipe, parse_recipe
from tests.tiny import tiny_recipe

PAIRS = ("image_caption", "code_switched")
NO_SCORES = [f"objectives.{name}.tasks={{masked_words: 1}}" for name in PAIRS]
WAYS_OUT: list[tuple[list[str], str, list[list[str]]]] = [
    (["run.stop_after=99"], "lower it, or leave it out", [["run.stop_after=20"], ["run.stop_after=null"]]),
    (
        ["schedule.warmup_steps=20"],
        "shorten the warm-up or lengthen the run",
        [["schedule.warmup_steps=19"], ["run.steps=21"]],
    ),
    (
        ["schedule.shape=wsd", "schedule.decay=0.5", "schedule.warmup_steps=15"],
        "shorten the one or the other",
        [["schedule.warmup_steps=10"], ["schedule.decay=0.25"]],
    ),
    (
        ["run.stall_seconds=200"],
        "lower the one or raise the other",
        [["run.stall_seconds=120"], ["run.timeout_seconds=200"]],
    ),
    (
        ["visual=null"],
        "add a section with kind: regions, patches or tower",
        [["visual={kind: regions, feature_size: 6, classes: 10}"], ["visual={kind: patches}"]],
    ),
    (
        ["objectives.image_caption.batch_size=1"],
        "matching compares pairs of a turn; set 2 or more, or tasks.matching = 0",
        [
            ["objectives.image_caption.batch_size=2"],
            [f"objectives.image_caption.tasks.{task}=0" for task in ("matching", "contrastive")],
        ],
    ),
    (
        ["objectives.multilingual_text.max_tokens=100"],
        "holds 64 tokens; lower the one or raise the other",
        [["objectives.multilingual_text.max_tokens=64"], ["model.shape.positions=102"]],
    ),
    (
        [f"objectives.{name}.weight=0" for name in ("multilingual_text", *PAIRS)] + ["evaluation={}"],
        "none has a weight above 0; give one a weight",
        [["objectives.multilingual_text.weight=1"]],
    ),
    (
        NO_SCORES,
        "give tasks.contrastive or tasks.matching a weight",
        [[f"objectives.image_caption.tasks={{{task}: 1}}"] for task in ("contrastive", "matching")],
    ),
    (
        [f"objectives.{name}.tasks={{contrastive: 1}}" for name in PAIRS] + ["evaluation.train.rerank=5"],
        "give tasks.matching a weight",
        [["objectives.image_caption.tasks={contrastive: 1, matching: 1}"], ["evaluation.train.rerank=0"]],
    ),
    (
        ["model.initialise=folder"],
        "give either `initialise` .* or `shape` .*, and not both",
        [["model.shape=null"], ["model.initialise=null"]],
    ),
    (["model.tokenizer=null"], "name a folder with sentencepiece.bpe.model", [["model.tokenizer=folder"]]),
    (["model.layers=1"], "set shape.layers", [["model.layers=null", "model.shape.layers=1"]]),
    (["run.steps=null"], r"run\.steps", [["run.steps=20"]]),
    (
        ["run.folder=2024-09-31"],
        "a text that looks like a date or a number wants quotes",
        [["run.folder='2024-09-31'"]],
    ),
    (
        ["evaluation={../x: {path: shards}}"],
        "begin with a letter or digit",
        [["evaluation={x: {path: shards}}"]],
    ),
]


@pytest.mark.parametrize(
    ("wrong", "says", "mended"),
    [(wrong, says, way) for wrong, says, ways in WAYS_OUT for way in ways],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_the_way_out_leads_out(tmp_path: Path, wrong: list[str], says: str, mended: list[str]) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_recipe(tiny_recipe(tmp_path), "tiny", wrong)
    assert len(str(caught.value).splitlines()) <= 3, "the mistake, and none that only follows from it"
    # What is mended replaces what is wrong: overrides count in their order.
    kept = [] if any("folder='" in way for way in mended) else wrong
    assert parse_recipe(tiny_recipe(tmp_path), "tiny", [*kept, *mended])


def test_the_field_that_was_meant_is_there(tmp_path: Path) -> None:
    raw = tiny_recipe(tmp_path)
    raw["run"]["sed"] = 1
    with pytest.raises(UserError) as caught:
        parse_recipe(raw, "tiny")
    found = re.search(r"run\.(\w+): there is no such field; did you mean (\w+)\?", str(caught.value))
    assert found
    raw = tiny_recipe(tmp_path)
    raw["run"][found[2]] = 1
    assert parse_recipe(raw, "tiny").run.seed == 1


def test_weights_that_make_too_long_a_cycle_have_two_ways_out(tmp_path: Path) -> None:
    names = ("multilingual_text", *PAIRS)
    awkward = [f"objectives.{name}.weight={weight}" for name, weight in zip(names, (0.333, 0.3337, 0.1), strict=True)]
    with pytest.raises(
        UserError, match=r"Write weights in small whole numbers \(2, 1, 1\), or set run\.turns_per_step"
    ):
        parse_recipe(tiny_recipe(tmp_path), "tiny", awkward).plan()
    small = [f"objectives.{name}.weight={weight}" for name, weight in zip(names, (2, 1, 1), strict=True)]
    assert parse_recipe(tiny_recipe(tmp_path), "tiny", small).plan().turns_per_step == 4
    assert parse_recipe(tiny_recipe(tmp_path), "tiny", [*awkward, "run.turns_per_step=3"]).plan().turns_per_step == 3


def test_a_recipe_by_a_name_that_is_none_lists_names_that_load(tmp_path: Path) -> None:
    from m3p.shipped import find_recipe

    with pytest.raises(UserError) as caught:
        find_recipe(Path("dmeo"))
    found = re.search(r"There are: ([^;]*);", str(caught.value))
    assert found
    for name in found[1].split(", "):
        assert load_recipe(find_recipe(Path(name)))
