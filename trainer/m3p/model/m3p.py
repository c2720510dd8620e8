"""The M3P network: one encoder over packed sequences of words and picture tokens, and a head a task.

After M3P (arXiv 2006.02635) in the clean reading: `<s>` text `</s>` then the picture's tokens, pooled at `<s>`.
Two rules keep it right under ZeRO-3 and offload, which reuse the old gradient of any parameter that a micro-batch did
not touch: `forward` calls every module, always, in one order, with a row of zeros where there is nothing to compute;
and the returned `touch` (zero) joins every such call to the loss.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from m3p.batch import Batch
from m3p.kernels.choice import Chosen
from m3p.model.attention import Layout
from m3p.model.config import ModelConfig
from m3p.model.encoder import Encoder, EncoderShape, ResidualNorm, TextEmbedder
from m3p.model.heads import ContrastiveHead, Head, MatchingHead, RegionHead, WordHead
from m3p.visual import VisualConfig

HEADS = ("masked_words", "masked_regions", "matching", "contrastive")


@dataclass
class Outputs:
    """What a forward gives."""

    tasks: dict[str, Tensor]
    """Head outputs by task, for the tasks that the batch names; of masked words with labels, the summed loss."""
    touch: Tensor
    """A zero that depends on every module the batch did not use; add it to the loss."""


class M3P(nn.Module):
    """Text embedder, visual embedder, encoder, heads."""

    def __init__(
        self,
        config: ModelConfig,
        shape: EncoderShape,
        vocabulary: int,
        visual: VisualConfig | None,
        tasks: Iterable[str],
    ) -> None:
        super().__init__()
        self.text = TextEmbedder(shape, vocabulary, config.dropout)
        self.visual = None if visual is None else visual.embedder(shape.width, shape.layer_norm_eps)
        self.features = (1,) if visual is None else visual.features
        self._least = (1, 1) if visual is None else visual.least
        self.encoder = Encoder(shape, config.dropout, config.attention_dropout, config.recompute)
        # Ordered as in HEADS, on every rank.
        wanted = set(tasks)
        self.heads = nn.ModuleDict({name: self._head(name, config, shape, visual) for name in HEADS if name in wanted})
        self.attention: str | None = None
        self.apply(_initialise)
        if "contrastive" in self.heads and config.projection in (None, shape.width):
            # Starting where the encoder already puts sentences keeps what a pre-trained one knows.
            for name, weight in self.heads["contrastive"].named_parameters():
                if name.endswith("weight"):
                    nn.init.eye_(weight)

    def _head(self, name: str, config: ModelConfig, shape: EncoderShape, visual: VisualConfig | None) -> Head:
        if name == "masked_words":
            return WordHead(self.text.words, shape.layer_norm_eps)
        if name == "matching":
            return MatchingHead(shape.width)
        if name == "contrastive":
            return ContrastiveHead(
                shape.width,
                config.projection or shape.width,
                config.pooling,
                config.temperature,
                config.learn_temperature,
            )
        assert visual is not None, "the recipe lets no task on regions through without a visual source"
        return RegionHead(shape.width, visual.feature_size, visual.classes, shape.layer_norm_eps)

    def use(self, kernels: Mapping[str, Chosen]) -> None:
        """Compute with these implementations; a network that was told none takes what `auto` would."""
        self.attention = kernels["attention"].name
        for module in self.encoder.modules():
            if isinstance(module, ResidualNorm):
                module.kernel = kernels["layer_norm"].name
        if "masked_words" in self.heads:
            head = self.heads["masked_words"]
            assert isinstance(head, WordHead)
            head.kernel = kernels["word_head"].name

    def forward(self, batch: Batch) -> Outputs:
        """Run every module once over the whole micro-batch."""
        hidden, layout, touch = self.encode(batch)
        tasks: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            targets = batch.targets.get(name)
            rows = None if targets is None else head.rows(hidden, layout, targets)
            if targets is not None and rows is not None and len(rows):
                tasks[name] = head(rows, targets["labels"]) if _has_labels(head, targets) else head(rows)
            else:
                # A row of the encoder's output, so that an empty micro-batch touches the encoder too. And a row that wants
                # a gradient, as real ones do: ZeRO-3 frees what it gathered for a module when the gradient of its input
                # is there, and a rank that has not freed it stays out of the next gathering: a deadlock.
                touch = touch + _touch(head, 0.0 * hidden[:1])
        return Outputs(tasks, touch)

    def encode(self, batch: Batch) -> tuple[Tensor, Layout, Tensor]:
        """Return hidden states [T, width], where the sequences lie, and the touch of the visual embedder."""
        layout = Layout(batch.lengths, batch.longest, self.attention)
        x, touch = self._embed(batch)
        return self.encoder(x, layout), layout, touch

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Put words and picture tokens in their slots: -> [T, width], and the touch of the visual embedder."""
        text = self.text(batch.token_ids, batch.token_places)
        touch = text.new_zeros(())
        if self.visual is None:
            return text, touch
        features, boxes = batch.visual_features, batch.visual_boxes
        if not len(features):
            return text, touch + _touch(self.visual, features.new_zeros(self._least), boxes.new_zeros(1, 4))
        words = len(batch.token_ids)
        order = batch.token_ids.new_empty(batch.tokens)
        order[batch.token_slots] = torch.arange(words, device=order.device)
        order[batch.visual_slots] = words + batch.visual_rows
        return torch.cat([text, self.visual(features, boxes)])[order], touch


def _has_labels(head: Head, targets: dict[str, Tensor]) -> bool:
    return head.takes_labels and "labels" in targets


def _touch(module: nn.Module, *zeros: Tensor) -> Tensor:
    """Call `module` on zeros and return a zero that depends on all its parameters."""
    return 0.0 * module(*zeros).float().sum()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
