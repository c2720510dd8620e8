"""The commands `m3p search`, `m3p index-pictures` and `m3p serve`."""

from pathlib import Path
from typing import Annotated

import typer

from m3p.errors import UserError
from m3p.terminal import one_line, say, warn

Index = Annotated[Path, typer.Argument(help="A folder that `m3p index-pictures` wrote.", metavar="INDEX")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Where the run of an index lies now, if it was moved.", metavar="RUN")
]


def search_command(
    path: Annotated[
        Path,
        typer.Argument(help="An index of pictures; or a run folder, a checkpoint, an export.", metavar="INDEX|RUN"),
    ],
    query: Annotated[str, typer.Argument(help="In any language of the run.")] = "",
    image: Annotated[Path | None, typer.Option(help="Find pictures like this one, instead of words.")] = None,
    evaluation: Annotated[
        str, typer.Option(help="Of a run: whose pictures to search; the recipe's first if left out.")
    ] = "",
    limit: Annotated[int, typer.Option("--top", min=1, max=1000, help="Pictures to show.")] = 5,
    run: RunOption = None,
) -> None:
    """Find pictures by words or by a picture: prints the best, and writes search.html into the folder."""
    from m3p.retrieval.search import search

    hits, page = search(path, query, evaluation, limit, image, run)
    for place, hit in enumerate(hits, start=1):
        say(f"{place:3} {hit.score:7.3f}  {one_line(hit.image)}")
    say(f"see {page}")


def index_pictures_command(
    run: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or an export.", metavar="RUN")],
    output: Annotated[Path, typer.Option(help="Folder of the index.", metavar="INDEX")],
    pictures: Annotated[
        Path | None, typer.Argument(help="A folder of shards, or of JPEG, PNG and WebP files.", metavar="SHARDS|FOLDER")
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Take pictures of another place into an index that is there.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Take out the pictures whose file is not in the folder any more.")
    ] = False,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Take this picture out; may be given again.")
    ] = None,
) -> None:
    """Embed pictures once, so that queries are answered in milliseconds.

    A command that was killed goes on when it is given again. Given again later, it takes in the pictures that have come since.
    """
    from m3p.search.build import index_pictures, remove_pictures

    if (pictures is None) == (not remove):
        raise UserError("m3p index-pictures takes pictures to index, or --remove ID: one of the two")
    if pictures is None and prune:
        raise UserError("--prune: name the folder whose pictures are compared with the index")
    report = (
        index_pictures(run, pictures, output, add, prune=prune) if pictures else remove_pictures(output, remove or [])
    )
    if report.skipped:
        warn(f"{report.skipped:,} pictures cannot be read and are left out: {one_line('; '.join(report.unreadable))}")
    if report.gone:
        warn(
            f"{report.gone:,} pictures of the index are not in {pictures} any more and are still found, such as "
            f"{one_line(', '.join(report.missing))}: take them out with --prune"
        )
    if report.repeated:
        warn(f"{report.repeated:,} pictures are left out: the index has the same picture under another id")
    changes = {"added": report.added, "there already": report.known, "removed": report.removed}
    said = ", ".join(f"{count:,} {what}" for what, count in changes.items() if count)
    say(f"{output}: {said}; {report.search}")


def serve_command(
    index: Index,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback let other machines ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    rate: Annotated[float, typer.Option(min=0.1, help="Queries a second of one address, on average.")] = 50.0,
    name: Annotated[
        list[str] | None, typer.Option(help="A name by which clients call this host; may be given again.")
    ] = None,
    run: RunOption = None,
) -> None:
    """Serve a page with a query box, and a JSON API, over an index of pictures."""
    from m3p.search.index import SearchIndex
    from m3p.search.serve.server import Server, is_loopback

    opened = SearchIndex(index)
    server = Server((host, port), opened, opened.open_model(run), rate, tuple(name or ()))
    if not is_loopback(host):
        warn(f"{host}: everyone who reaches this address may search and see the pictures; there is no password")
    say(f"{len(opened):,} pictures at {server.url} (stop with Ctrl-C)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()


def add_search(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("search")(search_command)
    app.command("index-pictures")(index_pictures_command)
    app.command("serve")(serve_command)
