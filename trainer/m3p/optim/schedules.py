"""Learning-rate schedules: the share of the peak rate at a step. To add one, write its function and its line in `SHAPES`."""

import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, field_validator


def inverse_sqrt(done: int, config: "ScheduleConfig", steps: int) -> float:
    """sqrt(warm-up / step), as M3P and fairseq."""
    return math.sqrt(max(config.warmup_steps, 1) / done)


def cosine(done: int, config: "ScheduleConfig", steps: int) -> float:
    """Half a cosine from 1 to `final`."""
    return config.final + (1 - config.final) * (1 + math.cos(math.pi * _progress(done, config, steps))) / 2


def linear(done: int, config: "ScheduleConfig", steps: int) -> float:
    """A line from 1 to `final`."""
    return 1 - (1 - config.final) * _progress(done, config, steps)


def wsd(done: int, config: "ScheduleConfig", steps: int) -> float:
    """Warm-up, stable, decay (arXiv 2404.06395): 1, then a line to `final` over the last `decay` of the steps."""
    first = steps * (1 - config.decay)
    return 1.0 if done <= first else 1 - (1 - config.final) * (done - first) / (steps - first)


def decay_begins(steps: int, config: "ScheduleConfig") -> float | None:
    """Return the step, perhaps between two, after which the decay of wsd begins; None for the other shapes, which have none."""
    return steps * (1 - config.decay) if config.shape == wsd.__name__ else None


def constant(done: int, config: "ScheduleConfig", steps: int) -> float:
    """Always 1."""
    return 1.0


def _progress(done: int, config: "ScheduleConfig", steps: int) -> float:
    return (done - config.warmup_steps) / max(steps - config.warmup_steps, 1)


SHAPES: dict[str, Callable[[int, "ScheduleConfig", int], float]] = {
    "inverse_sqrt": inverse_sqrt,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "constant": constant,
}
"""Name in recipes -> share of the peak rate, by the step that is being made (from 1), the section and the length of the run."""
_NAMES = list(SHAPES)


class ScheduleConfig(BaseModel):
    """The recipe's `schedule` section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: str = Field("linear", description=f"After the warm-up: {', '.join(_NAMES[:-1])} or {_NAMES[-1]}.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear growth from 0 to the peak rate.")
    final: float = Field(0.0, ge=0, le=1, description="Share of the peak at the last step (cosine, linear, wsd).")
    decay: float = Field(0.2, gt=0, le=1, description="Share of the steps that wsd's decay takes, at the end.")

    @field_validator("shape")
    @classmethod
    def _known(cls, shape: str) -> str:
        if shape not in SHAPES:
            raise ValueError(f"{shape!r} is no shape; choose one of {', '.join(SHAPES)}")
        return shape


def share_of_peak(step: int, steps: int, config: ScheduleConfig) -> float:
    """Return the share of the peak rate for optimizer step `step` (from 0) of `steps`."""
    done = step + 1
    if done <= config.warmup_steps:
        return done / config.warmup_steps
    return SHAPES[config.shape](done, config, steps)
