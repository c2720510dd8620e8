"""What DeepSpeed notes of a backward, as it is and cut short."""

from typing import Any

import torch
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from torch import nn

from m3p.training.deepspeed.bookkeeping import keep_books_once


class Counting(ZeROOptimizer):  # type: ignore[misc]
    """An optimizer of DeepSpeed's with nothing but its bookkeeping, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = 0

    def update_hook_state_and_maybe_run_epilogue(self, current_expected_count: int) -> None:
        """Count, and do what DeepSpeed does."""
        self.noted += 1
        super().update_hook_state_and_maybe_run_epilogue(current_expected_count)


def run_backwards(zero: Any, backwards: int) -> int:
    """Run backwards of a network of four parameters as DeepSpeed's engine does; return how often they were counted."""
    network, counted = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), 0

    def hook(_: torch.Tensor) -> None:
        nonlocal counted
        counted += zero.should_refresh_expected_hook_count()
        zero.reenter_backward_if_needed()
        zero.report_ipg_memory_usage("a message", 0)
        zero.update_hook_state_and_maybe_run_epilogue(4)

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    for _ in range(backwards):
        zero.clear_backward_seen_flag()
        loss = network(torch.ones(1, 2)).sum()
        zero.enter_backward()
        torch.autograd.backward(loss)
        zero.exit_backward()
    return counted


def test_a_backward_is_noted_once_and_its_end_is_told_once() -> None:
    ended, zero = list[int](), Counting()
    zero.ipg_buckets = {}
    zero.register_grad_acc_post_hook(lambda: ended.append(1))
    keep_books_once(zero)
    assert run_backwards(zero, 3) == 0
    assert zero.noted == 3
    assert len(ended) == 3


def test_deepspeed_itself_notes_every_parameter() -> None:
    ended, zero = list[int](), Counting()
    zero.ipg_buckets = {}
    zero.register_grad_acc_post_hook(lambda: ended.append(1))
    assert run_backwards(zero, 3) == 3
    assert zero.noted == 12
    assert len(ended) == 3
