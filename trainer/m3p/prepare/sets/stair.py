"""STAIR captions: five Japanese captions of each picture of MSCOCO 2014, in the form of captions_*.json (arXiv 1705.00823).

stair_captions_v1.2_train.json, stair_captions_v1.2_val.json
"""

from pathlib import Path
from typing import Annotated

import typer

from m3p.errors import UserError
from m3p.prepare.published import HUMAN, Published, origin_of
from m3p.prepare.sets.coco import read_coco


def stair(
    source: Annotated[Path, typer.Argument(metavar="FILE.json", help="stair_captions_v1.2_train.json or _val.json.")],
) -> Published:
    """STAIR's Japanese captions of MSCOCO to shards."""
    if source.name.startswith("yjcaptions"):
        raise UserError(f"{source} is of YJ, by its name: give m3p prepare yj.")
    split = next((name for name in ("train", "val") if f"_{name}" in source.name), "")
    origin = origin_of("stair", HUMAN, split, "CC BY 4.0", file=source.name)
    return Published(str(source), read_coco(source, [], "ja"), origin, "ja")
