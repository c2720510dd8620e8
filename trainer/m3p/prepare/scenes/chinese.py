"""Chinese (simplified): no spaces, no inflection, a measure word where English has its article."""

from m3p.prepare.scenes.language import Language, Words
from m3p.prepare.scenes.scene import Colour, Relation, Scene, Shape, Size, Thing

SIZES: dict[Size, str] = {"large": "大", "small": "小"}

COLOURS: dict[Colour, str] = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "orange": "橙色",
    "purple": "紫色",
    "brown": "棕色",
    "black": "黑色",
}

SHAPES: dict[Shape, str] = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "heart": "心形",
    "cross": "十字形",
    "ring": "圆环",
    "diamond": "菱形",
}

RELATIONS: dict[Relation, str] = {"left of": "左边", "right of": "右边", "above": "上方", "below": "下方"}


def _coloured(thing: Thing) -> str:
    return f"一个{COLOURS[thing.colour]}的{SHAPES[thing.shape]}"


def _whole(thing: Thing) -> str:
    return f"一个{COLOURS[thing.colour]}的{SIZES[thing.size]}{SHAPES[thing.shape]}"


def caption(scene: Scene) -> str:
    """Return "一个红色的大圆形在一个蓝色的小正方形的左边"."""
    return f"{_whole(scene.first)}在{_whole(scene.second)}的{RELATIONS[scene.relation]}"


def _words() -> Words:
    words: Words = {"a": ["一个"], "of": ["的"]}
    words |= {relation.removesuffix(" of"): [word] for relation, word in RELATIONS.items()}
    words |= {size: [word] for size, word in SIZES.items()}
    words |= {colour: [f"{word}的"] for colour, word in COLOURS.items()}
    words |= {shape: [word] for shape, word in SHAPES.items()}
    return words


CHINESE = Language(
    code="zh",
    caption=caption,
    sentences=(
        lambda a, b, relation: f"{SHAPES[a.shape]}是{COLOURS[a.colour]}的。",
        lambda a, b, relation: f"我看到{_whole(a)}。",
        lambda a, b, relation: f"这里有{_coloured(a)}。",
        lambda a, b, relation: f"有{_coloured(a)}和{_coloured(b)}。",
        lambda a, b, relation: f"{SIZES[a.size]}{SHAPES[a.shape]}在哪里？",
        lambda a, b, relation: f"{SHAPES[b.shape]}的{RELATIONS[relation]}有{_coloured(a)}。",
    ),
    words=_words(),
)
