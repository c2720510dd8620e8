"""The result of an evaluation: what was measured under which conditions, as JSON.

A recall means nothing without its pool: gallery size, captions a picture, scoring and protocol each move it by many
points. So every result carries them, and its ranks too: two results on the same queries can be compared later, paired.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from m3p.errors import UserError
from m3p.retrieval.intervals import METHOD, GroupedRanks, mean_recall_interval
from m3p.retrieval.metrics import QueryRanks, chance, recalls
from m3p.retrieval.pool import Pool

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
