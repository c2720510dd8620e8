from pathlib import Path

import numpy as np
import pytest

from m3p.data.order.plan import MicroBatch, Turn
from m3p.data.sample import BadSamples
from m3p.data.storage.reader import ShardReader
from m3p.objectives.multilingual_text import MultilingualText
from m3p.prepare.shards import ShardWriter
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from tests.batches import sequences
from tests.tiny import WORDS


@pytest.fixture
def text(tiny: Path, tmp_path: Path) -> MultilingualText:
    """Two languages, four shards each, with a bad passage in each of them: of no letters, of no UTF-8."""
    for language, bad in (("en", b" "), ("ja", b"\xff")):
        with ShardWriter(tmp_path / "text" / language, "text", 10, language) as writer:
            for number in range(40):
                content = f"{language} {number} {WORDS[language][number % 5]}".encode()
                writer.write({"txt": bad} if number == 17 else {"txt": content})
    settings = [f"objectives.multilingual_text.sources=[{{path: {tmp_path}/text/*}}]"]
    made = build_objectives(load_recipe(tiny, settings))["multilingual_text"]
    assert isinstance(made, MultilingualText)
    return made


def test_passages_read_together_are_those_read_one_by_one(text: MultilingualText) -> None:
    positions = list(range(0, 200, 3))
    together, bad = text.mix.read_many(positions), BadSamples([])
    samples = [text.mix.read(position, bad) for position in positions]
    assert together.records == [sample.text for sample in samples]
    assert together.names == [sample.name for sample in samples]
    assert together.languages == [sample.language for sample in samples]
    assert [tuple(owner) for owner in together.owners.tolist()] == [sample.owner for sample in samples]
    assert together.messages == bad.seen
    assert len(bad.seen) >= 2
    assert list(together) == samples


def test_micro_batches_made_together_are_those_made_one_by_one(text: MultilingualText) -> None:
    turn = Turn(0, "multilingual_text", 0, range(80))
    parts = [MicroBatch(turn, 0, part) for part in (range(30), range(0), list(range(30, 69)), [69, 75])]
    together = list(text.batches(parts))
    alone = [text.batch(turn.positions, part.positions) for part in parts]
    assert [batch.samples for batch in together] == [30, 0, 39, 2]
    assert sum(len(batch.bad) for batch in together) >= 2
    for one, other in zip(together, alone, strict=True):
        assert sequences(one) == sequences(other)
        assert (one.names, one.bad, one.counts) == (other.names, other.bad, other.counts)
        for task, targets in other.targets.items():
            assert all(one.targets[task][name].equal(tensor) for name, tensor in targets.items())


def test_costs_are_close_to_lengths_in_every_script_without_reading_the_samples(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for language in ("en", "ja"):  # about one byte a letter, and three
        with ShardWriter(tmp_path / "text" / language, "text", 40, language) as writer:
            for _ in range(40):
                writer.write({"txt": " ".join(rng.choice(WORDS[language], rng.integers(1, 12))).encode()})
    limit = 24
    settings = [f"objectives.multilingual_text.sources=[{{path: {tmp_path}/text/*}}]"]
    settings.append(f"objectives.multilingual_text.max_tokens={limit}")
    text = build_objectives(load_recipe(tiny, settings))["multilingual_text"]
    positions = range(80)
    lengths = np.array([int(text.batch(positions, [place]).lengths.sum()) for place in positions])
    monkeypatch.setattr(ShardReader, "read", None)
    costs = text.costs(positions)
    assert costs.max() == limit
    assert (lengths < limit).sum() > 20
    assert np.abs(costs / lengths - 1).mean() < 0.2
    assert len({round(source.bytes_of_token, 1) for source in text.mix.sources}) == 2
