"""`m3p search`: ask a run's pictures in any language."""

from dataclasses import dataclass
from pathlib import Path

from m3p.errors import UserError
from m3p.retrieval.embedded import embedded_gallery
from m3p.retrieval.gallery import Finding, html_page
from m3p.retrieval.scoring import scorer_of, shortlist
from m3p.runs import open_run


@dataclass(frozen=True)
class Hit:
    """One picture that was found."""

    image: str
    score: float
    """Cosine of the query's and the picture's embedding."""


def search(path: Path, query: str, name: str, most: int) -> tuple[list[Hit], Path]:
    """Rank the pictures of evaluation `name` (the recipe's first, if "") by the dual encoder.

    Returns the best `most`, best first, and a page that shows them: search.html in the run folder. Raises UserError.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8
        raise UserError(f"query {query!r} is not Unicode text ({error.reason}); write it in UTF-8") from error
    run = open_run(path)
    name = name or next(iter(run.recipe.evaluation), "")
    if name not in run.recipe.evaluation:
        known = ", ".join(run.recipe.evaluation) or "none"
        raise UserError(f"{path}: its recipe has no evaluation {name!r} to search; it has {known}")
    gallery = embedded_gallery(run, name)
    scores = scorer_of(run).embed_texts([query]) @ gallery.embeddings.T
    best = shortlist(scores, most)[0].tolist()
    shown = [(gallery.stored(number), float(scores[0, number]), False) for number in best]
    page = run.folder / "search.html"
    page.write_text(html_page([Finding("", query, [found for found in shown if found[0]])], "Found"), encoding="utf-8")
    return [Hit(gallery.images[number], float(scores[0, number])) for number in best], page
