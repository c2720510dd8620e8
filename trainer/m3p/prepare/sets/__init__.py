"""Published sets of captions, as they are published: one file a format, and a line here."""

from collections.abc import Callable

from m3p.prepare.published import Published
from m3p.prepare.sets.coco import coco
from m3p.prepare.sets.coco_cn import coco_cn
from m3p.prepare.sets.flickr30k import flickr30k
from m3p.prepare.sets.multi30k import multi30k
from m3p.prepare.sets.open_clip import open_clip
from m3p.prepare.sets.parquet import parquet
from m3p.prepare.sets.stair import stair
from m3p.prepare.sets.wit import wit
from m3p.prepare.sets.xflickrco import xflickrco
from m3p.prepare.sets.xm3600 import xm3600
from m3p.prepare.sets.xtd import xtd
from m3p.prepare.sets.yj import yj

IMPORTERS: dict[str, Callable[..., Published]] = {
    "coco": coco,
    "coco-cn": coco_cn,
    "flickr30k": flickr30k,
    "multi30k": multi30k,
    "open-clip": open_clip,
    "parquet": parquet,
    "stair": stair,
    "wit": wit,
    "xflickrco": xflickrco,
    "xm3600": xm3600,
    "xtd": xtd,
    "yj": yj,
}
"""Command of `m3p prepare` -> what reads the files that it is given; its arguments are those of the command."""
