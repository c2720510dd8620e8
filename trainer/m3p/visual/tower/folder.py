"""A vision model of a local `transformers` folder: its sizes, its weights, and its features as a grid of tokens.

Taken are vision models (ViT, DINOv2 and DINOv3, Swin, ConvNeXt, EfficientNet, and others of the kind) and the vision part of
models of text and vision (CLIP, SigLIP, and SigLIP 2 of fixed size).
"""

import hashlib
import inspect
import math
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m3p.errors import UserError
from m3p.quiet import quiet
from m3p.transformers_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    OTHER_SIZES,
    WEIGHTS_FILE,
    has_other_sizes,
    read_model_config,
    weight_files,
)
from m3p.visual.tower.in_use import memory_of, most_in_use
from m3p.visual.tower.order import uses_in_order
from m3p.visual.tower.pixels import (
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    Preparation,
    preprocessor_file,
    read_preparation,
)

WANTED = "want a local `transformers` folder of a vision model"
FULL = 4
"""Bytes of a float32 number."""
SAME_AS = {
    "metaclip_2_vision_model": ", or make this one a CLIP, which it is but for its name: write clip, clip_vision_model and "
    "clip_text_model in the place of its three model_type"
}
"""Type of a model that cannot be opened alone -> how the user can open it."""
_COUNTED = "num_batches_tracked"
"""A batch norm's count of batches: nothing is computed from it, and some folders leave it out."""


@dataclass(frozen=True)
class TowerFacts:
    """What is known of a tower before its weights are read."""

    preparation: Preparation
    side: int
    """Tokens of a side of its grid."""
    width: int
    """Numbers of a token."""
    prefix: int
    """Tokens before those of the grid: class token and registers."""
    layers: int
    """Layers, stages or blocks that training may begin at."""
    in_order: bool
    """Whether they are used one after the other, as the tower holds them; else training can begin at none of them."""
    parameters: int
    flops: float
    """Operations of the forward for one picture."""
    saved: float
    """Numbers that autograd keeps of one picture if the whole tower is trained."""
    working: float
    """Numbers that are in use at once for one picture if the whole tower is frozen, by the operations of the meta device."""
    unused: frozenset[str]
    """Parameters that the grid does not depend on, such as those of a pooler."""

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        return self.side * self.side


def tower_facts(folder: Path) -> TowerFacts:
    """Return what is known of the tower in `folder` from its settings alone. Raises UserError."""
    files = (folder / CONFIG_FILE, folder / PREPROCESSOR_FILE, folder / PROCESSOR_FILE)
    return _facts(folder, tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files))


@lru_cache(16)
def _facts(folder: Path, times: tuple[int, ...]) -> TowerFacts:
    """Measure a network without weights on a picture without pixels; `times` of the files tell a changed folder apart."""
    from torch.utils.flop_counter import FlopCounterMode

    read_model_config(folder / CONFIG_FILE, WANTED)
    preparation = read_preparation(folder)
    size = preparation.size
    saved: dict[int, int] = {}
    try:
        with torch.device("meta"):
            model = make_tower(folder)
            pixels = torch.zeros(1, 3, size, size)
        kept: list[Tensor] = list(model.parameters())
        own = {memory_of(parameter) for parameter in kept}

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            if (memory := memory_of(tensor)) not in own:
                saved[memory] = tensor.untyped_storage().nbytes() // FULL
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with FlopCounterMode(display=False) as counter:
                found = model(pixel_values=pixels).last_hidden_state
            named = dict(model.named_parameters())
            gradients = torch.autograd.grad(found.sum(), list(named.values()), allow_unused=True)
        working = most_in_use(model, pixel_values=pixels)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder / CONFIG_FILE}: the model cannot take a picture of {size} x {size} pixels, as "
            f"{preprocessor_file(folder).name} prepares it ({error}); put back the model's own files"
        ) from error
    side, width, prefix = _grid_of(folder, found, getattr(model.config, "num_register_tokens", 0))
    unused = frozenset(name for name, gradient in zip(named, gradients, strict=True) if gradient is None)
    layers = tower_layers(model)
    return TowerFacts(
        preparation, side, width, prefix,
        layers=len(layers),
        in_order=uses_in_order(model, layers, unused, pixel_values=pixels),
        parameters=sum(parameter.numel() for parameter in named.values()),
        flops=float(counter.get_total_flops()),
        saved=float(sum(saved.values())),
        working=working / FULL,
        unused=unused,
    )  # fmt: skip


def _grid_of(folder: Path, found: Tensor, registers: int) -> tuple[int, int, int]:
    """Return side, width and prefix of the grid in a tower's output [1, C, H, W] or [1, T, D]. Raises UserError."""
    if found.ndim == 4 and found.shape[2] == found.shape[3]:
        return found.shape[2], found.shape[1], 0
    if found.ndim == 3:
        # A class token stands first in some, alone, with one of distillation (DeiT), or with registers behind it.
        for prefix in (1 + registers,) if registers else (0, 1, 2):
            side = math.isqrt(max(found.shape[1] - prefix, 0))
            if side and side * side == found.shape[1] - prefix:
                return side, found.shape[2], prefix
    raise UserError(
        f"{folder}: its output {list(found.shape[1:])} is no square grid of tokens, with or without a class token in front; "
        "use a vision model that has one, such as a ViT, Swin or ConvNeXt"
    )


def make_tower(folder: Path, weights: bool = False) -> nn.Module:
    """Return the vision model of `folder` in evaluation mode, float32; its weights are read only if asked for.

    Raises UserError: not a vision model, weights that are missing or do not fit. Draws from no random generator.
    """
    from transformers import AutoConfig, AutoModel

    path = folder / CONFIG_FILE
    read_model_config(path, WANTED)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = getattr(config, "vision_config", None) or config
        except Exception as error:  # of a wrong config.json `transformers` raises nearly anything
            raise UserError(
                f"{path}: no model that `transformers` knows ({_line(error)}); put back its own file"
            ) from error
        if type(config) not in AutoModel._model_mapping:
            raise UserError(
                f"{path}: `transformers` has no model of its own for {config.model_type}; name the folder of another one"
                f"{SAME_AS.get(config.model_type, '')}"
            )
        _check_kind(path, config, AutoModel._model_mapping[type(config)])
        if not weights:
            model: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
            return model.eval()
        return _load(folder, config)


def _check_kind(path: Path, config: Any, kind: Any) -> None:
    """Raise UserError for a model, of the class `kind`, whose output is no grid of the cells of a square picture."""
    # SigLIP 2 has models for patches of pictures of any shape too.
    takes = inspect.signature(kind.forward).parameters
    if getattr(kind, "main_input_name", "") != "pixel_values" or "spatial_shapes" in takes:
        raise UserError(
            f"{path}: {config.model_type} is no vision model that takes square pictures; name one that does"
        )
    if config.model_type == "vit_mae":
        raise UserError(
            f"{path}: vit_mae hides parts of a picture at random, and puts the others out of order; set model_type to "
            '"vit", which reads its weights and looks at all of a picture'
        )
    if getattr(config, "num_detection_tokens", 0):
        raise UserError(
            f"{path}: {config.model_type} has tokens of detections behind those of the picture, which are no cells of a grid; "
            "take a tower that has none, such as a ViT"
        )


def _load(folder: Path, config: Any) -> nn.Module:
    """Return the model with its weights, float32. Raises UserError where a part that is used has none."""
    from transformers import AutoModel

    weight_files(folder)
    try:
        model, told = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        why = OTHER_SIZES if has_other_sizes(error) else _line(error)
        raise UserError(f"{folder}: its weights cannot be read ({why}); copy the model's own files") from error
    unused = tower_facts(folder).unused
    missing = sorted(name for name in told["missing_keys"] if name not in unused and not name.endswith(_COUNTED))
    if {name for name, _ in model.named_parameters()} - unused <= {*missing}:
        raise UserError(
            f"{folder}: its vision part has other names there than alone; save that part as a folder of its own (in Python: "
            f"AutoModel.from_pretrained('{folder}').vision_model.save_pretrained('NEW_FOLDER'), or .vision_tower), and copy "
            f"{preprocessor_file(folder).name} beside it"
        )
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} weights of the vision model are missing, such as {missing[0]}; copy the model's own files"
        )
    found: nn.Module = model
    return found.eval()


def tower_layers(model: nn.Module) -> nn.ModuleList:
    """Return the layers of a tower: of its lists of modules the outermost (stages of Swin and ConvNeXt hold lists too)."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return min(lists, key=lambda item: item[0].count("."))[1] if lists else nn.ModuleList()


def grid_tokens(model: nn.Module, pixels: Tensor, prefix: int) -> Tensor:
    """Return the grid of a tower as tokens, row by row: pixels [N, 3, H, W] -> [N, T, D]."""
    found: Tensor = model(pixel_values=pixels).last_hidden_state
    return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found[:, prefix:]


def tower_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a tower is made of: settings and weights. Raises UserError where one is missing."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder / CONFIG_FILE} is missing: {WANTED}")
    weights = weight_files(folder)
    index = [folder / INDEX_FILE] if weights[0].name != WEIGHTS_FILE else []
    return [folder / CONFIG_FILE, preprocessor_file(folder), *index, *weights]


def tower_hash(folder: Path) -> str:
    """Return a hash of settings and weights, by which a tower is known again wherever its folder lies. Raises UserError."""
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in tower_files(folder)))


@lru_cache(16)
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def write_tower(model: nn.Module, source: Path, folder: Path) -> None:
    """Write a tower, trained since it was read from `source`, as a folder of its own that `transformers` loads."""
    folder.mkdir()
    with quiet():
        model.save_pretrained(folder)  # type: ignore[operator]
    settings = preprocessor_file(source)
    shutil.copyfile(settings, folder / settings.name)


def _line(error: Exception) -> str:
    """Return an error in one line of bounded length."""
    return " ".join(str(error).split())[:300]
