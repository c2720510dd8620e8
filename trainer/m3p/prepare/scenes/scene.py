"""What a scene is: two things of a size, a colour and a shape, and where one stands seen from the other."""

from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal, Self

from m3p.errors import UserError
from m3p.keys import generator

Size = Literal["large", "small"]
Colour = Literal["red", "green", "blue", "yellow", "orange", "purple", "brown", "black"]
Shape = Literal["circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond"]
Relation = Literal["left of", "right of", "above", "below"]

SIZES: tuple[Size, ...] = ("large", "small")
COLOURS: tuple[Colour, ...] = ("red", "green", "blue", "yellow", "orange", "purple", "brown", "black")
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
MIRROR: dict[Relation, Relation] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS: tuple[Relation, ...] = tuple(MIRROR)


@dataclass(frozen=True)
class Thing:
    """One of the two shapes of a picture."""

    size: Size
    colour: Colour
    shape: Shape


@dataclass(frozen=True)
class Scene:
    """`first` is left of, right of, above or below `second`: the order in which a caption names them."""

    first: Thing
    second: Thing
    relation: Relation

    def mirrored(self) -> Self:
        """Return the same picture said from the other side: A left of B is B right of A."""
        return type(self)(self.second, self.first, MIRROR[self.relation])


THINGS = tuple(Thing(size, colour, shape) for size, colour, shape in product(SIZES, COLOURS, SHAPES))


def sample_scenes(seed: int, train: int, held_out: int) -> tuple[list[Scene], list[Scene]]:
    """Return (training, held-out) scenes: all of them different pictures, so that no mirror twin is on both sides.

    The held-out scenes depend on `seed` and their own number only. Raises UserError if there are not enough pictures.
    """
    # Said from the left or from above, a picture has one description only; the mirrored half is left out here.
    pictures = [Scene(*pair, relation) for relation in ("left of", "above") for pair in permutations(THINGS, 2)]
    if train + held_out > len(pictures):
        raise UserError(
            f"--train {train} and --held-out {held_out} are more than the {len(pictures):,} scenes there are."
        )
    random = generator("scenes", seed)
    order = random.permutation(len(pictures))[: train + held_out]
    mirror = generator("scenes", seed, "mirror").random(len(pictures)) < 0.5
    scenes = [pictures[i].mirrored() if mirror[i] else pictures[i] for i in order]
    return scenes[held_out:], scenes[:held_out]
