"""What all readers of local `transformers` folders share: bounded JSON, and files of weights.

Nothing of such a folder is executed: weights are safetensors alone, and code in it (`auto_map`) is never run.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3p.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OTHER_WEIGHTS = "transformers_weights"
"""Field of a config.json that names a file of weights, which `transformers` 5 reads in place of those of the usual names."""
MAX_CONFIG = 1 << 20
"""Bytes of a config.json that is read, at most."""
MAX_LAYERS = 1000
MAX_SIZE = 1 << 24
"""Largest number in a config.json: more than any width, vocabulary or picture has."""
OTHER_SIZES = "their sizes are not those in config.json: put back the one that belongs to them"
_COUNT_OF_LAYERS = re.compile(r"(^|_)(layers|depths?|blocks|stages)$")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MAX_INDEX = 1 << 24
"""Bytes of an index of weights that is read, at most."""


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """Return the content of a JSON file of settings. Raises UserError; `wanted` says in words what should be there."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {wanted}")
    if path.stat().st_size > MAX_CONFIG:
        raise UserError(f"{path}: has {path.stat().st_size:,} bytes; a config has at most {MAX_CONFIG:,}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of bytes that are no text too
        raise UserError(f"{path}: not JSON ({error}); put back the model's own file") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object of fields; put back the model's own file")
    return config


def read_model_config(path: Path, wanted: str) -> dict[str, Any]:
    """Return the content of a config.json. Raises UserError; also for a size that no model has, naming its field.

    `transformers` builds what is written there before it looks at the weights: a million layers, module by module.
    """
    config = read_json(path, wanted)
    for name, size in _whole_numbers(config):
        limit = MAX_LAYERS if _COUNT_OF_LAYERS.search(name) else MAX_SIZE
        if size > limit:
            raise UserError(f"{path}: {name} = {size}: at most {limit:,}; put back the model's own config.json")
    return config


def _whole_numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield (field, number) for every whole number in a config.json, those in lists and sections too."""
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(name, part) for part in value]
        elif isinstance(value, int):
            yield name, value


def has_other_sizes(error: Exception) -> bool:
    """Tell whether `transformers` refused weights for their sizes: its own message points to a report that is kept back."""
    return "mismatched" in str(error)


def has_weights(folder: Path) -> bool:
    """Tell whether `folder` has safetensors files."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights. Raises UserError: there are none, only such as would be executed, or others are meant."""
    _check_usual_names(folder / CONFIG_FILE)
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        return _indexed(folder / INDEX_FILE)
    pickle = next((name for name in _PICKLES if (folder / name).exists()), None)
    why = f"; {pickle} is a pickle, which runs code when it is read, so it is not" if pickle else ""
    raise UserError(
        f"{folder / WEIGHTS_FILE} is missing{why}: save the model with safe_serialization, where you trust it: python -c "
        f"\"from transformers import AutoModel; AutoModel.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\", and "
        "copy the other files of the folder beside it"
    )


def _check_usual_names(path: Path) -> None:
    """Raise UserError where a config.json, or a section of it, names another file of weights than the one that is read."""
    config = read_json(path, "want a model's settings") if path.is_file() else {}
    read = WEIGHTS_FILE if path.with_name(WEIGHTS_FILE).is_file() else INDEX_FILE
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        if (name := section.get(OTHER_WEIGHTS)) not in (None, read):
            raise UserError(
                f"{path}: {OTHER_WEIGHTS} = {str(name)[:80]!r}, but what is read here is {read}; take the field out, and give "
                f"the file that is meant the name {WEIGHTS_FILE}, or {INDEX_FILE} where it lists several"
            )


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names. Raises UserError where one is missing or lies elsewhere."""
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError(f"has more than {_MAX_INDEX:,} bytes")
        names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of weights ({error}); put back the model's own") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names {name!r}; want safetensors files of the same folder, without a path")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing, which {index.name} names; copy all files of the model")
    if not names:
        raise UserError(f"{index}: names no file; put back the model's own")
    return [index.parent / name for name in names]
