"""The safetensors files of a `transformers` folder: model.safetensors, or several with an index.

Their headers tell names and sizes without reading a weight, so that a wrong config.json is found before a network is built.
"""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from m3p.errors import UserError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PREFIX = re.compile(r"^(roberta|bert|xlm_roberta|model)\.")
_MAX_INDEX = 1 << 24
"""Largest index that is read, in bytes."""

# A tied weight is saved once, under either name; BERT has other names for the same parts.
_OTHER_NAMES = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
    "cls.predictions.decoder.bias": "lm_head.bias",
    "cls.predictions.bias": "lm_head.bias",
    "cls.predictions.transform.dense.weight": "lm_head.dense.weight",
    "cls.predictions.transform.dense.bias": "lm_head.dense.bias",
    "cls.predictions.transform.LayerNorm.weight": "lm_head.layer_norm.weight",
    "cls.predictions.transform.LayerNorm.bias": "lm_head.layer_norm.bias",
}


class WeightFiles:
    """The tensors of a folder by XLM-R's names, without the prefix of the model inside. Raises UserError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, str]] = {}
        self.shapes: dict[str, list[int]] = {}
        """Name -> size, from the headers."""
        paths = _find(folder)
        self.name = paths[0].name if len(paths) == 1 else INDEX_FILE
        """The file that errors name."""
        for path in paths:
            self._read_header(path)

    def read(self, name: str) -> Tensor:
        """Return one tensor. Raises KeyError where there is none."""
        path, stored = self._files[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a tensor of this name."""
        return name in self._files

    @property
    def layers(self) -> int:
        """Transformer layers that the files hold."""
        found = [re.match(r"encoder\.layer\.(\d+)\.", name) for name in self._files]
        return 1 + max((int(match.group(1)) for match in found if match), default=-1)

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    inner = _PREFIX.sub("", stored)
                    name = _OTHER_NAMES.get(inner, inner)
                    if name not in self._files or name == inner:  # its own name before another
                        self._files[name] = path, stored
                        self.shapes[name] = list(file.get_slice(stored).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _find(folder: Path) -> list[Path]:
    """Return the files of weights. Raises UserError where there are none, or only ones that would be executed."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        return _indexed(folder / INDEX_FILE)
    pickle = next((name for name in _PICKLES if (folder / name).exists()), None)
    why = f"; {pickle} is a pickle, which runs code when it is read, so it is not" if pickle else ""
    raise UserError(
        f"{folder / WEIGHTS_FILE} is missing{why}: save the model with safe_serialization, where you trust it: python -c "
        f"\"from transformers import AutoModel; AutoModel.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\", and "
        "copy the tokenizer's files beside it"
    )


def has_weights(folder: Path) -> bool:
    """Tell whether `folder` has safetensors files."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


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
