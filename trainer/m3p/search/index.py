"""An index of pictures on disk, opened: answers queries, and finds the pictures that it names.

INDEX/search-index.json   the run, its weights and recipe, and where the pictures came from
INDEX/parts/              embeddings and ids (parts.py)
INDEX/built.json          what search uses: which parts, and the faiss file with its checksum
INDEX/nearest-*.faiss     beyond `nearest.MAX_FLAT` pictures
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from m3p.api import Model
from m3p.errors import BadSample, UserError
from m3p.recipe.load import parse_recipe
from m3p.recipe.recipe import Recipe
from m3p.runs import Record, Run, open_run
from m3p.search.checked import file_checksum, read_checked
from m3p.search.collection import Collection, Origin, open_collection
from m3p.search.faiss_library import faiss_library
from m3p.search.nearest import candidates, exact, read_index
from m3p.search.parts import ROW_BITS, Entry, Floats, Numbers, Part, read_parts

SETTINGS = "search-index.json"
BUILT = "built.json"
MAX_SETTINGS_BYTES = 64 * 2**20


class Settings(BaseModel):
    """What an index was made by and from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    run: str
    """Absolute path of the run, checkpoint or export."""
    record: Record
    recipe: dict[str, Any]
    width: int
    """Dimensions of a vector."""
    origins: list[Origin]


class Built(BaseModel):
    """What the last building took in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: dict[str, str]
    """Number of each part -> checksum of its vectors."""
    pictures: int
    file: str = ""
    """The faiss file; "" for flat search, which needs none."""
    checksum: str = ""
    trained_on: int = 0
    """Pictures that there were when k-means was trained."""
    probes: int = 0
    """Inverted lists that a query looks into."""
    share_found: float = 1.0
    """Share of the ten true neighbours that was found, of pictures of the index itself."""


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    number: int
    entry: Entry
    score: float
    """Cosine of the query's and the picture's embedding."""


class SearchIndex:
    """An opened index. Safe to be used by several threads.

    Args:
        folder: of the index.
        check: whether to compare the checksums of all vectors too, which reads them once.

    Raises:
        UserError: no index, a damaged file, or one that `m3p index-pictures` has not finished.
    """

    def __init__(self, folder: Path, check: bool = True) -> None:
        if not (folder / SETTINGS).is_file():
            raise UserError(
                f"{folder}: no index of pictures; make one with `m3p index-pictures RUN PICTURES --output {folder}`"
            )
        self.folder = folder
        self.settings = read_settings(folder)
        self.parts = read_parts(folder)
        if not (folder / BUILT).is_file():
            raise unfinished(folder)
        self.built = read_built(folder)
        if self.built.parts != built_parts(self.parts):
            raise unfinished(folder)
        for part in self.parts if check else ():
            part.check()
        self._vectors = [part.mapped(self.settings.width) for part in self.parts]
        self._by_number = {part.number: place for place, part in enumerate(self.parts)}
        self._nearest = load_nearest(folder, self.built) if self.built.file else self._flat()
        self._reading = Lock()

    def __len__(self) -> int:
        return self.built.pictures

    def _flat(self) -> Any:
        """Return faiss' flat index of all vectors."""
        faiss = faiss_library()
        index = faiss.IndexIDMap(faiss.IndexFlatIP(self.settings.width))
        for part in self.parts:
            if len(part.numbers):
                index.add_with_ids(np.ascontiguousarray(part.vectors(self.settings.width)), part.numbers)
        return index

    def search(self, queries: Floats, limit: int) -> list[list[Hit]]:
        """Return the `limit` best pictures of each query [Q, width], best first; equal scores by number."""
        answers = zip(*self.nearest(queries, limit), strict=True)
        return [
            [
                Hit(number, self.entry(number), score)
                for score, number in zip(scores.tolist(), numbers.tolist(), strict=True)
                if number >= 0
            ]
            for scores, numbers in answers
        ]

    def nearest(self, queries: Floats, limit: int) -> tuple[Floats, Numbers]:
        """Return scores and numbers [Q, M] of the best, M being `limit` or all there are; number -1 where fewer are found."""
        limit = min(limit, len(self))
        named = self._candidates(queries, limit)
        scores, numbers = (
            np.full((len(queries), limit), -np.inf, np.float32),
            np.full((len(queries), limit), -1, np.int64),
        )
        for row, query in enumerate(queries):
            mine = np.sort(named[row][named[row] >= 0])
            exactly = self._rows(mine) @ query
            best = np.argsort(-exactly, kind="stable")[:limit]
            scores[row, : len(best)], numbers[row, : len(best)] = exactly[best], mine[best]
        return scores, numbers

    def _candidates(self, queries: Floats, limit: int) -> Numbers:
        if self.built.file:
            return candidates(self._nearest, queries, limit, self.built.probes)
        found: Numbers = self._nearest.search(np.ascontiguousarray(queries), limit)[1]
        return found

    def exact(self, queries: Floats, limit: int) -> tuple[Floats, Numbers]:
        """Return scores and numbers [Q, limit] by comparing every vector: what `search` is measured against."""
        return exact(self.parts, self.settings.width, queries, min(limit, len(self)))

    def _rows(self, numbers: Numbers) -> Floats:
        """Return the vectors [N, width] of pictures, whose numbers are ascending."""
        rows = np.empty((len(numbers), self.settings.width), np.float32)
        of_part = numbers >> ROW_BITS
        for part in np.unique(of_part).tolist():
            place, mine = self._by_number[part], of_part == part
            rows[mine] = self._vectors[place].take(np.searchsorted(self.parts[place].numbers, numbers[mine]))
        return rows

    def entry(self, number: int) -> Entry:
        """Return what is known of picture `number`. Raises KeyError where the index has none of this number."""
        part = self.parts[self._by_number[number >> ROW_BITS]]
        row = int(np.searchsorted(part.numbers, number))
        if row == len(part.numbers) or part.numbers[row] != number:
            raise KeyError(number)
        with self._reading:
            table = part.table()
        columns = (getattr(table, name)[row] for name in Entry.__dataclass_fields__)
        return Entry(*columns)

    def stored(self, number: int) -> bytes:
        """Return a picture as it is stored where it came from; empty where there are stored features alone.

        Raises KeyError for another number, and BadSample where it is gone, or has changed since it was indexed.
        """
        entry = self.entry(number)
        try:
            with self._reading:
                content, name = self._collections[entry.origin].stored(entry.place)
        except UserError as error:
            raise BadSample(str(error)) from error
        if name != entry.content:
            raise BadSample(f"{entry.place} has changed since it was indexed")
        return content

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run that embedded the pictures."""
        return parse_recipe(dict(self.settings.recipe), str(self.folder / SETTINGS))

    @cached_property
    def _collections(self) -> list[Collection]:
        visual = self.recipe.visual
        assert visual is not None, "pictures were embedded"
        return [open_collection(Path(origin.path), visual) for origin in self.settings.origins]

    def open_model(self, path: Path | None = None) -> Model:
        """Open the network that embedded the pictures, or `path` instead. Raises UserError where it has other weights."""
        run = open_run(path or self._run_path)
        check_weights(self.folder, self.settings, run)
        return Model(run)

    @property
    def _run_path(self) -> Path:
        """The checkpoint itself where it is kept: a run that went on has newer weights."""
        run = Path(self.settings.run)
        checkpoint = run / "checkpoints" / Path(self.settings.record.checkpoint).name
        if not run.exists():
            raise UserError(f"{self.folder}: the run {run} is not there any more; name its new place with --run")
        return checkpoint if checkpoint.is_dir() else run


def check_weights(folder: Path, settings: Settings, run: Run) -> None:
    """Raise UserError unless `run` has the weights, and reads pictures in the way, that the index in `folder` was made with."""
    ours, theirs = settings.record, run.record
    if ours.weights != theirs.weights:
        raise UserError(
            f"{folder}: its pictures were embedded by {ours.run}, {ours.checkpoint} (weights {ours.weights}), and {run.folder} "
            f"has {theirs.checkpoint} (weights {theirs.weights}): their vectors cannot be compared; name that checkpoint, or "
            "make another index"
        )
    visual = run.recipe.model_dump(mode="json", exclude_none=True).get("visual")
    if settings.recipe.get("visual") != visual:
        raise UserError(
            f"{folder}: the recipe of {run.folder} reads pictures in another way (section visual); make another index"
        )


def read_settings(folder: Path) -> Settings:
    """Return the settings of an index. Raises UserError where they are damaged."""
    return read_checked(folder / SETTINGS, Settings, MAX_SETTINGS_BYTES, f"delete {folder} and make the index again")


def read_built(folder: Path) -> Built:
    """Return what search uses of an index. Raises UserError where that is damaged."""
    way_out = "delete it and give the command `m3p index-pictures` again"
    return read_checked(folder / BUILT, Built, MAX_SETTINGS_BYTES, way_out)


def built_parts(parts: Sequence[Part]) -> dict[str, str]:
    """Return what `Built.parts` says of these parts."""
    return {str(part.number): part.checksum for part in parts}


def unfinished(folder: Path) -> UserError:
    """Return what to say of an index whose making was stopped."""
    return UserError(f"{folder}: this index is not finished; give the command `m3p index-pictures` that made it again")


def load_nearest(folder: Path, built: Built) -> Any:
    """Read the faiss file. Raises UserError unless it is the one that was written."""
    path = folder / Path(built.file).name
    try:
        same = file_checksum(path) == built.checksum
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete {folder / BUILT} and give `m3p index-pictures` again"
        ) from error
    if not same:
        raise UserError(
            f"{path} is damaged: its checksum is another; delete {folder / BUILT} and give `m3p index-pictures` again"
        )
    return read_index(path)
