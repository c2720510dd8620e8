"""The commands `m3p prepare cc3m`, `cc12m`, `sbu`, `img2dataset` and `clip-benchmark`: tars that others made, as they are."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from m3p.cli.prepare import LeaveOut, Output, Overwrite, SkipBad, describe
from m3p.data.shards.manifest import NOT_STATED, Manifest
from m3p.errors import UserError
from m3p.prepare.linked import Side, link_shards
from m3p.prepare.published import MACHINE_TRANSLATION, WEB, origin_of
from m3p.prepare.side_files import SideFile
from m3p.terminal import say

DOWNLOADED = {
    "cc3m": "Conceptual Captions (CC3M) as img2dataset downloads it",
    "cc12m": "Conceptual 12M as img2dataset downloads it",
    "sbu": "SBU Captions as img2dataset downloads it",
    "img2dataset": "Any set that img2dataset has downloaded",
}
"""Command -> what it says of itself."""

Tars = Annotated[Path, typer.Argument(metavar="TARS", help="Folder of uncompressed .tar files; it is only read.")]
Language = Annotated[str, typer.Option(help="Language of captions in the tars that name none.")]
Split = Annotated[str, typer.Option(help="As the manifest is to say it.")]
Licence = Annotated[str, typer.Option(help="Of the captions, as the manifest is to say it.")]
CaptionSource = Annotated[
    str | None,
    typer.Option(help="Who wrote the captions, as the manifest is to say it: web, human, machine translation, ..."),
]


def downloaded(
    name: str,
    source: Tars,
    output: Output,
    captions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LANG=]FILE",
            help="Captions in place of those in the tars (.jsonl, .tsv, .csv); may be given again.",
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Field of KEY.json and of the files that joins them; key: the sample's name in its tar.")
    ] = "url",
    keep_own: Annotated[
        bool, typer.Option("--keep-own", help="Keep the tars' own captions beside those of the files.")
    ] = False,
    language: Language = "en",
    split: Split = "",
    caption_source: CaptionSource = None,
    licence: Licence = NOT_STATED,
    leave_out: LeaveOut = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Link the tars of a downloaded set, with captions from files beside them if such are named; no tar is written
    again but one with pictures that are left out."""
    own = "" if name == "img2dataset" else name
    usual = WEB if not captions else f"{WEB} and {MACHINE_TRANSLATION}" if keep_own else MACHINE_TRANSLATION
    side = Side([SideFile.of(text) for text in captions], by, keep_own, skip_bad) if captions else None
    if side is None and (keep_own or skip_bad):
        raise UserError(f"{'--keep-own' if keep_own else '--skip-bad'}: goes with --captions FILE; leave it out.")
    origin = origin_of(own or source.resolve().name, caption_source or usual, split, licence)
    say_linked(output, link_shards(source, output, origin, language, side, overwrite, leave_out or ()))


def _command(name: str, words: str) -> Callable[..., None]:
    """Return `downloaded` as the command of one set."""
    _, *shared = inspect.signature(downloaded).parameters.values()

    def command(**given: Any) -> None:
        downloaded(name, **given)

    every = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shared]
    command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined] # typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    command.__doc__ = f"{words}: link its tars, with captions from files beside them if such are named."
    return command


def clip_benchmark(
    source: Annotated[
        Path, typer.Argument(metavar="TARS", help="Folder of a split (test/), or the one that holds it.")
    ],
    output: Output,
    name: Annotated[str, typer.Option("--set", help="Name of the set, such as flickr30k or multilingual_mscoco.")],
    language: Language = "en",
    split: Split = "test",
    caption_source: CaptionSource = None,
    licence: Licence = NOT_STATED,
    leave_out: LeaveOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Link the tars of CLIP_benchmark's retrieval sets (a picture, and KEY.txt with a caption a line); they are only read."""
    inside = source / split
    folder = inside if inside.is_dir() and not any(source.glob("*.tar")) else source
    for kind in (source / "dataset_type.txt", source.parent / "dataset_type.txt"):
        if kind.is_file() and (found := kind.read_text(encoding="utf-8")[:100].strip()) != "retrieval":
            raise UserError(f"{kind} says {found!r}: classes are no captions; give a set whose type is retrieval.")
    _check_whole(folder)
    origin = origin_of(name, caption_source or NOT_STATED, split, licence)
    say_linked(output, link_shards(folder, output, origin, language, None, overwrite, leave_out or ()))


def _check_whole(folder: Path) -> None:
    """Raise UserError where a split of CLIP_benchmark has another number of tars than its nshards.txt says."""
    count, tars = folder / "nshards.txt", len(list(folder.glob("*.tar")))
    said = count.read_text(encoding="utf-8", errors="replace")[:20].strip() if count.is_file() else ""
    if said.isdecimal() and int(said) != tars:
        raise UserError(f"{folder} holds {tars:,} tars, and its nshards.txt says {int(said):,}: copy the missing ones.")


def say_linked(output: Path, manifest: Manifest) -> None:
    """Say what was linked."""
    say(f"{output}: {describe(manifest)}")


def add_linked(app: typer.Typer) -> None:
    """Add the commands to `m3p prepare`."""
    app.command("clip-benchmark")(clip_benchmark)
    for name, words in DOWNLOADED.items():
        app.command(name)(_command(name, words))
