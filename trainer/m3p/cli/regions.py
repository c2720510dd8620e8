"""The command `m3p prepare regions`: region features of pictures, by a detector."""

from pathlib import Path
from typing import Annotated

import typer

from m3p.cli.prepare import FollowLinks
from m3p.errors import UserError
from m3p.prepare.pairs import report
from m3p.prepare.pictures import PictureFolder
from m3p.terminal import say

THREADS = 4


def regions_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="PICTURES", help="A folder of pictures, or a JSONL file of records with id and image."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; a run that was killed goes on there.")],
    detector: Annotated[
        Path,
        typer.Option(help="Local `transformers` folder of an object detector: DETR, RT-DETR, Deformable DETR, ..."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures of the records; the folder of the file if left out.")
    ] = None,
    regions: Annotated[int, typer.Option(min=1, help="Regions of a picture to keep, by their scores.")] = 36,
    classes: Annotated[int, typer.Option(min=1, help="Classes of a region to keep, by their probabilities.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the detector together.")] = 8,
    follow_links: FollowLinks = False,
) -> None:
    """Find regions in pictures with a detector of your own, and store their features: OUTPUT/NAME.npz a picture.

    Give the folder to `--regions` of the commands that write shards. Files are named by the ids of the records, or by the names
    of the pictures where PICTURES is a folder. Bad pictures are left out and named. A picture that is done is not done again.
    """
    # Late: torch and transformers take seconds to import.
    import torch

    from m3p.prepare.detect import detect, pictures_of_folder, pictures_of_records, record_of
    from m3p.prepare.detector import Detector
    from m3p.prepare.region_folder import NamedBy

    if not source.exists():
        raise UserError(f"{source} does not exist: give a folder of pictures, or a JSONL file of records.")
    by_image = source.is_dir()
    if by_image and images is not None:
        raise UserError(f"--images {images}: {source} is the folder of the pictures itself; leave --images out.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Detector(detector, regions, classes, device)
    wanted = pictures_of_folder(source) if by_image else pictures_of_records(source)
    pictures = PictureFolder(source if by_image else images or source.parent, follow_links)
    record = record_of(detector, NamedBy.IMAGE if by_image else NamedBy.ID, regions, classes)
    done = detect(model, wanted, pictures, output, record, batch_size, THREADS)
    if done.bad:
        say(f"left out: {report(str(source), done.bad)}")
    if not done.made + done.found:
        raise UserError(f"{source} holds no usable picture.")
    there = f", {done.found:,} were there already" if done.found else ""
    say(
        f"{output}: regions of {done.made:,} pictures made{there}, {len(done.bad):,} left out. In a recipe: "
        f"visual: {{kind: regions, feature_size: {done.feature_size}, classes: {model.classes}, max_regions: {regions}}}"
    )


def add_regions(app: typer.Typer) -> None:
    """Add the command to `m3p prepare`."""
    app.command("regions")(regions_command)
