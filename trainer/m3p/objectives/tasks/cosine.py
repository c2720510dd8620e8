"""Cosine: bring a picture to where its own caption lies, whatever the other pairs of the turn are.

Beside `contrastive`, whose projections it reads. With a frozen text encoder this is distillation of the text space into the
picture's projection, as the closed-form ridge baseline does it; it keeps small data from being learnt by heart.
"""

import torch.nn.functional as F
from torch import Tensor

from m3p.objectives.tasks.contrastive import Contrastive
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.objectives.tasks.task import ReaderTask, Targets
from m3p.packing import Packer


class Cosine(ReaderTask):
    """One less the cosine of each pair's text and picture in the contrastive space."""

    name = "cosine"
    reads = Contrastive.name
    needs_pictures = True
    forms = frozenset({Form.ALONE})

    def ask(self, packer: Packer, pairs: PackedPairs) -> None:
        """Ask of every pair that stands alone; the rows are those that `contrastive` asks about."""
        assert pairs.alone is not None
        packer.target(self.name, rows=pairs.alone.rows)

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Sum over pairs. `output` [2n, projection]: the texts of the micro-batch (of any length), then its pictures."""
        text, image = output.float().chunk(2)
        return (1 - F.cosine_similarity(text, image, dim=1, eps=1e-6)).sum()
