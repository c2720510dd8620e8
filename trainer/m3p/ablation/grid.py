"""The table of `m3p finetune`: languages by settings, for each way of scoring, with intervals; as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from m3p.atomic import write_text
from m3p.retrieval.comparison import shared_rows
from m3p.retrieval.intervals import METHOD, GroupedRanks, Interval, difference_interval, mean_recall_interval
from m3p.retrieval.result import ALL_LANGUAGES, Evaluation

Scored = Mapping[str, Evaluation]
"""Run -> its result: "none", the code of a language, or "all"."""
TITLES = {"dual": "dual encoder", "cross": "cross-encoder, exhaustive", "rerank": "shortlist, re-ranked"}


class Figure(BaseModel):
    """A mean recall in percent, or a difference of two in points, with its 95 % interval over queries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    interval: tuple[float, float]

    @staticmethod
    def of(found: Interval) -> "Figure":
        """Return the same for JSON."""
        return Figure(value=round(found.value, 4), interval=(round(found.low, 4), round(found.high, 4)))

    def as_difference(self) -> str:
        """Return it in words: "none" where the interval holds zero."""
        low, high = self.interval
        verdict = "none" if low <= 0 <= high else f"{self.value:+.1f}"
        return f"{verdict} ({low:+.1f} to {high:+.1f})"

    def as_recall(self) -> str:
        """Return it as text."""
        return f"{self.value:.1f} ({self.interval[0]:.1f} to {self.interval[1]:.1f})"


class GridRow(BaseModel):
    """One query language, or the mean over all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: str = Field(description="A language, or that the mean recall is averaged over all of them.")
    recalls: dict[str, Figure] = Field(
        description="Mean recall of each setting; of `each`, that of the language's own run."
    )
    differences: dict[str, Figure] = Field(
        description="Setting -> its mean recall less that of the setting before it (of `each`: before that one), paired."
    )


class Grid(BaseModel):
    """The result of `m3p finetune`, as written to finetune.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = Field(description="The recipe's file.")
    overrides: list[str] = Field(description="Overrides of every run.")
    languages: list[str] = Field(description="Languages of captions and queries.")
    settings: list[str] = Field(description="none, each, all, or a language.")
    selected_on: str | None = Field(
        None,
        description="Evaluation whose figure chose the checkpoint of each run; null: each run's newest stands for it.",
    )
    method: str = Field(METHOD, description="How the intervals were made.")
    evaluations: dict[str, dict[str, list[GridRow]]] = Field(description="Evaluation -> way of scoring -> rows.")

    def save(self, folder: Path) -> None:
        """Write finetune.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "finetune.json", json.dumps(self.model_dump(), indent=1) + "\n", durable=False)


def rows(scored: Scored, languages: Sequence[str], settings: Sequence[str]) -> list[GridRow]:
    """Return a row for each language, and that of their mean. Raises UserError where runs were asked different queries.

    A run of `each` may have been asked queries of its own language alone.
    """
    for language in languages:
        shared_rows(*(run for run in scored.values() if language in run.languages))
    made = []
    for label, names in {**{name: [name] for name in languages}, ALL_LANGUAGES: list(languages)}.items():
        ranks = {setting: _ranks(scored, setting, names) for setting in settings}
        made.append(
            GridRow(
                languages=label,
                recalls={setting: Figure.of(mean_recall_interval(of)) for setting, of in ranks.items()},
                differences={
                    setting: Figure.of(difference_interval(ranks[setting], ranks[other]))
                    for setting, other in baselines(settings).items()
                },
            )
        )
    return made


def baselines(settings: Sequence[str]) -> dict[str, str]:
    """Return what each setting but the first is compared with: the last one before it that is one run, not one a language."""
    found = {}
    for place, setting in enumerate(settings[1:], 1):
        before = [other for other in settings[:place] if other != "each"]
        found[setting] = before[-1] if before else settings[0]
    return found


def _ranks(scored: Scored, setting: str, languages: Sequence[str]) -> dict[str, GroupedRanks]:
    """Return the ranks of a setting in these languages; of `each`, those of each language's own run."""
    runs = {language: scored[language if setting == "each" else setting] for language in languages}
    return {name: ranks for language, run in runs.items() for name, ranks in run.grouped([language]).items()}


def grid_tables(grid: Grid) -> list[Table]:
    """Return a table for each evaluation and way of scoring."""
    made = []
    against = baselines(grid.settings)
    for name, of_name in grid.evaluations.items():
        for way, found in of_name.items():
            chosen = "; checkpoints were chosen by their figures on it" if name == grid.selected_on else ""
            table = Table(title=f"{name}, {TITLES[way]}: mean recall (95 % interval){chosen}", title_justify="left")
            table.add_column("queries", overflow="fold")
            for setting in grid.settings:
                table.add_column(setting, justify="right", overflow="fold")
            for setting, other in against.items():
                table.add_column(f"{setting} less {other}", justify="right", overflow="fold")
            for row in found:
                if row.languages == ALL_LANGUAGES:
                    table.add_section()
                recalls = [row.recalls[setting].as_recall() for setting in grid.settings]
                table.add_row(
                    row.languages, *recalls, *(row.differences[setting].as_difference() for setting in against)
                )
            made.append(table)
    return made
