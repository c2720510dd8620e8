"""What a visual source is: one class that holds all that the program knows of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from m3p.batch import Picture
from m3p.errors import UserError
from m3p.visual.decode import MAX_PIXELS
from m3p.visual.tower.store import StoredTower

Members = Mapping[str, bytes | memoryview]
"""Contents of a sample's files by extension: "json", "jpg", "regions.npz"."""


class VisualSource(BaseModel):
    """Recipe fields of a visual source, how its pictures are loaded, and the module that embeds them.

    A subclass has a field `kind: Literal["its name"]`, and a line in visual/__init__.py.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs_pictures: ClassVar[bool] = True
    """Whether it reads pictures. If not, it reads the features in `stored_file`, and cannot see pixels."""
    stored_file: ClassVar[str | None] = None
    """Extension of the file of stored features that it can read in place of a picture: "regions.npz"; None: it reads none.

    A sample that has this file needs no picture to be indexed."""
    predicts_embedder: ClassVar[bool] = False
    """Whether masked tokens are predicted as the embedder sees them in the whole picture.

    The embedder then returns (vectors [R, width], numbers to be predicted [R, target_size]), and `Picture.targets_at` None.
    Rows of vectors behind those of all pictures are the embedder's own, for hidden tokens (`Blank.picture` None)."""

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of a picture's features behind their first axis."""
        raise NotImplementedError

    @property
    def least(self) -> tuple[int, ...]:
        """Shape of the least features that the embedder takes, first axis included."""
        raise NotImplementedError

    @property
    def target_size(self) -> int:
        """Numbers that are predicted of a masked token."""
        raise NotImplementedError

    @property
    def tokens_per_picture(self) -> int:
        """Tokens of a picture, at most."""
        raise NotImplementedError

    @property
    def target_classes(self) -> int:
        """Object classes that are predicted of a masked token; 0: none."""
        return 0

    @property
    def has_targets(self) -> bool:
        """Whether a hidden token can be predicted."""
        return True

    @property
    def background_class(self) -> int | None:
        """A class of tokens that are never masked."""
        return None

    @property
    def augments(self) -> bool:
        """Whether training pictures are changed at random."""
        return False

    @property
    def memory_shape(self) -> tuple[int, ...] | None:
        """Shape of the memory that a picture is decoded into; None where pictures differ in size and bring their own."""
        return None

    @property
    def shown_pixels(self) -> int:
        """Pixels of the largest stored picture that `m3p data peek` decodes."""
        return MAX_PIXELS

    def export(self, embedder: nn.Module, folder: Path) -> None:
        """Write the files that the fields name into an exported run, those of `embedder` where they were trained."""

    def exported_to(self, folder: Path) -> "VisualSource":
        """Return the source as it is in an exported run: its fields name the files that `export` has written there."""
        return self

    def check(self, folder: str, width: int | None) -> None:
        """Raise UserError where the source in `folder`, whose stored region features have `width` numbers, does not fit."""

    def check_source(self, folder: str, region_features: int | None, without_picture: int) -> None:
        """Raise UserError where the source in `folder` does not fit.

        Args:
            folder: for messages.
            region_features: numbers of a stored region feature; None where there are none.
            without_picture: samples that have stored features, such as regions, and no picture.
        """
        if self.needs_pictures and without_picture:
            raise UserError(
                f"visual.kind needs pictures, but {without_picture:,} samples of {folder} have stored features alone: use kind: "
                "regions, or the one that they were stored for, or prepare the source again with --images"
            )
        self.check(folder, region_features)

    def check_stored(self, folder: str, stored: StoredTower | None) -> None:
        """Raise UserError where the source in `folder` has tokens of a tower instead of pictures, which do not fit."""
        if stored is not None:
            raise UserError(
                f"{folder} has {stored} instead of pictures; set visual.kind: tower with that tower's folder, or name the source "
                "that it was made from"
            )

    def files_of(self, content: bytes) -> Members:
        """Return a sample's files for `content`, the bytes of one file that a user gives in place of a picture.

        Raises BadSample where they cannot be what the source reads.
        """
        return {self.stored_file or "": content} if not self.needs_pictures else {"jpg": content}

    def load(self, members: Members, draw: Iterator[float] | None, into: NDArray[np.uint8] | None = None) -> Picture:
        """Return the picture of a sample, decoded into `into` where it fits; `draw` augments it. Raises BadSample."""
        raise NotImplementedError

    def embedder(self, width: int, eps: float) -> nn.Module:
        """Return the module that turns features [N, ...] and boxes [R, 4] into vectors [R, width]; `eps`: of layer norms.

        What it loads stands in a module marked by `keep_weights`, else the network draws the weights anew. What is not to be
        trained is in a `Frozen`. Both are in visual/pretrained.py.
        """
        raise NotImplementedError

    def embedder_flops(self, width: int) -> float:
        """Return the operations of forward and backward through the embedder, for a token.

        Without what it does with pixels alone, and not with what is stored of them: that is `pixel_flops`.
        """
        raise NotImplementedError

    def pixel_flops(self) -> float:
        """Return the operations, a token, that a picture costs which comes as pixels, where it may come otherwise too."""
        return 0.0

    def pixel_memory(self) -> float:
        """Return how many numbers, a token, are kept for the backward of `pixel_flops`; for the forecast."""
        return 0.0

    def pixel_working_memory(self) -> float:
        """Return how many numbers, a token, are in use at once while a frozen part looks at pixels; for the forecast."""
        return 0.0

    def stand_in(self) -> tuple["VisualSource", str]:
        """Return a source of usual sizes, and what is assumed, where files that the fields name are not here; else itself, ""."""
        return self, ""

    @property
    def frozen_parameters(self) -> int:
        """Parameters that stand apart from the network (`Frozen`); for the forecast."""
        return 0

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the files that the fields name, by field: a run goes on only if they are as they were."""
        return {}

    def rows_to_hide(self, tokens: float) -> float:
        """Return how many rows a batch has besides, where so many tokens of a picture are hidden; for the forecast."""
        raise NotImplementedError

    def show(self, features: Tensor, rows: NDArray[np.int64]) -> Image.Image | None:
        """Return what the network sees of the picture whose tokens are `rows` of the batch's `features`; None: no image."""
        return None
