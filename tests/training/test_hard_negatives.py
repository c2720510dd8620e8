"""Hard negatives: drawn in proportion, never what is right, and the same however a turn is cut."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from m3p.batch import Batch
from m3p.data.order.passes import PassPlan
from m3p.data.order.plan import Turn, split
from m3p.data.tokenizer import Tokenizer
from m3p.distributed import Ranks
from m3p.kernels.choice import KernelsConfig
from m3p.model.build import build_model
from m3p.model.flops import Work
from m3p.objectives.image_caption import ImageCaption
from m3p.objectives.objective import Context
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.task import Targets
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.training import hard_negatives
from m3p.training.hard_negatives import TurnCaptions, draw, draw_for, gather, pairs_to_match, work_of
from m3p.training.losses import StepLosses
from m3p.training.turns import Exchange, count_pairs
from tests.launch import ROOT

TURN = range(7, 19)
TASK_WEIGHTS = {"matching": 1.0, "contrastive": 1.0}
Seen = tuple[tuple[int, ...], bytes, float]
"""Words, features of the picture, and label of a pair."""


def hard_recipe(tiny: Path, *more: str) -> Recipe:
    settings = [f"objectives.image_caption.tasks={TASK_WEIGHTS}", "objectives.image_caption.matching.negatives=hard"]
    return load_recipe(tiny, [*settings, *more])


@pytest.fixture(scope="module")
def objective(tiny: Path) -> ImageCaption:
    recipe = hard_recipe(tiny, "objectives.image_caption.matching.negatives_per_pair=2")
    context = Context("image_caption", 0, Tokenizer(recipe.tokenizer_folder), recipe.visual, 2)
    built = recipe.active_objectives["image_caption"].build(context)
    assert isinstance(built, ImageCaption)
    return built


def features() -> Tensor:
    """Features of a turn, [2, B, 4]."""
    return torch.randn(2, len(TURN), 4, generator=torch.Generator().manual_seed(0))


def whole_turn(batches: list[Batch]) -> Targets:
    task = TASKS["contrastive"]
    return task.turn_targets(len(TURN), [batch.targets["contrastive"] for batch in batches if batch.samples])  # type: ignore[attr-defined]


def pairs_of(batch: Batch) -> list[Seen]:
    """Return the pairs that a micro-batch of matching asks about."""
    ends, found = torch.cumsum(batch.lengths, 0).tolist(), []
    for number, label in zip(
        *(batch.targets["matching"][name].tolist() for name in ("sequences", "labels")), strict=True
    ):
        first, end = ends[number] - int(batch.lengths[number]), ends[number]
        words = batch.token_ids[(batch.token_slots >= first) & (batch.token_slots < end)]
        shown = batch.visual_features[batch.visual_rows[(batch.visual_slots >= first) & (batch.visual_slots < end)]]
        found.append((tuple(words.tolist()), shown.numpy().tobytes(), label))
    return found


def made(batches: list[Batch], turn: TurnCaptions) -> list[Seen]:
    matched = [pairs_to_match(batch, turn, draw_for(batch, turn, features())) for batch in batches]
    return sorted(pair for batch in matched if batch.targets for pair in pairs_of(batch))


def test_captions_are_drawn_in_proportion_to_the_exponential_of_their_similarity() -> None:
    logits = np.array([[0.0, 1.0, 2.0, 5.0, -1.0]], np.float32)
    allowed = np.array([[True, True, True, False, True]])
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    every = draw(np.repeat(logits, len(keys), 0), np.repeat(allowed, len(keys), 0), keys, 1)
    assert every.pairs.tolist() == list(range(len(keys)))
    shares = np.bincount(every.rows, minlength=5) / len(keys)
    wanted = np.exp(logits[0]) * allowed[0]
    assert shares == pytest.approx(wanted / wanted.sum(), abs=0.015)


def test_none_is_drawn_twice_and_none_that_is_not_allowed() -> None:
    logits, allowed = np.zeros((3, 4), np.float32), np.array([[True] * 4, [False, True, True, False], [False] * 4])
    drawn = draw(logits, allowed, np.arange(3).astype(np.uint64), 3)
    assert drawn.pairs.tolist() == [0, 0, 0, 1, 1]
    assert len(set(drawn.rows[:3].tolist())) == 3
    assert set(drawn.rows[3:].tolist()) == {1, 2}


def test_one_is_drawn_by_similarity_and_the_others_with_equal_chances() -> None:
    """IGLUE's mix: of three, one hard and two random, all different, and none that is not allowed."""
    logits = np.array([[9.0, 0.0, 1.0, 2.0, 3.0, 50.0]], np.float32)
    allowed = np.array([[True, True, True, True, True, False]])
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    every = draw(np.repeat(logits, len(keys), 0), np.repeat(allowed, len(keys), 0), keys, 3, 1)
    rows = every.rows.reshape(-1, 3)
    assert every.pairs.tolist() == np.arange(len(keys)).repeat(3).tolist()
    assert all(len(set(three)) == 3 for three in rows.tolist())
    hard = np.bincount(rows[:, 0], minlength=6) / len(keys)
    assert hard == pytest.approx(np.exp(logits[0]) * allowed[0] / np.exp(logits[0, :5]).sum(), abs=0.01)
    others = np.bincount(rows[rows[:, 0] == 0, 1:].ravel(), minlength=6) / (rows[:, 0] == 0).sum()
    assert others == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0], abs=0.02)
    few = draw(logits, np.array([[False, True, True, False, False, False]]), keys[:1], 3, 1)
    assert sorted(few.rows.tolist()) == [1, 2], "as many as there are"


def captions(sources: list[int], pictures: list[list[int]], names: list[list[int]]) -> TurnCaptions:
    flat = np.array([name for of in names for name in of], np.int64)
    return TurnCaptions(
        np.arange(len(sources)), np.ones(len(sources), np.int64), np.array(sources), np.array(pictures), flat,
        np.array([len(of) for of in names]),
    )  # fmt: skip


def test_what_is_right_for_a_picture_is_never_drawn() -> None:
    """0 and 1 show one picture by its second name, 0 and 2 share one of their captions, 3 is of another source."""
    pictures = [[1, 2, 3], [4, 2, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]
    turn = captions([0, 0, 0, 1, 0], pictures, [[1, 9], [2], [9], [4], [5]])
    assert turn.may_be_drawn(np.array([0, 4])).tolist() == [
        [False, False, False, False, True],
        [True, True, True, False, False],
    ]
    assert turn.may_be_drawn(np.array([3])).tolist() == [[True, True, True, False, True]], "its source has no other"


def test_a_mismatched_pair_has_the_picture_of_its_own_pair_and_the_caption_of_another(objective: ImageCaption) -> None:
    batch = objective.batch(TURN, TURN)
    assert "matching" not in batch.targets
    turn = gather([batch], whole_turn([batch]))
    drawn = draw_for(batch, turn, features())
    matched = pairs_to_match(batch, turn, drawn)
    seen, count = pairs_of(matched), len(TURN)
    assert [label for *_, label in seen] == [1.0] * count + [0.0] * 2 * count
    own = [seen[number][0] for number in range(count)]
    for pair, row, (words, picture, _) in zip(drawn.pairs, drawn.rows, seen[count:], strict=True):
        assert (words, picture) == (own[row], seen[pair][1])
        assert words != own[pair]


def test_the_work_of_added_pairs_is_that_of_their_sequences_and_not_of_their_pictures(objective: ImageCaption) -> None:
    batch, nobody = objective.batch(TURN, TURN), objective.batch(TURN, [])
    turn = gather([batch], whole_turn([batch]))
    pairs = pairs_to_match(batch, turn, draw_for(batch, turn, features()))
    lengths = [int(length) for length in pairs.lengths]
    assert len(lengths) == 3 * len(TURN)
    words = pairs.words.tolist()
    expected = Work(
        slots=sum(lengths),
        squared_lengths=sum(length**2 for length in lengths),
        words=sum(words),
        squared_words=sum(number**2 for number in words),
        terms={"matching": len(lengths)},
    )
    idle = pairs_to_match(nobody, turn, draw_for(nobody, turn, features()))
    assert work_of([pairs, idle]) == expected
    counts, added = count_pairs(TASK_WEIGHTS, [batch], [pairs])
    assert counts == {"matching": len(lengths), "contrastive": len(TURN)}
    assert added == replace(expected, terms={"matching": len(lengths), "contrastive": 0})


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_a_turn_has_the_same_hard_negatives_however_it_is_cut(objective: ImageCaption, micro_batch: int) -> None:
    whole = objective.batch(TURN, TURN)
    parts = [objective.batch(TURN, part) for part in split(TURN, 1, 0, micro_batch)]
    of_whole = made([whole], gather([whole], whole_turn([whole])))
    assert Counter(label for *_, label in of_whole) == {1.0: len(TURN), 0.0: 2 * len(TURN)}
    assert made(parts, gather(parts, whole_turn(parts))) == of_whole


class Meeting:
    """Sums tensors over threads that stand for ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier, self._given = threading.Barrier(ranks), list[Tensor]()
        self._lock = threading.Lock()

    def sum(self, tensor: Tensor, group: object = None) -> Tensor:
        with self._lock:
            self._given.append(tensor)
        self._barrier.wait()
        total = torch.stack(self._given).sum(0)
        if self._barrier.wait() == 0:
            self._given.clear()
        self._barrier.wait()
        return total


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_draw_what_one_would(objective: ImageCaption, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    whole = objective.batch(TURN, TURN)
    targets = whole_turn([whole])
    wanted = made([whole], gather([whole], targets))
    monkeypatch.setattr(hard_negatives, "all_reduce_sum", Meeting(ranks).sum)
    found: list[Seen] = []

    def work(rank: int) -> None:
        # Parts of unequal size, and for the last rank an empty micro-batch.
        batches = [objective.batch(TURN, part) for part in (*split(TURN, ranks, rank, 3), *[[]] * (rank == ranks - 1))]
        found.extend(made(batches, gather(batches, targets)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == wanted


def test_the_engine_trains_on_them_the_same_for_any_micro_batches(
    tiny: Path, objective: ImageCaption, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cases in one process group, which DeepSpeed keeps."""
    from m3p.training.deepspeed.engine import DeepSpeedEngine

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    ranks, found = Ranks(0, 0, 1, torch.device("cpu"), "python"), list[list[float]]()
    added = list[Work]()
    for size, dropout in ((len(TURN), 0.0), (5, 0.0), (5, 0.1)):
        recipe = hard_recipe(
            tiny, "objectives.code_switched=null", "objectives.multilingual_text=null", f"model.dropout={dropout}"
        )
        model = build_model(recipe.model, objective.context.tokenizer.size, recipe.visual, recipe.tasks, seed=0)
        config = recipe.optimizer.model_copy(update={"clip": 0.0})
        engine = DeepSpeedEngine(model, config, KernelsConfig(), ROOT / "ds_configs" / "zero0.json", ranks, 1, 60)
        engine.train_mode()
        losses = StepLosses()
        batches = [objective.batch(TURN, part) for part in split(TURN, 1, 0, size)]
        plan = PassPlan(1, [Turn(0, "image_caption", 0, TURN)], last=True)
        data = Exchange({"image_caption": TASK_WEIGHTS}, {"image_caption": len(batches)}).take(plan, iter(batches))
        engine.turns(data.turns, losses, data.last)
        update = engine.step(0.0, losses, None)
        assert len(losses.micro_batches) == len(batches)
        assert losses.counts() == {"image_caption/matching": 3 * len(TURN), "image_caption/contrastive": len(TURN)}
        added.append(losses.added())
        found.append([losses.figures().tasks["image_caption/matching"], losses.figures().loss, float(update.norm)])
    whole, cut, dropped = found
    assert added[0] == added[1], "the same pairs, however they are cut"
    assert added[0].terms == {"matching": 3 * len(TURN), "contrastive": 0}
    assert whole[0] == pytest.approx(0.69, abs=0.1)
    assert cut == pytest.approx(whole, rel=1e-5)
    assert dropped != pytest.approx(whole, rel=1e-5)
