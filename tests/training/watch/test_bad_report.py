import json
from pathlib import Path

import pytest

from m3p.training.watch.bad_report import BadReport, kind

BAD = [
    "train/a.tar, sample 3: broken tar: header at byte 512 has a wrong checksum",
    "train/a.tar, sample 4: broken tar: header at byte 0 is cut off",
    "train/a.tar, sample 9: a picture of 70000 x 40000 pixels, more than visual.max_pixels = 5",
    "text/b.tar, sample 1: txt is not UTF-8 (invalid start byte)",
]


def test_counts_by_shard_and_reason(tmp_path: Path) -> None:
    report = BadReport(tmp_path, 0)
    report.add(1, BAD[:3])
    report.add(2, [])
    report.add(7, BAD[3:])
    assert (tmp_path / "bad_samples.txt").read_text().splitlines()[3] == f"step 7: {BAD[3]}"
    table = json.loads((tmp_path / "bad_samples.json").read_text())
    assert table["samples"] == 4
    assert table["shards"]["train/a.tar"] == {
        "broken tar": 2,
        "a picture of N x N pixels, more than visual.max_pixels = N": 1,
    }
    assert table["reasons"]["txt is not UTF-8"] == 1
    assert list(table["shards"]) == ["train/a.tar", "text/b.tar"]


def test_a_run_that_goes_on_forgets_what_it_meets_again(tmp_path: Path) -> None:
    report = BadReport(tmp_path, 0)
    report.add(1, BAD[:1])
    report.add(5, BAD[1:])
    with (tmp_path / "bad_samples.txt").open("a") as file:
        file.write("step 6: cut in the mid")
    again = BadReport(tmp_path, 4)
    assert again.reasons.total() == 1
    again.add(5, BAD[1:])
    assert json.loads((tmp_path / "bad_samples.json").read_text())["samples"] == 4
    assert len((tmp_path / "bad_samples.txt").read_text().splitlines()) == 4


@pytest.mark.parametrize("text", ["", "no place", "a: ", "a, sample 3: (x)"])
def test_anything_has_a_shard_and_a_reason(text: str) -> None:
    assert all(isinstance(part, str) for part in kind(text))
    assert kind(text)[1]
