"""The commands `m3p prepare regions` and `import-regions`: region features of pictures, by a detector or as published."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from m3p.cli.prepare import FollowLinks, Output, Overwrite, SkipBad
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


def import_regions_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="A TSV of bottom-up attention or LXMERT, a folder of MMF's .npy or of VinVL's TSVs, M3P's HDF5 or volta's LMDB."
        ),
    ],
    output: Output,
    format: Annotated[
        str | None,
        typer.Option(help="bottom-up, mmf, vinvl, m3p-hdf5 or volta-lmdb; recognised by the file if left out."),
    ] = None,
    named_by: Annotated[
        Literal["id", "image"] | None,
        typer.Option(
            help="What the file calls pictures by: the ids of records, or names of files. By default the format's."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes of a region to keep of a whole distribution.")] = 10,
    class_names: Annotated[
        Path | None, typer.Option(help="Names of VinVL's classes: a name a line, or JSON with label_to_idx.")
    ] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Published region features to a folder of NAME.npz, for `--regions` of the commands that write shards.

    Boxes in pixels become shares of the picture. Nothing in a file is executed: MMF's pickled _info.npy are read as plain data.
    """
    from m3p.prepare.import_regions import import_regions, read_class_names
    from m3p.prepare.region_folder import NamedBy
    from m3p.prepare.region_formats.stored import ReadOptions

    options = ReadOptions(classes, read_class_names(class_names) if class_names else None)
    name = NamedBy(named_by) if named_by else None
    done = import_regions(source, output, options, format, name, skip_bad, overwrite)
    if done.bad:
        say(f"skipped: {report(str(source), done.bad)}")
    kept = "with classes" if done.classes else "without classes: set visual.classes to 0"
    say(
        f"{output}: regions of {done.pictures:,} pictures ({done.format}), {done.feature_size} wide, {kept}; named by "
        f"{'the names of the pictures' if done.named_by is NamedBy.IMAGE else 'the ids of records'}"
    )


def add_regions(app: typer.Typer) -> None:
    """Add the commands to `m3p prepare`."""
    app.command("regions")(regions_command)
    app.command("import-regions")(import_regions_command)
