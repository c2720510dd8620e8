"""`model.text_centre`: where the texts of training lie on average, measured once, before the first step.

Mean-pooled states of a multilingual encoder share one large direction (as closed-form ridge, which centres its targets, takes
out too). The mean of some captions as training sees them, each scaled to unit length, is taken away from every text.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m3p import distributed
from m3p.model.heads import EmbeddingHead
from m3p.model.m3p import M3P
from m3p.objectives.objective import Objective
from m3p.objectives.tasks import TASKS
from m3p.retrieval.pairs import Captions, caption_batches

SAMPLES = 1024
"""Captions that are looked at, of each objective with a contrastive task: those at its first positions."""
BATCH = 64


def measure_text_centre(model: M3P, objectives: Iterable[Objective]) -> None:
    """Set the centre of the contrastive head, the same on all ranks, where the recipe asks for one and it has none yet.

    A head that came with the weights of another run keeps the centre that its projections were trained with.
    """
    head = next((head for head in model.heads.values() if isinstance(head, EmbeddingHead)), None)
    if head is None or head.centre is None or head.centre.any():
        return
    found = _mean_of_texts(model, head, objectives).numpy() if distributed.is_main() else None
    found = distributed.broadcast_object(found)
    assert found is not None
    with torch.no_grad():
        head.centre.copy_(-torch.from_numpy(found))


def _mean_of_texts(model: M3P, head: EmbeddingHead, objectives: Iterable[Objective]) -> Tensor:
    """Return the mean of the pooled texts, each of unit length: [width]."""
    sums, count = [], 0
    training = model.training
    model.eval()
    for objective in objectives:
        if any(TASKS[name].embeds for name in objective.tasks):
            tokens = objective.tokenise(objective.mix.read_many(range(SAMPLES)))
            captions = Captions(tokens.ids, tokens.lengths, np.zeros(len(tokens.lengths), np.bool_))
            sums += list(_unit_sums(model, head, captions))
            count += len(captions.lengths)
    model.train(training)
    return torch.stack(sums).sum(0) / count


@torch.inference_mode()
def _unit_sums(model: M3P, head: EmbeddingHead, captions: Captions) -> Iterable[Tensor]:
    """Yield for each batch of captions the sum of their pooled states, each of unit length: [width]."""
    for rows, batch in caption_batches(captions, BATCH):
        hidden, layout, _ = model.encode(batch)
        pooled = head.pool(hidden, layout, torch.arange(len(rows)), 0)
        yield F.normalize(pooled.float(), dim=-1, eps=1e-6).sum(0)
