from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from m3p.keys import generator
from m3p.prepare.scenes.drawing import RGB, draw_scene
from m3p.prepare.scenes.scene import COLOURS, RELATIONS, SHAPES, Colour, Relation, Scene, Shape, Size, Thing


def draw(scene: Scene, variant: int = 0) -> NDArray[np.float64]:
    return np.asarray(draw_scene(scene, 48, generator("test", variant)), dtype=np.float64)


def mask(picture: NDArray[np.float64], colour: Colour) -> NDArray[np.bool_]:
    return np.abs(picture - np.array(RGB[colour])).max(axis=2) < 25


def centre(picture: NDArray[np.float64], colour: Colour) -> NDArray[np.float64]:
    return np.argwhere(mask(picture, colour)).mean(axis=0)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("variant", range(5))
def test_things_stand_where_the_caption_says(relation: Relation, variant: int) -> None:
    picture = draw(Scene(Thing("large", "red", "circle"), Thing("small", "blue", "star"), relation), variant)
    down, right = centre(picture, "red") - centre(picture, "blue")
    assert {"left of": -right, "right of": right, "above": -down, "below": down}[relation] > 10
    assert abs({"left of": down, "right of": down, "above": right, "below": right}[relation]) < 12


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_can_be_told_apart(shape: Shape) -> None:
    def extent(size: Size, variant: int) -> int:
        first, second = Thing(size, "red", shape), Thing("small", "blue", "circle")
        columns = mask(draw(Scene(first, second, "above"), variant), "red").any(axis=0)
        return int(columns.sum())

    assert min(extent("large", v) for v in range(5)) > max(extent("small", v) for v in range(5))


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_can_be_told_apart(colour: Colour) -> None:
    picture = draw(Scene(Thing("large", colour, "square"), Thing("small", colour, "square"), "above"))
    for other in COLOURS:
        assert (mask(picture, other).sum() > 100) == (other == colour)


def test_shapes_differ() -> None:
    drawn = {
        shape: mask(draw(Scene(Thing("small", "red", shape), Thing("small", "blue", "circle"), "above")), "red")
        for shape in SHAPES
    }
    for one, two in combinations(SHAPES, 2):
        assert (drawn[one] ^ drawn[two]).sum() >= 8, (one, two)


def test_pictures_vary_but_not_by_chance() -> None:
    scene = Scene(Thing("large", "red", "heart"), Thing("small", "blue", "cross"), "left of")
    assert (draw(scene, 1) == draw(scene, 1)).all()
    assert (draw(scene, 1) != draw(scene, 2)).any()
