"""What an ablation found: a table for the terminal, the same as JSON and as a page."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from m3p.ablation.statistics import difference
from m3p.ablation.variants import Variant
from m3p.atomic import write_text
from m3p.checkpoints.selection import best_checkpoint
from m3p.errors import UserError
from m3p.html import document
from m3p.retrieval.comparison import shared_rows
from m3p.retrieval.intervals import LEVEL, RESAMPLES
from m3p.retrieval.result import Evaluation

METHOD = (
    f"{LEVEL:g} % percentile bootstrap, {RESAMPLES} resamples, over seeds and concepts, paired; "
    "with few seeds it is too narrow, so the difference of each seed stands beside it"
)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.4 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #8886; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
"""


class Row(BaseModel):
    """One variant, judged by one row of an evaluation: a language, or a mean over languages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str = Field(description="The varied fields and their values.")
    languages: str = Field(description="A language, or which languages the mean recall is averaged over.")
    mean_recall: float = Field(description="Mean recall in percent, averaged over seeds.")
    by_seed: tuple[float, ...] = Field(description="Mean recall of each seed's run, in percent.")
    difference: float | None = Field(None, description="Mean recall less that of the first variant, in points.")
    interval: tuple[float, float] | None = Field(None, description="95 % interval of the difference.")
    difference_by_seed: tuple[float, ...] | None = Field(None, description="The difference of each seed's two runs.")

    @property
    def verdict(self) -> str:
        """The difference in words: "none" where its interval holds zero."""
        if self.difference is None or self.interval is None:
            return ""
        return "none" if self.interval[0] <= 0 <= self.interval[1] else f"{self.difference:+.1f}"


class Report(BaseModel):
    """The result of an ablation, as written to ablation.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = Field(description="The recipe's file.")
    overrides: list[str] = Field(description="Overrides of every run.")
    seeds: list[int] = Field(description="Seeds that every variant was trained with.")
    method: str = Field(METHOD, description="How the intervals were made.")
    evaluations: dict[str, list[Row]] = Field(description="Rows of each evaluation of the recipe.")

    def save(self, folder: Path) -> None:
        """Write ablation.json and ablation.html into the folder."""
        write_text(folder / "ablation.json", json.dumps(self.model_dump(), indent=1) + "\n", durable=False)
        write_text(folder / "ablation.html", _page(self), durable=False)


def rows(found: Mapping[Variant, Sequence[Evaluation]]) -> list[Row]:
    """Return the rows of one evaluation: `found` holds, for each variant, that evaluation of each seed's run.

    The first variant is what the others are compared with. Raises UserError where runs were asked different queries.
    """
    (baseline, base_runs), *others = found.items()
    groups = shared_rows(*base_runs, *(run for _, runs in others for run in runs))
    made = []
    for label, languages in groups.items():
        made.append(Row(variant=baseline.name, languages=label, **_recalls(base_runs, languages)))
        for variant, runs in others:
            ranks = [tuple(one.grouped(languages) for one in pair) for pair in zip(runs, base_runs, strict=True)]
            gain = difference([(mine, theirs) for mine, theirs in ranks])
            made.append(
                Row(
                    variant=variant.name,
                    languages=label,
                    **_recalls(runs, languages),
                    difference=gain.interval.value,
                    interval=(gain.interval.low, gain.interval.high),
                    difference_by_seed=gain.by_seed,
                )
            )
    return made


def _recalls(runs: Sequence[Evaluation], languages: Sequence[str]) -> dict[str, Any]:
    by_seed = [float(np.mean([run.languages[name].mean_recall for name in languages])) for run in runs]
    return {"mean_recall": float(np.mean(by_seed)), "by_seed": tuple(by_seed)}


def load_evaluations(folders: Mapping[Variant, Sequence[Path]], name: str) -> dict[Variant, list[Evaluation]]:
    """Return the evaluation `name` of each variant's runs, of the checkpoint that a run has chosen if it has.

    Raises UserError where one is missing.
    """
    return {variant: [Evaluation.load(_result(folder, name)) for folder in runs] for variant, runs in folders.items()}


def _result(run: Path, name: str) -> Path:
    """Return the file of an evaluation that a run has written at its end."""
    best = best_checkpoint(run / "checkpoints")
    return run / "evaluation" / (f"{name}.json" if best is None else f"{name}-{best.name}.json")


def tables(report: Report) -> list[Table]:
    """Return a table for each evaluation."""
    made = []
    for name, found in report.evaluations.items():
        table = Table(title=f"{name}: mean recall over seeds {', '.join(map(str, report.seeds))}", title_justify="left")
        for place, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="left" if place < 2 else "right", overflow="fold")
        for row, cells in zip(found, map(_cells, found), strict=True):
            if row.difference is None and table.row_count:
                table.add_section()
            table.add_row(*cells)
        made.append(table)
    return made


_HEADINGS = ("languages", "variant", "mean recall", "by seed", "difference", "95 % interval", "by seed")


def _cells(row: Row) -> list[str]:
    interval = "" if row.interval is None else f"{row.interval[0]:+.1f} to {row.interval[1]:+.1f}"
    seeds = " ".join(f"{value:.1f}" for value in row.by_seed)
    gains = " ".join(f"{value:+.1f}" for value in row.difference_by_seed or ())
    return [row.languages, row.variant, f"{row.mean_recall:.1f}", seeds, row.verdict, interval, gains]


def _page(report: Report) -> str:
    parts = [
        f"<p>{html.escape(report.recipe)} {html.escape(' '.join(report.overrides))}. {html.escape(report.method)}.</p>"
    ]
    for name, found in report.evaluations.items():
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in _HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in found
        )
        parts.append(f"<h2>{html.escape(name)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return document("Ablation", _STYLE, "\n".join(parts))


def check_asked(names: Sequence[str]) -> None:
    """Raise UserError for a recipe that evaluates nothing: there would be nothing to compare."""
    if not names:
        raise UserError("the recipe has no `evaluation` section: add one, so that there is something to compare")
