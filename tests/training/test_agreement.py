import json
from pathlib import Path

import pytest
import torch
from torch import nn

import m3p.training.agreement as module
import m3p.training.train as training
from m3p.checkpoints.files import FORMAT_VERSION, State
from m3p.content_hash import code_hash
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.training.agreement import LIBRARIES, check_agreement, check_shared, facts_of_network, facts_of_run
from tests.launch import ROOT, as_ranks

RANKS = Ranks(0, 0, 8, torch.device("cpu"), "torchrun")


def agree(monkeypatch: pytest.MonkeyPatch, *every: dict[str, str]) -> None:
    """Compare what the ranks say, as rank 0 sees it."""
    monkeypatch.setattr(module, "gather_objects", lambda mine: list(every))
    check_agreement(RANKS, every[0])


def test_ranks_that_agree_start(monkeypatch: pytest.MonkeyPatch) -> None:
    agree(monkeypatch, *[{"seed": "0", "data": "a"}] * 8)


def test_a_difference_is_named_with_its_ranks_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"recipe, run.seed": "0", "code of m3p": "a"}
    other = {"recipe, run.seed": "7", "code of m3p": "a", "package new": "1"}
    with pytest.raises(UserError) as caught:
        agree(monkeypatch, *[same] * 6, other, same)
    said = str(caught.value)
    assert "recipe, run.seed: 0 on ranks 0, 1, 2, 3 and 3 more, 7 on rank 6" in said
    assert "package new: not set on ranks 0, 1, 2, 3 and 3 more, 1 on rank 6" in said
    assert "code of m3p" not in said


def test_many_differences_do_not_fill_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="and 80 more\n"):
        agree(monkeypatch, *({str(n): value for n in range(100)} for value in "ab"))


def test_code_settings_and_data_are_facts_and_where_they_lie_is_none(tmp_path: Path) -> None:
    def facts(recipe: dict[str, object], stage: int = 1, data: str = "x") -> dict[str, str]:
        ds_config = tmp_path / "ds.json"
        ds_config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        state = State(format_version=FORMAT_VERSION, step=0, ranks=2, order_version=1, recipe=recipe, data={"a": data})
        return facts_of_run(state, ds_config)

    sources = {"objectives": {"text": {"sources": [{"path": "/here"}]}}, "model": {"tokenizer": "/here"}}
    there = {"objectives": {"text": {"sources": [{"path": "/there"}]}}, "model": {"tokenizer": "/there"}}
    assert facts(sources) == facts(there)
    always = {"code of m3p", "Python", "order of samples, version", "package torch", "package deepspeed"}
    assert always <= facts(sources).keys()
    for other in (facts({"run": {"spike": 3}}), facts(sources, stage=2), facts(sources, data="y")):
        assert other != facts(sources)


def test_any_change_of_the_code_changes_its_hash(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("no code")
    assert code_hash(tmp_path) == before
    (tmp_path / "a" / "b.py").write_text("x = 2\n")
    changed = code_hash(tmp_path)
    (tmp_path / "a" / "b.py").rename(tmp_path / "a" / "c.py")
    assert len({before, changed, code_hash(tmp_path)}) == 3


def test_one_number_of_the_weights_changes_their_hash() -> None:
    network = nn.Linear(3, 2)
    before = facts_of_network(network)
    assert facts_of_network(network) == before
    with torch.no_grad():
        network.weight[1, 2] += 1e-6
    assert facts_of_network(network) != before


def test_ranks_that_do_not_share_the_run_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared(tmp_path)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "broadcast_object", lambda name: f"{name}.of-another-folder")
    monkeypatch.setattr(module, "gather_objects", lambda mine: [True, mine, mine])
    with pytest.raises(
        UserError, match=f"ranks 1, 2 cannot see what rank 0 writes into {tmp_path}, .* by its full path"
    ):
        check_shared(tmp_path)


def test_a_run_looks_whether_its_folder_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[Path]()
    monkeypatch.setattr(training, "check_shared", looked.append)
    training._make_folder(tmp_path / "run")
    assert looked == [tmp_path / "run" / "checkpoints"]


def test_libraries_that_cut_texts_are_compared() -> None:
    assert {"sentencepiece", "tokenizers"} <= set(LIBRARIES)


@pytest.mark.launcher
def test_a_rank_with_another_seed_stops_the_run_before_its_first_step(tiny: Path, tmp_path: Path) -> None:
    settings = [f"run.folder={tmp_path / 'run'}", "run.steps=2", "schedule.warmup_steps=0"]
    ended = as_ranks(tiny, ROOT / "ds_configs" / "zero1.json", settings, [*settings, "run.seed=7"])
    assert [code for code, _ in ended] == [2, 2]
    assert "recipe, run.seed: 0 on rank 0, 7 on rank 1" in ended[0][1]
    assert "Traceback" not in ended[0][1] + ended[1][1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
