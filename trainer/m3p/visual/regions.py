"""Stored region features of an object detector: M3P's own visual source (`KEY.regions.npz`)."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from m3p.batch import Blank
from m3p.errors import BadSample, UserError
from m3p.visual.npz import MARK, read_npz
from m3p.visual.source import VisualSource

FILE = "regions.npz"
"""Extension of the file that holds a picture's regions."""
LEAST_OF_FEATURE = 0.5
"""Least squared length of a feature by which its error is divided."""
BOX_SLACK = 0.01
"""Detectors round: a box may stick out of its picture by so much of a side."""
BOX_INPUTS = 5
"""Numbers of a box as the embedder takes it: its corners and its area."""


class ClassDistribution(NamedTuple):
    """What the detector holds R regions to be: some classes of each, and how probable they are."""

    ids: NDArray[np.int64]
    """[R, K]"""
    probs: NDArray[np.float32]
    """[R, K]; a region's add up to 1."""
    classes: int
    """Classes of the detector."""

    def at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probability of every class of the regions at `places` [N]: [N, classes]."""
        found = np.zeros((len(places), self.classes), np.float32)
        rows = np.arange(len(places))[:, None]
        np.add.at(found, (rows, self.ids[places]), self.probs[places])
        return found


class RegionTokens(NamedTuple):
    """Regions of a picture, each with a feature and a box."""

    features: NDArray[np.float32]
    """[R, F]"""
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64] | None = None
    distribution: ClassDistribution | None = None
    """Predicted instead of `class_ids`, where it is there."""

    @property
    def tokens(self) -> int:
        """Regions."""
        return len(self.features)

    def targets_at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features at `places` [K]: [K, F]."""
        return self.features[places]

    def class_distribution_at(self, places: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the probability of every class of the regions at `places` [K], or None: [K, C]."""
        return None if self.distribution is None else self.distribution.at(places)

    @property
    def least_length(self) -> float:
        """Of a feature: its squared length is 1, or 0 where there is none."""
        return LEAST_OF_FEATURE

    def blank(self, places: NDArray[np.int64]) -> Blank:
        """Show regions without a feature (zeros) in the boxes of those at `places` [K]."""
        nothing = np.zeros((len(places), self.features.shape[1]), self.features.dtype)
        return Blank(RegionTokens(nothing, self.boxes[places]), places, np.arange(len(places)))


class Regions(VisualSource):
    """Region features, L2-normalised, with their boxes and object classes."""

    needs_pictures: ClassVar[bool] = False
    stored_file: ClassVar[str | None] = FILE
    kind: Literal["regions"]
    feature_size: int = Field(2048, ge=1, description="Width of a region's feature, as stored in the shards.")
    classes: int = Field(1600, ge=0, description="Object classes of the detector; 0: no class loss.")
    class_target: Literal["likeliest", "distribution"] = Field(
        "likeliest",
        description="What the class loss of masked regions compares with: the likeliest class (cross-entropy), or the whole "
        "stored distribution (KL divergence, UNITER's mrc-kl), which needs class_probs in the shards.",
    )
    max_regions: int = Field(100, ge=1, description="Regions of a picture that are used, in stored order.")
    background: int | None = Field(
        None, ge=0, description="A class that is never a masking target (0 in Visual Genome)."
    )

    @property
    def target_size(self) -> int:
        """Numbers of a region's feature."""
        return self.feature_size

    @property
    def target_classes(self) -> int:
        """Object classes of the detector."""
        return self.classes

    @property
    def background_class(self) -> int | None:
        """The class that is never a masking target."""
        return self.background

    @property
    def tokens_per_picture(self) -> int:
        """Regions that are used, at most."""
        return self.max_regions

    def check(self, folder: str, width: int | None) -> None:
        """Raise UserError unless the source in `folder` stores features of our width."""
        if width != self.feature_size:
            has = "no region features" if width is None else f"region features of width {width}"
            raise UserError(
                f"visual.feature_size = {self.feature_size}, but {folder} has {has}: set the width that its detector gave, "
                "prepare it with --regions, or use kind: patches"
            )

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of a region's feature."""
        return (self.feature_size,)

    @property
    def least(self) -> tuple[int, ...]:
        """Shape of the least that the embedder takes: one region."""
        return 1, self.feature_size

    def load(
        self,
        members: Mapping[str, bytes | memoryview],
        draw: Iterator[float] | None,
        into: NDArray[np.uint8] | None = None,
    ) -> RegionTokens:
        """Read `regions.npz`; neither `draw`, since regions are not augmented, nor `into` is used. Raises BadSample."""
        if FILE not in members:
            raise BadSample("no member regions.npz")
        try:
            arrays = read_npz(members[FILE])
            boxes, features = _array(arrays, "boxes"), _array(arrays, "features")
            ids = _array(arrays, "class_ids") if self.classes else None
            wanted = self.classes and ("class_probs" in arrays or self._predicts_distribution)
            probs = _array(arrays, "class_probs") if wanted else None
        except Exception as error:  # on broken bytes its parsers raise nearly anything, from KeyError to TokenError
            raise BadSample(f"unreadable {FILE}: {error}") from error
        _check(boxes, features, self.feature_size)
        limit, distribution = self.max_regions, None
        if ids is not None:
            _check_classes(ids, probs, len(features))
            ids, probs = ids[:limit], None if probs is None else probs[:limit]
            if self._predicts_distribution:
                distribution = _distribution(ids, probs, self.classes)
            ids = _most_likely(ids, probs, self.classes)
        _check_finite("features", features[limit:])
        return RegionTokens(_normalised(features[:limit]), boxes[:limit].astype(np.float32), ids, distribution)

    def files_of(self, content: bytes) -> Mapping[str, bytes | memoryview]:
        """Return a sample's files for the bytes of an npz. Raises BadSample for a picture."""
        if not content.startswith(MARK):
            raise BadSample(
                "this network was trained on region features and cannot see pixels; give npz files with boxes [R, 4] and "
                f"features [R, {self.feature_size}] of the detector that it was trained with"
            )
        return {FILE: content}

    @property
    def _predicts_distribution(self) -> bool:
        return self.class_target == "distribution"

    def embedder(self, width: int, eps: float) -> nn.Module:
        """Return the module that turns features and boxes into vectors."""
        return RegionEmbedder(self.feature_size, width, eps)

    def embedder_flops(self, width: int) -> float:
        """Linear of feature, box and area, forward and gradient of its weight: nothing before it is trained."""
        return 2 * 2 * width * (self.feature_size + BOX_INPUTS)

    def rows_to_hide(self, tokens: float) -> float:
        """A region without a feature for each."""
        return tokens


class RegionEmbedder(nn.Module):
    """Linear of the feature + Linear of the box and its area, layer norm.

    The box is not normalised as a whole (M3P's code does), which would lose its size.
    """

    def __init__(self, feature_size: int, width: int, eps: float) -> None:
        super().__init__()
        self.feature = nn.Linear(feature_size, width)
        self.box = nn.Linear(BOX_INPUTS, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`features` [R, F], `boxes` [R, 4] in 0..1: -> [R, width]."""
        features, boxes = features.to(self.feature.weight.dtype), boxes.to(self.box.weight.dtype)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return self.norm(self.feature(features) + self.box(torch.cat([boxes, area[:, None]], 1)))


def _array(arrays: Mapping[str, Any], name: str) -> NDArray[Any]:
    """Return one of the arrays; numpy hands over a file without the mark of one as it is, as bytes."""
    found = arrays[name]
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{name} is no array")
    return found


def _check(boxes: NDArray[np.generic], features: NDArray[np.generic], width: int) -> None:
    if features.ndim != 2 or features.shape[1] != width:
        raise BadSample(f"features are {features.shape}, but visual.feature_size is {width}")
    if boxes.shape != (len(features), 4) or not len(features):
        raise BadSample(
            f"boxes are {boxes.shape} for {len(features)} regions: want one row of 4 a region, at least one"
        )
    for name, array in (("boxes", boxes), ("features", features)):
        if array.dtype.kind not in "fiu":
            raise BadSample(f"{name} are {array.dtype}: want numbers")
    _check_finite("boxes", boxes)
    low, high = boxes.min(), boxes.max()
    if low < -BOX_SLACK or high > 1 + BOX_SLACK:
        raise BadSample(
            f"boxes run from {low:.4g} to {high:.4g}: want x1, y1, x2, y2 in 0..1; divide pixels by width and height"
        )
    if ends_before_it_begins(boxes):
        raise BadSample(f"boxes {ENDS_BEFORE}")


ENDS_BEFORE = "end before they begin: want x1, y1, x2, y2; add x and y to width and height"
"""What is wrong with boxes of x, y, width and height, as COCO writes them."""


def ends_before_it_begins(boxes: NDArray[Any]) -> bool:
    """Tell whether any box [R, 4], in shares of its picture, ends left of or above its beginning by more than rounding."""
    return bool((boxes[:, :2] - boxes[:, 2:] > BOX_SLACK).any())


def _check_finite(name: str, array: NDArray[Any]) -> None:
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise BadSample(f"NaN, infinity or a number beyond float32 in the {name}")


def _normalised(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return [R, F] with rows of unit length. Raises BadSample."""
    if features.dtype not in (np.float16, np.float32):
        _check_finite("features", features)
        features = features.astype(np.float32)
    # By torch: numpy has no fast way from float16.
    rows = torch.from_numpy(np.require(features, requirements="A")).to(torch.float32, copy=True)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not norms.isfinite().all():  # or the sum of squares alone is too large
        _check_finite("features", features)
    return rows.div_(norms.clamp_(min=1e-12)).numpy()


def _check_classes(ids: NDArray[np.generic], probs: NDArray[np.generic] | None, count: int) -> None:
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or len(ids) != count or not ids.size:
        raise BadSample(f"class_ids are {ids.dtype} {ids.shape} for {count} regions: want whole numbers, [R] or [R, K]")
    if probs is not None and (probs.dtype.kind != "f" or probs.shape != ids.shape):
        raise BadSample(f"class_probs are {probs.dtype} {probs.shape}: want floats, {ids.shape} like class_ids")


def _distribution(ids: NDArray[Any], probs: NDArray[Any] | None, classes: int) -> ClassDistribution:
    """Return the stored classes of each region with probabilities that add up to 1. Raises BadSample.

    Where only the likeliest classes are stored, the others have none.
    """
    assert probs is not None, "asked for"
    if ids.ndim == 1:
        ids, probs = ids[:, None], probs[:, None]
    _check_ids(ids, classes)
    probs = probs.astype(np.float32)
    total = probs.sum(1, keepdims=True)
    if not (np.isfinite(total).all() and probs.min() >= 0 and total.min() > 0):
        raise BadSample("class_probs of a region are negative, not finite, or all zero")
    return ClassDistribution(ids.astype(np.int64), probs / total, classes)


def _most_likely(ids: NDArray[Any], probs: NDArray[Any] | None, classes: int) -> NDArray[np.int64]:
    """Return the class of each region: as stored, or the likeliest of the stored few."""
    if ids.ndim == 2:
        best = np.zeros(len(ids), np.int64) if probs is None else probs.argmax(1)
        ids = ids[np.arange(len(ids)), best]
    ids = ids.astype(np.int64)
    _check_ids(ids, classes)
    return ids


def _check_ids(ids: NDArray[Any], classes: int) -> None:
    if not (ids.min() >= 0 and ids.max() < classes):
        raise BadSample(f"a class id of {ids.min()}..{ids.max()} is outside 0..{classes - 1} (visual.classes)")
