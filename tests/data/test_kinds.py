"""A kind of samples that the program does not know: parallel text, from the shard to the packed micro-batch."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from m3p.data.kinds import CAPTIONS, KINDS, TEXT, Kind
from m3p.data.loader.loader import DataConfig, MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan, Plan, Stream
from m3p.data.records import Members
from m3p.data.sample import Sample
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.data.source import Source, SourceConfig
from m3p.data.tokenizer import EOS, Tokenizer
from m3p.errors import BadSample, UserError
from m3p.keys import keys_of
from m3p.objectives.objective import Context, Objective, ObjectiveConfig, Part, Read, Text
from m3p.objectives.tasks.masked_words import ask_words, mask_words
from m3p.packing import Packer
from m3p.prepare.shards import ShardWriter
from m3p.recipe.recipe import Recipe
from m3p.training.stop import ignore_in_worker
from tests.batches import sequences
from tests.tiny import WORDS

SENTENCES = 30


class Parallel:
    """One sentence in several languages: KEY.json {"en": "...", "de": "..."}. A record is that, in the languages chosen."""

    name: ClassVar[str] = "parallel"
    needs: ClassVar[str] = "a sentence in two languages (KEY.json)"
    has_pictures: ClassVar[bool] = False
    needs_language: ClassVar[bool] = False
    files: ClassVar[frozenset[str]] = frozenset({"json"})
    measured: ClassVar[str] = "json"

    def reader(self, language: str | None, languages: Sequence[str] | None) -> Callable[[Members], dict[str, str]]:
        def read(members: Members) -> dict[str, str]:
            found = json.loads(bytes(members.get("json", b"{}")))
            chosen = {code: text for code, text in found.items() if languages is None or code in languages}
            if len(chosen) < 2:
                raise BadSample("not in two languages")
            return chosen

        return read

    def label(self, number: int, record: dict[str, str]) -> str:
        return ""

    def texts(self, record: dict[str, str], language: str) -> Mapping[str, list[str]]:
        return {code: [text] for code, text in record.items()}

    def lengths(
        self, sizes: NDArray[np.uint32], bytes_of_token: float, region_features: int | None
    ) -> NDArray[np.float64]:
        return sizes / bytes_of_token


PARALLEL = Parallel()


class TranslationConfig(ObjectiveConfig):
    possible_tasks: ClassVar[tuple[str, ...]] = ("masked_words",)


class Translation(Objective):
    """Translation language modelling (XLM, arXiv 1901.07291): a sentence and its translation, words of both masked."""

    kind: ClassVar[Kind] = PARALLEL

    def text(self, sample: Sample) -> Text:
        first, *others = sample.record.values()
        return Text(first, {f"language/{code}": 1 for code in sample.record}, tuple(others))

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        keys = keys_of(part.samples.owners, "mask")
        hidden, places = mask_words(part.tokens, part.lengths, keys, 0.15, self.context.tokenizer)
        _, firsts = packer.add_many(hidden, part.lengths)
        ask_words(packer, firsts[0] + places, part.tokens[places])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of parallel text, written and indexed by the program; sentence 7 is in one language alone."""
    monkeypatch.setitem(KINDS, PARALLEL.name, PARALLEL)
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "parallel", "parallel", 8) as writer:
        for number in range(SENTENCES):
            words = rng.integers(0, 10, 4).tolist()
            record = {code: " ".join(WORDS[code][word] for word in words) for code in ("en", "de")}
            writer.write({"json": json.dumps(record if number != 7 else {"en": "alone"}).encode()})
    return tmp_path / "parallel"


def translation(folder: Path, recipe: Recipe, **fields: object) -> Translation:
    config = TranslationConfig.model_validate(
        {"batch_size": 8, "sources": [{"path": str(folder), **fields}], "tasks": {"masked_words": 1.0}}
    )
    return Translation(config, Context("translation", 0, Tokenizer(recipe.tokenizer_folder), None, 2))


def test_the_index_counts_what_the_kind_reads(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert (manifest.kind, manifest.samples, manifest.language) == ("parallel", SENTENCES, None)
    assert manifest.captions == {"de": SENTENCES - 1, "en": SENTENCES - 1}


def test_a_third_kind_goes_from_shard_to_micro_batch(folder: Path, tiny_recipe: Recipe) -> None:
    objective = translation(folder, tiny_recipe)
    batch = objective.batch(range(SENTENCES), range(SENTENCES))
    (message,) = batch.bad
    assert message.endswith("sample 7: not in two languages")
    assert batch.counts == {"language/en": SENTENCES, "language/de": SENTENCES}
    assert len(batch.targets["masked_words"]["slots"]) >= SENTENCES
    samples = objective.mix.read_many(range(SENTENCES))
    tokenizer = objective.context.tokenizer
    for sample, ids in zip(samples, sequences(batch), strict=True):
        inner = [place for place, token in enumerate(ids[:-1]) if token == EOS]
        first = len(tokenizer.encode(sample.record["en"], 64)) - 1
        assert inner == [first, first + 1], "separators between the sentences, which no mask hides"
        assert len(ids) == 4 + sum(len(tokenizer.encode(text, 64)) - 2 for text in sample.record.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_takes_it_like_any_other(folder: Path, tiny_recipe: Recipe, workers: int) -> None:
    objective = translation(folder, tiny_recipe)
    plan = MicroBatchPlan(Plan([Stream("translation", 1, 8)], None), 1, 0, {"translation": 4})
    batches = MicroBatches(plan, {"translation": objective})
    found = list(load(batches, 0, 12, DataConfig(workers=workers), False, ignore_in_worker))
    alone = [objective.batch(part.turn.positions, part.positions) for part in map(plan.locate, range(12))]
    assert [sequences(batch) for batch in found] == [sequences(batch) for batch in alone]
    assert [batch.bad for batch in found] == [batch.bad for batch in alone]
    assert objective.costs(range(8)).min() > 0


def test_sources_of_another_kind_or_language_are_refused(folder: Path, tiny: Path, tiny_recipe: Recipe) -> None:
    with pytest.raises(UserError, match="holds parallel, but its objective wants text"):
        Source(folder, SourceConfig(path=str(folder)), (0, "x", 0), 1, None, kind=TEXT)
    with pytest.raises(UserError, match="holds text, but its objective wants parallel"):
        translation(tiny.parent / "shards" / "text" / "de", tiny_recipe)
    with pytest.raises(UserError, match="no caption in ja"):
        translation(folder, tiny_recipe, languages=["en", "ja"])


def test_an_unknown_kind_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, "parallel")
    with pytest.raises(UserError, match=r"kind: .*'parallel' is no kind of samples; known are text, captions"):
        Manifest.load(folder)
    with pytest.raises(UserError, match="--kind parallel is no kind of samples; known are text, captions"):
        index_folder(folder, "parallel")


def test_kinds_are_registered_under_their_names() -> None:
    assert KINDS == {"text": TEXT, "captions": CAPTIONS}
    assert all(name == kind.name for name, kind in KINDS.items())
