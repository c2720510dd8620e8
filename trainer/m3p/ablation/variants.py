"""The runs of an ablation: every combination of the varied fields, each with every seed."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m3p.errors import UserError
from m3p.recipe.yaml_file import parse_yaml


@dataclass(frozen=True)
class Variation:
    """A recipe field and the values that it takes, at least two."""

    field: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """One combination of values."""

    name: str
    """Short and unique, such as "code_switched.weight=0"; also its folder's name."""
    overrides: tuple[str, ...]
    """What makes it from the recipe: section.key=value."""


@dataclass(frozen=True)
class Trial:
    """One run: a variant with a seed."""

    variant: Variant
    seed: int
    folder: Path

    @property
    def overrides(self) -> list[str]:
        """Overrides that make its recipe, after those of the command line."""
        return [*self.variant.overrides, f"run.seed={self.seed}", f"run.folder={self.folder}"]


def parse_variation(text: str) -> Variation:
    """Read `section.key=VALUE,VALUE[,...]`; each value is YAML, a list in brackets. Raises UserError."""
    field, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)+", field):
        raise UserError(f"--vary {text!r} is not of the form section.key=VALUE,VALUE")
    if field in ("run.seed", "run.folder"):
        raise UserError(f"--vary {field}: every run has a seed and a folder of its own; say how many with --seeds")
    try:
        found = parse_yaml(f"[{values}]")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"--vary {text!r}: the values are not YAML, divided by commas ({' '.join(str(error).split())})"
        ) from error
    if len(found) < 2 or len({repr(value) for value in found}) < len(found):
        raise UserError(f"--vary {text!r}: name two or more values, each once; the others are compared with the first")
    return Variation(field, tuple(found))


def refuse_folder(overrides: Sequence[str]) -> None:
    """Raises UserError for an override of `run.folder`: every run has a folder of its own inside of one that is named apart."""
    if given := next((text for text in overrides if text.partition("=")[0].strip() == "run.folder"), None):
        raise UserError(
            f"{given}: every run has a folder of its own; name the folder that holds them all with --folder"
        )


def variants(variations: Sequence[Variation]) -> list[Variant]:
    """Return every combination of the values; the first one, of all first values, is what the others are compared with.

    Raises UserError where a field is varied twice.
    """
    fields = [variation.field for variation in variations]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice is not None:
        raise UserError(f"--vary {twice} is given twice; name all its values in one")
    short = _short_names(fields)
    found = []
    for values in itertools.product(*(variation.values for variation in variations)):
        texts = [_text(value) for value in values]
        name = " ".join(f"{short[field]}={text}" for field, text in zip(fields, texts, strict=True))
        found.append(Variant(name, tuple(f"{field}={text}" for field, text in zip(fields, texts, strict=True))))
    return found


def trials(found: Sequence[Variant], seeds: int, first_seed: int, folder: Path) -> list[Trial]:
    """Return the runs, seed by seed, so that an ablation that is cut off has compared something."""
    folders = [folder / f"{number:02d}-{_file_name(variant.name)}" for number, variant in enumerate(found)]
    return [
        Trial(variant, seed, place / f"seed-{seed}")
        for seed in range(first_seed, first_seed + seeds)
        for variant, place in zip(found, folders, strict=True)
    ]


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """Return the end of each field's name that tells it from the others: its last two parts, or all of it."""
    ends = [".".join(field.split(".")[-2:]) for field in fields]
    return {field: end if ends.count(end) == 1 else field for field, end in zip(fields, ends, strict=True)}


def _text(value: Any) -> str:
    """Return a value as YAML in one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**9)).removesuffix("...\n").strip()


def _file_name(name: str) -> str:
    """Return a variant's name as a folder's: what a path may not hold becomes "_"."""
    return re.sub(r"[^\w.+-]", "_", name)[:80]
