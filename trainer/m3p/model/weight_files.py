"""The safetensors files of a `transformers` folder: model.safetensors, or several with an index.

Their headers tell names and sizes without reading a weight, so that a wrong config.json is found before a network is built.
"""

import re
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from m3p.errors import UserError
from m3p.stored_files import check_no_pointer, open_tensors
from m3p.transformers_folder import INDEX_FILE, weight_files

_PREFIX = re.compile(r"^(roberta|bert|xlm_roberta|model)\.")

# Names in models that were converted from TensorFlow, such as mBERT's as it is published.
_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")

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
        paths = weight_files(folder)
        self.name = paths[0].name if len(paths) == 1 else INDEX_FILE
        """The file that errors name."""
        for path in paths:
            self._read_header(path)

    def read(self, name: str) -> Tensor:
        """Return one tensor. Raises KeyError where there is none."""
        path, stored = self._files[name]
        with open_tensors(path) as file:
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
        check_no_pointer(path)
        try:
            with open_tensors(path) as file:
                for stored in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    inner = _OLD_NORM.sub(lambda found: _NORM[found[0]], _PREFIX.sub("", stored))
                    name = _OTHER_NAMES.get(inner, inner)
                    if name not in self._files or name == inner:  # its own name before another
                        self._files[name] = path, stored
                        self.shapes[name] = list(file.get_slice(stored).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
