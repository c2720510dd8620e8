from pathlib import Path

import numpy as np
import pytest

from tests.tiny import WORDS
from trainer.data.reader import ShardReader
from trainer.prepare.shards import ShardWriter
from trainer.recipe import load_recipe
from trainer.training.streams import build_objectives


def test_costs_are_close_to_lengths_in_every_script_without_reading_the_samples(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for language in ("en", "ja"):  # about one byte a letter, and three
        with ShardWriter(tmp_path / "text" / language, "text", 40, language) as writer:
            for _ in range(40):
                writer.write({"txt": " ".join(rng.choice(WORDS[language], rng.integers(1, 12))).encode()})
    most = 24
    settings = [f"objectives.multilingual_text.sources=[{{path: {tmp_path}/text/*}}]"]
    settings.append(f"objectives.multilingual_text.most_tokens={most}")
    text = build_objectives(load_recipe(tiny, settings))["multilingual_text"]
    positions = range(80)
    lengths = np.array([int(text.batch(positions, [place]).lengths.sum()) for place in positions])
    monkeypatch.setattr(ShardReader, "read", None)
    costs = text.costs(positions)
    assert costs.max() == most
    assert (lengths < most).sum() > 20
    assert np.abs(costs / lengths - 1).mean() < 0.2
    assert len({round(source.bytes_of_token, 1) for source in text.mix.sources}) == 2
