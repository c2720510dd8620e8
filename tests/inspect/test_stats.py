"""Of trainer/m3p/inspect/stats.py."""

import json
from pathlib import Path

import pytest

from m3p.data.shards.index_folder import index_folder
from m3p.errors import UserError
from m3p.inspect.stats import SourceStats, stats
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from tests.data.broken import pair, write


def figures(recipe_path: Path, *overrides: str) -> dict[tuple[str, str], SourceStats]:
    objectives = build_objectives(load_recipe(recipe_path, overrides))
    return {(found.objective, Path(found.folder).name): found for found in stats(objectives, 1000)}


def test_counts_lengths_and_coverage_of_the_tiny_recipe(tiny: Path) -> None:
    found = figures(tiny)
    assert set(found) == {
        ("multilingual_text", "de"), ("multilingual_text", "en"), ("multilingual_text", "ja"),
        ("image_caption", "train"), ("code_switched", "train"),
    }  # fmt: skip
    text, pairs = found["multilingual_text", "ja"], found["code_switched", "train"]
    assert (text.samples, text.shards, text.languages, text.read) == (40, 3, {"ja": 40}, 40)
    assert text.regions == {}
    assert sum(found["multilingual_text", code].share for code in ("de", "en", "ja")) == pytest.approx(100, abs=0.1)
    assert pairs.languages == {"de": 30, "en": 30, "ja": 30}
    assert pairs.regions == {"5": 3, "50": 4, "95": 5, "largest": 5}
    assert pairs.coverage == {"de": 100.0, "ja": 100.0}
    assert 3 <= pairs.tokens["5"] <= pairs.tokens["50"] <= pairs.tokens["largest"]
    assert pairs.bad == pairs.unknown == pairs.cut == 0
    assert found["image_caption", "train"].coverage == {}


def test_texts_that_are_cut_are_counted(tiny: Path) -> None:
    assert figures(tiny, "objectives.multilingual_text.max_tokens=4")["multilingual_text", "en"].cut > 50


def test_bad_samples_are_counted_by_reason(tiny: Path, tmp_path: Path) -> None:
    samples = [(str(number), pair(number)) for number in range(6)]
    samples[1] = ("1", {**pair(1), "json": b"{"})
    samples[4] = ("4", {**pair(4), "regions.npz": b"PK"})
    write(tmp_path / "a.tar", samples)
    index_folder(tmp_path, "captions")
    source = f"objectives.image_caption.sources=[{{path: {tmp_path}}}]"
    found = figures(tiny, "visual.feature_size=4", "objectives.code_switched=null", source)
    mine = found["image_caption", tmp_path.name]
    assert mine.reasons == {"json cannot be read": 1, "unreadable regions.npz": 1}
    assert any("1 times: unreadable regions.npz" in line for line in mine.lines())


def test_the_command_prints_a_table_and_writes_json(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from m3p.cli.data import stats_command

    stats_command(str(tiny), [], 10, tmp_path / "stats.json")
    printed = capsys.readouterr().out
    assert "30 samples in 4 shards" in printed
    assert "percent of words found in the word lists: de 100, ja 100" in printed
    written = json.loads((tmp_path / "stats.json").read_text())
    assert [source["read"] for source in written] == [10] * 5
    for wrong in (tmp_path, tmp_path / "none" / "x.json", tmp_path / "stats.json" / "x.json"):
        with pytest.raises(UserError, match=f"--json {wrong}: cannot be written"):
            stats_command(str(tmp_path / "not even read"), [], 10, wrong)
