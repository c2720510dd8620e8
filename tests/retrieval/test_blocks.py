import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p import distributed
from m3p.retrieval.blocks import Blocks, Floats, cut, duration, write_block

SIZES = [3, 1, 4, 1, 5]


def block(number: int) -> Floats:
    return np.arange(SIZES[number], dtype=np.float32) + 10 * number


class Killed(Exception):
    pass


def test_what_a_killed_call_did_is_not_done_again(tmp_path: Path) -> None:
    def until_killed(number: int) -> Floats:
        if number == 3:
            raise Killed
        return block(number)

    here = Blocks(tmp_path / "blocks")
    with pytest.raises(Killed):
        here.compute("pairs", SIZES, until_killed, "pairs")
    assert here.done(SIZES, "pairs") == 8
    computed: list[int] = []

    def again(number: int) -> Floats:
        computed.append(number)
        return block(number)

    found = here.compute("pairs", SIZES, again, "pairs")
    assert computed == [3, 4]
    assert [part.tolist() for part in found] == [block(number).tolist() for number in range(5)]
    here.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"zeros"])
def test_a_damaged_block_is_said_and_computed_again(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Blocks(tmp_path / "blocks")
    here.compute("pairs", SIZES, block, "pairs")
    file = here.folder / "pairs-000002.npy"
    content = file.read_bytes()
    file.write_bytes(damage if damage != b"zeros" else content[:-20] + bytes(20))
    assert here.done(SIZES, "pairs") == sum(SIZES) - SIZES[2]
    computed: list[int] = []

    def again(number: int) -> Floats:
        computed.append(number)
        return block(number)

    found = here.compute("pairs", SIZES, again, "pairs")
    assert computed == [2]
    assert [part.tolist() for part in found] == [block(number).tolist() for number in range(5)]
    assert capsys.readouterr().err.count("pairs-000002.npy is damaged: it is computed again") == 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_shares_the_blocks_and_sees_them_all(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, box, done = threading.Barrier(ranks, timeout=20), list[Any](), list[int]()
    found: dict[int, list[Floats]] = {}

    def broadcast(value: Any) -> Any:
        if threading.current_thread().name == "0":
            box[:] = [value]
        meeting.wait()
        return box[0]

    def gather(value: Any) -> list[Any]:
        meeting.wait()
        return [value] * ranks

    def work(number: int) -> Floats:
        done.append(number)
        return block(number)

    def run(rank: int) -> None:
        found[rank] = Blocks(tmp_path / "blocks", rank, ranks).compute("pairs", SIZES, work, "pairs")

    monkeypatch.setattr(distributed, "broadcast_object", broadcast)
    monkeypatch.setattr(distributed, "gather_objects", gather)
    (tmp_path / "blocks").mkdir()
    write_block(tmp_path / "blocks" / "pairs-000001.npy", block(1))  # left by a killed call
    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 2, 3, 4], "each block once"
    for rank in range(ranks):
        assert [part.tolist() for part in found[rank]] == [block(number).tolist() for number in range(5)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 20))
def test_runs_cover_all_items_in_order_and_hold_no_more_than_they_may(counts: list[int], limit: int) -> None:
    bounds = cut(np.array(counts), limit)
    assert [first for first, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == len(counts)
    assert all(sum(counts[first:end]) <= limit or end - first == 1 for first, end in bounds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("m3p.retrieval.blocks.time.monotonic", lambda: now[0])
    return now


def test_progress_is_a_line_now_and_then_with_the_time_that_is_left(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def work(number: int) -> Floats:
        clock[0] += 20
        return block(number)

    Blocks(tmp_path / "blocks").compute("cross-encoder", [100] * 5, work, "pairs")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "cross-encoder: 200 of 500 pairs, 5 a second, 60 s left",
        "cross-encoder: 400 of 500 pairs, 5 a second, 20 s left",
    ]


def test_a_length_of_time_is_told_in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]
