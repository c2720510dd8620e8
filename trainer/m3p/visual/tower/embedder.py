"""From pixels to the vectors of a picture's tokens: a tower, pooling, and a layer into the encoder's width."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m3p.visual.pretrained import Frozen, LookingFirst, Recomputing, keep_weights
from m3p.visual.tower.folder import TowerFacts, grid_tokens, tower_layers
from m3p.visual.tower.order import names_from


class GridTower(nn.Module):
    """A tower as a function of stored pixels: uint8 [N, size, size, 3] -> grid tokens [N, T, D], row by row."""

    def __init__(self, model: nn.Module, facts: TowerFacts) -> None:
        super().__init__()
        self.model, self._prefix = model, facts.prefix
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                _normalise_in_float32(module)
        # No buffer, since a network in 16 bits would round it.
        self._values = torch.tensor(facts.preparation.values, dtype=torch.float32).view(-1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Look up what each pixel stands for: in float32, whatever the tower computes in."""
        self._values = self._values.to(pixels.device)
        rows = pixels.int() + torch.arange(3, dtype=torch.int32, device=pixels.device) * 256
        numbers = F.embedding(rows, self._values)[..., 0].permute(0, 3, 1, 2)
        element = next(self.model.parameters()).dtype
        return grid_tokens(self.model, numbers.to(element), self._prefix)


def _normalise_in_float32(norm: nn.BatchNorm2d) -> None:
    """Have a batch norm compute by its stored statistics in float32: DeepSpeed casts its weights to 16 bits, and not these."""

    def forward(x: Tensor) -> Tensor:
        parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, weight, bias = (None if part is None else part.float() for part in parts)
        return F.batch_norm(x.float(), mean, variance, weight, bias, False, 0.0, norm.eps).to(x.dtype)

    norm.forward = forward  # type: ignore[method-assign, assignment]


class TrainedTower(GridTower, Recomputing):
    """A tower that is trained from layer `first` on, at `rate` times the encoder's rate; None: from the pixels on.

    It stays in evaluation mode: it drops no units or layers, and its batch norms keep their stored statistics, since both would
    make the result depend on how a batch is split over ranks.
    """

    def __init__(self, model: nn.Module, facts: TowerFacts, first: int | None, rate: float) -> None:
        super().__init__(model, facts)
        keep_weights(self, rate)
        assert first is None or facts.in_order, "the recipe's visual section refuses it"
        layers = tower_layers(model)
        trained = names_from(model, model if first is None else layers[first]) - facts.unused
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        for layer in layers:
            _make_recomputable(layer, self)

    def train(self, mode: bool = True) -> "TrainedTower":
        """Stay in evaluation mode, whatever the network around is in."""
        super().train(False)
        return self


def _make_recomputable(layer: nn.Module, tower: TrainedTower) -> None:
    """Have `layer` compute by way of torch's checkpoint where the tower is told to."""
    plain = layer.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        if tower.recompute and torch.is_grad_enabled():
            return checkpoint(plain, *arguments, use_reentrant=False, **named)
        return plain(*arguments, **named)

    layer.forward = forward


class GridPooling(nn.Module):
    """The grid averaged to fewer tokens: [N, side^2, D] -> [N, k, D], k a square, row by row.

    By a matrix instead of torch's adaptive pooling, which it equals: the order of its backward's sums does not vary.
    """

    _shares: Tensor

    def __init__(self, side: int, tokens: int) -> None:
        super().__init__()
        target = round(tokens**0.5)
        with torch.device("cpu"):
            cells = torch.eye(side * side).view(-1, 1, side, side)
            shares = F.adaptive_avg_pool2d(cells, target).view(side * side, tokens).T
        self.register_buffer("_shares", shares.contiguous(), persistent=False)

    def forward(self, grid: Tensor) -> Tensor:
        """Average in float32; the result is in the format of `grid`."""
        if grid.shape[1] == len(self._shares):
            return grid
        return (self._shares.float() @ grid.float()).to(grid.dtype)


class QueryPooling(nn.Module):
    """Learned queries that attend to the grid (Perceiver, arXiv 2103.03206): [N, T, D] -> [N, k, D]."""

    def __init__(self, tokens: int, width: int, eps: float) -> None:
        super().__init__()
        self.heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.queries = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, grid: Tensor) -> Tensor:
        """Attend, without a residual: the queries themselves say nothing of the picture."""
        rows = self.norm(grid.to(self.norm.weight.dtype))
        every = torch.arange(self.queries.num_embeddings, device=grid.device)
        queries = self.query(self.queries(every)).expand(len(grid), -1, -1)
        parts = [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, self.key(rows), self.value(rows))
        ]
        attended = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        out: Tensor = self.out(attended)
        return out


class TowerEmbedder(LookingFirst):
    """Tower, pooling, layer norm, Linear + a learned vector for its place, layer norm.

    Tokens are hidden here, behind the tower and the pooling, which mix what is seen at all places: a hidden token has a learned
    vector in the place of its feature, whatever the picture. Behind the tokens of all pictures come those vectors, k of them.
    """

    def __init__(self, tower: GridTower, facts: TowerFacts, tokens: int, queries: bool, width: int, eps: float) -> None:
        super().__init__()
        frozen = not isinstance(tower, TrainedTower)
        self.tower: nn.Module = Frozen(tower) if frozen else tower
        self._frozen = frozen
        self.average = GridPooling(facts.side, facts.tokens if queries else tokens)
        self.queries = QueryPooling(tokens, facts.width, eps) if queries else None
        self.feature = nn.Linear(facts.width, width)
        self.places = nn.Embedding(tokens, width)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, eps=eps)

    def look(self, features: Tensor) -> Tensor:
        """Return what a frozen tower says of pixels [N, size, size, 3]: averaged grid tokens [N, T, D]."""
        return self._grid(features) if self._frozen and features.ndim == 4 else features

    def _grid(self, features: Tensor) -> Tensor:
        pooled: Tensor = self.average(self.tower(features))
        return pooled

    def forward(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Embed pixels [N, size, size, 3] or averaged grid tokens [N, T, D]; no boxes are needed.

        Returns vectors [N k + k, width], the last k of which are those of hidden tokens, and the features to be predicted:
        what the tower says of each token, of unit length, [N k, D].
        """
        tokens = self._grid(features) if features.ndim == 4 else features
        if self.queries is not None:
            tokens = self.queries(tokens)
        # Of whatever scale a tower's features are; in float32, for some have numbers in the hundreds.
        normed = F.layer_norm(tokens.float(), tokens.shape[-1:])
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        shown = self.feature(normed.to(self.feature.weight.dtype)) + places
        vectors = self.norm(torch.cat([shown.flatten(0, 1), self.hidden + places]))
        return vectors, F.normalize(tokens.detach().float(), dim=-1).flatten(0, 1)
