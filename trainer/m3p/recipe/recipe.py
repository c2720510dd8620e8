"""The fields of a recipe, and the rules between its sections.

The fields of a section stand beside what they configure: `run` and `evaluation` in this folder, `model` in model/config.py,
`visual` in visual/, `objectives` in objectives/, `data` in data/loader/, `optimizer` and `schedule` in optim/, `kernels` in
kernels/choice.py. load.py reads a recipe from YAML, mistakes.py words what is wrong with it.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from m3p.data.loader.loader import DataConfig
from m3p.data.order.passes import Passes
from m3p.data.order.plan import Plan, Stream
from m3p.fields import MAY_CHANGE, MUST_STAY
from m3p.kernels.choice import KernelsConfig
from m3p.model.config import ModelConfig
from m3p.objectives import OBJECTIVES
from m3p.objectives.objective import ObjectiveConfig
from m3p.objectives.tasks import TASKS, Task, choose_tasks
from m3p.objectives.tasks.forms import Form
from m3p.optim.optimizer import OptimizerConfig
from m3p.optim.schedules import ScheduleConfig, decay_begins
from m3p.paths import FileName, PathField
from m3p.recipe.evaluation import EvaluationConfig
from m3p.visual import VISUAL_KINDS, VisualConfig

LONGEST_WAIT = 10**6
"""Seconds; torch and faulthandler count in units of which far more would overflow."""

MAX_STEPS, MAX_EPOCHS = 10**9, 10**6


class RunConfig(BaseModel):
    """The recipe's `run` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    folder: PathField = Field(description="Where everything that the run writes goes: runs/NAME.")
    steps: int = Field(
        ge=1,
        le=MAX_STEPS,
        json_schema_extra=MUST_STAY,
        description="Optimizer steps of the whole run: the length of the schedule. Or give epochs.",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=MAX_EPOCHS,
        description="In place of steps: until every objective has drawn so many times the samples that its sources hold. Counted "
        "and printed as the recipe is loaded, and steps from then on.",
    )
    stop_after: int | None = Field(
        None, ge=1, description="Stop after this step, with a checkpoint; starting again goes on."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        json_schema_extra=MUST_STAY,
        description="Of the order, every random choice, and the starting weights.",
    )
    checkpoint_every: int = Field(1000, ge=1, description="Steps from one checkpoint to the next.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    keep_every: int | None = Field(None, ge=1, description="Checkpoints at multiples of this many steps stay for good.")
    accept_changes: bool = Field(
        False, description="Go on from a checkpoint although recipe or data changed in a way that matters."
    )
    max_skipped: int = Field(10, ge=1, description="Steps without an update in a row (not finite) that end the run.")
    spike: float | None = Field(3.0, gt=1, description="A loss of this many times the median of 64 steps is a spike.")
    skip_spikes: bool = Field(False, description="Make no update in the step of a spike; else it is only said.")
    turns_per_step: int | None = Field(
        None,
        ge=1,
        json_schema_extra=MUST_STAY,
        description="Turns of a step; one whole cycle of the round-robin if left out.",
    )
    join_turns: bool = Field(
        False,
        description="Compute the turns of a step that fit one micro-batch together (each fills its share of `micro_batch`) in "
        "one pass: the same losses, and less time of the program where turns are small; dropout draws other numbers.",
    )
    timeout_seconds: float = Field(
        600, gt=0, le=LONGEST_WAIT, description="Longest wait for another rank until the first step is done."
    )
    stall_seconds: float = Field(
        default_factory=lambda before: min(300.0, before.get("timeout_seconds", 300.0)),
        gt=0,
        le=LONGEST_WAIT,
        description="From then on: a turn that takes longer ends the run, stacks in RUN/stacks/; 300, or timeout_seconds.",
    )
    select_on: FileName | None = Field(
        None,
        description="Evaluation that chooses the best checkpoint during training; it is kept, and checkpoints/best names it.",
    )
    select_every: int | None = Field(
        None,
        ge=1,
        description="Steps from one such evaluation to the next, a multiple of checkpoint_every; each checkpoint if left out.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Such evaluations in a row without a better one that end the run early; never if left out.",
    )
    evaluate: bool = Field(True, description="Run the recipe's evaluations when the last step is done.")

    @model_validator(mode="after")
    def _stop_inside(self) -> "RunConfig":
        if self.stop_after is not None and self.stop_after > self.steps:
            raise ValueError(
                f"stop_after = {self.stop_after} is beyond steps = {self.steps}: lower it, or leave it out"
            )
        if self.select_on is None and (self.select_every or self.patience):
            field = "select_every" if self.select_every else "patience"
            raise ValueError(f"{field} without select_on: name the evaluation that chooses, or leave {field} out")
        if self.select_every and self.select_every % self.checkpoint_every:
            raise ValueError(
                f"select_every = {self.select_every} is no multiple of checkpoint_every = {self.checkpoint_every}: what is "
                "evaluated is a checkpoint; change one of the two"
            )
        return self


_fields: dict[str, Any] = {name: (config | None, None) for name, config in OBJECTIVES.items()}
ObjectivesConfig = create_model("ObjectivesConfig", __config__=ConfigDict(extra="forbid", frozen=True), **_fields)


class Recipe(BaseModel):
    """A whole recipe, validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig = Field(json_schema_extra=MAY_CHANGE)
    model: ModelConfig
    visual: VisualConfig | None = None
    objectives: ObjectivesConfig
    data: DataConfig = Field(DataConfig(), json_schema_extra=MAY_CHANGE)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    kernels: KernelsConfig = Field(KernelsConfig(), json_schema_extra=MAY_CHANGE)
    evaluation: dict[FileName, EvaluationConfig] = Field({}, json_schema_extra=MAY_CHANGE)

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        mistakes = list(_combinations(self))
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def active_objectives(self) -> dict[str, ObjectiveConfig]:
        """Objectives with a weight above 0, in the registry's order."""
        every = {name: getattr(self.objectives, name) for name in OBJECTIVES}
        return {name: config for name, config in every.items() if config is not None and config.weight > 0}

    @property
    def tasks(self) -> list[Task]:
        """Tasks of the active objectives, in the order of their heads in the network."""
        return choose_tasks(task for objective in self.active_objectives.values() for task in objective.active_tasks)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder that holds the sentencepiece model."""
        folder = self.model.tokenizer or self.model.initialise
        assert folder is not None, "validation wants one of the two"
        return folder

    def plan(self) -> Plan:
        """Return the plan of turns. Raises UserError where the weights make too long a cycle."""
        # As text, so that 0.7 means seven tenths.
        streams = [Stream(name, str(c.weight), c.batch_size) for name, c in self.active_objectives.items()]
        return Plan(streams, self.run.turns_per_step)

    def passes(self, ranks: int, smaller: float = 1) -> Passes:
        """Return the passes of each step on so many ranks; with `run.join_turns`, turns are computed together where they fit.

        Micro-batches are the recipe's divided by `smaller`. Raises UserError as `plan` does.
        """
        if not self.run.join_turns:
            return Passes(self.plan())
        shares = {
            name: Fraction(ceil(config.batch_size / ranks), ceil(config.micro_batch / smaller))
            for name, config in self.active_objectives.items()
            if config.known_beforehand
        }
        return Passes(self.plan(), {name: share for name, share in shares.items() if share <= 1})


def _combinations(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong between sections."""
    active = recipe.active_objectives
    if not active:
        yield "objectives: none has a weight above 0; give one a weight"
    pairs = [name for name, config in active.items() if config.needs_pictures]
    if pairs and recipe.visual is None:
        kinds = f"{', '.join(VISUAL_KINDS[:-1])} or {VISUAL_KINDS[-1]}"
        yield f"visual: missing, but objectives.{pairs[0]} trains on pictures; add a section with kind: {kinds}"
    for name, config in active.items():
        yield from _of_objective(recipe, name, config)
    yield from _lengths(recipe)
    yield from _of_scoring(recipe)
    if "visual" in recipe.model.freeze and recipe.visual is None:
        yield "model.freeze: visual is the embedder of pictures, and the recipe has no section visual; leave it out"


def _of_objective(recipe: Recipe, name: str, config: ObjectiveConfig) -> Iterator[str]:
    """Yield what is wrong between an objective and other sections."""
    for task in map(TASKS.__getitem__, config.active_tasks):
        if config.batch_size < task.least_samples:
            yield (
                f"objectives.{name}.batch_size = {config.batch_size}: {task.name} compares pairs of a turn; set "
                f"{task.least_samples} or more, or tasks.{task.name} = 0"
            )
        if config.needs_pictures and not recipe.model.encode_pictures and task.forms - {Form.ALONE}:
            yield (
                f"objectives.{name}.tasks.{task.name}: asks about text and picture in one sequence, which "
                f"model.encode_pictures = false never encodes together; set tasks.{task.name} = 0, or encode_pictures = true"
            )
        if task.reads is not None and task.reads not in config.active_tasks:
            yield (
                f"objectives.{name}.tasks.{task.name}: reads what the head of {task.reads} gives; give "
                f"tasks.{task.reads} a weight too"
            )
        if task.masks_regions and recipe.visual is not None and not recipe.visual.has_targets:
            yield (
                f"objectives.{name}.tasks.{task.name}: the features to be predicted would be learnt themselves, and move; "
                "set it to 0, or use a frozen tower with pool: average"
            )
    longest = recipe.model.shape.positions - 2 if recipe.model.shape else None
    if longest is not None and config.max_tokens > longest:
        yield (
            f"objectives.{name}.max_tokens = {config.max_tokens}: model.shape.positions = {longest + 2} holds "
            f"{longest} tokens; lower the one or raise the other"
        )


def _of_scoring(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong between the tasks that are trained, and what is scored or frozen of them."""
    embeds = [task.name for task in TASKS.values() if task.embeds]
    scores = [task.name for task in TASKS.values() if task.scores_pairs]
    if "text_projection" in recipe.model.freeze and not any(task.embeds for task in recipe.tasks):
        names = " or ".join(embeds)
        yield f"model.freeze: text_projection is that of {names}, which no active objective trains; leave it out"
    trained = {task.name for task in recipe.tasks}
    if recipe.run.select_on is not None and recipe.run.select_on not in recipe.evaluation:
        known = ", ".join(recipe.evaluation) or "none"
        yield f"run.select_on = {recipe.run.select_on}: no evaluation of this name; the recipe has {known}"
    for name, evaluation in recipe.evaluation.items():
        for able in (scores, embeds) if evaluation.rerank else (embeds + scores,):
            if trained.isdisjoint(able):
                names, fields = " or ".join(able), " or ".join(f"tasks.{task}" for task in able)
                yield f"evaluation.{name}: scores by {names}, but no active objective trains it; give {fields} a weight"


def _lengths(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong between spans of steps, and of time."""
    run, schedule = recipe.run, recipe.schedule
    decays = decay_begins(run.steps, schedule)
    if schedule.warmup_steps >= run.steps:
        yield (
            f"schedule.warmup_steps = {schedule.warmup_steps}: not below run.steps = {run.steps}; "
            "shorten the warm-up or lengthen the run"
        )
    elif decays is not None and schedule.warmup_steps > decays:
        yield (
            f"schedule.warmup_steps = {schedule.warmup_steps}: with schedule.decay = {schedule.decay:g} the rate falls after "
            f"step {decays:g} of {run.steps} already; shorten the one or the other"
        )
    if run.stall_seconds > run.timeout_seconds:
        yield (
            f"run.stall_seconds = {run.stall_seconds:g}: above run.timeout_seconds = {run.timeout_seconds:g}, the patience with "
            "the first step, which is the slowest; lower the one or raise the other"
        )
