"""The peer of the speed benchmarks: `transformers` XLM-RoBERTa, padded to the longest of a batch, with the same heads.

It is given what helps it: words and regions are embedded without padding and only then padded for the encoder, its word
head skips the positions of regions, and attention is the one that its own documentation advises (`sdpa`).
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import XLMRobertaForMaskedLM

from m3p.batch import Batch
from m3p.model.encoder import EncoderShape
from m3p.model.huggingface import write_folder
from m3p.model.m3p import M3P


class Peer(nn.Module):
    """XLMRobertaForMaskedLM with the weights of `ours`, and copies of its region embedder and heads.

    `masked_only` scores the masked words alone; otherwise all word positions are scored, as its own loss does.
    """

    def __init__(self, ours: M3P, shape: EncoderShape, attention: str, masked_only: bool) -> None:
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            weights = {name: parameter.detach() for name, parameter in ours.named_parameters()}
            write_folder(Path(folder), weights, shape)
            self.lm: Any = XLMRobertaForMaskedLM.from_pretrained(
                folder, attn_implementation=attention, attention_probs_dropout_prob=0.0, dtype=torch.float32
            )
        self.embeddings = self.lm.roberta.embeddings
        self.lm.roberta.embeddings = _AsGiven()
        self.visual, self.masked_only = copy.deepcopy(ours.visual), masked_only
        self.heads = copy.deepcopy(nn.ModuleDict({n: ours.heads[n] for n in ("masked_regions", "matching")}))

    def compile_layers(self) -> None:
        """Have torch.compile make the encoder's layers: for all lengths at once, and, since they are alike, once for all."""
        for layer in self.lm.roberta.encoder.layer:
            layer.compile(dynamic=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return, by task, what `TASKS[task].loss` takes; of masked words the summed loss."""
        starts = torch.cumsum(batch.lengths, 0) - batch.lengths
        owner = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), batch.lengths)
        column = torch.arange(len(owner), device=starts.device) - starts[owner]
        x = torch.zeros(len(starts), batch.longest, self.lm.config.hidden_size, device=starts.device)
        x = x.to(self.embeddings.LayerNorm.weight.dtype)
        text = self.embeddings(batch.token_ids[None], position_ids=batch.token_places[None] + 2)[0]
        x = x.index_put((owner[batch.token_slots], column[batch.token_slots]), text)
        if len(batch.visual_slots):
            assert self.visual is not None
            seen = self.visual(batch.visual_features.to(x.dtype), batch.visual_boxes.to(x.dtype))[batch.visual_rows]
            x = x.index_put((owner[batch.visual_slots], column[batch.visual_slots]), seen)
        real = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device).index_put(
            (owner, column), owner.new_ones(())
        )
        hidden = self.lm.roberta(inputs_embeds=x, attention_mask=real).last_hidden_state
        outputs = {"masked_words": self._words(hidden, batch, owner, column)}
        if "masked_regions" in batch.targets:
            slots = batch.targets["masked_regions"]["slots"]
            outputs["masked_regions"] = self.heads["masked_regions"](hidden[owner[slots], column[slots]])
            outputs["matching"] = self.heads["matching"](hidden[batch.targets["matching"]["sequences"], 0])
        return outputs

    def _words(self, hidden: Tensor, batch: Batch, owner: Tensor, column: Tensor) -> Tensor:
        slots, labels = batch.targets["masked_words"]["slots"], batch.targets["masked_words"]["labels"]
        if self.masked_only:
            logits = self.lm.lm_head(hidden[owner[slots], column[slots]])
            return F.cross_entropy(logits.float(), labels, reduction="sum")
        logits = self.lm.lm_head(hidden[:, : int(batch.token_places.max()) + 1])
        every = torch.full(logits.shape[:2], -100, device=labels.device).index_put(
            (owner[slots], column[slots]), labels
        )
        return F.cross_entropy(logits.float().flatten(0, 1), every.flatten(), reduction="sum")


class _AsGiven(nn.Module):
    """Stands for the embeddings inside XLMRobertaModel: passes on what was embedded outside."""

    def forward(self, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds
