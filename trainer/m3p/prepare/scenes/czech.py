"""Czech: three genders, no articles, the genitive after "od" and the instrumental after "nad" and "pod"."""

from m3p.prepare.scenes.language import Language, Words
from m3p.prepare.scenes.scene import Colour, Relation, Scene, Shape, Size, Thing

SIZES: dict[Size, str] = {"large": "velk", "small": "mal"}

COLOURS: dict[Colour, str] = {
    "red": "červen",
    "green": "zelen",
    "blue": "modr",
    "yellow": "žlut",
    "orange": "oranžov",
    "purple": "fialov",
    "brown": "hněd",
    "black": "čern",
}

ENDINGS = {
    # case and gender: ending of hard adjectives (masculine inanimate)
    "nominative m": "ý",
    "nominative f": "á",
    "nominative n": "é",
    "genitive m": "ého",
    "genitive f": "é",
    "genitive n": "ého",
    "accusative m": "ý",
    "accusative f": "ou",
    "accusative n": "é",
    "instrumental m": "ým",
    "instrumental f": "ou",
    "instrumental n": "ým",
}

CASES = ("nominative", "genitive", "accusative", "instrumental")

SHAPES: dict[Shape, tuple[str, str, str, str, str]] = {
    # gender, then the noun in the order of CASES
    "circle": ("m", "kruh", "kruhu", "kruh", "kruhem"),
    "square": ("m", "čtverec", "čtverce", "čtverec", "čtvercem"),
    "triangle": ("m", "trojúhelník", "trojúhelníku", "trojúhelník", "trojúhelníkem"),
    "star": ("f", "hvězda", "hvězdy", "hvězdu", "hvězdou"),
    "heart": ("n", "srdce", "srdce", "srdce", "srdcem"),
    "cross": ("m", "kříž", "kříže", "kříž", "křížem"),
    "ring": ("m", "prsten", "prstenu", "prsten", "prstenem"),
    "diamond": ("m", "kosočtverec", "kosočtverce", "kosočtverec", "kosočtvercem"),
}

RELATIONS: dict[Relation, tuple[str, str]] = {
    # words, the case that follows
    "left of": ("vlevo od", "genitive"),
    "right of": ("vpravo od", "genitive"),
    "above": ("nad", "instrumental"),
    "below": ("pod", "instrumental"),
}


def _phrase(case: str, shape: Shape, *adjectives: str) -> str:
    gender, *forms = SHAPES[shape]
    ending = ENDINGS[f"{case} {gender}"]
    return " ".join([*(stem + ending for stem in adjectives), forms[CASES.index(case)]])


def _whole(case: str, thing: Thing) -> str:
    return _phrase(case, thing.shape, SIZES[thing.size], COLOURS[thing.colour])


def _coloured(case: str, thing: Thing) -> str:
    return _phrase(case, thing.shape, COLOURS[thing.colour])


def _place(relation: Relation, thing: Thing) -> str:
    words, case = RELATIONS[relation]
    return f"{words} {_phrase(case, thing.shape)}".capitalize()


def caption(scene: Scene) -> str:
    """Return "velký červený kruh vlevo od malého modrého čtverce"."""
    words, case = RELATIONS[scene.relation]
    return f"{_whole('nominative', scene.first)} {words} {_whole(case, scene.second)}"


def _is_coloured(thing: Thing) -> str:
    gender, noun, *_ = SHAPES[thing.shape]
    return f"{noun} je {COLOURS[thing.colour]}{ENDINGS[f'nominative {gender}']}.".capitalize()


def _words() -> Words:
    words: Words = {"left": ["vlevo"], "right": ["vpravo"], "of": ["od"], "above": ["nad"], "below": ["pod"]}
    for english, stem in [*SIZES.items(), *COLOURS.items()]:
        words[english] = list(dict.fromkeys(stem + ending for ending in ENDINGS.values()))
    for shape, (_, *forms) in SHAPES.items():
        words[shape] = list(dict.fromkeys(forms))
    return words


CZECH = Language(
    code="cs",
    caption=caption,
    sentences=(
        lambda a, b, relation: _is_coloured(a),
        lambda a, b, relation: f"Vidím {_whole('accusative', a)}.",
        lambda a, b, relation: f"Tady je {_coloured('nominative', a)}.",
        lambda a, b, relation: f"Na obrázku je {_coloured('nominative', a)} a {_coloured('nominative', b)}.",
        lambda a, b, relation: f"Kde je {_phrase('nominative', a.shape, SIZES[a.size])}?",
        lambda a, b, relation: f"{_place(relation, b)} je {_coloured('nominative', a)}.",
    ),
    words=_words(),
)
