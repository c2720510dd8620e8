"""The M3P network: one encoder over packed sequences of words and picture tokens, and a head a task.

After M3P (arXiv 2006.02635) in the clean reading: `<s>` text `</s>` then the picture's tokens, pooled at `<s>`.
Two rules keep it right under ZeRO-3 and offload, which reuse the old gradient of any parameter that a micro-batch did
not touch: `forward` calls every module, always, in one order, with a row of zeros where there is nothing to compute;
and the returned `touch` (zero) joins every such call to the loss.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from m3p.batch import Batch
from m3p.joined import Joined
from m3p.kernels.choice import Chosen
from m3p.model.attention import Layout
from m3p.model.config import ModelConfig
from m3p.model.encoder import Encoder, EncoderShape, Layer, ResidualNorm, TextEmbedder
from m3p.model.flops import measure_network
from m3p.model.heads import Head, HeadOwner, Targets
from m3p.model.text_memory import TextMemory
from m3p.visual.pretrained import LookingFirst, Recomputing, keeps_weights
from m3p.visual.source import VisualSource


@dataclass
class Outputs:
    """What a forward gives."""

    tasks: dict[str, Tensor]
    """Head outputs by task, for the tasks that the batch names; of masked words with labels, the summed loss."""
    touch: Tensor
    """A zero that depends on every module the batch did not use; add it to the loss."""
    targets: dict[str, Targets] = field(default_factory=dict)
    """Targets by task, for the tasks in `tasks`: the batch's, with what only the network can add to them."""
    parts: list["Outputs"] = field(default_factory=list)
    """Of joined micro-batches the outputs of each, which `tasks` and `targets` are empty beside. Empty for a single one."""
    summed: dict[str, Tensor] = field(default_factory=dict)
    """Of joined micro-batches, for heads that sum their losses: task -> the parts' losses times their scales, summed. The
    outputs of these tasks in `parts` are their losses without scale, and without a gradient."""


@dataclass
class _Piece:
    """What the heads need of a micro-batch, alone or one of several that were encoded together."""

    hidden: Tensor
    """[T, width], its slots of the encoder's output."""
    layout: Layout
    seen: Tensor | None
    """[R, F], what the visual embedder says of its rows, where that is to be predicted."""
    targets: Mapping[str, Targets]
    found: Outputs


class M3P(nn.Module):
    """Text embedder, visual embedder, encoder, and the heads of `tasks`, in that order, the same on every rank."""

    def __init__(
        self,
        config: ModelConfig,
        shape: EncoderShape,
        vocabulary: int,
        visual: VisualSource | None,
        tasks: Iterable[HeadOwner],
    ) -> None:
        super().__init__()
        tasks = list(tasks)
        sizes = measure_network(config, shape, vocabulary, visual, tasks)
        self.text = TextEmbedder(shape, vocabulary, config.dropout)
        self.visual = None if visual is None else visual.embedder(shape.width, shape.layer_norm_eps)
        for module in () if self.visual is None else self.visual.modules():
            if isinstance(module, Recomputing):
                module.recompute = config.recompute
        self.features = (1,) if visual is None else visual.features
        self._least = (1, 1) if visual is None else visual.least
        self._predicts_embedder = visual is not None and visual.predicts_embedder
        self.encoder = Encoder(shape, config.dropout, config.attention_dropout, config.recompute)
        self.heads = nn.ModuleDict(
            {task.name: task.head(config, sizes, self.text.words) for task in tasks if task.reads is None}
        )
        self._readers = {task.name: task.reads for task in tasks if task.reads is not None}
        self._encodes_pictures = config.encode_pictures
        self._frozen_text = "text" in config.freeze
        self.remembers = TextMemory() if config.remember_texts else None
        self.attention: str | None = None
        _initialise(self)
        for head in self.heads.values():
            assert isinstance(head, Head)
            head.initialise()

    def use(self, kernels: Mapping[str, Chosen]) -> None:
        """Compute with these implementations; a network that was told none takes what `auto` would."""
        self.attention = kernels["attention"].name
        for module in self.modules():
            if isinstance(module, ResidualNorm):
                module.kernel = kernels["layer_norm"].name
            elif isinstance(module, Layer):
                module.gelu = kernels["gelu"].name
                if kernels["layers"].name == "compiled":
                    module.compile_rest()
            elif isinstance(module, Head):
                module.use(kernels["word_head"].name)

    def train(self, mode: bool = True) -> "M3P":
        """Switch to training, with dropout, or back; a frozen text encoder stays in evaluation mode."""
        super().train(mode)
        if self._frozen_text:
            self.text.eval()
            self.encoder.eval()
        return self

    def forward(self, batch: Batch | Joined) -> Outputs:
        """Run every module once over the whole micro-batch, joined ones too."""
        if isinstance(batch, Batch):
            hidden, layout, touch, seen = self._encode(batch)
            piece = _Piece(hidden, layout, seen, batch.targets, Outputs({}, touch))
            for name in self.heads:
                self._ask(name, piece)
            return self._read_heads(piece)
        pieces = self._pieces(batch)
        summed = dict[str, Tensor]()
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            self._ask_together(name, head, pieces, [scales.get(name, 0.0) for scales in batch.scales], summed)
        parts = [self._read_heads(piece) for piece in pieces]
        return Outputs({}, pieces[0].found.touch.new_zeros(()), parts=parts, summed=summed)

    def _pieces(self, batch: Joined) -> list["_Piece"]:
        """Encode all parts at once, and cut the output into what belongs to each."""
        hidden, _, touch, seen = self._encode(batch.whole)
        states = torch.split(hidden, [part.tokens for part in batch.parts])
        rows = [part.embedded_rows for part in batch.parts]
        said = [None] * len(rows) if seen is None else torch.split(seen, rows)
        layouts = [Layout(part.lengths, part.longest, self.attention) for part in batch.parts]
        touches = [touch, *[touch.new_zeros(())] * (len(rows) - 1)]
        return [
            _Piece(state, layout, one, part.targets, Outputs({}, zero))
            for state, layout, one, part, zero in zip(states, layouts, said, batch.parts, touches, strict=True)
        ]

    def _ask(self, name: str, piece: "_Piece") -> None:
        """Call the head of task `name` for a micro-batch: on the rows that it asks for, or on a row of zeros."""
        head, found, asked = self.heads[name], piece.found, piece.targets.get(name)
        assert isinstance(head, Head)
        rows = None if asked is None else head.rows(piece.hidden, piece.layout, asked)
        if asked is not None and rows is not None and len(rows):
            found.targets[name] = targets = head.complete(asked, piece.seen)
            found.tasks[name] = head(rows, targets["labels"]) if _has_labels(head, targets) else head(rows)
        else:
            # A row of the encoder's output, so that an empty micro-batch touches the encoder too. And a row that wants
            # a gradient, as real ones do: ZeRO-3 frees what it gathered for a module when the gradient of its input
            # is there, and a rank that has not freed it stays out of the next gathering: a deadlock.
            found.touch = found.touch + _touch(head, 0.0 * piece.hidden[:1])

    def _ask_together(
        self, name: str, head: Head, pieces: Sequence["_Piece"], scales: Sequence[float], summed: dict[str, Tensor]
    ) -> None:
        """Call the head of task `name` once for all parts that ask for rows; where none does, on a row of zeros.

        `scales` of the parts' losses are for a head that sums them, and what it sums comes into `summed`.
        """
        picked = {
            number: head.rows(piece.hidden, piece.layout, piece.targets[name])
            for number, piece in enumerate(pieces)
            if name in piece.targets
        }
        picked = {number: rows for number, rows in picked.items() if len(rows)}
        if not picked:
            self._ask(name, replace(pieces[0], targets={}))
            return
        targets = {number: head.complete(pieces[number].targets[name], pieces[number].seen) for number in picked}
        if head.takes_labels:
            labels = torch.cat([targets[number]["labels"] for number in picked])
            factors = [rows.new_full((len(rows),), scales[of], dtype=torch.float32) for of, rows in picked.items()]
            summed[name], losses = head(torch.cat([*picked.values()]), labels, torch.cat(factors))
            outputs = [one.sum() for one in torch.split(losses, [len(rows) for rows in picked.values()])]
        else:
            # Rows that a head tells apart by their place, such as texts and pictures, stay so: [views, rows, width].
            split = [rows.reshape(head.views, -1, rows.shape[1]) for rows in picked.values()]
            output: Tensor = head(torch.cat(split, 1).flatten(0, 1))
            whole = output.reshape(head.views, -1, *output.shape[1:])
            outputs = [mine.flatten(0, 1) for mine in torch.split(whole, [rows.shape[1] for rows in split], 1)]
        for number, mine in zip(picked, outputs, strict=True):
            pieces[number].found.tasks[name], pieces[number].found.targets[name] = mine, targets[number]

    def _read_heads(self, piece: "_Piece") -> Outputs:
        """Give tasks that read another one's head its output; return all outputs of the micro-batch."""
        found = piece.found
        for name, source in self._readers.items():
            if name in piece.targets and source in found.tasks:
                found.tasks[name], found.targets[name] = found.tasks[source], piece.targets[name]
        return found

    def look(self, batch: Batch) -> Batch:
        """Return the batch with what the frozen part of the visual embedder says of its pictures, in place of their pixels.

        Forwards on it compute the same as on the batch itself, however many there are, and the frozen part runs once.
        """
        if not isinstance(self.visual, LookingFirst) or not len(batch.visual_features):
            return batch
        return replace(batch, visual_features=self.visual.look(batch.visual_features))

    def encode(self, batch: Batch, vectors: Tensor | None = None) -> tuple[Tensor, Layout, Tensor]:
        """Return hidden states [T, width], where the sequences lie, and the touch of the visual embedder.

        Where `vectors` [R, width] are given, which `embed_visual` returned, the pictures of the batch are rows of them.
        """
        hidden, layout, touch, _ = self._encode(batch, vectors)
        return hidden, layout, touch

    def embed_visual(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Embed pictures alone, so that many batches can show them: features [N, ...] and boxes [R, 4] -> [R, width]."""
        return self._see(features, boxes)[0]

    def _encode(self, batch: Batch, vectors: Tensor | None = None) -> tuple[Tensor, Layout, Tensor, Tensor | None]:
        """Return what `encode` does, and what the visual embedder says of each row [R, F] where that is to be predicted."""
        layout = Layout(batch.lengths, batch.longest, self.attention)
        text = self._read(batch)
        x, touch, seen = self._join(text, batch, vectors)
        return self.encoder(x, layout) if self._encodes_pictures else x, layout, touch, seen

    def _read(self, batch: Batch) -> Tensor:
        """Embed the words: -> [W, width]. Of two towers, each sequence's words are encoded too, without its picture."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_text):
            if self.remembers is not None and self.training:
                return self.remembers.states(batch.token_ids, batch.words, self._read_one)
            text: Tensor = self.text(batch.token_ids, batch.token_places)
            if not self._encodes_pictures:
                text = self.encoder(text, Layout(batch.words, batch.longest, self.attention))
        return text

    def _read_one(self, token_ids: Tensor) -> Tensor:
        """Encode the words [L] of one text: -> [L, width]."""
        length = torch.tensor([len(token_ids)], device=token_ids.device)
        text = self.text(token_ids, torch.arange(len(token_ids), device=token_ids.device))
        states: Tensor = self.encoder(text, Layout(length, len(token_ids), self.attention))
        return states

    def _join(self, text: Tensor, batch: Batch, vectors: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put words `text` [W, width] and picture tokens in their slots; these are rows of `vectors`, or embedded here.

        Returns vectors [T, width], the touch of the visual embedder, and what it says of each row [R, F] where that is to be
        predicted.
        """
        touch = text.new_zeros(())
        if self.visual is None:
            return text, touch, None
        features, boxes, seen = batch.visual_features, batch.visual_boxes, None
        if vectors is None and not len(features):
            least = features.new_zeros(self._least), boxes.new_zeros(1, 4)
            return text, touch + _touch(lambda: self._see(*least)[0]), None
        words = len(batch.token_ids)
        order = batch.token_ids.new_empty(batch.tokens)
        order[batch.token_slots] = torch.arange(words, device=order.device)
        order[batch.visual_slots] = words + batch.visual_rows
        if vectors is None:
            vectors, seen = self._see(features, boxes)
        return torch.cat([text, vectors])[order], touch, seen

    def _see(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed pictures: -> vectors [R, width], and the numbers to be predicted [R, F] where the embedder makes them."""
        assert self.visual is not None
        found = self.visual(features, boxes)
        return found if self._predicts_embedder else (found, None)


def _has_labels(head: Head, targets: Targets) -> bool:
    return head.takes_labels and "labels" in targets


def _touch(module: Callable[..., Tensor], *zeros: Tensor) -> Tensor:
    """Call `module` on zeros and return a zero that depends on all its parameters."""
    return 0.0 * module(*zeros).float().sum()


def _initialise(module: nn.Module) -> None:
    """Draw the starting weights of `module` and of all inside it, but for what keeps its own (visual/pretrained.py)."""
    if keeps_weights(module):
        return
    for child in module.children():
        _initialise(child)
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
