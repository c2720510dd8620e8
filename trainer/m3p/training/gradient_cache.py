"""Gradient caching (GradCache, arXiv 2101.06983): a loss over all samples of a turn, exact for any ranks and micro-batches.

A contrastive loss compares every pair of a turn with every other, so no micro-batch can take it alone. The first pass computes
the features of every micro-batch without keeping their graphs, gathers those of all ranks, and takes the loss and its gradient
with respect to the features. The second pass runs each micro-batch again, and sends its rows of that gradient back.
Which tasks need this says their attribute `over_turn`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from m3p.batch import Batch
from m3p.distributed import Ranks, all_reduce_sum, is_main
from m3p.model.m3p import Outputs
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.task import Targets, TurnTask
from m3p.training.losses import TurnLosses

Forward = Callable[[Batch], Outputs]
"""Runs the network on a micro-batch that is on the device."""


@dataclass
class FirstPass:
    """What the first pass over a turn leaves for the second."""

    features: dict[str, Tensor] = field(default_factory=dict)
    """Task -> features of the whole turn, [views, terms, size]."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Task -> gradient of its loss with respect to the features, [views, terms, size]; right in this rank's rows at least."""
    outputs: Outputs | None = None
    """Outputs of the turn's only micro-batch, graph included: there is no second forward then. None with several."""
    random_states: list[Tensor] = field(default_factory=list)
    """The random state before each micro-batch, where the network drops units; empty elsewhere."""

    def part(self, task: str, output: Tensor, targets: Targets) -> Tensor:
        """Return a number with the gradient that the features `output` [views * rows, size] of a micro-batch shall have."""
        return (output * self.gradients[task][:, targets["rows"]].flatten(0, 1)).sum()


class GradientCache:
    """Runs the first pass of turns, and the second with the same dropout.

    Args:
        network: has `heads` by task; a head of a task over the whole turn has `views` and `size`.
    """

    def __init__(self, network: nn.Module, ranks: Ranks) -> None:
        self._network, self._ranks = network, ranks
        # Both passes must drop the same units.
        self._drops = drops(network)

    def first_pass(
        self, forward: Forward, batches: Sequence[Batch], targets: Mapping[str, Targets], losses: TurnLosses
    ) -> FirstPass:
        """Compute features of the turn, the losses over it, and their gradients. `targets`: those of all ranks."""
        if len(batches) == 1:
            return self.only_pass(forward(batches[0]), batches[0], targets, losses)
        kept = FirstPass()
        features = {name: self._no_features(name, losses.counts[name]) for name in targets}
        for batch in batches:
            if self._drops:
                kept.random_states.append(_random_state(self._ranks.device))
            with torch.no_grad():
                _lay(forward(_only(batch, targets)), batch, features)  # no other head has work to do
        self._finish(kept, features, targets, losses, batches)
        return kept

    def only_pass(
        self, outputs: Outputs, batch: Batch, targets: Mapping[str, Targets], losses: TurnLosses
    ) -> FirstPass:
        """Do the same where `batch` is the turn's only micro-batch on this rank, and `outputs` are its, graph included."""
        kept = FirstPass(outputs=outputs)
        features = {name: self._no_features(name, losses.counts[name]) for name in targets}
        _lay(outputs, batch, features)
        self._finish(kept, features, targets, losses, [batch])
        return kept

    def _finish(
        self,
        kept: FirstPass,
        features: Mapping[str, Tensor],
        targets: Mapping[str, Targets],
        losses: TurnLosses,
        batches: Sequence[Batch],
    ) -> None:
        kept.features = dict(features)
        for name, of_turn in targets.items():
            own = self._own_rows(name, batches) if self._ranks.world_size > 1 else None
            kept.gradients[name] = self._take_loss(name, features[name], of_turn, losses, own)

    def _own_rows(self, name: str, batches: Sequence[Batch]) -> Tensor:
        """Return the rows of the turn that this rank's micro-batches hold of a task, [N] int64 on the device."""
        rows = [batch.targets[name]["rows"] for batch in batches if name in batch.targets]
        return torch.cat(rows or [torch.zeros(0, dtype=torch.int64)]).to(self._ranks.device, non_blocking=True)

    def second_pass(self, forward: Forward, batch: Batch, number: int, kept: FirstPass) -> Outputs:
        """Return the outputs of micro-batch `number` of the turn, with their graph."""
        if kept.outputs is not None:
            return kept.outputs
        if kept.random_states:
            _set_random_state(kept.random_states[number], self._ranks.device)
        return forward(batch)

    def _take_loss(
        self, name: str, features: Tensor, targets: Targets, losses: TurnLosses, own: Tensor | None
    ) -> Tensor:
        """Add the loss of the whole turn to `losses`; return its gradient with respect to the features."""
        # A sum in which every other rank's rows are zero is a gather, for any split and without padding.
        features = all_reduce_sum(features).detach()
        on_device = {key: tensor.to(features.device, non_blocking=True) for key, tensor in targets.items()}
        task = TASKS[name]
        assert isinstance(task, TurnTask)
        loss, gradient = task.loss_and_gradient(features, on_device, own)
        if is_main():  # every rank has the whole sum
            losses.add(name, loss)
        return gradient

    def _no_features(self, name: str, terms: int) -> Tensor:
        """Return zeros for the features of a turn: [views, terms, size], float32."""
        heads = self._network.get_submodule("heads")
        assert isinstance(heads, nn.ModuleDict)
        head = heads[name]
        views, size = head.views, head.size
        assert isinstance(views, int)
        assert isinstance(size, int)
        return torch.zeros(views, terms, size, device=self._ranks.device)


def _lay(outputs: Outputs, batch: Batch, features: Mapping[str, Tensor]) -> None:
    """Lay the features that a micro-batch gave in their rows of `features` of the turn, [views, terms, size] by task."""
    for name in features.keys() & outputs.tasks.keys():
        mine = outputs.tasks[name].detach().float()
        features[name][:, batch.targets[name]["rows"]] = mine.view(len(features[name]), -1, mine.shape[-1])


def drops(network: nn.Module) -> bool:
    """Say whether any part of the network drops units at random while it is trained."""
    rates = [getattr(module, name, 0.0) for module in network.modules() for name in ("dropout", "attention_dropout")]
    # Loaded networks have layers of that name, which are modules of their own.
    return any(rate > 0 for rate in rates if isinstance(rate, float))


def _only(batch: Batch, tasks: Mapping[str, Targets]) -> Batch:
    """Return `batch` without what tasks other than `tasks` ask."""
    return replace(batch, targets={name: of for name, of in batch.targets.items() if name in tasks})


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
