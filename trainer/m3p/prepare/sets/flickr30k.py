"""Flickr30K's English captions in Karpathy's JSON file, dataset_flickr30k.json, in the form that coco.py reads."""

from m3p.prepare.published import HUMAN, Published, flickr30k_id, origin_of
from m3p.prepare.sets.coco import CaptionsFile, Splits, read_coco


def flickr30k(source: CaptionsFile, split: Splits = None) -> Published:
    """Flickr30K's captions to shards: Karpathy's dataset_flickr30k.json."""
    origin = origin_of("flickr30k", HUMAN, " ".join(split or []), file=source.name)
    return Published(str(source), read_coco(source, split or [], "en", flickr30k_id, "flickr30k"), origin, "en")
