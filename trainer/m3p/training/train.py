"""Training a run: from a recipe to trained weights in the run folder. `training/loop.py` holds the steps themselves."""

from collections.abc import Iterator
from pathlib import Path

import torch

from m3p import distributed
from m3p.batch import Batch
from m3p.checkpoints.files import FORMAT_VERSION, State, read_state
from m3p.checkpoints.init_from import Start, start_from
from m3p.checkpoints.read import load_weights, newest_whole, none_whole, restore
from m3p.checkpoints.resumable import check_resumable, fingerprints
from m3p.checkpoints.save import Checkpoints
from m3p.data.loader.loader import MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan, Plan
from m3p.data.order.shuffle import ORDER_VERSION
from m3p.data.origins import mixed_origins
from m3p.data.tokenizer import open_tokenizer
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.keys import key
from m3p.model.build import build_model, network_sizes
from m3p.objectives.objective import Objective
from m3p.recipe.recipe import Recipe
from m3p.retrieval.leaks import check_leaks, not_known, record_seen, training_sources
from m3p.terminal import warn
from m3p.training.agreement import check_agreement, check_shared, facts_of_network, facts_of_run
from m3p.training.build_objectives import build_objectives
from m3p.training.deepspeed.engine import DeepSpeedEngine
from m3p.training.engine import Engine
from m3p.training.loop import Loop, Saver
from m3p.training.selecting import Selection
from m3p.training.stop import (
    RunOwner,
    StopSignal,
    check_no_stop_file,
    forget_status,
    ignore_in_worker,
    write_stopped,
)
from m3p.training.text_centre import measure_text_centre
from m3p.training.turns import make_exchange
from m3p.training.watch.loss_guard import Guard
from m3p.training.watch.monitor import Monitor
from m3p.training.watch.startup import announce
from m3p.training.watch.throughput import Throughput
from m3p.training.watch.watchdog import Watchdog

FILES = ("incarnation", "owner.json", "status", "metrics.jsonl", "skipped.jsonl", "recipe.yaml", "environment.json")
"""What a run writes into its folder, beside folders."""


def train(recipe: Recipe, ds_config: Path, ranks: Ranks) -> bool:
    """Train until the run's end, `run.stop_after` or a request to stop; say whether the run is complete.

    Goes on from the newest checkpoint of `run.folder`. Every rank calls it. Of a complete run the caller says `write_done`
    once nothing is left to do. Raises UserError.
    """
    folder = _make_folder(recipe.run.folder)
    check_no_stop_file(folder)
    owner = RunOwner(folder)
    with StopSignal(folder) as stop:
        objectives = build_objectives(recipe)
        _check_pictures(recipe, objectives)
        plan = recipe.plan()
        now = _state(recipe, ranks, objectives)
        check_agreement(ranks, facts_of_run(now, ds_config))
        newest, found = _find(recipe, ranks, now)
        engine, start = _engine(recipe, ds_config, ranks, plan, objectives, newest)
        if newest is not None and found is not None:
            restore(newest, found, engine, ranks)
        first = 0 if found is None else found.step
        announce(recipe, engine, ranks, plan, objectives, first, start.lines)
        state = _with_captions(now, start.captioned) if found is None else _again(now, found)
        return _run(recipe, engine, ranks, plan, objectives, state, owner, stop)


def _run(
    recipe: Recipe,
    engine: Engine,
    ranks: Ranks,
    plan: Plan,
    objectives: dict[str, Objective],
    state: State,
    owner: RunOwner,
    stop: StopSignal,
) -> bool:
    """Run the steps after `state`, and say how they ended; return whether the run is complete."""
    run, first = recipe.run, state.step
    last = min(run.steps, run.stop_after or run.steps)
    micro_batch = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
    costs = {name: objective.costs for name, objective in objectives.items()}
    micro_batches = MicroBatchPlan(plan, ranks.world_size, ranks.rank, micro_batch, costs)
    checkpoints = Checkpoints(run.folder, owner.name, run.keep_checkpoints, run.keep_every, ranks)
    guard = Guard(run.folder, run.max_skipped, run.spike, run.skip_spikes)
    guard.restore(state.guard)
    watchdog = Watchdog(run.folder, ranks.rank, run.timeout_seconds, run.stall_seconds)
    forget_status(run.folder)
    throughput = _throughput(recipe, engine, ranks)
    monitor = Monitor(run.folder, first, run.steps, recipe.data.max_bad_share, distributed.is_main(), throughput)
    tasks = {name: objective.tasks for name, objective in objectives.items()}
    saver = Saver(engine, checkpoints, owner, state, guard)
    selection = Selection(run, ranks, first)
    exchange = make_exchange(tasks, micro_batches.parts, throughput.flops, ranks, run.timeout_seconds)
    loop = Loop(
        recipe, engine, recipe.passes(ranks.world_size), exchange, ranks, guard, monitor, watchdog, saver, selection
    )
    try:
        done, reason = loop.run(_batches(recipe, micro_batches, objectives, ranks, first, last), first, last, stop)
    finally:
        monitor.close()
        watchdog.close()
    if done == run.steps or loop.ended_early:
        return True
    write_stopped(run.folder, reason or "planned", done)
    if distributed.is_main():
        why = {"signal": "a signal", "file": f"the file {run.folder / 'STOP'}", None: "run.stop_after"}[reason]
        warn(f"stopped after step {done}: {why}")
    return False


def _throughput(recipe: Recipe, engine: Engine, ranks: Ranks) -> Throughput:
    sizes = network_sizes(recipe.model, open_tokenizer(recipe.tokenizer_folder).size, recipe.visual, recipe.tasks)
    whole = recipe.model.counts_what_is_frozen and not recipe.model.remember_texts
    return Throughput(sizes, ranks.device, engine.precision, ranks.world_size, not whole)


def _batches(
    recipe: Recipe, plan: MicroBatchPlan, objectives: dict[str, Objective], ranks: Ranks, first: int, last: int
) -> Iterator[Batch]:
    """Load this rank's micro-batches of the steps `first` to `last` - 1."""
    return load(
        MicroBatches(plan, objectives),
        plan.first_of_step(first),
        plan.first_of_step(last),
        recipe.data,
        pin=ranks.device.type == "cuda",
        start_worker=ignore_in_worker,
    )


def _again(now: State, found: State) -> State:
    """Return the state of a run that goes on from the checkpoint `found`."""
    return _with_captions(now, found.captioned).model_copy(update={"step": found.step, "guard": found.guard})


def _with_captions(now: State, before: list[str] | None) -> State:
    """Return the state with the languages of captions seen `before` added; None, which is not recorded, stays so."""
    captioned = None if before is None or now.captioned is None else sorted({*now.captioned, *before})
    return now.model_copy(update={"captioned": captioned})


def _check_pictures(recipe: Recipe, objectives: dict[str, Objective]) -> None:
    """Raise UserError, on every rank, where training sees a picture of an evaluation; note which pictures it sees."""
    problem = None
    if distributed.is_main():
        sources = training_sources(objectives)
        try:
            check_leaks(recipe, sources)
            for line in (*mixed_origins(sources), *not_known(recipe, sources), record_seen(recipe, sources)):
                if line:
                    warn(line)
        except UserError as error:
            problem = str(error)
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)


def _make_folder(folder: Path) -> Path:
    """Make the run folder. Raises UserError, on every rank, where nothing can be written there, or where it is not shared."""
    problem = None
    if distributed.is_main():
        taken = [folder / name for name in FILES if (folder / name).is_dir()]
        if taken:
            problem = f"run.folder = {folder}: {taken[0]} is a folder, where the run keeps a file; move it away"
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = folder / "checkpoints" / ".probe.partial"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            problem = f"run.folder = {folder}: cannot be written ({error}); name another folder, or make room in it"
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)
    check_shared(folder / "checkpoints")
    return folder


def _find(recipe: Recipe, ranks: Ranks, now: State) -> tuple[Path | None, State | None]:
    """Return the checkpoint to go on from and its state. Raises UserError: another run's, or none is whole."""
    newest, problems = newest_whole(recipe.run.folder, ranks)
    if newest is None:
        if problems:
            raise none_whole(recipe.run.folder, problems)
        return None, None
    found = read_state(newest)
    changes = check_resumable(newest, found, now, recipe.run.accept_changes)
    if distributed.is_main():
        for line in [
            *(f"{newest.name} is read, for a newer one is not whole: {problem}" for problem in problems),
            *(f"{newest.name}: accepted change: {line}" for line in changes),
        ]:
            warn(line)
    return newest, found


def _engine(
    recipe: Recipe,
    ds_config: Path,
    ranks: Ranks,
    plan: Plan,
    objectives: dict[str, Objective],
    newest: Path | None,
) -> tuple[Engine, Start]:
    """Return the engine over the network of the recipe, its weights those of the checkpoint `newest` if there is one.

    Beside it, with what weights it starts.
    """
    heads = [task.name for task in recipe.tasks if task.reads is None]
    start = Start(str(recipe.model.initialise or "nothing, all weights are drawn"), [], heads)
    vocabulary = open_tokenizer(recipe.tokenizer_folder).size
    say = warn if ranks.rank == 0 else lambda line: None
    model = build_model(recipe.model, vocabulary, recipe.visual, recipe.tasks, recipe.run.seed, newest is None, say)
    _check_positions(recipe, model.text.positions.num_embeddings)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        frozen = ", ".join(recipe.model.freeze)
        raise UserError(f"model.freeze = {frozen}: nothing is left to be trained; take a part out")
    if newest is not None:
        load_weights(model, newest)  # now, because DeepSpeed makes its copies of the weights when it starts
        start = Start(str(newest), [], [])
    elif recipe.model.weights is not None:
        start = start_from(model, recipe.model.weights, ranks, recipe.tokenizer_folder, recipe.visual)
    if newest is None:
        measure_text_centre(model, objectives.values())
    check_agreement(ranks, facts_of_network(model))
    torch.manual_seed(key("dropout", recipe.run.seed, ranks.rank))  # the one choice that belongs to a rank
    run = recipe.run
    engine = DeepSpeedEngine(
        model, recipe.optimizer, recipe.kernels, ds_config, ranks, plan.turns_per_step, run.timeout_seconds, run.folder
    )
    return engine, start


def _check_positions(recipe: Recipe, positions: int) -> None:
    """Raise UserError where texts may be longer than the position table of `model.initialise`."""
    for name, config in recipe.active_objectives.items():
        if config.max_tokens > positions - 2:
            raise UserError(
                f"objectives.{name}.max_tokens = {config.max_tokens}: model.initialise = {recipe.model.initialise} has "
                f"{positions} positions and holds {positions - 2} tokens; lower max_tokens"
            )


def _state(recipe: Recipe, ranks: Ranks, objectives: dict[str, Objective]) -> State:
    pairs = [objective for objective in objectives.values() if objective.config.needs_pictures]
    return State(
        format_version=FORMAT_VERSION,
        step=0,
        ranks=ranks.world_size,
        order_version=ORDER_VERSION,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        data=fingerprints(recipe, objectives),
        captioned=sorted({language for one in pairs for source in one.mix.sources for language in source.languages}),
    )
