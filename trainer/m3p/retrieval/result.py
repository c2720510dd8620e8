"""The result of an evaluation: what was measured under which conditions, as JSON.

A recall means nothing without its pool: gallery size, captions a picture, scoring and protocol each move it by many
points. So every result carries them, and its ranks too: two results on the same queries can be compared later, paired.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from m3p.atomic import write_text
from m3p.data.languages import is_among
from m3p.errors import UserError
from m3p.recipe.evaluation import ProtocolName
from m3p.retrieval.consistency import Spread, image_to_text_spread, text_to_image_spread
from m3p.retrieval.intervals import METHOD, GroupedRanks, mean_recall_interval, query_interval, split_folds
from m3p.retrieval.metrics import QueryRanks, Recalls, chance, recalls
from m3p.retrieval.pool import Pool
from m3p.stored_files import read_bounded

ALL_LANGUAGES = "all languages"
"""Name of a row that is the mean over languages."""
NEVER_CAPTIONED = "never captioned"
"""Name of a row that is the mean over the languages in which training saw no caption."""

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
    protocol: ProtocolName = Field("native", description="How pool and figures were made: retrieval/protocols.py.")
    scoring: Literal["dual", "cross", "dual+cross"] = Field(
        description="dual: cosine of two embeddings; cross: every pair through the encoder; dual+cross: a shortlist re-ranked."
    )
    shortlist: Shortlist | None = Field(None, description="Given with dual+cross, and with nothing else.")
    dual_weight: float = Field(
        0.0,
        ge=0,
        description="Times this, the dual encoder's cosine was added to the cross-encoder's logit.",
    )
    centre: str | None = Field(
        None,
        description="Captions whose mean, by language, was taken away from each query of the dual encoder; null: none was.",
    )
    origin: dict[str, str] = Field(
        {},
        description="Of a published set, what its shards say: set, task, split, captions; empty where they say nothing.",
    )
    caption_source: str | None = Field(
        None,
        description="Who wrote the captions, as the shards say, else the recipe: human, human translation, machine translation, "
        "web; null where nothing says it.",
    )
    system: str = Field(description="What was evaluated: the run's name, or the baseline's.")
    step: int | None = Field(None, description="Step of the checkpoint; null for a baseline that has no steps.")
    seed: int | None = Field(None, description="Seed of the training; null where nothing random happened.")
    checkpoint: str | None = Field(None, description="Name of the checkpoint's folder; null for a baseline.")
    weights: str | None = Field(None, description="Hash of the weights; null for a baseline.")
    captioned_languages: list[str] | None = Field(
        description="Languages whose captions training saw, by the record of the checkpoint; null where it has none."
    )
    pictures_seen: int | None = Field(
        None,
        description="Samples whose pictures training saw, in the runs that it started from too; null where that "
        "was not recorded.",
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

    @property
    def scoring_in_words(self) -> str:
        """The scoring, and whether queries were centred: both move every figure."""
        return self.scoring if self.centre is None else f"{self.scoring}, queries centred"


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
    rsum: Rounded | None = Field(None, description="Sum of the six recalls; null in files of earlier versions.")
    interval_over_queries: tuple[Rounded, Rounded] | None = Field(
        None,
        description="95 % bootstrap of mean recall over single queries, as if those about one picture were independent.",
    )
    mteb: dict[str, dict[str, Rounded]] | None = Field(
        None, description="nDCG@10 and hit@1 as MTEB has them, in percent, each way; null where nDCG was not computed."
    )
    caption_groups: list[int] = Field(description="Concept number of each caption.")
    text_to_image_ranks: list[int] = Field(description="Rank of the best right picture of each caption.")
    image_to_text_ranks: list[int] = Field(description="Rank of the best right caption of each picture; 0: has none.")
    fingerprint: str = Field(description="Digest of pictures, captions and owners: equal means the same queries.")


class RankSpread(_Model):
    """How much the rank of an instance differs between languages, on average; lower is better."""

    rank_std: Rounded = Field(description="Standard deviation over languages; CCRK's MRV, by its released code.")
    rank_var: Rounded = Field(description="Variance over languages.")
    rank_range: Rounded = Field(description="Worst rank less best.")
    instances: int = Field(description="Instances that are queries in every language.")


class Fairness(_Model):
    """How evenly the languages are served."""

    best: str = Field(description="The language with the highest mean recall.")
    worst: str = Field(description="The language with the lowest mean recall.")
    gap: Rounded = Field(description="Mean recall of the best less that of the worst, in points.")
    ratio: Rounded | None = Field(description="Mean recall of the best over that of the worst; null where that is 0.")
    text_to_image: RankSpread | None = Field(
        description="Captions that ask for pictures; an instance is a picture (or concept), by the mean rank of its captions."
    )
    image_to_text: RankSpread | None = Field(description="Pictures that ask for captions; an instance is a picture.")


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
    fairness: Fairness | None = Field(None, description="Languages compared with each other; null for one language.")
    image_groups: list[int] = Field(description="Concept number of each picture.")
    image_folds: list[int] = Field([], description="Fold of each picture, from 0; empty: one pool.")
    intervals: str = Field(description="How the intervals were made.")

    @model_validator(mode="after")
    def _one_rank_a_query(self) -> "Evaluation":
        wanted = [("image_groups", len(self.image_groups), self.images)]
        if self.image_folds:
            wanted.append(("image_folds", len(self.image_folds), self.images))
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
        folds = np.array(pool.folds)
        parts = {name: split_folds(name, one, folds) for name, one in grouped.items()}
        languages = {name: _language_result(pool, name, one, parts[name]) for name, one in grouped.items()}
        captioned = conditions.captioned_languages
        never = [] if captioned is None else [name for name in languages if not is_among(name, captioned)]
        return cls(
            **dict(conditions),
            images=len(pool.images),
            captions=sum(result.captions for result in languages.values()),
            languages=languages,
            mean=_summary(parts, languages, list(languages)),
            mean_never_captioned=_summary(parts, languages, never) if never else None,
            fairness=_fairness(grouped, languages),
            image_folds=pool.folds if folds.any() else [],
            image_groups=pool.groups(next(iter(languages)))[0].tolist(),
            intervals=METHOD,
        )

    def grouped(self, languages: Iterable[str]) -> dict[str, GroupedRanks]:
        """Return the stored ranks of these languages, fold by fold, in the form that `intervals` takes."""
        parts: dict[str, GroupedRanks] = {}
        folds = np.array(self.image_folds or [0] * self.images)
        for name in languages:
            result = self.languages[name]
            found = QueryRanks(np.array(result.text_to_image_ranks), np.array(result.image_to_text_ranks))
            whole = GroupedRanks(found, np.array(self.image_groups), np.array(result.caption_groups))
            parts |= split_folds(name, whole, folds)
        return parts

    def save(self, path: Path) -> None:
        """Write the result as JSON, lists of numbers on one line each; makes the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # A JSON string holds no raw line break, so this touches lists of numbers only.
        numbers = re.compile(r"\[\n\s*([-\d.,\s]+?)\n\s*\]")
        text = numbers.sub(lambda found: "[" + " ".join(found[1].split()) + "]", self.model_dump_json(indent=2))
        write_text(path, text + "\n", durable=False)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read a result that `save` wrote. Raises UserError for a file that is absent or is none."""
        try:
            return cls.model_validate_json(read_bounded(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; `m3p evaluate RUN` writes evaluations") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{path}: not an evaluation of this version: {where}: {first['msg'].removeprefix('Value error, ')}"
            ) from None
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}") from None


def _language_result(
    pool: Pool, language: str, grouped: GroupedRanks, parts: Mapping[str, GroupedRanks]
) -> LanguageResult:
    """Return the result of a language from its ranks, whole and fold by fold."""
    right = pool.right(language)
    captions = [(caption.text, caption.concept) for caption in pool.captions[language]]
    per_image = right.sum(axis=1)
    found, interval = _mean_of_folds(parts), mean_recall_interval(parts)
    over_queries = query_interval(parts)
    return LanguageResult(
        mean_recall=found["mean_recall"],
        rsum=6 * found["mean_recall"],
        interval=(interval.low, interval.high),
        interval_over_queries=(over_queries.low, over_queries.high),
        chance=float(np.mean([chance(right[np.ix_(images, texts)]) for images, texts in pool.parts(language)])),
        text_to_image=found["text_to_image"],
        image_to_text=found["image_to_text"],
        mteb=_mteb(grouped.ranks, found),
        captions=len(captions),
        captioned_images=int((per_image > 0).sum()),
        captions_per_image=float(per_image[per_image > 0].mean()),
        identical_captions=[Identical(text=text, concepts=names) for text, names in pool.identical(language)],
        caption_groups=grouped.caption_groups.tolist(),
        text_to_image_ranks=grouped.ranks.text_to_image.tolist(),
        image_to_text_ranks=grouped.ranks.image_to_text.tolist(),
        fingerprint=_fingerprint(pool, captions),
    )


def _fingerprint(pool: Pool, captions: list[tuple[str, str]]) -> str:
    """Return a digest of pictures, captions and owners, and of the folds where there are several."""
    parts = (pool.images, pool.concepts, captions, *([pool.folds] if any(pool.folds) else []))
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _mean_of_folds(parts: Mapping[str, GroupedRanks]) -> Recalls:
    """Return the recalls of a language, averaged over its folds."""
    every = [recalls(part.ranks) for part in parts.values()]
    ways = {
        way: {name: float(np.mean([found[way][name] for found in every])) for name in every[0][way]}
        for way in ("text_to_image", "image_to_text")
    }
    mean = float(np.mean([found["mean_recall"] for found in every]))
    return Recalls(text_to_image=ways["text_to_image"], image_to_text=ways["image_to_text"], mean_recall=mean)


def _mteb(ranks: QueryRanks, found: Recalls) -> dict[str, dict[str, float]] | None:
    """Return nDCG@10 and hit@1 each way, in percent."""
    ways = {"text_to_image": ranks.text_to_image_ndcg, "image_to_text": ranks.image_to_text_ndcg}
    hits = {"text_to_image": found["text_to_image"]["R@1"], "image_to_text": found["image_to_text"]["R@1"]}
    return {
        way: {"nDCG@10": 100 * float(np.nanmean(ndcg)), "hit@1": hits[way]}
        for way, ndcg in ways.items()
        if ndcg is not None
    } or None


def _fairness(grouped: Mapping[str, GroupedRanks], languages: Mapping[str, LanguageResult]) -> Fairness | None:
    """Compare the languages with each other; None for one."""
    if len(languages) < 2:
        return None
    best, worst = (choose(languages, key=lambda name: languages[name].mean_recall) for choose in (max, min))
    high, low = languages[best].mean_recall, languages[worst].mean_recall
    return Fairness(
        best=best,
        worst=worst,
        gap=high - low,
        ratio=high / low if low else None,
        text_to_image=_rank_spread(text_to_image_spread(grouped)),
        image_to_text=_rank_spread(image_to_text_spread(grouped)),
    )


def _rank_spread(spread: Spread | None) -> RankSpread | None:
    return None if spread is None else RankSpread(**asdict(spread))


def _summary(
    parts: Mapping[str, Mapping[str, GroupedRanks]], languages: Mapping[str, LanguageResult], names: list[str]
) -> Summary:
    """Return the mean over the languages `names`, and over their folds."""
    interval = mean_recall_interval({key: part for name in names for key, part in parts[name].items()})
    return Summary(
        mean_recall=interval.value,
        interval=(interval.low, interval.high),
        chance=float(np.mean([languages[name].chance for name in names])),
    )
