"""Of trainer/m3p/training/build_objectives.py: shards are read ahead as far as memory goes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from m3p.data.source import Source
from m3p.data.storage.folders import LocalFolder
from m3p.objectives.objective import Objective
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import FOR_FILES, build_objectives, held_back


def build(recipe: Path, monkeypatch: pytest.MonkeyPatch, available: float) -> list[Objective]:
    """Build the objectives of a recipe where so many bytes are to spare."""
    monkeypatch.setattr("m3p.training.build_objectives.available_memory", lambda: available)
    return list(build_objectives(load_recipe(recipe)).values())


def ahead(objectives: list[Objective]) -> dict[Source, bool]:
    """Return whether each source is read ahead."""
    found = {}
    for source in (source for objective in objectives for source in objective.mix.sources):
        assert isinstance(source.folder, LocalFolder)
        found[source] = source.folder.reads_ahead
    return found


def test_two_windows_of_the_largest_shards_are_counted(tiny: Path) -> None:
    window = load_recipe(tiny).data.window
    for objective in build_objectives(load_recipe(tiny)).values():
        for source in objective.mix.sources:
            assert isinstance(source.folder, LocalFolder)
            sizes = sorted((path.stat().st_size for path in source.folder.path.glob("*.tar")), reverse=True)
            assert source.bytes_ahead == sum(sizes[: 2 * window]) > 0


def test_what_does_not_fit_is_not_read_ahead_and_the_table_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = build(tiny, monkeypatch, 10**12)
    assert all(ahead(plenty).values())
    assert held_back(plenty) == ""
    sizes = sorted(source.bytes_ahead for source in ahead(plenty))
    some = build(tiny, monkeypatch, sum(sizes[:-1]) / FOR_FILES)
    late = [source.bytes_ahead for source, is_ahead in ahead(some).items() if not is_ahead]
    assert late == sizes[-1:]
    assert held_back(some).startswith("of 1 source(s) not read ahead: two windows of their shards, 0.0 GB")
    none = build(tiny, monkeypatch, 0)
    assert not any(ahead(none).values())
    turn = range(3)
    assert none[0].batch(turn, turn).names == plenty[0].batch(turn, turn).names


def test_a_run_whose_sources_are_all_local_needs_no_folder_for_a_cache(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("file", "new"):
        assert build_objectives(load_recipe(tiny, [f"data.cache_folder={tmp_path / name}"]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_asked_of_the_system_for_shards_that_are_not_read_ahead(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    queue = SimpleNamespace(put=asked.append)
    monkeypatch.setattr("m3p.data.storage.folders._background", lambda process: queue)
    for available, count in ((0, 0), (10**12, 1)):
        build(tiny, monkeypatch, available)[0].batch(range(3), range(3))
        assert bool(asked) == bool(count)
