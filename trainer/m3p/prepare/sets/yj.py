"""YJ captions 26k: five Japanese captions of 26,500 pictures of MSCOCO's train2014 (ACL P16-1168).

yjcaptions26k_clean.json, in the form of captions_*.json
"""

from pathlib import Path
from typing import Annotated

import typer

from m3p.errors import UserError
from m3p.prepare.published import HUMAN, Published, origin_of
from m3p.prepare.sets.coco import read_coco


def yj(source: Annotated[Path, typer.Argument(metavar="FILE.json", help="yjcaptions26k_clean.json.")]) -> Published:
    """YJ's Japanese captions of MSCOCO to shards."""
    if source.name.startswith("stair_captions"):
        raise UserError(f"{source} is of STAIR, by its name: give m3p prepare stair.")
    origin = origin_of("yj", HUMAN, licence="CC BY 4.0", file=source.name)
    return Published(str(source), read_coco(source, [], "ja"), origin, "ja")
