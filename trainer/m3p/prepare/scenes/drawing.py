"""Draw a scene with PIL."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from m3p.prepare.scenes.scene import Colour, Relation, Scene, Shape, Size, Thing

Point = tuple[float, float]

RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 210, 30),
    "orange": (245, 135, 20),
    "purple": (135, 50, 165),
    "brown": (120, 70, 35),
    "black": (25, 25, 25),
}

RADIUS: dict[Size, float] = {"large": 0.2, "small": 0.12}
"""Of the circle around a shape, as a share of the picture's side; the jitter keeps the two sizes apart."""

OFFSET: dict[Relation, Point] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""From the middle of the picture to the first thing; the second stands on the other side. y grows downwards."""

DISTANCE = 0.25
"""From the middle to a thing, as a share of the side."""

OVERSAMPLING = 4
"""The picture is drawn this much larger and shrunk, for smooth edges."""


def draw_scene(scene: Scene, side: int, random: np.random.Generator) -> Image.Image:
    """Return a `side` x `side` RGB picture; positions, sizes, colours and background vary a little with `random`."""
    background = random.integers(225, 251, size=3)
    large = side * OVERSAMPLING
    image = Image.new("RGB", (large, large), tuple(int(channel) for channel in background))
    pen = ImageDraw.Draw(image)
    x, y = OFFSET[scene.relation]
    for thing, sign in ((scene.first, 1), (scene.second, -1)):
        along, across = random.uniform(-0.03, 0.03), random.uniform(-0.1, 0.1)
        centre = (
            0.5 + sign * x * DISTANCE + (along if x else across),
            0.5 + sign * y * DISTANCE + (along if y else across),
        )
        _draw_thing(pen, thing, centre, large, random)
    return image.resize((side, side), Image.Resampling.BOX)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, centre: Point, side: int, random: np.random.Generator) -> None:
    radius = RADIUS[thing.size] * random.uniform(0.92, 1.08) * side
    shift = random.integers(-12, 13, size=3)
    colour = tuple(int(channel) for channel in np.clip(np.array(RGB[thing.colour]) + shift, 0, 255))
    x, y = centre[0] * side, centre[1] * side
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif thing.shape == "ring":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=round(0.36 * radius))
    else:
        pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[thing.shape]()], fill=colour)


def _square() -> list[Point]:
    return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]


def _triangle() -> list[Point]:
    return [(0, -1), (1, 0.85), (-1, 0.85)]


def _diamond() -> list[Point]:
    return [(0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)]


def _star() -> list[Point]:
    radii = (1.1, 0.42)
    corners = [(radii[i % 2], math.pi * i / 5) for i in range(10)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in corners]


def _cross() -> list[Point]:
    a, b = 0.32, 1.0
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in angles
    ]


OUTLINES: dict[Shape, Callable[[], list[Point]]] = {
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}
"""Corners around (0, 0) in units of the radius."""
