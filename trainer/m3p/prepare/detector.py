"""An object detector of a local `transformers` folder: regions of pictures, each with a box, a feature and its classes.

DETR (arXiv 2005.12872) and its relatives give a picture a fixed number of queries. The decoder's last hidden state is the feature
of a query. How the class logits are to be read differs:

softmax   DETR, YOLOS, Table Transformer: one class more than the folder's labels, the last one, is "no object".
          RT-DETR, D-FINE and DEIMv2 with `use_focal_loss: false`: the last of the labels is "no object".
sigmoid   Deformable DETR, Conditional DETR, RT-DETR, D-FINE, ...: a score of its own for each class, without "no object".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m3p.errors import UserError
from m3p.prepare.regions import Arrays
from m3p.quiet import quiet
from m3p.transformers_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    OTHER_SIZES,
    WEIGHTS_FILE,
    has_other_sizes,
    has_weights,
    read_model_config,
)
from m3p.visual.decode import Pixels

Inputs = dict[str, Tensor]
"""What a detector takes of a picture: `pixel_values` [1, 3, H, W], and `pixel_mask` [1, H, W] where its processor makes one."""


class Detector:
    """A detector in evaluation mode.

    Args:
        folder: config.json, preprocessor_config.json and safetensors files, as `transformers` saves them; nothing else is read,
            nothing is downloaded, and no code of the folder is run.
        regions: how many of its queries are kept for a picture, those of the highest scores.
        classes: how many classes of a region are kept, the likeliest ones.
        device: where it runs.

    Raises UserError where the folder is no such detector, or lacks weights.
    """

    def __init__(self, folder: Path, regions: int, classes: int, device: str) -> None:
        self.regions, self.device = regions, device
        self._processor, self._model = _load(folder)
        self._model.to(device).eval()
        config = self._model.config
        self._labels = int(config.num_labels)
        self._no_object_is_label = getattr(config, "use_focal_loss", True) is False
        self.classes = self._labels - self._no_object_is_label
        """Classes without "no object"."""
        self._kept = min(classes, self.classes)

    def prepare(self, pixels: Pixels) -> Inputs:
        """Return RGB pixels [height, width, 3] as the folder's image processor scales and normalises them."""
        # As a PIL image: of an array the processor would guess which axis holds the colours.
        found = self._processor(images=Image.fromarray(pixels), return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "pixel_mask") if name in found}

    @torch.inference_mode()
    def find(self, pictures: Sequence[Inputs]) -> list[Arrays]:
        """Return the regions of pictures of one size, best score first, as regions.npz holds them.

        A batch is never padded: what surrounds a picture would change what is found in it. Raises UserError for a detector of an
        unknown kind.
        """
        names = pictures[0].keys()
        inputs = {name: torch.cat([picture[name] for picture in pictures]).to(self.device) for name in names}
        output = self._model(**inputs)
        logits, boxes = output.logits.float(), output.pred_boxes.float()
        features = output.last_hidden_state.float()
        queries = logits.shape[1]
        if features.ndim != 3 or features.shape[1] < queries:
            raise UserError(
                f"--detector: {type(self._model).__name__} gives features of shape {list(features.shape)} for {queries} queries; "
                "the rule is one row a query: take a detector of the DETR family"
            )
        features = features[:, -queries:]  # YOLOS: behind those of the picture's patches
        scores, distribution = read_classes(logits, self._labels, self._no_object_is_label)
        return [self._pack(*one) for one in zip(scores, boxes, features, distribution, strict=True)]

    def _pack(self, scores: Tensor, boxes: Tensor, features: Tensor, distribution: Tensor) -> Arrays:
        """Return the best queries of a picture: `boxes` are centre, width and height in 0..1."""
        best = scores.argsort(descending=True, stable=True)[: self.regions]
        probs, ids = distribution[best].topk(self._kept)
        centre, size = boxes[best].tensor_split(2, -1)
        corners = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)
        return {
            "boxes": corners.cpu().numpy(),
            "features": features[best].cpu().numpy(),
            "class_ids": ids.cpu().numpy().astype(np.int32),
            "class_probs": probs.cpu().numpy(),
        }


def read_classes(logits: Tensor, labels: int, no_object_is_label: bool) -> tuple[Tensor, Tensor]:
    """Return the score of each query [B, Q] and its distribution over classes [B, Q, C], from its logits [B, Q, C or C + 1].

    The distribution says what a query shows if it shows an object: "no object" is left out, and it adds up to 1.

    Args:
        logits: one a label, or one more.
        labels: labels of the detector.
        no_object_is_label: whether the last of the labels is "no object".

    Raises UserError for another number of logits.
    """
    if logits.shape[-1] == labels + 1 or no_object_is_label:
        return logits.softmax(-1)[..., :-1].amax(-1), logits[..., :-1].softmax(-1)
    if logits.shape[-1] != labels:
        raise UserError(
            f"--detector gives {logits.shape[-1]} logits for {labels} labels; the rule is one a label, or one more for "
            "`no object`: take a detector of the DETR family"
        )
    each = logits.sigmoid()
    return each.amax(-1), each / each.sum(-1, keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)


def _load(folder: Path) -> tuple[Any, Any]:
    """Return image processor and model of a folder. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--detector {folder} has no config.json: give the folder of a detector, as `transformers` saves it"
        )
    read_model_config(folder / CONFIG_FILE, "want a detector, as `transformers` saves it")
    if not has_weights(folder):
        raise UserError(
            f"--detector {folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}: weights are read from safetensors alone; other "
            "files are pickles, which run code when they are read"
        )
    # Late: transformers takes seconds to import, and most commands do without.
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        # By Pillow, also where torchvision is installed: the two scale a little differently.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
        with quiet():  # its report of missing weights and more is the error below
            model, report = AutoModelForObjectDetection.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **local
            )
    except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError) as error:
        why = OTHER_SIZES if has_other_sizes(error) else error
        raise UserError(f"--detector {folder} cannot be loaded: {why}") from error
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        raise UserError(
            f"--detector {folder} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}: with random ones "
            "in their place its regions would mean nothing; give the folder of a trained detector"
        )
    return processor, model
