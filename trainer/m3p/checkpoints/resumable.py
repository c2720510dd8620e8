"""Whether a run may go on from a checkpoint: what may differ from the run that wrote it, and what may not."""

import copy
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from m3p.checkpoints.files import State
from m3p.content_hash import hash_bytes
from m3p.errors import UserError
from m3p.objectives.objective import Objective
from m3p.recipe.load import take_new_names
from m3p.recipe.recipe import Recipe
from m3p.recipe.schema import may_change
from m3p.visual.source import VisualSource
from m3p.vocabulary import settings_beside, vocabulary_file

_TOKENIZER = "model.tokenizer"
_NETWORK = re.compile(
    r"model\.(shape\.\w+|layers|pooling|projection|picture_hidden|text_centre|encode_pictures)"
    r"|visual\.(?!crop$|flip$).+|objectives\.\w+\.max_tokens"
)
"""Fields of a recipe by which the same weights give other scores."""


def check_resumable(path: Path, found: State, now: State, accept: bool) -> list[str]:
    """Return what differs and matters, a line each; raise UserError that lists it unless `accept`.

    Ranks, ZeRO stage, precision and micro-batches are free. Data are compared by content
    (of large files in shards, both ends), wherever they lie.
    """
    differences = _differences(_that_matters(found.recipe), _that_matters(now.recipe))
    differences += _differences(
        {f"content of {k}": v for k, v in found.data.items()}, {f"content of {k}": v for k, v in now.data.items()}
    )
    differences += _differences(
        {"order of samples, version": found.order_version}, {"order of samples, version": now.order_version}
    )
    if differences and not accept:
        lines = "\n".join(f"  - {line}" for line in differences)
        raise UserError(
            f"{path} was written by another run than this one would be:\n{lines}\n"
            "Put these back to go on, set run.accept_changes=true to go on with the changes, or another run.folder to start anew."
        )
    return differences


def fingerprints(recipe: Recipe, objectives: Mapping[str, Objective]) -> dict[str, str]:
    """Return what, beside the recipe, must be as it was: hashes of sources, word lists and tokenizer, by recipe field."""
    found = {field: value for objective in objectives.values() for field, value in objective.fingerprints().items()}
    found[_TOKENIZER] = vocabulary_hash(recipe.tokenizer_folder)
    if recipe.visual is not None and any(objective.kind.has_pictures for objective in objectives.values()):
        found |= visual_fingerprints(recipe.visual)
    return found


def visual_fingerprints(visual: VisualSource) -> dict[str, str]:
    """Return the hashes of the files that the visual source names, by recipe field."""
    return {f"visual.{field}": value for field, value in visual.fingerprints().items()}


def check_visual(path: Path, found: State, visual: VisualSource | None) -> None:
    """Raise UserError where the checkpoint `path` was trained with other files than those that the visual source names now."""
    for field, now in ({} if visual is None else visual_fingerprints(visual)).items():
        then = found.data.get(field, now)
        if then != now:
            raise UserError(
                f"{path} was trained with another {field} (hash {then}) than the one that it names now (hash {now}); put back "
                "the files that the run was trained with, or name their folder"
            )


def check_network(path: Path, found: State, recipe: Recipe, recipe_file: Path) -> None:
    """Raise UserError where `recipe_file` describes another network than the checkpoint `path` was trained as.

    It is written anew when a run goes on with changes (run.accept_changes), and earlier checkpoints keep their own.
    """
    both = (_that_matters(found.recipe), _that_matters(recipe.model_dump(mode="json", exclude_none=True)))
    then, now = ({name: value for name, value in one.items() if _NETWORK.fullmatch(name)} for one in both)
    if found.recipe and (differences := _differences(then, now)):
        lines = "\n".join(f"  - {line}" for line in differences)
        raise UserError(
            f"{recipe_file} describes another network than {path} was trained as:\n{lines}\n"
            "Put these back, or copy the checkpoint to a folder of its own and open that: there its own recipe counts"
        )


def vocabulary_hash(tokenizer: Path) -> str:
    """Return the fingerprint of the vocabulary in the folder `tokenizer`, and of settings beside it by which it cuts texts.

    Raises UserError where there is none.
    """
    path = vocabulary_file(tokenizer)
    settings = settings_beside(path)
    return hash_bytes(path.read_bytes() + (repr(settings).encode() if settings else b""))


def check_vocabulary(path: Path, found: State, tokenizer: Path) -> None:
    """Raise UserError where the checkpoint `path` was trained with another vocabulary than `tokenizer` holds.

    One of the same size fits the network, and each row of its word table would stand for another word.
    """
    now = vocabulary_hash(tokenizer)
    then = found.data.get(_TOKENIZER, now)
    if then != now:
        raise UserError(
            f"{path} was trained with another vocabulary (hash {then}) than {vocabulary_file(tokenizer)} is now (hash "
            f"{now}); name the folder that the run was trained with in model.tokenizer, or put its file back"
        )


def _that_matters(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that must stay as they are, by their names of today; the fields themselves say which these are.

    A field that did not exist when the recipe was stored has its default: that is what the program did then.
    """
    recipe = copy.deepcopy(recipe)
    take_new_names(recipe)
    with suppress(ValidationError):  # of a recipe that is none any more the fields are compared as they stand
        recipe = Recipe.model_validate(recipe).model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in flatten(recipe).items() if not may_change(Recipe, name.split("."))}


def flatten(node: Any, name: str = "") -> dict[str, Any]:
    """Return the values inside nested dictionaries and lists, by dotted name."""
    if isinstance(node, dict):
        inner = {f"{name}.{key}" if name else key: value for key, value in node.items()}
    elif isinstance(node, list):
        inner = {f"{name}.{number}": value for number, value in enumerate(node)}
    else:
        return {name: node}
    return {field: value for key, child in inner.items() for field, value in flatten(child, key).items()}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = sorted(then.keys() | now.keys())
    missing = "not set"
    return [
        f"{name}: {then.get(name, missing)} then, {now.get(name, missing)} now"
        for name in names
        if then.get(name, missing) != now.get(name, missing)
    ]
