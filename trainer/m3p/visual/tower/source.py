"""Vision towers as a visual source: any vision model of a local `transformers` folder, frozen or trained."""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from m3p.batch import Blank
from m3p.errors import BadSample, UserError
from m3p.fields import MAY_CHANGE
from m3p.paths import PathField
from m3p.visual.augment import PictureSource, augment
from m3p.visual.decode import IMAGE_KINDS, Pixels, decode, picture_kind
from m3p.visual.tower.embedder import GridTower, TowerEmbedder, TrainedTower
from m3p.visual.tower.folder import TowerFacts, make_tower, tower_facts, tower_files, tower_hash, write_tower
from m3p.visual.tower.store import MEMBER, StoredTower, read_tokens

LEAST_OF_FEATURE = 0.5
"""Least squared length of a target by which its error is divided: all have length 1."""
USUAL = Path(__file__).parent / "usual"
"""Settings, without weights, of the tower that a forecast takes for one that is not here."""
EXPORTED_TOWER = "vision_tower"
"""Folder of an exported run that holds its tower."""
SPARE = 2
"""A JPEG is scaled while it is decoded, but not below so many times the size that it is resized to: a tower was trained on
pictures resized from their full size, and less than this shows."""
GREY = 128
"""What is shown in the place of a hidden token."""


@dataclass(slots=True)
class TowerTokens:
    """A square picture that a tower turns into tokens, or the tokens that it did."""

    features: Pixels | NDArray[np.float16]
    """[1, size, size, 3], 0..255; or stored tokens [1, T, D]."""
    tokens: int

    @property
    def boxes(self) -> None:
        """None: a token's number says where it is."""

    @property
    def class_ids(self) -> None:
        """None."""

    def targets_at(self, places: NDArray[np.int64]) -> None:
        """Return None: the tower makes the targets."""

    def class_distribution_at(self, places: NDArray[np.int64]) -> None:
        """None: a tower's tokens have no classes."""

    @property
    def least_length(self) -> float:
        """Of a feature: its squared length is 1."""
        return LEAST_OF_FEATURE

    def blank(self, places: NDArray[np.int64]) -> Blank:
        """Show the embedder's own vectors for hidden tokens."""
        return Blank(None, places, places)


class Tower(PictureSource):
    """A vision model of a local `transformers` folder, and its grid of features pooled to `tokens` tokens a picture."""

    predicts_embedder: ClassVar[bool] = True
    stored_file: ClassVar[str | None] = MEMBER

    kind: Literal["tower"]
    folder: PathField = Field(
        json_schema_extra=MAY_CHANGE,
        description="Local `transformers` folder of a vision model, or of one of text and vision (CLIP, SigLIP).",
    )
    tokens: int = Field(49, ge=1, le=4096, description="Visual tokens of a picture; a square where `pool` is average.")
    pool: Literal["average", "queries"] = Field(
        "average",
        description="How the grid becomes `tokens` tokens: averaged, or by learned queries that attend to it.",
    )
    trained: Literal["none", "all"] | int = Field(
        "none",
        description="none: the tower is frozen; all: it is trained; N: it is trained from its layer N on (0: the first).",
    )
    rate: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Peak rate of a trained tower, in multiples of optimizer.learning_rate.",
    )

    @model_validator(mode="after")
    def _sane(self) -> "Tower":
        if self.pool == "average" and math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(f"tokens = {self.tokens} is no square, as the cells of a grid are: take 16, 25, 36 or 49")
        if isinstance(self.trained, int) and self.trained < 0:
            raise ValueError(f"trained = {self.trained}: layers count from 0; take none, all or the number of a layer")
        return self

    @cached_property
    def facts(self) -> TowerFacts:
        """What is known of the tower from its settings; asked for with each picture. Raises UserError."""
        facts = tower_facts(self.folder)
        if self.pool == "average" and self.tokens > facts.tokens:
            raise UserError(f"visual.tokens = {self.tokens}: the grid of {self.folder} has {facts.tokens}; lower it")
        if isinstance(self.trained, int) and self.trained >= facts.layers:
            raise UserError(
                f"visual.trained = {self.trained}: {self.folder} has {facts.layers} layers, 0 the first; lower it"
            )
        if isinstance(self.trained, int) and not facts.in_order:
            raise UserError(
                f"visual.trained = {self.trained}: {self.folder} does not use its layers in the order in which it holds them, so "
                "that training cannot begin at one; take none or all"
            )
        return facts

    @cached_property
    def _hash(self) -> str:
        """The hash of the tower, which is compared with that of each stored picture. Raises UserError."""
        return tower_hash(self.folder)

    @property
    def frozen(self) -> bool:
        """Whether the tower keeps its weights."""
        return self.trained == "none"

    @property
    def has_targets(self) -> bool:
        """Whether a hidden token can be predicted: what is learnt itself would be a target that moves."""
        return self.frozen and self.pool == "average"

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of a picture."""
        size = self.facts.preparation.size
        return size, size, 3

    @property
    def least(self) -> tuple[int, ...]:
        """Shape of the least that the embedder takes: a picture; of a frozen tower, which need not run, its tokens."""
        facts = self.facts
        return (1, self.grid_tokens, facts.width) if self.frozen else (1, *self.features)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape of the memory that a picture is prepared into."""
        return 1, *self.features

    @property
    def target_size(self) -> int:
        """Numbers of a tower's token."""
        return self.facts.width if self.has_targets else 0

    @property
    def tokens_per_picture(self) -> int:
        """Tokens."""
        return self.tokens

    @property
    def frozen_parameters(self) -> int:
        """Parameters of a frozen tower."""
        return self.facts.parameters if self.frozen else 0

    def stand_in(self) -> tuple["Tower", str]:
        """Return the tower, or where its folder is not here one of the size of SigLIP base for 224 pixels."""
        if self.folder.exists():
            return self, ""
        return self._with_folder(USUAL), (
            f"visual.folder = {self.folder} is not here: the sizes of SigLIP base with patches of 16 pixels are assumed"
        )

    def _with_folder(self, folder: Path) -> "Tower":
        """Return the source with another folder. Not by `model_copy`, which would keep what is known of this one."""
        return Tower(**{**{name: getattr(self, name) for name in Tower.model_fields}, "folder": folder})

    @property
    def grid_tokens(self) -> int:
        """Tokens that leave the tower and the averaging."""
        return self.facts.tokens if self.pool == "queries" else self.tokens

    def fingerprints(self) -> dict[str, str]:
        """Return the hash of the tower's settings and weights."""
        return {"folder": tower_hash(self.folder)}

    def export(self, embedder: nn.Module, folder: Path) -> None:
        """Copy the files of a frozen tower into an exported run, so that its hash stays; write a trained one anew."""
        assert isinstance(embedder, TowerEmbedder)
        inside = folder / EXPORTED_TOWER
        if isinstance(embedder.tower, TrainedTower):
            write_tower(embedder.tower.model, self.folder, inside)
            return
        inside.mkdir()
        for path in tower_files(self.folder):
            shutil.copyfile(path, inside / path.name)

    def exported_to(self, folder: Path) -> "Tower":
        """Return the source with its folder in an exported run."""
        return self._with_folder(folder / EXPORTED_TOWER)

    def load(
        self, members: Mapping[str, bytes | memoryview], draw: Iterator[float] | None, into: Pixels | None = None
    ) -> TowerTokens:
        """Decode, crop (by the sample's own `draw`; None: never), and resize into `into`; or read stored tokens.

        Raises BadSample.
        """
        if MEMBER in members:
            return self._load_stored(members[MEMBER])
        preparation = self.facts.preparation
        kind = picture_kind(members)
        if kind is None:
            raise BadSample(f"no picture (a member {', '.join(IMAGE_KINDS)})")
        pixels = decode(members[kind], SPARE * preparation.resized, self.max_pixels)
        if draw is not None:
            pixels = np.ascontiguousarray(augment(pixels, draw, self.crop, self.flip))
        into = np.empty(self.memory_shape, np.uint8) if into is None else into
        into[0] = preparation.resize(pixels)
        return TowerTokens(into, self.tokens)

    def _load_stored(self, data: bytes | memoryview) -> TowerTokens:
        """Read the tokens of a picture as this tower made them. Raises BadSample."""
        stored = read_tokens(data)
        wrong = self._misfit(stored.made_by)
        if wrong:
            raise BadSample(f"{MEMBER} has {stored.made_by}; {wrong}")
        return TowerTokens(stored.features()[None], self.tokens)

    def check_stored(self, folder: str, stored: StoredTower | None) -> None:
        """Raise UserError where stored tokens are not those that this tower would make of the pictures."""
        if stored is None:
            return
        wrong = self._misfit(stored)
        if not self.frozen:
            wrong = f"visual.trained = {self.trained} changes the tower: train on the pictures, or set trained: none"
        if wrong:
            raise UserError(f"{folder} has {stored}; {wrong}")

    def _misfit(self, stored: StoredTower) -> str:
        """Return why stored tokens are not those of this tower, and the way out; "" where they are."""
        if stored.tower != self._hash:
            return (
                f"visual.folder = {self.folder} is another tower ({self._hash}): name theirs, or make the features again "
                "with it"
            )
        if (stored.tokens, stored.width) != (self.grid_tokens, self.facts.width):
            needs = "all tokens of the grid" if self.pool == "queries" else f"visual.tokens = {self.tokens}"
            return (
                f"{needs} asks for {self.grid_tokens} x {self.facts.width}: make them with --tokens {self.grid_tokens}"
            )
        return ""

    def embedder(self, width: int, eps: float) -> nn.Module:
        """Return the module that turns pictures into vectors, the tower's weights loaded."""
        facts = self.facts
        on_meta = torch.empty(0).device.type == "meta"  # sizes alone are asked for
        model = make_tower(self.folder, weights=not on_meta)
        if self.trained == "none":
            tower = GridTower(model, facts)
        else:
            tower = TrainedTower(model, facts, None if self.trained == "all" else self.trained, self.rate)
        return TowerEmbedder(tower, facts, self.tokens, self.pool == "queries", width, eps)

    def embedder_flops(self, width: int) -> float:
        """Linear of the feature, forward and gradient of its weight; and of the feature too, where it is trained."""
        return 2 * (2 if self.has_targets else 3) * width * self.facts.width

    def pixel_flops(self) -> float:
        """The tower for a picture: forward, and backward through the layers that are trained (taken as alike), by its tokens."""
        return self.facts.flops * (1 + 2 * self._trained_share) / self.tokens

    def pixel_memory(self) -> float:
        """Numbers that the trained layers keep for the backward."""
        return self.facts.saved * self._trained_share / self.tokens

    def pixel_working_memory(self) -> float:
        """Numbers that a frozen tower has in use at once, before anything else of the network runs."""
        return self.facts.working / self.tokens if self.frozen else 0.0

    @property
    def _trained_share(self) -> float:
        """Share of the layers that are trained."""
        if isinstance(self.trained, int):
            return 1 - self.trained / self.facts.layers
        return 0.0 if self.frozen else 1.0

    def rows_to_hide(self, tokens: float) -> float:
        """None: the embedder has vectors for hidden tokens."""
        return 0.0

    def show(self, features: Tensor, rows: NDArray[np.int64]) -> Image.Image | None:
        """Return the picture whose tokens are `rows`, the cells of hidden ones grey; None where features are stored."""
        shown = rows[rows < len(features) * self.tokens]
        if features.ndim != 4 or not len(shown):
            return None
        picture = features[shown[0] // self.tokens].numpy().copy()
        side = math.isqrt(self.tokens)
        if side * side == self.tokens:
            edges = np.linspace(0, len(picture), side + 1).round().astype(int)
            for place in (rows >= len(features) * self.tokens).nonzero()[0].tolist():
                row, column = divmod(place, side)
                picture[edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = GREY
        return Image.fromarray(picture)
