"""Two evaluations of the same queries, compared in pairs."""

import numpy as np
from rich.table import Table
from rich.text import Text

from m3p.data.languages import is_among
from m3p.errors import UserError
from m3p.retrieval.intervals import Interval, difference_interval
from m3p.retrieval.result import ALL_LANGUAGES, NEVER_CAPTIONED, Evaluation


def differences(a: Evaluation, b: Evaluation) -> dict[str, Interval]:
    """Return mean recall of `a` less `b`, in points and paired by query: each shared language, then the means.

    Raises UserError when they share no language or were asked different queries in one.
    """
    return {row: difference_interval(a.grouped(names), b.grouped(names)) for row, names in shared_rows(a, b).items()}


def shared_rows(first: Evaluation, *others: Evaluation) -> dict[str, list[str]]:
    """Return the rows of a comparison and the languages behind each: every language that all share, then the means.

    Raises UserError when they share no language, were asked different queries in one, or counted by different protocols.
    """
    shared = [language for language in first.languages if all(language in one.languages for one in others)]
    for other in others:
        if other.protocol != first.protocol:
            raise UserError(
                f"{first.system} was evaluated by protocol {first.protocol} and {other.system} by {other.protocol}, which do not "
                f"count alike: evaluate both by one (m3p evaluate RUN --protocol {first.protocol})"
            )
        if not shared:
            raise UserError(
                f"{first.system} and {other.system} were evaluated in no common language: nothing to compare"
            )
        wrong = [name for name in shared if _queries(first, name) != _queries(other, name)]
        if wrong:
            raise UserError(
                f"{first.system} and {other.system} answered different queries in {', '.join(wrong)}: a paired comparison needs "
                "the same pictures and captions; evaluate both on the same source and split"
            )
    seen = [one.captioned_languages for one in (first, *others)]
    captioned = {name for languages in seen for name in languages or []}
    never = [name for name in shared if not is_among(name, captioned)] if None not in seen else []
    return {name: [name] for name in shared} | {ALL_LANGUAGES: shared} | ({NEVER_CAPTIONED: never} if never else {})


def _queries(evaluation: Evaluation, language: str) -> tuple[object, ...]:
    result = evaluation.languages[language]
    return result.fingerprint, result.caption_groups, evaluation.image_groups


def _titles(a: Evaluation, b: Evaluation) -> tuple[str, str]:
    """Return the systems' names, and of one system by what else two results of it differ in."""
    if a.system != b.system:
        return a.system, b.system
    for parts in zip(_settings(a), _settings(b), strict=True):
        if parts[0] != parts[1]:
            return f"{a.system} {parts[0]}", f"{b.system} {parts[1]}"
    return f"{a.system}, first", f"{b.system}, second"


def _settings(evaluation: Evaluation) -> list[str]:
    k = evaluation.shortlist.k if evaluation.shortlist else 0
    return [
        evaluation.scoring_in_words,
        f"shortlist {k}",
        f"step {evaluation.step}",
        f"{evaluation.dataset} {evaluation.split}",
    ]


def compare(a: Evaluation, b: Evaluation) -> Table:
    """Return a table of the paired differences of mean recall; one whose interval holds zero is called none."""
    table = Table(
        title=Text(f"mean recall: {a.system} ({a.scoring_in_words}) less {b.system} ({b.scoring_in_words})"),
        title_justify="left",
    )
    for name in ("language", *_titles(a, b), "difference", "95 % interval"):
        table.add_column(Text(name), justify="left" if name == "language" else "right", overflow="fold")
    found = differences(a, b)
    for row, names in shared_rows(a, b).items():
        if row == ALL_LANGUAGES:
            table.add_section()
        values = [float(np.mean([one.languages[name].mean_recall for name in names])) for one in (a, b)]
        verdict = "none" if found[row].holds_zero else f"{found[row].value:+.1f}"
        table.add_row(
            row, *(f"{value:.1f}" for value in values), verdict, f"{found[row].low:+.1f} to {found[row].high:+.1f}"
        )
    return table
