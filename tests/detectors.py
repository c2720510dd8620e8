"""Small object detectors with random weights, as `transformers` saves trained ones."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessorPil,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

LABELS = 5
WIDTH = 32
"""Of a feature; Deformable DETR norms it in 32 groups."""
QUERIES = 9
SIZE = {"shortest_edge": 32, "longest_edge": 64}
STAGES: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
LAYERS: dict[str, Any] = {
    "d_model": WIDTH, "num_queries": QUERIES, "num_labels": LABELS, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip


def _detr() -> tuple[Any, Any]:
    backbone = ResNetConfig(**STAGES, out_features=["stage4"])
    return DetrForObjectDetection(DetrConfig(**LAYERS, backbone_config=backbone)), DetrImageProcessorPil(size=SIZE)


def _deformable() -> tuple[Any, Any]:
    backbone = ResNetConfig(**STAGES, out_features=["stage2", "stage3", "stage4"])
    config = DeformableDetrConfig(**LAYERS, backbone_config=backbone, num_feature_levels=3)
    return DeformableDetrForObjectDetection(config), DeformableDetrImageProcessorPil(size=SIZE)


def _rt_detr() -> tuple[Any, Any]:
    config = RTDetrConfig(
        **{**LAYERS, "encoder_layers": 1},
        backbone_config=RTDetrResNetConfig(**STAGES, out_features=["stage2", "stage3", "stage4"]),
        encoder_hidden_dim=WIDTH, encoder_in_channels=[16, 16, 16], decoder_in_channels=[WIDTH] * 3, num_denoising=0,
        decoder_n_points=2,
    )  # fmt: skip
    return RTDetrForObjectDetection(config), RTDetrImageProcessorPil(size={"height": 64, "width": 64})


def _yolos() -> tuple[Any, Any]:
    config = YolosConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        num_detection_tokens=QUERIES, num_labels=LABELS,
    )  # fmt: skip
    return YolosForObjectDetection(config), YolosImageProcessorPil(size=SIZE)


MAKERS = {
    "detr": _detr,
    "deformable": _deformable,
    "rt_detr": _rt_detr,
    "yolos": _yolos,
}


def make_detector(folder: Path, kind: str) -> Path:
    """Write a detector of one of the `MAKERS` into `folder`, with weights that tell queries and classes apart."""
    torch.manual_seed(0)
    model, processor = MAKERS[kind]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
