"""The commands `m3p prepare SET ...`: published sets of captions, as they are published, to shards."""

from pathlib import Path
from typing import Annotated

import typer

from m3p.cli.prepare import FollowLinks, Output, Overwrite, Regions, SamplesPerShard, SkipBad, say_pairs
from m3p.prepare.sets.coco import read_coco
from m3p.prepare.sets.multi30k import SOURCES, read_multi30k
from m3p.prepare.pairs import Options, write_pairs
from m3p.prepare.pictures import PictureFolder

Images = Annotated[Path, typer.Option(help="Folder of the pictures.")]
CaptionsFile = Annotated[
    Path, typer.Argument(metavar="FILE.json", help="dataset_*.json (Karpathy) or captions_*.json.")
]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Split of Karpathy's file; may be given again (train, restval).")
]
CaptionLanguage = Annotated[str, typer.Option(help="Language of the captions; ja for STAIR's.")]


def multi30k_command(
    folder: Annotated[Path, typer.Argument(help="data/task1 or data/task2 of github.com/multi30k/dataset.")],
    images: Images,
    output: Output,
    task: Annotated[
        int, typer.Option(min=1, max=2, help="1: translations, a caption a picture; 2: written independently, five.")
    ],
    split: Annotated[
        str, typer.Option(help="As its list of pictures is called: train, val, test_2016_flickr.")
    ] = "train",
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Only this one; may be given again.")
    ] = None,
    follow_links: FollowLinks = False,
    regions: Regions = None,
    skip_bad: SkipBad = False,
    samples_per_shard: SamplesPerShard = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Multi30K to shards: Task 1 in en, de, fr and cs, or Task 2 in en and de. The manifest says which."""
    entries = read_multi30k(folder, task, split, languages)
    origin = {"set": "multi30k", "task": str(task), "split": split, "captions": SOURCES[task]}
    pictures = PictureFolder(images, follow_links)
    options = Options(pictures, None, regions, skip_bad, samples_per_shard, overwrite, origin)
    say_pairs(str(folder), output, write_pairs(str(folder), entries, output, options))


def coco_command(
    source: CaptionsFile,
    images: Images,
    output: Output,
    split: Splits = None,
    language: CaptionLanguage = "en",
    follow_links: FollowLinks = False,
    regions: Regions = None,
    skip_bad: SkipBad = False,
    samples_per_shard: SamplesPerShard = 1000,
    overwrite: Overwrite = False,
) -> None:
    """MSCOCO's captions to shards: Karpathy's dataset_coco.json, or captions_*.json (STAIR's too)."""
    options = Options(
        PictureFolder(images, follow_links),
        language,
        regions,
        skip_bad,
        samples_per_shard,
        overwrite,
        _origin("coco", source, split),
    )
    say_pairs(str(source), output, write_pairs(str(source), read_coco(source, split or [], language), output, options))


def flickr30k_command(
    source: CaptionsFile,
    images: Images,
    output: Output,
    split: Splits = None,
    follow_links: FollowLinks = False,
    regions: Regions = None,
    skip_bad: SkipBad = False,
    samples_per_shard: SamplesPerShard = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Flickr30K's captions to shards: Karpathy's dataset_flickr30k.json."""
    options = Options(
        PictureFolder(images, follow_links),
        "en",
        regions,
        skip_bad,
        samples_per_shard,
        overwrite,
        _origin("flickr30k", source, split),
    )
    say_pairs(str(source), output, write_pairs(str(source), read_coco(source, split or [], "en"), output, options))


def _origin(name: str, source: Path, splits: list[str] | None) -> dict[str, str]:
    """Return what the manifest says of a set that one JSON file describes."""
    return {"set": name, "file": source.name, **({"split": " ".join(splits)} if splits else {})}


def add_published(app: typer.Typer) -> None:
    """Add the commands to `m3p prepare`."""
    app.command("multi30k")(multi30k_command)
    app.command("coco")(coco_command)
    app.command("flickr30k")(flickr30k_command)
