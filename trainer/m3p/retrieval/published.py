"""Published tables of retrieval, and runs beside them where they were measured alike.

Each table is a file of published_results/: boards of figures that share set, split, pool, protocol and captions a picture, each
with its source. A run's figure stands in a column only if its result was made under the same conditions.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.table import Table
from rich.text import Text

from m3p.errors import UserError
from m3p.prepare.published import MACHINE_TRANSLATION
from m3p.recipe.evaluation import ProtocolName
from m3p.recipe.yaml_file import parse_yaml
from m3p.retrieval.intervals import Interval, seeds_interval
from m3p.retrieval.result import Evaluation, LanguageResult
from m3p.shipped import PACKAGE

FOLDER = PACKAGE / "published_results"
SLACK = 0.02
"""Captions a picture, on average, by which a pool may differ from the published number; and share of pictures without any."""

NO_RESULT = "no result in "


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Model):
    """One column: a language, or a mean over languages."""

    languages: list[str] = Field(min_length=1)
    captions: int | None
    """Captions of a picture in the pool, in each of the languages; null: as many as the set has."""


class Row(_Model):
    """The figures of one published system."""

    system: str
    scoring: str
    """How pairs were scored, in words."""
    source: str
    """Paper and table, or file of a repository."""
    values: dict[str, float]
    """In percent, by column."""


class Board(_Model):
    """Figures that were measured alike."""

    name: str
    note: str
    set: str
    """As a manifest's origin names it."""
    splits: list[str]
    images: int
    protocol: ProtocolName | None
    """Null: not known, so that nothing can stand beside it."""
    figure: str
    """mean_recall, rsum, or DIRECTION.NAME such as text_to_image.R@1."""
    columns: dict[str, Column]
    rows: list[Row]

    @model_validator(mode="after")
    def _values_have_columns(self) -> "Board":
        for row in self.rows:
            if unknown := row.values.keys() - self.columns.keys():
                raise ValueError(f"{row.system}: no column {', '.join(sorted(unknown))}")
        return self


class PublishedTable(_Model):
    """A file of published_results/."""

    title: str
    boards: list[Board]


def published_names() -> list[str]:
    """Return the names of the shipped tables."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_published(name: str) -> PublishedTable:
    """Return the shipped table `name`. Raises UserError where there is none."""
    known = published_names()
    if name not in known:
        raise UserError(
            f"--published {name}: no table of that name comes with the program; take one of {', '.join(known)}"
        )
    return PublishedTable.model_validate(parse_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def results_of(paths: Sequence[Path]) -> list[tuple[str, Evaluation]]:
    """Return the results at `paths`, files or run folders (all results in it), each with a name. Raises UserError."""
    found = []
    for path in paths:
        files = sorted((path / "evaluation").glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: it holds no evaluation/NAME.json; `m3p evaluate {path}` writes them")
        for file in files:
            result = Evaluation.load(file)
            chosen = ", checkpoint chosen on it" if result.selection_split == result.split else ""
            found.append((f"{result.system}, {file.stem} ({result.scoring}{chosen})", result))
    return found


def beside_published(name: str, results: Sequence[tuple[str, Evaluation]]) -> list[Table]:
    """Return the boards of the table `name` with the results that were measured alike, and below each why others are not there.

    Raises UserError where no result fits any column, saying what differs.
    """
    published = load_published(name)
    reasons = {
        (board.name, label): {column: _differences(board, board.columns[column], result) for column in board.columns}
        for board in published.boards
        for label, result in results
    }
    if all(why for columns in reasons.values() for why in columns.values()):
        lines = [f"{label}: {_shortest(published, reasons, label)}" for label, _ in results]
        raise UserError(
            f"--published {name}: no result was measured as a column of it was, so that none may stand beside it. "
            + ". ".join(lines)
        )
    return [_table(published.title, board, results, reasons) for board in published.boards]


_Reasons = dict[tuple[str, str], dict[str, list[str]]]


def _shortest(published: PublishedTable, reasons: _Reasons, label: str) -> str:
    """Return what keeps a result out of the board and column that it is nearest to."""
    every = [
        (why[-1].startswith(NO_RESULT), len(why), f"{board.name}, {column}: {'; '.join(why)}")
        for board in published.boards
        if board.protocol is not None
        for column, why in reasons[board.name, label].items()
    ]
    return min(every)[2]


def _differences(board: Board, column: Column, result: Evaluation) -> list[str]:
    """Return in what a result differs from what a column was measured on; nothing where it may stand there."""
    if board.protocol is None:
        return ["protocol of the published figures not known"]
    found = []
    if result.origin.get("set") != board.set:
        ours = result.origin.get("set", "not recorded by its shards (m3p prepare writes it)")
        found.append(f"set {ours}, there {board.set}")
    elif result.origin.get("split") not in board.splits:
        found.append(f"split {result.origin.get('split', 'not recorded')}, there {' or '.join(board.splits)}")
    if result.pictures_seen:
        found.append(f"training saw the pictures of {result.pictures_seen:,} of its samples")
    if result.caption_source == MACHINE_TRANSLATION:
        found.append("captions translated by a program, there by people")
    if result.protocol != board.protocol:
        found.append(f"protocol {result.protocol}, there {board.protocol}")
    if result.centre is not None:
        found.append("queries centred by captions of their language, there as they are")
    if result.images != board.images:
        found.append(f"pool of {result.images:,} pictures, there {board.images:,}")
    missing = [name for name in column.languages if name not in result.languages]
    if missing:
        return [*found, f"{NO_RESULT}{', '.join(missing)}"]
    for name in column.languages:
        asked = result.languages[name].captioned_images
        if asked < (1 - SLACK) * result.images:
            found.append(f"only {asked:,} of {result.images:,} pictures have a caption in {name}")
        captions = result.languages[name].captions_per_image
        if column.captions is not None and abs(captions - column.captions) > SLACK:
            found.append(f"{captions:.2f} captions a picture in {name}, there {column.captions}")
    if any(_figure(board.figure, result.languages[name]) is None for name in column.languages):
        found.append(f"{board.figure} was not computed")
    return found


def _figure(figure: str, result: LanguageResult) -> float | None:
    """Return a figure of a result in one language, in percent."""
    way, _, name = figure.rpartition(".")
    if not way:
        value: float | None = getattr(result, figure)
        return value
    recalls: dict[str, float] = getattr(result, way)
    return recalls.get(name, (result.mteb or {}).get(way, {}).get(name))


def _table(title: str, board: Board, results: Sequence[tuple[str, Evaluation]], reasons: _Reasons) -> Table:
    """Return one board as a table: published rows, then ours."""
    table = Table(title=Text(f"{title}: {board.name}, {board.figure}"), title_justify="left", caption_justify="left")
    table.add_column("system", overflow="fold")
    table.add_column("scoring", overflow="fold")
    for column in board.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in board.rows:
        cells = [f"{row.values[name]:.1f}" if name in row.values else "" for name in board.columns]
        table.add_row(Text(row.system), Text(row.scoring), *cells)
    table.add_section()
    left_out = []
    for label, result in results:
        columns = reasons[board.name, label]
        if all(columns.values()):
            left_out.append(f"not here: {label}: {'; '.join(sorted(columns.values(), key=len)[0])}")
            continue
        cells = ["" if columns[name] else _cell(board, board.columns[name], [result]) for name in board.columns]
        table.add_row(Text(label), result.scoring, *cells, style="bold")
    _add_mean_of_seeds(
        table, board, [(label, one) for label, one in results if not all(reasons[board.name, label].values())]
    )
    sources = dict.fromkeys(row.source for row in board.rows)
    table.caption = Text("\n".join([board.note, *left_out, *(f"source: {source}" for source in sources)]))
    return table


def _add_mean_of_seeds(table: Table, board: Board, results: Sequence[tuple[str, Evaluation]]) -> None:
    """Add the mean over results that differ in their seed alone, where there are several and nothing else."""
    every = [result for _, result in results]
    seeds = {result.seed for result in every}
    alike = {
        (result.scoring, result.shortlist.k if result.shortlist else 0, result.step, tuple(result.languages))
        for result in every
    }
    queries = {tuple(one.fingerprint for one in result.languages.values()) for result in every}
    if len(every) < 2 or len(seeds) != len(every) or None in seeds or len(alike) != 1 or len(queries) != 1:
        return
    cells = [
        _cell(board, column, every) if not any(_differences(board, column, one) for one in every) else ""
        for column in board.columns.values()
    ]
    table.add_row(f"mean of {len(every)} seeds", every[0].scoring, *cells, style="bold")


def _cell(board: Board, column: Column, results: Sequence[Evaluation]) -> str:
    """Return the mean of a figure over results and languages; a mean recall with its interval."""
    figures = [_figure(board.figure, result.languages[name]) for result in results for name in column.languages]
    value = float(np.mean([figure for figure in figures if figure is not None]))
    if board.figure != "mean_recall":
        return f"{value:.1f}"
    found: Interval = seeds_interval([result.grouped(column.languages) for result in results])
    return f"{value:.1f} ({found.low:.1f}–{found.high:.1f})"
