"""How much memory a network has in use at once, measured on torch's meta device: nothing is computed."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class InUse(TorchDispatchMode):
    """Inside it, `limit` is the most bytes of results that were in use at the same time, but for memory in `own`."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.limit = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        """Compute, and count what is still referred to."""
        found = operation(*arguments, **(named or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and (memory := memory_of(tensor)) not in self._own:
                storage = tensor.untyped_storage()
                self._held[memory] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self._held = {memory: held for memory, held in self._held.items() if not held[0].expired()}  # type: ignore[no-untyped-call]
        self.limit = max(self.limit, sum(size for _, size in self._held.values()))
        return found


def memory_of(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor apart while it is in use; one without content has no address."""
    return tensor.untyped_storage()._cdata


def most_in_use(network: torch.nn.Module, **inputs: Tensor) -> int:
    """Return the most bytes that a forward without a gradient has in use at once, beside weights and inputs."""
    own = {memory_of(tensor) for tensor in (*network.parameters(), *network.buffers(), *inputs.values())}
    with torch.no_grad(), InUse(own) as used:
        network(**inputs)
    return used.limit
