"""A visual source whose embedder mixes the tokens of a picture, as a pre-trained vision tower does: what the seam promises.

`Toy` is such a source in small: pictures of four pixels, a frozen part that was "trained elsewhere" and mixes all pixels of a
picture into each of its tokens, and a trained layer behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3p.batch import Batch, Blank, Sequence
from m3p.model.build import build_model, network_sizes
from m3p.model.config import ModelConfig
from m3p.model.flops import Work
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.masked_regions import ask_regions
from m3p.packing import Packer
from m3p.visual.pretrained import Frozen, keep_weights
from m3p.visual.source import Members, VisualSource

SEEN = 3
"""Numbers that the frozen part says of a token."""
TOKENS = 4


@dataclass
class ToyPicture:
    """Four pixels, [1, 4]."""

    features: NDArray[np.float32]
    boxes: None = None
    class_ids: None = None
    tokens: int = TOKENS
    least_length: float = 0.5

    def targets_at(self, places: NDArray[np.int64]) -> None:
        """None: the embedder makes the targets."""

    def class_distribution_at(self, places: NDArray[np.int64]) -> None:
        """None: it has no classes."""

    def blank(self, places: NDArray[np.int64]) -> Blank:
        """A copy in which the hidden pixels are painted over; all tokens are the copy's."""
        copy = self.features.copy()
        copy[0, places] = 0
        every = np.arange(TOKENS)
        return Blank(ToyPicture(copy), every, every)


class Tower(nn.Module):
    """Mixes: each token is the pixel, and what a dropped-out layer makes of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(TOKENS, SEEN - 1)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            self.mix.weight.fill_(0.7)  # "loaded"
            self.mix.bias.fill_(0.1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 4] -> [N * 4, SEEN]."""
        whole = self.drop(self.mix(pixels)).unsqueeze(1).expand(-1, TOKENS, -1)
        return torch.cat([pixels.unsqueeze(-1), whole], -1).flatten(0, 1)


class Embedder(nn.Module):
    """The tower, and a trained layer into the encoder's width."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower, self.out = tower, nn.Linear(SEEN, width)

    def forward(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """-> (vectors [R, width], what the tower says [R, SEEN])."""
        seen = self.tower(features)
        return self.out(seen), seen


class Toy(VisualSource):
    """The source."""

    kind: Literal["toy"] = "toy"
    predicts_embedder = True
    frozen: bool = True

    @property
    def features(self) -> tuple[int, ...]:
        """Four pixels."""
        return (TOKENS,)

    @property
    def least(self) -> tuple[int, ...]:
        """One picture."""
        return (1, TOKENS)

    @property
    def target_size(self) -> int:
        """What the tower says."""
        return SEEN

    @property
    def tokens_per_picture(self) -> int:
        """One a pixel."""
        return TOKENS

    def load(self, members: Members, draw: Iterator[float] | None, into: NDArray[np.uint8] | None = None) -> ToyPicture:
        """Pixels as they are stored."""
        return ToyPicture(np.frombuffer(members["toy"], np.float32).reshape(1, TOKENS))

    def embedder(self, width: int, eps: float) -> nn.Module:
        """Return the embedder."""
        return Embedder(Frozen(Tower()) if self.frozen else keep_weights(Tower()), width)

    def embedder_flops(self, width: int) -> float:
        """The tower forward, the layer forward and backward."""
        return 2 * (SEEN - 1) + 2 * 2 * SEEN * width

    def rows_to_hide(self, tokens: float) -> float:
        """A copy of the picture."""
        return TOKENS if tokens else 0


CONFIG = ModelConfig.model_validate(
    {
        "shape": {"layers": 2, "width": 8, "heads": 2, "feed_forward": 12, "positions": 20},
        "tokenizer": "t",
        "dropout": 0.0,
    }
)
REGIONS = TASKS["masked_regions"]


def network(frozen: bool = True) -> M3P:
    return build_model(CONFIG, 30, Toy(frozen=frozen), TASKS.values(), seed=0)


def pack(pixels: list[float], hidden: list[int]) -> Batch:
    """One caption with a picture some tokens of which are hidden and asked for."""
    packer, picture = Packer(TOKENS), ToyPicture(np.array([pixels], np.float32))
    number, first = packer.add(Sequence(np.array([0, 5, 2]), picture))
    places = np.array(hidden, np.int64)
    packer.hide(number, places, picture)
    if hidden:
        ask_regions(packer, first + 3 + places, [(picture, places)])
    return packer.finish(1)


def test_nothing_that_the_network_computes_depends_on_what_is_hidden() -> None:
    """Not the hidden tokens, nor those beside them, into which a mixing embedder carries what is hidden."""
    model = network().eval()
    here, there = pack([1.0, 2.0, 3.0, 4.0], [1, 2]), pack([1.0, -7.0, 9.0, 4.0], [1, 2])
    with torch.inference_mode():
        assert torch.equal(model.encode(here)[0], model.encode(there)[0])
        assert torch.equal(model(here).tasks[REGIONS.name], model(there).tasks[REGIONS.name])
        seen = pack([1.0, -7.0, 3.0, 4.0], [2])
        assert not torch.equal(model.encode(here)[0], model.encode(seen)[0]), "what is not hidden is seen"


def test_what_is_to_be_predicted_is_what_the_embedder_says_of_the_whole_picture() -> None:
    model = network().train()
    outputs = model(pack([1.0, 2.0, 3.0, 4.0], [1, 2]))
    whole = 0.7 * 10 + 0.1
    wanted = outputs.targets[REGIONS.name]["features"]
    torch.testing.assert_close(wanted, torch.tensor([[2.0, whole, whole], [3.0, whole, whole]]))
    assert not wanted.requires_grad
    loss = REGIONS.loss(outputs.tasks[REGIONS.name], outputs.targets[REGIONS.name])
    prediction = outputs.tasks[REGIONS.name]
    expected = ((prediction - wanted).square().sum(1) / wanted.square().sum(1)).sum()
    torch.testing.assert_close(loss, expected)
    torch.autograd.backward(loss + outputs.touch)
    assert model.get_parameter("visual.out.weight").grad is not None


@pytest.mark.parametrize("frozen", [True, False])
def test_loaded_weights_outlive_the_drawing_of_the_others(frozen: bool) -> None:
    model = network(frozen)
    weights = dict(model.named_parameters())
    tower = model.get_submodule("visual.tower")
    mix = dict((tower.module if isinstance(tower, Frozen) else tower).named_parameters())["mix.weight"]
    assert torch.equal(mix, torch.full((SEEN - 1, TOKENS), 0.7))
    assert weights["visual.out.bias"].eq(0).all()
    assert weights["visual.out.weight"].std() < 0.05, "the new layer is drawn like every other"


def test_a_frozen_embedder_has_no_gradient_and_drops_no_units_while_the_network_trains() -> None:
    model = network().train()
    tower = model.get_submodule("visual.tower")
    assert isinstance(tower, Frozen)
    assert not [name for name in model.state_dict() if "mix" in name], "it stands apart from the network"
    assert not tower.module.training
    batch = pack([1.0, 2.0, 3.0, 4.0], [])
    first, second = model.encode(batch)[0], model.encode(batch)[0]
    assert torch.equal(first, second)
    assert model.training
    torch.autograd.backward(first.sum())
    assert all(parameter.grad is None for parameter in tower.module.parameters())
    thawed = network(frozen=False).train()
    passes = [
        thawed.encode(batch)[0] for _ in range(20)
    ]  # each alike by chance sometimes, for it drops few of few units
    assert not all(torch.equal(one, passes[0]) for one in passes), "else nothing would be dropped here anyhow"


def test_what_is_frozen_moves_with_the_network_from_format_to_format() -> None:
    model = network()
    tower = model.get_submodule("visual.tower")
    assert isinstance(tower, Frozen)
    model.to(torch.bfloat16)
    assert {parameter.dtype for parameter in tower.module.parameters()} == {torch.bfloat16}


def test_its_work_is_counted_as_the_source_says() -> None:
    sizes = network_sizes(CONFIG, 30, Toy(), TASKS.values())
    batch = pack([1.0, 2.0, 3.0, 4.0], [1])
    assert batch.embedded_rows == 2 * TOKENS, "the picture, and the copy in which one pixel is painted over"
    less = Work.of(pack([1.0, 2.0, 3.0, 4.0], []))
    more = Work(slots=less.slots, squared_lengths=less.squared_lengths, visual_rows=2 * TOKENS)
    assert sizes.training_flops(more) - sizes.training_flops(less) == TOKENS * Toy().embedder_flops(8)
