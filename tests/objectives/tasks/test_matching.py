"""The loss forms of matching against their formulas, pair by pair; and how pairs are grouped in a micro-batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from m3p.batch import Batch
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.flops import Work
from m3p.objectives.image_caption import ImageCaption
from m3p.objectives.objective import Context
from m3p.objectives.tasks.matching import MARGIN, Matching
from m3p.recipe.load import load_recipe, parse_recipe
from tests.tiny import tiny_recipe

TURN = range(7, 19)
LOGITS, LABELS, GROUPS = [0.5, -1.0, 0.2, 1.5, -0.3, 0.7], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0, 1, 2, 0, 0, 1]


def targets(loss: str) -> dict[str, torch.Tensor]:
    """Three true pairs, of which the first has two mismatched ones, the second one, and the third none."""
    found = {"sequences": torch.arange(6), "labels": torch.tensor(LABELS)}
    if loss != "bce":
        found["groups"] = torch.tensor(GROUPS)
    if loss == "hinge":
        found["margins"] = torch.full((6,), MARGIN)
    return found


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_softmax_is_the_cross_entropy_of_each_group() -> None:
    first = -math.log(math.exp(0.5) / (math.exp(0.5) + math.exp(1.5) + math.exp(-0.3)))
    second = -math.log(math.exp(-1.0) / (math.exp(-1.0) + math.exp(0.7)))
    asked = targets("softmax")
    assert float(Matching().loss(torch.tensor(LOGITS), asked)) == pytest.approx(first + second)
    assert Matching().count(asked) == 2, "a pair without a mismatched one is no term"


def test_hinge_wants_a_margin_between_the_true_pair_and_each_other() -> None:
    pairs = [(1.5, 0.5), (-0.3, 0.5), (0.7, -1.0)]
    wanted = sum(max(0.0, 0.2 + sigmoid(false) - sigmoid(true)) for false, true in pairs)
    asked = targets("hinge")
    assert float(Matching().loss(torch.tensor(LOGITS), asked)) == pytest.approx(wanted)
    assert Matching().count(asked) == 3


def test_bce_judges_each_pair_alone() -> None:
    wanted = -sum(math.log(sigmoid(logit if label else -logit)) for logit, label in zip(LOGITS, LABELS, strict=True))
    assert float(Matching().loss(torch.tensor(LOGITS), targets("bce"))) == pytest.approx(wanted)
    assert Matching().count(targets("bce")) == 6


def objective(tiny: Path, **matching: Any) -> ImageCaption:
    recipe = load_recipe(tiny, [f"objectives.image_caption.matching={matching}"])
    context = Context("image_caption", 0, Tokenizer(recipe.tokenizer_folder), recipe.visual, 2)
    found = recipe.active_objectives["image_caption"].build(context)
    assert isinstance(found, ImageCaption)
    return found


@pytest.mark.parametrize("loss", ["bce", "softmax", "hinge"])
def test_a_group_is_a_true_pair_with_its_picture_or_its_caption_in_others(tiny: Path, loss: str) -> None:
    built = objective(tiny, loss=loss, negatives_per_pair=3)
    batch = built.batch(TURN, TURN)
    asked = batch.targets["matching"]
    count = len(TURN)
    assert asked["labels"].tolist() == [1.0] * count + [0.0] * 3 * count
    assert ("groups" in asked, "margins" in asked) == (loss != "bce", loss == "hinge")
    if loss == "bce":
        return
    assert asked["groups"].tolist() == [*range(count), *(number for number in range(count) for _ in range(3))]
    same_picture = 0
    for row in range(count, 4 * count):
        true, false = (int(asked["sequences"][place]) for place in (int(asked["groups"][row]), row))
        same_picture += bool(batch.visual_starts[true] == batch.visual_starts[false])
    assert count <= same_picture <= 2 * count, "of three, one or two have the pair's own picture"


def test_one_negative_is_what_it_was_before_there_could_be_several(tiny: Path) -> None:
    one, three = (objective(tiny, negatives_per_pair=count).batch(TURN, TURN) for count in (1, 3))
    first = [len(TURN) + 3 * place for place in range(len(TURN))]
    for field in ("lengths", "words"):
        of_one, of_three = (getattr(batch, field)[batch.targets["matching"]["sequences"]] for batch in (one, three))
        assert of_one[len(TURN) :].tolist() == of_three[first].tolist()


def test_the_forecast_counts_every_mismatched_pair(tiny: Path) -> None:
    built = objective(tiny, negatives_per_pair=3)
    batch: Batch = built.batch(TURN, TURN)
    longest, found = built.config.longest_sample(built.context.visual), Work.of(batch)
    assert longest.terms["matching"] == 4 == found.terms["matching"] / len(TURN)


def test_iglues_mix_is_one_hard_negative_and_others_at_random(tiny: Path) -> None:
    settings = ["objectives.image_caption.tasks={matching: 1, contrastive: 1}", "objectives.code_switched.weight=0"]
    mix = "objectives.image_caption.matching={negatives: one_hard, negatives_per_pair: %d, loss: softmax}"
    recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny", [*settings, mix % 3])
    context = Context("image_caption", 0, Tokenizer(recipe.tokenizer_folder), recipe.visual, 2)
    hard = recipe.active_objectives["image_caption"].build(context).batch(TURN, TURN).hard
    assert hard is not None
    assert (hard.wanted, hard.by_similarity, hard.loss) == (3, 1, "softmax")
    with pytest.raises(UserError, match="set negatives_per_pair to 2 or more"):
        parse_recipe(tiny_recipe(tiny.parent), "tiny", [*settings, mix % 1])


@pytest.mark.parametrize(
    ("tasks", "way_out"),
    [
        ({"matching": 1}, "give tasks.contrastive one"),
        ({"matching": 1, "contrastive": 1, "masked_words": 1}, "set tasks.masked_words = 0"),
    ],
)
def test_hard_negatives_that_cannot_be_drawn_are_refused(tiny: Path, tasks: dict[str, float], way_out: str) -> None:
    settings = [f"objectives.image_caption.tasks={tasks}", "objectives.image_caption.matching.negatives=hard"]
    with pytest.raises(UserError, match=way_out):
        parse_recipe(tiny_recipe(tiny.parent), "tiny", settings)
