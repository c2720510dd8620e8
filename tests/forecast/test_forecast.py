"""`m3p plan` against what real runs took."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m3p.batch import Batch
from m3p.console import PlainConsole
from m3p.errors import UserError
from m3p.forecast.forecast import GIB, Planner, find_kind, print_plan
from m3p.forecast.memory import activation_memory, setting_of
from m3p.model.build import build_model
from m3p.model.flops import Work, peak_flops
from m3p.model.m3p import M3P
from m3p.optim.optimizer import parameter_groups
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from m3p.training.deepspeed.config import MIN_PART
from tests.launch import ROOT, launch, metrics

BASE = ROOT / "trainer" / "m3p" / "recipes" / "m3p_base.yaml"
BIG = [f"model.shape.{field}" for field in ("layers=8", "width=768", "heads=8", "feed_forward=3072")]
FEW = [f"objectives.{name}.batch_size=2" for name in ("multilingual_text", "image_caption", "code_switched")]


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("stage", "bf16"),
    [
        (1, False),
        (3, False),
        pytest.param(2, True, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
    ],
)
def test_memory_is_within_a_tenth_of_what_a_real_run_takes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, bf16: bool
) -> None:
    # Memory that a tensor frees goes back at once, so that the process' peak is that of what is in use.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    settings = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    ds_config = tmp_path / "ds.json"
    ds_config.write_text(json.dumps({**settings, "bf16": {"enabled": bf16}}))
    few = FEW if bf16 else []  # products in bf16 are slow on a CPU
    peaks = []
    for name, shape in (("interpreter", few), ("whole", [*BIG, *few])):  # by the launcher: a fork shares memory
        launch(
            tiny,
            ds_config,
            2,
            "run.steps=20",
            "run.stop_after=2",
            f"run.folder={tmp_path / name}",
            *shape,
            launcher=True,
        )
        peaks.append(metrics(tmp_path / name)[-1]["peak_memory_gib"])
    planner = Planner(load_recipe(tiny, [*BIG, *few]), ds_config)
    found = planner.forecast(planner.setting(2, None), None)
    assert found.total / GIB == pytest.approx(peaks[1], rel=0.1)
    # A network of nothing takes what Python, torch and DeepSpeed do; the rest is predicted as well.
    rest = (found.total - found.memory["program"]) / GIB
    assert rest == pytest.approx(peaks[1] - peaks[0], rel=0.1)
    assert rest > 1.5 * peaks[0]


@pytest.mark.parametrize("ranks", [1, 8, 1024])
def test_the_published_size_is_planned_without_data_and_without_a_gpu(ranks: int) -> None:
    planner = Planner(load_recipe(BASE), ROOT / "ds_configs" / "zero2.json")
    assert len(planner.assumptions) == 4
    assert planner.parameters["words"] == 250_002 * 768
    kind = find_kind("h100")
    assert kind is not None
    found = planner.forecast(planner.setting(ranks, kind), kind)
    assert found.seconds is not None
    assert found.mfu is not None
    assert 0 < found.mfu <= 0.33 + 1e-9
    assert found.memory["optimizer"] == pytest.approx(12 * sum(planner.parameters.values()) / ranks)


def test_a_step_of_the_published_recipe_is_one_pass_on_eight_gpus_and_more() -> None:
    recipe = load_recipe(BASE)
    assert [len(recipe.passes(ranks).of_step(1)) for ranks in (1, 4, 8, 16)] == [3, 3, 1, 1]


def test_sums_on_owners_are_planned_where_they_are_made(tmp_path: Path) -> None:
    def sending(ranks: int, stage: int, **zero: bool) -> float:
        file = tmp_path / "ds.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000, **zero}}))
        kind = find_kind("H100")
        assert kind is not None
        planner = Planner(load_recipe(BASE), file)
        return planner.forecast(planner.setting(ranks, kind), kind).parts["sending"]

    # Of five parts of a gradient's bytes, in float32, and of the weights', in 16 bits, three are left.
    assert sending(8, 1) == pytest.approx(3 / 5 * sending(8, 1, reduce_scatter=True))
    assert sending(1024, 1) == sending(1024, 1, reduce_scatter=True)  # too small parts
    assert sending(8, 0) == sending(8, 0, reduce_scatter=True)


def test_a_bucket_of_all_gradients_has_as_many_parts_as_there_are_ranks() -> None:
    def on_owners(ranks: int, trained: int) -> bool:
        return setting_of({"zero_optimization": {"stage": 2}}, ranks, 2, False, False, "cuda").sums_on_owners(trained)

    # The bounds of owner_sums.py.
    assert on_owners(8, 8 * MIN_PART)
    assert not on_owners(8, 8 * MIN_PART - 1)
    assert not on_owners(1, 8 * MIN_PART)


def test_small_micro_batches_wait_for_python_and_large_ones_do_not() -> None:
    kind, found = find_kind("H100"), {}
    for size in (8, 128):
        fields = [
            f"objectives.{name}.micro_batch={size}" for name in ("multilingual_text", "image_caption", "code_switched")
        ]
        planner = Planner(load_recipe(BASE, fields), ROOT / "ds_configs" / "zero1.json")
        found[size] = planner.forecast(planner.setting(8, kind), kind)
    assert (found[8].waits, found[128].waits) == (True, False)
    assert found[8].flops == found[128].flops
    assert (found[8].seconds or 0) > 2 * (found[128].seconds or 0)


def test_more_ranks_and_higher_stages_take_less_of_each() -> None:
    kind = find_kind("A100")
    totals = []
    for stage, ranks in ((0, 8), (1, 8), (2, 8), (2, 64)):
        planner = Planner(load_recipe(BASE), ROOT / "ds_configs" / f"zero{stage}.json")
        memory = planner.forecast(planner.setting(ranks, kind), kind).memory
        totals.append(memory["weights"] + memory["gradients"] + memory["optimizer"])
    assert totals == sorted(totals, reverse=True)


def test_what_does_not_fit_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["objectives.multilingual_text.micro_batch=1024", "objectives.image_caption.micro_batch=1024"]
    assert not print_plan(load_recipe(BASE, huge), ROOT / "ds_configs" / "zero1.json", 1, "L4", PlainConsole(width=200))
    assert "does not fit: divide micro_batch by" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("micro_batch", "batch_size", "ranks", "says", "raised"),
    [
        (8, 1024, 8, "micro-batches are small: raise objectives.*.micro_batch.", {"micro_batch": 128}),
        (
            128,
            96,
            8,
            "a rank has as few as 12 samples of a turn, and a larger micro_batch is not enough: raise objectives.*.batch_size",
            {"micro_batch": 128, "batch_size": 1024},
        ),
    ],
)
def test_where_python_sets_the_pace_the_advice_helps(
    capsys: pytest.CaptureFixture[str], micro_batch: int, batch_size: int, ranks: int, says: str, raised: dict[str, int]
) -> None:
    def plan(**sizes: int) -> str:
        objectives = ("multilingual_text", "image_caption", "code_switched")
        fields = [f"objectives.{name}.{field}={value}" for name in objectives for field, value in sizes.items()]
        planned = load_recipe(BASE, fields)
        print_plan(planned, ROOT / "ds_configs" / "zero1.json", ranks, "H100", PlainConsole(width=300))
        return capsys.readouterr().out

    sizes = {"micro_batch": micro_batch, "batch_size": batch_size}
    assert says in plan(**sizes)
    assert "Python sets the pace" not in plan(**{**sizes, **raised})
    if "batch_size" in raised:
        assert "Python sets the pace" in plan(**{**sizes, "micro_batch": 4096}), "what the message does not say"


@pytest.mark.long
def test_data_that_is_there_is_looked_at(tiny: Path) -> None:
    planner = Planner(load_recipe(tiny), ROOT / "ds_configs" / "zero1.json")
    assert planner.assumptions == []
    assert planner.streams["image_caption"].sample.visual_rows > 3
    frozen = Planner(load_recipe(tiny, ["model.freeze=[words]"]), ROOT / "ds_configs" / "zero1.json")
    assert ["model.freeze" in line for line in frozen.assumptions] == [True]


def most_held(model: M3P, batch: Batch) -> int:
    """Return the most bytes that a forward has in use at once, beside weights and batch."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        outputs = model(batch)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert outputs.tasks
    return int(held.max())


TWO_TOWERS = [
    *("model.encode_pictures=false", "model.pooling=mean", "objectives.code_switched.weight=0"),
    *(f"objectives.image_caption.tasks.{name}=0" for name in ("masked_words", "masked_regions", "matching")),
    *("objectives.multilingual_text.weight=0", "objectives.image_caption.tasks.contrastive=1"),
    *("model.shape.layers=4", "model.shape.width=64", "model.shape.heads=4"),
]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_forecast_of_two_towers_is_what_they_hold(tiny: Path, frozen: bool) -> None:
    overrides = [*TWO_TOWERS, *(["model.freeze=[text,text_projection]"] if frozen else [])]
    recipe, ds_config = load_recipe(tiny, overrides), ROOT / "ds_configs" / "zero1.json"
    planner = Planner(recipe, ds_config)
    assert planner.assumptions == []
    network = build_model(recipe.model, planner.sizes.vocabulary, recipe.visual, recipe.tasks, seed=0).train()
    groups = parameter_groups(network, recipe.optimizer)
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    every = sum(parameter.numel() for parameter in network.parameters())
    setting = planner.setting(1, None)
    memory = planner.forecast(setting, None).memory
    assert memory["optimizer"] == 3 * 4 * trained
    assert memory["weights"] + memory.get("frozen weights", 0) == 4 * every
    assert (every > 10 * trained) == frozen
    objective = build_objectives(recipe)["image_caption"]
    batch = objective.batch(range(64), range(64))
    found = activation_memory(planner.sizes, Work.of(batch), setting)["activations"]
    assert found == pytest.approx(most_held(network, batch), rel=0.1)


def test_an_unknown_kind_is_refused() -> None:
    for name in ("H1000", "NVIDIA GeForce RTX 4090 Laptop GPU", ""):
        with pytest.raises(UserError, match=f"--kind {name} is not known; known: B200"):
            find_kind(name)


def test_every_kind_is_found_by_the_name_that_its_driver_says() -> None:
    names = {
        "NVIDIA GeForce RTX 4090": "RTX 4090",
        "AMD Instinct MI300X": "MI300X",
        "NVIDIA A100-SXM4-80GB": "A100-SXM4-80GB",
    }
    names |= {f"NVIDIA {name}": name for name in ("H100", "H200", "B200", "L40S")}
    for said, kind in names.items():
        found = find_kind(kind)
        assert found is not None
        assert peak_flops(said, torch.bfloat16) == found.teraflops * 1e12
        assert find_kind(said) is found, "benchmarks/gpu.sh plans for the name that torch gives"


@pytest.mark.long
@pytest.mark.parametrize(("stage", "copies"), [(0, 2 * 4), (1, 2 * 4 + 2), (2, 3 * 2 * 4 + 2), (3, 3 * (4 + 2 * 2))])
def test_a_stage_sends_what_deepspeed_sends(tiny: Path, tmp_path: Path, stage: int, copies: int) -> None:
    """Gradients in float32, weights in bf16, over three passes, on as many GPUs as need the cards of a node."""
    settings = tmp_path / "zero.json"
    settings.write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}))
    sizes = [f"objectives.{name}.batch_size=16" for name in ("multilingual_text", "image_caption", "code_switched")]
    planner, kind = Planner(load_recipe(tiny, sizes), settings), find_kind("H200")
    assert kind is not None
    found = planner.forecast(planner.setting(16, kind), kind)
    assert found.parts["sending"] == pytest.approx(copies * sum(planner.parameters.values()) * 15 / 16 / 340e9)


def test_what_was_not_measured_is_called_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, ds_config = load_recipe(BASE), ROOT / "ds_configs" / "zero1.json"
    said = {}
    for kind in ("H200", "H100", "RTX 4090"):
        print_plan(recipe, ds_config, 8, kind, PlainConsole(width=200))
        said[kind] = capsys.readouterr().out
    assert "(computing at 33% of the peak: measured on an H200)" in said["H200"]
    # An H100 has the same peak and a third less of memory's speed; an RTX 4090 has more of it for its peak.
    assert "(computing at 30% of the peak: an estimate, from 33% measured on an H200)" in said["H100"]
    assert "(computing at 35% of the peak: an estimate" in said["RTX 4090"]
    assert "of a step: contrastive loss" in said["H100"]
    # 2,048 pairs, of which each shows 100 regions of 2,048 numbers in 16 bits.
    (features,) = [line for line in said["H200"].splitlines() if "stored features read" in line]
    (step,) = [line for line in said["H200"].splitlines() if "predicted step" in line]
    rate, seconds = (float(line.split("│")[2].removeprefix(" at most").split()[0]) for line in (features, step))
    assert 1 <= rate * seconds / (2048 * 100 * 2 * 2048 / 1e9) < 1.2


def test_ranks_of_unequal_work_wait_and_pairs_cost_their_square(tiny: Path) -> None:
    kind = find_kind("H200")
    assert kind is not None
    found = {}
    for pairs in (4096, 8192):
        sizes = [f"objectives.{name}.batch_size={pairs}" for name in ("image_caption", "code_switched")]
        planner = Planner(load_recipe(tiny, sizes), ROOT / "ds_configs" / "zero1.json")
        found[pairs] = {ranks: planner.forecast(planner.setting(ranks, kind), kind) for ranks in (1, 8)}
    alone, eight = found[4096][1], found[4096][8]
    assert eight.parts["computing"] * 8 == pytest.approx(1.06 * alone.parts["computing"])
    assert found[8192][1].parts["pairs"] == pytest.approx(4 * alone.parts["pairs"])
    # Up to 4,096 pairs every rank computes all; of more its own, and that half as much again.
    assert eight.parts["pairs"] > alone.parts["pairs"] > 0
    of_many = found[8192]
    assert of_many[1].parts["pairs"] / 8 < of_many[8].parts["pairs"] < of_many[1].parts["pairs"]
    # Features of all pairs on every rank, with their gradient; and logits in chunks, which eight ranks do not fill here.
    features = 16 * planner.sizes.projection
    memory = {ranks: one.memory["contrastive loss"] - 8192 * features for ranks, one in of_many.items()}
    assert memory[8] == pytest.approx(memory[1] / 2) == pytest.approx(26 * 8192**2 / 8)
    assert (
        memory[1]
        == eight.memory["contrastive loss"] - 4096 * features
        == alone.memory["contrastive loss"] - 4096 * features
    )


def test_joined_turns_cost_the_program_one_pass_and_memory_of_all(tiny: Path) -> None:
    names, kind = ("multilingual_text", "image_caption", "code_switched"), find_kind("H100")
    assert kind is not None
    found = []
    for join in ("false", "true"):
        settings = [f"objectives.{name}.{field}" for name in names for field in ("batch_size=8", "micro_batch=24")]
        planner = Planner(load_recipe(tiny, [*settings, f"run.join_turns={join}"]), ROOT / "ds_configs" / "zero1.json")
        found.append(planner.forecast(planner.setting(1, kind), kind))
    apart, joined = found
    assert joined.parts["launching"] == pytest.approx(apart.parts["launching"] / 3)
    assert apart.memory["activations"] < joined.memory["activations"] < 3 * apart.memory["activations"]
