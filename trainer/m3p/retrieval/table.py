"""An evaluation shown: as a table for the terminal, and as figures in TensorBoard."""

from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from m3p.console import PlainConsole
from m3p.data.languages import is_among
from m3p.retrieval.metrics import CUTOFFS
from m3p.retrieval.result import ALL_LANGUAGES, NEVER_CAPTIONED, Evaluation, Summary


def print_table(evaluation: Evaluation, console: PlainConsole | None = None) -> None:
    """Print languages as rows: six recalls, their mean with interval, chance; then the means over languages."""
    step = f", step {evaluation.step}" if evaluation.step is not None else ""
    title = f"{evaluation.system}{step} on {evaluation.dataset} {evaluation.split}: {evaluation.images} pictures"
    table = Table(title=Text(title), caption=Text(_caption(evaluation)), title_justify="left", caption_justify="left")
    table.box, table.show_edge, table.padding = SIMPLE_HEAD, False, (0, 0)  # fits 80 columns
    table.add_column("language", no_wrap=True)
    for way in ("t→i", "i→t"):
        for k in CUTOFFS:
            table.add_column(f"{way}\nR@{k}", justify="right", no_wrap=True)
    for name in ("mean\nrecall", "95 %", "chance", "texts"):
        table.add_column(name, justify="right", no_wrap=True)
    for language, result in evaluation.languages.items():
        values = [*result.text_to_image.values(), *result.image_to_text.values()]
        mark = " *" if is_among(language, evaluation.captioned_languages or ()) else ""
        table.add_row(language + mark, *(f"{value:.1f}" for value in values), *_cells(result), str(result.captions))
    table.add_section()
    table.add_row(ALL_LANGUAGES, *[""] * 6, *_cells(evaluation.mean), str(evaluation.captions), style="bold")
    if evaluation.mean_never_captioned is not None:
        table.add_row(NEVER_CAPTIONED, *[""] * 6, *_cells(evaluation.mean_never_captioned), style="bold")
    (console or PlainConsole()).print(table)


def _cells(summary: Summary) -> list[str]:
    low, high = summary.interval
    return [f"{summary.mean_recall:.1f}", f"{low:.1f}–{high:.1f}", f"{summary.chance:.1f}"]


def _caption(evaluation: Evaluation) -> str:
    scoring = f"scoring {evaluation.scoring}"
    if evaluation.shortlist is not None:
        kept = min(evaluation.shortlist.recall.values())
        scoring += f" (shortlist of {evaluation.shortlist.k}, recall at least {kept:.1f})"
    parts = [
        f"protocol {evaluation.protocol}",
        scoring,
        f"captions: {evaluation.caption_source or 'source not stated'}",
        "percent",
        "t→i: captions ask for pictures",
    ]
    if evaluation.centre is not None:
        parts.append(f"queries moved by the mean of captions of their language in {evaluation.centre}")
    if evaluation.selection_split is not None:
        parts.append(f"checkpoint chosen by its figure on {evaluation.selection_split}")
    if evaluation.captioned_languages is None:
        parts.append("captioned languages not recorded")
    elif evaluation.captioned_languages:
        parts.append("* captioned in training")
    if fair := evaluation.fairness:
        spread = f", rank_std {fair.text_to_image.rank_std:.1f}" if fair.text_to_image else ""
        parts.append(f"{fair.best} less {fair.worst}: {fair.gap:.1f} points{spread}")
    if evaluation.pictures_seen:
        parts.append(f"training saw the pictures of {evaluation.pictures_seen:,} samples")
    if evaluation.pictures_seen is None and evaluation.step is not None:
        parts.append("whether training saw these pictures is not recorded")
    if cut := sum(evaluation.truncated_captions.values()):
        parts.append(f"{cut:,} captions cut to the length of training")
    if evaluation.unreadable:
        parts.append(f"{len(evaluation.unreadable):,} samples unreadable and left out")
    same = {name: len(result.identical_captions) for name, result in evaluation.languages.items()}
    if any(same.values()):
        names = ", ".join(f"{name} {number}" for name, number in same.items() if number)
        parts.append(f"same caption under different concepts (only its own counts as right): {names}")
    return "; ".join(parts)


class ScalarWriter(Protocol):
    """The part of TensorBoard's SummaryWriter that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one figure."""


def write_tensorboard(writer: ScalarWriter, evaluation: Evaluation, step: int) -> None:
    """Write the recalls of each language and the means over languages under retrieval/SPLIT/SCORING/."""
    root = f"retrieval/{evaluation.split}/{evaluation.scoring}"
    for language, result in evaluation.languages.items():
        writer.add_scalar(f"{root}/{language}/mean_recall", result.mean_recall, step)
        for way in ("text_to_image", "image_to_text"):
            for name, value in getattr(result, way).items():
                writer.add_scalar(f"{root}/{language}/{way}_{name}", value, step)
    writer.add_scalar(f"{root}/mean_all", evaluation.mean.mean_recall, step)
    if evaluation.mean_never_captioned is not None:
        writer.add_scalar(f"{root}/mean_never_captioned", evaluation.mean_never_captioned.mean_recall, step)
