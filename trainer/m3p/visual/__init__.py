"""Visual sources: what a picture becomes, from bytes to tokens.

A source is one file with one class: its recipe fields, `load` (bytes -> `Picture`, run by the data workers) and
`embedder` (tokens -> vectors, run by the network). To add one, write its file and add it to `VisualConfig`.
"""

from typing import Annotated

from pydantic import Field

from m3p.visual.patches import Patches
from m3p.visual.regions import Regions

VisualConfig = Annotated[Regions | Patches, Field(discriminator="kind")]
