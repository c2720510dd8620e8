"""Visual sources: what a picture becomes, from bytes to tokens.

A source is one file with one class, a subclass of `VisualSource` (source.py): its recipe fields, `load` (bytes to `Picture`, run
by the data workers), `embedder` (the module that makes vectors of them, run by the network), and what else is asked of
it. To add one, write its file and its line in `VisualConfig`.
"""

from typing import Annotated

from pydantic import Field

from m3p.visual.patches import Patches
from m3p.visual.regions import Regions
from m3p.visual.source import VisualSource
from m3p.visual.tower.source import Tower

__all__ = ["VisualConfig", "VisualSource"]

VisualConfig = Annotated[
    Regions
    | Patches
    | Tower,
    Field(discriminator="kind"),
]  # fmt: skip
