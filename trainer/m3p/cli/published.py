"""The commands `m3p prepare SET ...`: published sets of captions, as they are published, to shards."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from m3p.cli.prepare import FollowLinks, LeaveOut, Output, Overwrite, Regions, SamplesPerShard, SkipBad, say_pairs
from m3p.errors import UserError
from m3p.prepare.pairs import Options, write_pairs
from m3p.prepare.pictures import PictureFolder
from m3p.prepare.published import Published
from m3p.prepare.sets import IMPORTERS

Images = Annotated[
    Path | None, typer.Option(help="Folder of the pictures; leave it out where there are features alone.")
]
Licence = Annotated[str, typer.Option(help="Of the captions, as the manifest is to say it.")]


def _write(
    published: Published,
    output: Output,
    images: Images = None,
    regions: Regions = None,
    licence: Licence = "",
    leave_out: LeaveOut = None,
    follow_links: FollowLinks = False,
    skip_bad: SkipBad = False,
    samples_per_shard: SamplesPerShard = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Write what an importer has read: the options that all sets have."""
    folder = images or published.images
    if folder is None and regions is None and not published.has_pictures:
        raise UserError(
            f"{published.name}: give the folder of its pictures (--images), of their region features (--regions), or both."
        )
    pictures = None if folder is None else PictureFolder(folder, follow_links)
    origin = {**published.origin, **({"licence": licence} if licence else {})}
    unwanted = tuple(leave_out or ())
    options = Options(pictures, published.language, regions, skip_bad, samples_per_shard, overwrite, origin, unwanted)
    say_pairs(published.name, output, write_pairs(published.name, published.entries, output, options))


def command_of(importer: Callable[..., Published]) -> Callable[..., None]:
    """Return the command of an importer: its own arguments, then those of `_write`."""
    own = inspect.signature(importer).parameters
    _, *shared = inspect.signature(_write).parameters.values()

    def command(**given: Any) -> None:
        published = importer(**{name: given.pop(name) for name in own})
        _write(published, **given)

    every = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own.values(), *shared)]
    command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined] # typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    command.__doc__ = importer.__doc__
    return command


def add_published(app: typer.Typer) -> None:
    """Add the commands to `m3p prepare`."""
    for name, importer in IMPORTERS.items():
        app.command(name)(command_of(importer))
