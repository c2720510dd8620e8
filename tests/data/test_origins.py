"""Captions of different origin in one objective are never mixed without a word."""

from pathlib import Path

import pytest

from m3p.data.origins import mixed_origins
from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source, SourceConfig
from tests.data.broken import pair, write


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Source]:
    """Task 1, Task 2 and a folder that says nothing."""
    found = {}
    for name, origin in {
        "task1": {"set": "multi30k", "task": "1", "caption_source": "human translation"},
        "task2": {"set": "multi30k", "task": "2", "caption_source": "human"},
        "own": {"caption_source": "not stated"},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "0.tar", [("0", pair(0))])
        index_folder(folder, "captions", origin=origin)
        found[name] = Source(folder, SourceConfig(path=str(folder)), (0, name, 0), 1, lambda *given: None)  # type: ignore[arg-type]
    return found


def test_two_tasks_in_one_objective_are_said(made: dict[str, Source]) -> None:
    lines = list(mixed_origins({f"objectives.image_caption, {source.folder}": source for source in made.values()}))
    assert len(lines) == 2
    assert lines[0].startswith("objectives.image_caption mixes captions of different sources: human translation (")
    assert "different tasks of a set: 1 (" in lines[1]


def test_two_objectives_may_have_one_each(made: dict[str, Source]) -> None:
    apart = {"objectives.image_caption, a": made["task1"], "objectives.code_switched, b": made["task2"]}
    assert not list(mixed_origins(apart))
    assert not list(
        mixed_origins({"objectives.image_caption, a": made["task1"], "objectives.image_caption, b": made["own"]})
    )
