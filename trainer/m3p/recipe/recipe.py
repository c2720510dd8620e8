"""The recipe: one YAML file and `section.key=value` overrides that define a run.

Each section's fields stand beside what they configure: `run` here, `model` in model/config.py, `visual` in visual/,
`objectives` in objectives/, `data` in data/loader.py, `optimizer` and `schedule` in training/, `kernels` in
kernels/choice.py, `evaluation` in retrieval/.
"""

import difflib
import sys
import types
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails

from m3p.data.loader.loader import DataConfig
from m3p.data.order.plan import Plan, Stream
from m3p.errors import UserError
from m3p.kernels.choice import KernelsConfig
from m3p.model.config import ModelConfig
from m3p.objectives import OBJECTIVES
from m3p.objectives.objective import ObjectiveConfig
from m3p.optim.optimizer import OptimizerConfig
from m3p.optim.schedules import ScheduleConfig, decay_begins
from m3p.recipe.evaluation import EvaluationConfig
from m3p.visual import VisualConfig

LONGEST_WAIT = 10**6
"""Seconds; torch and faulthandler count in units of which far more would overflow."""


RENAMED = {
    "run.most_skipped": "max_skipped",
    "data.most_bad": "max_bad_share",
    "objectives.*.most_tokens": "max_tokens",
    "visual.most": "max_regions",
    "visual.largest": "max_pixels",
}
"""Fields of earlier versions, as recipes and run folders may still have them, and their names of today."""


class RunConfig(BaseModel):
    """The recipe's `run` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    folder: Path = Field(description="Where everything that the run writes goes: runs/NAME.")
    steps: int = Field(ge=1, le=10**9, description="Optimizer steps of the whole run: the length of the schedule.")
    stop_after: int | None = Field(
        None, ge=1, description="Stop after this step, with a checkpoint; starting again goes on."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of the order, every random choice, and the starting weights.")
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
        None, ge=1, description="Turns of a step; one whole cycle of the round-robin if left out."
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
    evaluate: bool = Field(True, description="Run the recipe's evaluations when the last step is done.")

    @model_validator(mode="after")
    def _stop_inside(self) -> "RunConfig":
        if self.stop_after is not None and self.stop_after > self.steps:
            raise ValueError(
                f"stop_after = {self.stop_after} is beyond steps = {self.steps}: lower it, or leave it out"
            )
        return self


_fields: dict[str, Any] = {name: (config | None, None) for name, config in OBJECTIVES.items()}
ObjectivesConfig = create_model("ObjectivesConfig", __config__=ConfigDict(extra="forbid", frozen=True), **_fields)


class Recipe(BaseModel):
    """A whole recipe, validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig
    model: ModelConfig
    visual: VisualConfig | None = None
    objectives: ObjectivesConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    kernels: KernelsConfig = KernelsConfig()
    evaluation: dict[str, EvaluationConfig] = {}

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
    def tasks(self) -> set[str]:
        """Tasks of the active objectives."""
        return {task for objective in self.active_objectives.values() for task in objective.active_tasks}

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


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate. Raises UserError that lists every mistake with field, value, rule and way out."""
    return parse_recipe(_read(path), str(path), overrides)


def parse_recipe(raw: dict[str, Any], name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate `raw`, the content of the file `name`, with overrides. Raises UserError."""
    for override in overrides:
        _override(raw, override)
    for line in _take_new_names(raw):
        print(f"{name}: {line}", file=sys.stderr)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        mistakes = _further_mistakes(raw, error)
        lines = "\n".join(f"  - {line}" for line in dict.fromkeys(mistakes))
        raise UserError(f"{name} has {len(dict.fromkeys(mistakes))} mistake(s):\n{lines}") from error


def _take_new_names(raw: dict[str, Any]) -> list[str]:
    """Give fields of `raw` that were renamed their names of today; return a line for each."""
    lines = []
    for pattern, new in RENAMED.items():
        *sections, old = pattern.split(".")
        for place, section in _sections(raw, sections):
            if old in section and new not in section:
                section[new] = section.pop(old)
                lines.append(f"{place}{old} is called {new} now")
    return lines


def _sections(raw: Any, names: Sequence[str], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sections of `raw` that `names` lead to, `*` standing for any, and their places as "section."."""
    if not isinstance(raw, dict):
        return
    if not names:
        yield place, raw
        return
    for name in list(raw) if names[0] == "*" else [names[0]]:
        yield from _sections(raw.get(name), names[1:], f"{place}{name}.")


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML; loading it gives the same recipe."""
    written = recipe.model_dump(mode="json", exclude_none=True)
    written["run"]["spike"] = recipe.run.spike  # the one field in which null is not what leaving it out means
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Plain YAML, no tags; and no key twice in a section, of which YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises yaml.YAMLError."""
        names = [name.value for name, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"{twice} stands twice in", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"recipe {path} does not exist; see trainer/m3p/recipes/ for the ones that come with the program"
        )
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is not plain YAML: {_reason(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"recipe {path} is not a mapping of sections (run, model, objectives, ...)")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place; the value is read as YAML, a number steps into a list."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"override {override!r} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"override {override!r}: the value is not YAML ({_reason(error)})") from error
    node: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        # Copied on the way down: with YAML's anchors one section may stand in several places.
        if isinstance(node, list):
            place = _list_place(node, part, override)
            node[place] = copy(node[place])
            node = node[place]
        else:
            node[part] = {} if node.get(part) is None else copy(node[part])
            node = node[part]
        if not isinstance(node, dict | list):
            raise UserError(f"override {override!r}: {part} is a value, not a section")
    if isinstance(node, list):
        node[_list_place(node, last, override)] = value
    else:
        node[last] = value


def _reason(error: Exception) -> str:
    """Say in one line what YAML complains of; what it takes for a date or a number fails as those do (2024-09-31)."""
    # Those of bytes that are no text are ValueErrors too.
    hint = "; a text that looks like a date or a number wants quotes" if type(error) is ValueError else ""
    return " ".join(str(error).split()) + hint


def _list_place(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override {override!r}: {part!r} is not a place in a list of {len(node)}; count from 0")
    return int(part)


def _combinations(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong between sections."""
    active = recipe.active_objectives
    if not active:
        yield "objectives: none has a weight above 0; give one a weight"
    pairs = [name for name, config in active.items() if "contrastive" in config.possible_tasks]
    if pairs and recipe.visual is None:
        yield f"visual: missing, but objectives.{pairs[0]} trains on pictures; add a section with kind: regions or patches"
    for name, config in active.items():
        for task in {"matching", "contrastive"} & config.active_tasks.keys():
            if config.batch_size < 2:
                yield f"objectives.{name}.batch_size = 1: {task} compares pairs of a turn; set 2 or more, or tasks.{task} = 0"
        longest = recipe.model.shape.positions - 2 if recipe.model.shape else None
        if longest is not None and config.max_tokens > longest:
            yield (
                f"objectives.{name}.max_tokens = {config.max_tokens}: model.shape.positions = {longest + 2} holds "
                f"{longest} tokens; lower the one or raise the other"
            )
    yield from _lengths(recipe)
    for name, evaluation in recipe.evaluation.items():
        needed = "matching" if evaluation.rerank else "contrastive"
        for task in {needed, "contrastive"} - recipe.tasks:
            yield f"evaluation.{name}: scores by {task}, but no active objective trains it; give tasks.{task} a weight"


def _lengths(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong between spans of steps, and of time."""
    run, schedule = recipe.run, recipe.schedule
    decays = decay_begins(run.steps, schedule)
    if schedule.warmup_steps >= run.steps:
        yield (
            f"schedule.warmup_steps = {schedule.warmup_steps}: not below run.steps = {run.steps}; "
            "shorten the warm-up or lengthen the run"
        )
    elif schedule.shape == "wsd" and schedule.warmup_steps > decays:
        yield (
            f"schedule.warmup_steps = {schedule.warmup_steps}: with schedule.decay = {schedule.decay:g} the rate falls after "
            f"step {decays:g} of {run.steps} already; shorten the one or the other"
        )
    if run.stall_seconds > run.timeout_seconds:
        yield (
            f"run.stall_seconds = {run.stall_seconds:g}: above run.timeout_seconds = {run.timeout_seconds:g}, the patience with "
            "the first step, which is the slowest; lower the one or raise the other"
        )


def _further_mistakes(raw: dict[str, Any], error: ValidationError) -> list[str]:
    """Return every mistake: those of `error`, and those that only show once the first ones are taken out."""
    mistakes: list[str] = []
    removed: set[tuple[int | str, ...]] = set()
    while True:
        found = error.errors()
        mistakes += [line for e in found if e["loc"] not in removed for line in _message(e, raw).splitlines()]
        places = {entry["loc"] for entry in found if entry["type"] != "missing" and _remove(raw, entry["loc"])}
        if not places:
            return mistakes
        removed |= places
        try:
            Recipe.model_validate(raw)
        except ValidationError as next_error:
            error = next_error
        else:
            return mistakes


def _remove(raw: Any, place: tuple[int | str, ...]) -> bool:
    """Take the value at `place` out of `raw`; say whether it was there."""
    names = _in_raw(raw, place)
    if not names:
        return False
    for name in names[:-1]:
        raw = raw[name]
    if not isinstance(raw, dict):
        return False
    return raw.pop(names[-1], None) is not None


def _in_raw(raw: Any, place: tuple[int | str, ...]) -> list[int | str]:
    """Return `place` without the tags that pydantic puts in for unions."""
    names: list[int | str] = []
    for name in place:
        inside = (isinstance(raw, dict) and name in raw) or (isinstance(raw, list) and isinstance(name, int))
        if inside:
            names.append(name)
            raw = raw[name]
    return names


def _message(entry: ErrorDetails, raw: dict[str, Any]) -> str:
    """One line: field, value, rule, way out."""
    place, kind = entry["loc"], entry["type"]
    tags = {"regions", "patches"} if place[:1] == ("visual",) else set()
    field = ".".join(str(part) for part in place if part not in tags)
    if kind == "extra_forbidden":
        known = _known_fields(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{field}: there is no such field; {hint}"
    if kind == "missing":
        return f"{field}: missing; give it a value"
    text = entry["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{field}: {text}" if field else text
    return f"{field} = {entry['input']!r}: {text[0].lower() + text[1:]}"


def _known_fields(place: tuple[int | str, ...]) -> list[str]:
    """Return the fields of the section at `place`."""
    models: list[type[BaseModel]] = [Recipe]
    for name in place:
        inner = [_models(m.model_fields[str(name)].annotation) for m in models if str(name) in m.model_fields]
        models = [model for found in inner for model in found] or models
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as `A | None` or `list[B]`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return [annotation]
    if annotation is Literal:
        return []
    return [model for argument in get_args(annotation) for model in _models(argument)]
