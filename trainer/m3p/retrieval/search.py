"""`m3p search`: ask a run's pictures in any language."""

from dataclasses import dataclass
from pathlib import Path

from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.retrieval.evaluate import load_run, max_tokens
from m3p.retrieval.gallery import Finding, html_page
from m3p.retrieval.pictures import load_pictures, picture_bytes
from m3p.retrieval.scoring import Scorer, shortlist


@dataclass(frozen=True)
class Hit:
    """One picture that was found."""

    image: str
    score: float
    """Cosine of the query's and the picture's embedding."""


def search(run: Path, query: str, name: str, most: int) -> tuple[list[Hit], Path]:
    """Rank the pictures of evaluation `name` (the recipe's first, if "") by the dual encoder.

    Returns the best `most`, best first, and a page that shows them: `run`/search.html. Raises UserError.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8
        raise UserError(f"query {query!r} is not Unicode text ({error.reason}); write it in UTF-8") from error
    recipe, model, _ = load_run(run)
    name = name or next(iter(recipe.evaluation), "")
    if name not in recipe.evaluation:
        raise UserError(
            f"{run}: its recipe has no evaluation {name!r} to search; it has {', '.join(recipe.evaluation) or 'none'}"
        )
    config = recipe.evaluation[name]
    pictures = load_pictures(recipe, name, config)
    assert recipe.visual is not None, "load_pictures wants one too"
    tokenizer = Tokenizer(recipe.tokenizer_folder)
    scorer = Scorer(model, tokenizer, max_tokens(recipe), config.batch_size)
    scores = scorer.embed_texts([query]) @ scorer.embed_pictures(pictures.visuals).T
    best = shortlist(scores, most)[0].tolist()
    shown = [(picture_bytes(pictures, n), float(scores[0, n]), False) for n in best]
    page = run / "search.html"
    page.write_text(html_page([Finding("", query, [found for found in shown if found[0]])], "Found"), encoding="utf-8")
    return [Hit(pictures.pool.images[n], float(scores[0, n])) for n in best], page
