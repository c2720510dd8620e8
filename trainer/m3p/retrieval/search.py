"""`m3p search`: ask a run's pictures, or those of an index, by words in any language or by a picture."""

from dataclasses import dataclass
from pathlib import Path

from m3p.api import Floats, Model
from m3p.data.records import says_something
from m3p.errors import BadSample, UserError
from m3p.retrieval.embedded import embedded_gallery
from m3p.retrieval.gallery import Finding, html_page
from m3p.retrieval.scoring import shortlist
from m3p.runs import open_run
from m3p.search.index import SETTINGS, SearchIndex
from m3p.terminal import one_line, warn
from m3p.unicode_text import HALF, is_unicode
from m3p.visual.decode import decode

SHOWN = 96
"""Side of a picture on the page, in pixels, for the test whether it can be shown."""


@dataclass(frozen=True)
class Hit:
    """One picture that was found."""

    image: str
    score: float
    """Cosine of the query's and the picture's embedding."""


Shown = tuple[bytes, float, bool]
"""A picture as the page takes it."""


def search(
    path: Path, query: str, name: str, limit: int, image: Path | None = None, run: Path | None = None
) -> tuple[list[Hit], Path]:
    """Rank pictures by the dual encoder: those of the index `path`, or of evaluation `name` of the run `path`.

    Without `name` the first evaluation of the recipe is searched. The query is `query`, or the picture `image` instead.
    `run` is where the run of an index lies now. Returns the best `limit`, best first, and a page that shows them:
    search.html in the folder. Raises UserError.
    """
    _check_query(query, image)
    if (path / SETTINGS).is_file():
        if name:
            raise UserError(
                f"--evaluation {name}: {path} is an index, which is searched as a whole; leave the option out"
            )
        found = _search_index(path, query, limit, image, run)
    else:
        if run is not None:
            raise UserError(f"--run {run}: {path} is no index of pictures; leave the option out")
        found = _search_run(path, query, name, limit, image)
    hits, shown, folder = found
    page = folder / "search.html"
    title = query or f"pictures like {image}"
    page.write_text(html_page([Finding("", title, [one for one in shown if one[0]])], "Found"), encoding="utf-8")
    return hits, page


def _check_query(query: str, image: Path | None) -> None:
    """Raise UserError unless there is one query, of Unicode text."""
    if bool(query) == (image is not None):
        raise UserError("m3p search takes one query: words in quotes, or --image FILE")
    if not is_unicode(query):
        raise UserError(f"query {query!r} holds {HALF}; write it in UTF-8")
    if query and not says_something(query.strip()):
        raise UserError(f"query {query!r} shows nothing; write words to search for")


def embed_query(model: Model, query: str, image: Path | None) -> Floats:
    """Return the query's embedding [1, D]. Raises UserError."""
    return model.embed_texts([query]) if image is None else model.embed_pictures([image])


def _search_index(
    path: Path, query: str, limit: int, image: Path | None, run: Path | None
) -> tuple[list[Hit], list[Shown], Path]:
    index = SearchIndex(path)
    (found,) = index.search(embed_query(index.open_model(run), query, image), limit)
    shown = [(_shown(index, hit.number), hit.score, False) for hit in found]
    return [Hit(hit.entry.id, hit.score) for hit in found], shown, path


def _shown(index: SearchIndex, number: int) -> bytes:
    """Return the stored picture; empty, and said, where it cannot be shown."""
    try:
        stored = index.stored(number)
        if stored:
            decode(stored, SHOWN)
    except BadSample as reason:
        warn(f"{one_line(index.entry(number).id)} is not on the page: {reason}")
        return b""
    return stored


def _search_run(
    path: Path, query: str, name: str, limit: int, image: Path | None
) -> tuple[list[Hit], list[Shown], Path]:
    run = open_run(path)
    name = name or next(iter(run.recipe.evaluation), "")
    if name not in run.recipe.evaluation:
        known = ", ".join(run.recipe.evaluation) or "none"
        raise UserError(f"{path}: its recipe has no evaluation {name!r} to search; it has {known}")
    gallery = embedded_gallery(run, name)
    scores = embed_query(Model(run), query, image) @ gallery.embeddings.T
    best = shortlist(scores, limit)[0].tolist()
    shown = [(gallery.stored(number), float(scores[0, number]), False) for number in best]
    return [Hit(gallery.images[number], float(scores[0, number])) for number in best], shown, run.folder
