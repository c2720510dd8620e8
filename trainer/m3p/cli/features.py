"""The command `m3p prepare features`: what a frozen vision tower says of pictures, stored once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from m3p.errors import UserError
from m3p.terminal import one_line, say

LISTED = 20


def features_command(
    source: Annotated[
        Path, typer.Argument(metavar="SHARDS", help="A folder of shards with pictures and a manifest.json.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; a run that was killed goes on there.")],
    tower: Annotated[
        Path, typer.Option(help="Local `transformers` folder of a vision model: ViT, DINOv2, CLIP, SigLIP, Swin, ...")
    ],
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that the grid is averaged to, a square; all of the grid if left out."),
    ] = None,
    type: Annotated[
        Literal["float16", "int8"], typer.Option(help="How numbers are stored; int8 takes half and rounds more.")
    ] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the tower together.")] = 32,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes side by side, each with shards of its own; one a GPU if left out."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="cuda takes all GPUs; it is the default where there is one.")
    ] = None,
) -> None:
    """Run a frozen vision tower over the pictures of shards once, and store what it says: training then reads features.

    OUTPUT has the same samples in the same order with the same captions. Name it as a source in place of SHARDS, under
    `visual: {kind: tower, folder: TOWER, tokens: TOKENS}`. A shard that is done is not done again.
    """
    # Late: torch takes seconds to import.
    import torch

    from m3p.prepare.features import prepare_features

    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: no GPU is here; leave it out, or say cpu.")
    device = device or ("cuda" if gpus else "cpu")
    processes = processes or (gpus if device == "cuda" else 1)
    made = prepare_features(source, tower, output, tokens, type, batch_size, processes, device)
    if made.bad:
        more = [f"... and {len(made.bad) - LISTED} more"] if len(made.bad) > LISTED else []
        lines = "\n  ".join([*map(one_line, made.bad[:LISTED]), *more])
        say(f"{len(made.bad):,} pictures cannot be read; training skips their samples:\n  {lines}")
    say(
        f"{output}: {made.manifest.samples:,} samples in {len(made.manifest.shards)} shards, {made.shards} made now; "
        f"{made.manifest.stored_tower}"
    )


def add_features(app: typer.Typer) -> None:
    """Add the command to `m3p prepare`."""
    app.command("features")(features_command)
