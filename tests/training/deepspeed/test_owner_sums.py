"""Sums of gradients on their owners are those of whole buckets, with half of what is sent."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m3p.training.deepspeed.config import sums_on_owners
from m3p.training.deepspeed.owner_sums import Part, parts_of
from tests.training.deepspeed.test_gradient_sums import SAMPLES, read, run_cases, settings

ONE, MANY = 10**9, 900
"""Numbers in a bucket: all gradients in one, and so few that the word table, 960 numbers, is summed by itself."""
CASES = [
    (1, False, False, MANY),
    (1, True, False, ONE),
    (2, False, False, ONE),
    (2, True, False, MANY),
    (2, True, True, MANY),
]
"""ZeRO stage, whether in bf16, whether offloaded, and the size of a bucket."""


def sent(folder: Path, ranks: int) -> dict[str, int]:
    """Return the numbers that went into each kind of sum, the same on every rank."""
    found = [json.loads((folder / f"sent-{rank}.json").read_text()) for rank in range(ranks)]
    assert found == found[:1] * ranks
    return dict(found[0])


@pytest.mark.launcher
def test_sums_on_owners_are_those_of_whole_buckets(tmp_path: Path) -> None:
    cases: dict[str, Any] = {}
    for number, (stage, bf16, offload, size) in enumerate(CASES):
        for way, min_part in (("owners", 1), ("whole", 10**9)):
            chosen = settings(stage, bf16, offload)
            chosen["zero_optimization"] |= {"reduce_bucket_size": size, "overlap_comm": size == MANY}
            case = {"settings": chosen, "samples": SAMPLES, "micro_batch": 16, "min_part": min_part}
            cases[f"{number}-{way}"] = case
    run_cases(tmp_path, 3, cases)
    for number, which in enumerate(CASES):
        owners, whole = tmp_path / f"{number}-owners", tmp_path / f"{number}-whole"
        torch.testing.assert_close(read(owners), read(whole), rtol=1e-5, atol=1e-8, msg=str(which))
        there, before = sent(owners, 3), sent(whole, 3)
        assert "reduce" not in before
        # What is left for all ranks are norms and the guard's numbers.
        assert there["reduce"] > 20 * there["all_reduce"], which
        assert there["reduce"] + there["all_reduce"] == before["all_reduce"], which


@pytest.mark.launcher
def test_settings_that_say_how_gradients_are_summed_are_followed(tmp_path: Path) -> None:
    written: dict[str, dict[str, Any]] = {
        "whole": {"reduce_scatter": False},
        "apart": {"contiguous_gradients": False},
        "ours": {},
    }
    cases: dict[str, Any] = {}
    for name, zero in written.items():
        chosen = settings(2, False, False) | {"prescale_gradients": True}
        chosen["zero_optimization"] |= zero
        cases[name] = {"settings": chosen, "samples": SAMPLES, "micro_batch": 32, "min_part": 1}
        assert sums_on_owners(chosen) == (name == "ours")  # what the plan asks
    run_cases(tmp_path, 2, cases)
    assert {name: "reduce" in sent(tmp_path / name, 2) for name in written} == {
        "whole": False,
        "apart": False,
        "ours": True,
    }


def zero_of(sizes: list[int], share: int, ranks: int) -> SimpleNamespace:
    """Return what an optimizer of DeepSpeed's knows of one group of parameters, of which each rank owns `share` numbers."""
    owners: dict[int, list[int]] = {}
    offsets: dict[int, dict[int, int]] = {rank: {} for rank in range(ranks)}
    start = 0
    for number, size in enumerate(sizes):
        owners[number] = [rank for rank in range(ranks) if rank * share < start + size and start < (rank + 1) * share]
        for rank in owners[number]:
            offsets[rank][number] = max(rank * share - start, 0)
        start += size
    weights = [torch.empty(size) for size in sizes]
    return SimpleNamespace(param_to_partition_ids=[owners], grad_start_offset=[offsets], bit16_groups=[weights])


def test_parts_follow_the_shares_of_the_ranks_in_the_order_of_the_bucket() -> None:
    zero = zero_of([4, 10, 2], share=6, ranks=3)  # 0-3 | 4-13 | 14-15; rank 0 owns 0-5, rank 1 6-11, rank 2 12-15
    backwards = [(0, 2, 2), (0, 1, 1), (0, 0, 0)]  # a backward ends with the first parameter
    assert parts_of(zero, backwards) == [Part(0, [(2, 2), (12, 4)]), Part(1, [(4, 6)]), Part(2, [(0, 2), (10, 2)])]
    assert parts_of(zero, backwards[::-1]) == [Part(0, [(0, 6)]), Part(1, [(6, 6)]), Part(2, [(12, 4)])]
