"""Japanese: no spaces, the second thing named first, adjectives in -i and nouns joined by no."""

from m3p.prepare.scenes.language import Language, Words
from m3p.prepare.scenes.scene import Colour, Relation, Scene, Shape, Size, Thing

SIZES: dict[Size, str] = {"large": "大きな", "small": "小さな"}

COLOURS: dict[Colour, tuple[str, str]] = {
    # before a noun, at the end of a sentence
    "red": ("赤い", "赤い"),
    "green": ("緑の", "緑だ"),
    "blue": ("青い", "青い"),
    "yellow": ("黄色い", "黄色い"),
    "orange": ("オレンジ色の", "オレンジ色だ"),
    "purple": ("紫の", "紫だ"),
    "brown": ("茶色い", "茶色い"),
    "black": ("黒い", "黒い"),
}

SHAPES: dict[Shape, str] = {
    "circle": "円",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星",
    "heart": "ハート",
    "cross": "十字",
    "ring": "輪",
    "diamond": "ひし形",
}

RELATIONS: dict[Relation, str] = {"left of": "左", "right of": "右", "above": "上", "below": "下"}


def _coloured(thing: Thing) -> str:
    return COLOURS[thing.colour][0] + SHAPES[thing.shape]


def _whole(thing: Thing) -> str:
    return SIZES[thing.size] + _coloured(thing)


def caption(scene: Scene) -> str:
    """Return "小さな青い正方形の左にある大きな赤い円": the large red circle that is at the left of the square."""
    return f"{_whole(scene.second)}の{RELATIONS[scene.relation]}にある{_whole(scene.first)}"


def _words() -> Words:
    words: Words = {"left": ["左"], "right": ["右"], "of": ["の"], "above": ["上"], "below": ["下"]}
    words |= {size: [word] for size, word in SIZES.items()}
    words |= {colour: [before] for colour, (before, _) in COLOURS.items()}
    words |= {shape: [word] for shape, word in SHAPES.items()}
    return words


JAPANESE = Language(
    code="ja",
    caption=caption,
    sentences=(
        lambda a, b, relation: f"{SHAPES[a.shape]}は{COLOURS[a.colour][1]}。",
        lambda a, b, relation: f"{_whole(a)}が見える。",
        lambda a, b, relation: f"ここに{_coloured(a)}がある。",
        lambda a, b, relation: f"{_coloured(a)}と{_coloured(b)}がある。",
        lambda a, b, relation: f"{SIZES[a.size]}{SHAPES[a.shape]}はどこにある？",
        lambda a, b, relation: f"{SHAPES[b.shape]}の{RELATIONS[relation]}に{_coloured(a)}がある。",
    ),
    words=_words(),
)
