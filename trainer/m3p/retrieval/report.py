"""The result of an evaluation: what was measured under which conditions, as JSON, as a table and in TensorBoard.

A recall means nothing without its pool: gallery size, captions a picture, scoring and protocol each move it by many
points. So every result carries them, and its ranks too: two results on the same queries can be compared later, paired.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from m3p.console import PlainConsole
from m3p.errors import UserError
from m3p.retrieval.intervals import METHOD, GroupedRanks, Interval, difference_interval, mean_recall_interval
from m3p.retrieval.metrics import CUTOFFS, Pool, QueryRanks, chance, recalls

_ALL = "all languages"
_NEVER = "never captioned"


Rounded = Annotated[float, AfterValidator(lambda value: round(value, 4))]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shortlist(_Model):
    """What the dual encoder hands to the cross-encoder."""

    k: int = Field(gt=0, description="Candidates of each query that are scored again.")
    recall: dict[str, Rounded] = Field(description="Percent of queries with a right answer among the k, by language.")


class Conditions(_Model):
    """Under which conditions a result holds; results that differ in one of them are not comparable."""

    dataset: str = Field(description="Name of the evaluation source, as the recipe gives it.")
    split: str = Field(description="Name of the split: dev, test, ...")
    protocol: Literal["native"] = Field("native", description="native: the real captions, none duplicated or left out.")
    scoring: Literal["dual", "cross", "dual+cross"] = Field(
        description="dual: cosine of two embeddings; cross: every pair through the encoder; dual+cross: a shortlist re-ranked."
    )
    shortlist: Shortlist | None = Field(None, description="Given with dual+cross, and with nothing else.")
    caption_source: str | None = Field(
        None,
        description="Who wrote the captions, as the recipe says: human, machine translation; null where nothing says it.",
    )
    system: str = Field(description="What was evaluated: the run's name, or the baseline's.")
    step: int | None = Field(None, description="Step of the checkpoint; null for a baseline that has no steps.")
    seed: int | None = Field(None, description="Seed of the training; null where nothing random happened.")
    checkpoint: str | None = Field(None, description="Name of the checkpoint's folder; null for a baseline.")
    weights: str | None = Field(None, description="Hash of the weights; null for a baseline.")
    captioned_languages: list[str] | None = Field(
        description="Languages whose captions training saw, by the record of the checkpoint; null where it has none."
    )
    selection_split: str | None = Field(
        None, description="Split that the checkpoint was selected on; null where no selection was recorded."
    )
    truncated_captions: dict[str, int] = Field(
        {}, description="Captions that were cut to the run's max_tokens, by language."
    )
    unreadable: list[str] = Field([], description="Samples left out of the pool because they cannot be read, and why.")

    @model_validator(mode="after")
    def _shortlist_goes_with_its_scoring(self) -> "Conditions":
        if (self.shortlist is not None) != (self.scoring == "dual+cross"):
            raise ValueError("shortlist is given with scoring 'dual+cross', and with nothing else")
        return self


class Identical(_Model):
    """The same words as the caption of several concepts, of which only one counts as right."""

    text: str = Field(description="The caption.")
    concepts: list[str] = Field(description="The concepts (or pictures) that it belongs to.")


class Summary(_Model):
    """A mean recall, alone or averaged over languages, in percent."""

    mean_recall: Rounded = Field(description="Mean of R@1, R@5, R@10 both ways.")
    interval: tuple[Rounded, Rounded] = Field(description="95 % bootstrap over queries; training seeds are not in it.")
    chance: Rounded = Field(description="Expected mean recall of random scores on the same pool.")


class LanguageResult(Summary):
    """The result in one language. Recalls in percent, ranks from 1."""

    text_to_image: dict[str, Rounded] = Field(description="R@1, R@5, R@10 of captions that ask for pictures.")
    image_to_text: dict[str, Rounded] = Field(description="R@1, R@5, R@10 of pictures that ask for captions.")
    captions: int = Field(description="Captions in the pool.")
    captioned_images: int = Field(description="Pictures that have a right caption, so that ask for one.")
    captions_per_image: Rounded = Field(description="Right captions of such a picture, on average.")
    identical_captions: list[Identical] = Field(description="Same words, different concepts.")
    caption_groups: list[int] = Field(description="Concept number of each caption.")
    text_to_image_ranks: list[int] = Field(description="Rank of the best right picture of each caption.")
    image_to_text_ranks: list[int] = Field(description="Rank of the best right caption of each picture; 0: has none.")
    fingerprint: str = Field(description="Digest of pictures, captions and owners: equal means the same queries.")


class Evaluation(Conditions):
    """One evaluation, as written to evaluation/NAME.json."""

    format_version: Literal[1] = Field(1, description="Version of this file's form.")
    images: int = Field(description="Pictures in the gallery.")
    captions: int = Field(description="Captions, all languages together.")
    languages: dict[str, LanguageResult] = Field(description="The result in each language.")
    mean: Summary = Field(description="Average over all languages.")
    mean_never_captioned: Summary | None = Field(
        description="Average over languages without captions in training; null: none, or not recorded."
    )
    image_groups: list[int] = Field(description="Concept number of each picture.")
    intervals: str = Field(description="How the intervals were made.")

    @model_validator(mode="after")
    def _one_rank_a_query(self) -> "Evaluation":
        wanted = [("image_groups", len(self.image_groups), self.images)]
        for language, result in self.languages.items():
            for field, number in [
                ("caption_groups", result.captions),
                ("text_to_image_ranks", result.captions),
                ("image_to_text_ranks", self.images),
            ]:
                wanted.append((f"languages.{language}.{field}", len(getattr(result, field)), number))
        wrong = [f"{place} holds {found} numbers, want {number}" for place, found, number in wanted if found != number]
        if wrong:
            raise ValueError(f"{wrong[0]}; evaluate again")
        return self

    @classmethod
    def of(cls, pool: Pool, ranks: Mapping[str, QueryRanks], conditions: Conditions) -> "Evaluation":
        """Build the result from the pool, the ranks of every language of it, and the conditions.

        Groups and ranks are stored by picture id and by (concept, caption), whatever the order of the pool.
        """
        assert list(ranks) == list(pool.captions), "one set of ranks for each language of the pool"
        pool, ranks = pool.in_order(ranks)
        grouped = {name: GroupedRanks(found, *pool.groups(name)) for name, found in ranks.items()}
        languages = {name: _language_result(pool, name, queries) for name, queries in grouped.items()}
        captioned = conditions.captioned_languages
        never = [] if captioned is None else [name for name in languages if name not in captioned]
        return cls(
            **dict(conditions),
            images=len(pool.images),
            captions=sum(result.captions for result in languages.values()),
            languages=languages,
            mean=_summary(grouped, languages, list(languages)),
            mean_never_captioned=_summary(grouped, languages, never) if never else None,
            image_groups=pool.groups(next(iter(languages)))[0].tolist(),
            intervals=METHOD,
        )

    def grouped_ranks(self, language: str) -> GroupedRanks:
        """Return the stored ranks of a language in the form that `intervals` takes."""
        result = self.languages[language]
        found = QueryRanks(np.array(result.text_to_image_ranks), np.array(result.image_to_text_ranks))
        return GroupedRanks(found, np.array(self.image_groups), np.array(result.caption_groups))

    def save(self, path: Path) -> None:
        """Write the result as JSON, lists of numbers on one line each; makes the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # A JSON string holds no raw line break, so this touches lists of numbers only.
        numbers = re.compile(r"\[\n\s*([-\d.,\s]+?)\n\s*\]")
        text = numbers.sub(lambda found: "[" + " ".join(found[1].split()) + "]", self.model_dump_json(indent=2))
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read a result that `save` wrote. Raises UserError for a file that is absent or is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; `m3p evaluate RUN` writes evaluations") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{path}: not an evaluation of this version: {where}: {first['msg'].removeprefix('Value error, ')}"
            ) from None


def _language_result(pool: Pool, language: str, grouped: GroupedRanks) -> LanguageResult:
    right = pool.right(language)
    captions = [(caption.text, caption.concept) for caption in pool.captions[language]]
    per_image = right.sum(axis=1)
    found, interval = recalls(grouped.ranks), mean_recall_interval({language: grouped})
    return LanguageResult(
        mean_recall=found["mean_recall"],
        interval=(interval.low, interval.high),
        chance=chance(right),
        text_to_image=found["text_to_image"],
        image_to_text=found["image_to_text"],
        captions=len(captions),
        captioned_images=int((per_image > 0).sum()),
        captions_per_image=float(per_image[per_image > 0].mean()),
        identical_captions=[Identical(text=text, concepts=names) for text, names in pool.identical(language)],
        caption_groups=grouped.caption_groups.tolist(),
        text_to_image_ranks=grouped.ranks.text_to_image.tolist(),
        image_to_text_ranks=grouped.ranks.image_to_text.tolist(),
        fingerprint=hashlib.blake2b(repr((pool.images, pool.concepts, captions)).encode(), digest_size=8).hexdigest(),
    )


def _summary(grouped: Mapping[str, GroupedRanks], languages: Mapping[str, LanguageResult], names: list[str]) -> Summary:
    interval = mean_recall_interval({name: grouped[name] for name in names})
    return Summary(
        mean_recall=interval.value,
        interval=(interval.low, interval.high),
        chance=float(np.mean([languages[name].chance for name in names])),
    )


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
        mark = " *" if language in (evaluation.captioned_languages or []) else ""
        table.add_row(language + mark, *(f"{value:.1f}" for value in values), *_cells(result), str(result.captions))
    table.add_section()
    table.add_row(_ALL, *[""] * 6, *_cells(evaluation.mean), str(evaluation.captions), style="bold")
    if evaluation.mean_never_captioned is not None:
        table.add_row(_NEVER, *[""] * 6, *_cells(evaluation.mean_never_captioned), style="bold")
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
    if evaluation.captioned_languages is None:
        parts.append("captioned languages not recorded")
    elif evaluation.captioned_languages:
        parts.append("* captioned in training")
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


def differences(a: Evaluation, b: Evaluation) -> dict[str, Interval]:
    """Return mean recall of `a` less `b`, in points and paired by query: each shared language, then the means.

    Raises UserError when they share no language or were asked different queries in one.
    """
    return {
        row: difference_interval({n: a.grouped_ranks(n) for n in names}, {n: b.grouped_ranks(n) for n in names})
        for row, names in shared_rows(a, b).items()
    }


def shared_rows(first: Evaluation, *others: Evaluation) -> dict[str, list[str]]:
    """Return the rows of a comparison and the languages behind each: every language that all share, then the means.

    Raises UserError when they share no language, or were asked different queries in one.
    """
    shared = [language for language in first.languages if all(language in one.languages for one in others)]
    for other in others:
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
    never = [name for name in shared if name not in captioned] if None not in seen else []
    return {name: [name] for name in shared} | {_ALL: shared} | ({_NEVER: never} if never else {})


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
    return [evaluation.scoring, f"shortlist {k}", f"step {evaluation.step}", f"{evaluation.dataset} {evaluation.split}"]


def compare(a: Evaluation, b: Evaluation) -> Table:
    """Return a table of the paired differences of mean recall; one whose interval holds zero is called none."""
    table = Table(
        title=Text(f"mean recall: {a.system} ({a.scoring}) less {b.system} ({b.scoring})"), title_justify="left"
    )
    for name in ("language", *_titles(a, b), "difference", "95 % interval"):
        table.add_column(Text(name), justify="left" if name == "language" else "right")
    found = differences(a, b)
    for row, names in shared_rows(a, b).items():
        if row == _ALL:
            table.add_section()
        values = [float(np.mean([one.languages[name].mean_recall for name in names])) for one in (a, b)]
        verdict = "none" if found[row].holds_zero else f"{found[row].value:+.1f}"
        table.add_row(
            row, *(f"{value:.1f}" for value in values), verdict, f"{found[row].low:+.1f} to {found[row].high:+.1f}"
        )
    return table
