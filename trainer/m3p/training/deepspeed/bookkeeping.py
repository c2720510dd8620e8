"""DeepSpeed's bookkeeping in a backward, without what it does again for every parameter.

DeepSpeed 0.19 has a hook for each parameter. The hook counts how many gradients are there and how many are to come, for
checkpointing of the reentrant kind, and for a `loss.backward()` that nobody told it of. The trainer has neither: it calls the
engine's `backward`, which ends when autograd does. The hook also puts together a message on memory that nobody reads. On a GPU
with little to compute, all this is a tenth of a step.
"""

from typing import Any

from deepspeed.runtime.base_optimizer import ZeROOptimizer


def keep_books_once(zero: Any) -> None:
    """Make the optimizer `zero` of a DeepSpeed engine note the first gradient of a backward alone; others stay as they are."""
    if not isinstance(zero, ZeROOptimizer):
        return
    state = zero._backward_hook_state
    note = zero.update_hook_state_and_maybe_run_epilogue

    def note_first(expected: int) -> None:
        if not state.post_backward_callback_queued:
            note(expected)

    zero.update_hook_state_and_maybe_run_epilogue = note_first
    zero.should_refresh_expected_hook_count = _never
    zero.report_ipg_memory_usage = _say_nothing


def _never() -> bool:
    """Stands for DeepSpeed's question whether to count again the parameters that a backward reaches."""
    return False


def _say_nothing(tag: str, param_elems: int, dtype: object = None) -> None:
    """Stands for DeepSpeed's message on the memory of its buckets, which it makes and then drops."""
