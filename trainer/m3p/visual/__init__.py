"""Visual sources: what a picture becomes, from bytes to tokens.

A source is one file with one class, a subclass of `VisualSource` (source.py): its recipe fields, `load` (bytes to `Picture`, run
by the data workers), `embedder` (the module that makes vectors of them, run by the network), and what else is asked of
it. To add one, write its file and its line in `VisualConfig`.
"""

from collections.abc import Container
from typing import Annotated, get_args

from pydantic import Field

from m3p.visual.decode import picture_kind
from m3p.visual.patches import Patches
from m3p.visual.regions import Regions
from m3p.visual.source import VisualSource
from m3p.visual.tower.source import Tower
from m3p.visual.tower.store import MEMBER

__all__ = ["STORED_FILES", "VISUAL_KINDS", "VisualConfig", "VisualSource", "main_file"]

VisualConfig = Annotated[
    Regions
    | Patches
    | Tower,
    Field(discriminator="kind"),
]  # fmt: skip

_SOURCES: tuple[type[VisualSource], ...] = get_args(get_args(VisualConfig)[0])
VISUAL_KINDS: tuple[str, ...] = tuple(get_args(source.model_fields["kind"].annotation)[0] for source in _SOURCES)
"""What `visual.kind` may be."""
STORED_FILES = tuple(source.stored_file for source in _SOURCES if source.stored_file is not None)
"""Extensions of the files of stored features that sources read in place of a picture: "regions.npz", "tower.npz"."""


def main_file(members: Container[str]) -> str | None:
    """Return the extension of the file that tells what a sample shows: its picture, or else its stored features; or None.

    Tokens of a tower are left out: they name the picture that they are of.
    """
    return picture_kind(members) or next((name for name in STORED_FILES if name != MEMBER and name in members), None)
