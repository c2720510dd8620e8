"""Small towers with random weights as `transformers` folders, one of each architecture; and what `transformers` sees by them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = 32
"""Pixels of a side of their pictures."""
NAMES = ("vit", "dinov2", "clip", "siglip", "swin", "convnext", "efficientnet")
REAL, REAL_FOLDER = "real", "M3P_TEST_TOWER"
"""Name of a tower with trained weights, which no test can make, and the environment's variable that says where its folder is."""
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIZE,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_SQUARE = {"height": SIZE, "width": SIZE}


def make_tower_folder(folder: Path, name: str) -> Path:
    """Write a tower and its image processor into `folder`; return the folder."""
    from m3p.quiet import quiet

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(NAMES.index(name))
        model, processor = _make(name)
        for buffer in model.buffers():  # batch norms that have seen pictures
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def _make(name: str) -> tuple[Any, Any]:
    """Return a network and its image processor."""
    import transformers as t

    if name == "vit":
        return t.ViTModel(t.ViTConfig(**_VIT)), t.ViTImageProcessorPil(size=_SQUARE)
    if name == "dinov2":
        config = t.Dinov2Config(**{**_VIT, "mlp_ratio": 2})
        return t.Dinov2Model(config), t.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=_SQUARE)
    if name == "clip":
        config = t.CLIPConfig(text_config=_TEXT, vision_config=_VIT, projection_dim=8)
        return t.CLIPModel(config), t.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=_SQUARE)
    if name == "siglip":
        config = t.SiglipConfig(text_config=_TEXT, vision_config=_VIT)
        return t.SiglipModel(config), t.SiglipImageProcessorPil(size=_SQUARE)
    if name == "swin":
        config = t.SwinConfig(
            image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
        )
        return t.SwinModel(config), t.ViTImageProcessorPil(size=_SQUARE)
    if name == "convnext":
        config = t.ConvNextConfig(
            image_size=SIZE, hidden_sizes=[8, 8, 12], depths=[1, 1, 2], num_stages=3, layer_scale_init_value=0.5
        )
        return t.ConvNextModel(config), t.ConvNextImageProcessorPil(size={"shortest_edge": SIZE})
    assert name == "efficientnet", name
    config = t.EfficientNetConfig(
        image_size=SIZE, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, strides=[1, 1, 2, 2, 1, 2, 1]
    )  # hidden_dim: 1,280 times the width
    return t.EfficientNetModel(config), t.EfficientNetImageProcessorPil(size=_SQUARE)


def pixels_by_transformers(folder: Path, picture: Any) -> Tensor:
    """Return what the folder's own image processor makes of a picture (Pillow): [1, 3, size, size]."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    return torch.from_numpy(np.asarray(processor(picture, return_tensors="np")["pixel_values"]))


def grid_by_transformers(folder: Path, pixels: Tensor, tokens: int) -> Tensor:
    """Return the grid of so many tokens that the folder's whole model gives, row by row: [1, tokens, D]."""
    from transformers import AutoModel

    from m3p.quiet import quiet

    with quiet():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    model = getattr(model, "vision_model", model)
    with torch.inference_mode():
        found: Tensor = model(pixel_values=pixels).last_hidden_state
    if found.ndim == 4:
        return found.flatten(2).transpose(1, 2)
    return found[:, -tokens:]
