"""Figures of every source of a recipe: counts from its manifest, lengths and bad samples from some that are read."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from m3p.data.sample import BadSamples, Sample
from m3p.data.source import Source
from m3p.errors import UserError
from m3p.objectives.objective import Objective
from m3p.training.watch.bad_report import kind


class SourceStats(BaseModel):
    """Figures of one source of one objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: str
    folder: str
    share: float = Field(description="Of the objective's samples, in percent.")
    shards: int
    samples: int
    bytes: int
    languages: dict[str, int] = Field(description="Samples with a caption in each language; the language of a text.")
    read: int = Field(description="Samples that the figures below are from; the first ones of the shuffled order.")
    tokens: dict[str, int] = Field(
        description="Tokens of a text: percentiles 5, 50, 95 and the largest, before cutting."
    )
    cut: float = Field(description="Percent of the texts that are longer than max_tokens.")
    unknown: float = Field(description="Percent of the pieces that the vocabulary does not know.")
    regions: dict[str, int] = Field(
        description="Visual tokens of a picture: percentiles as for tokens; empty for text."
    )
    coverage: dict[str, float] = Field(
        description="Percent of the captions' words in each word list; empty without word lists."
    )
    bad: int = Field(description="Bad samples among those read.")
    reasons: dict[str, int] = Field(description="Why, and how many.")

    def lines(self) -> list[str]:
        """Return the figures in words: a heading and some indented lines."""
        languages = ", ".join(f"{code} {number:,}" for code, number in self.languages.items())
        longer = f"{self.cut:g} % are longer than max_tokens"
        found = [
            f"{self.objective}: {self.folder}, {self.share:g} % of its samples",
            f"  {self.samples:,} samples in {self.shards:,} shards, {self.bytes / 1e6:,.1f} MB; {languages}",
            f"  of the {self.read:,} read:",
            f"  tokens of a text {_range(self.tokens)}; {longer}, {self.unknown:g} % of the pieces unknown",
        ]
        if self.regions:
            found.append(f"  visual tokens of a picture {_range(self.regions)}")
        if self.coverage:
            shares = ", ".join(f"{code} {share:.0f}" for code, share in self.coverage.items())
            found.append(f"  percent of words found in the word lists: {shares}")
        found.append(f"  {self.bad} bad")
        return found + [f"    {number} times: {reason}" for reason, number in self.reasons.items()]


def _range(percentiles: Mapping[str, int]) -> str:
    """Return percentiles in words."""
    if not percentiles:
        return "unknown"
    low, median, high, largest = percentiles.values()
    return f"{low} to {high} (5 % to 95 %), median {median}, most {largest}"


def stats(objectives: Mapping[str, Objective], samples: int) -> list[SourceStats]:
    """Read up to `samples` samples of every source, and return its figures."""
    return [
        _source(name, objective, number, samples)
        for name, objective in objectives.items()
        for number in range(len(objective.mix.sources))
    ]


def _source(name: str, objective: Objective, number: int, limit: int) -> SourceStats:
    mix, source = objective.mix, objective.mix.sources[number]
    manifest, tokenizer = source.manifest, objective.context.tokenizer
    read, bad = _read(source, min(limit, manifest.samples))
    texts = [
        text for sample in read for of in source.kind.texts(sample.record, sample.language).values() for text in of
    ]
    lengths = [tokenizer.encode(text, 2**31) for text in texts]
    pieces = np.concatenate([ids[1:-1] for ids in lengths]) if lengths else np.zeros(0, np.int64)
    sizes = [len(ids) for ids in lengths]
    counts = Counter(kind(line)[1] for line in bad)
    return SourceStats(
        objective=name,
        folder=str(source.folder),
        share=round(100 * mix.weights[number] / sum(mix.weights), 2),
        shards=len(manifest.shards),
        samples=manifest.samples,
        bytes=int(manifest.shards.bytes.sum()),
        languages=manifest.captions or {manifest.language or "": manifest.samples},
        read=len(read),
        tokens=_percentiles(sizes),
        cut=round(100 * float(np.mean(np.array(sizes) > objective.config.max_tokens)), 2) if sizes else 0.0,
        unknown=round(100 * float(np.mean(pieces == tokenizer.unknown)), 2) if len(pieces) else 0.0,
        regions=_percentiles([sample.visual.tokens for sample in read if sample.visual]),
        coverage={language: round(100 * share, 1) for language, share in objective.coverage(texts).items()},
        bad=len(bad),
        reasons=dict(counts.most_common()),
    )


def _read(source: Source, number: int) -> tuple[list[Sample], list[str]]:
    """Read the first samples of the order; a shard without a good one ends it early."""
    bad, read = BadSamples([]), []
    try:
        for index in range(number):
            read.append(source.read(index, bad, augment=False))
    except UserError as error:
        bad.seen.append(f"{source.folder}: {error}")
    return read, bad.seen


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    if not values:
        return {}
    found = np.percentile(values, [5, 50, 95, 100], method="nearest").tolist()
    return dict(zip(("5", "50", "95", "largest"), map(int, found), strict=True))
