"""German: three genders, strong and weak adjectives, and the dative after prepositions of place."""

from m3p.prepare.scenes.language import Language, Words
from m3p.prepare.scenes.scene import Colour, Relation, Scene, Shape, Size, Thing

SIZES: dict[Size, str] = {"large": "groß", "small": "klein"}

COLOURS: dict[Colour, str] = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "orange": "orange",
    "purple": "violett",
    "brown": "braun",
    "black": "schwarz",
}
UNINFLECTED = ("orange",)

SHAPES: dict[Shape, tuple[str, str, str]] = {
    # gender, nominative and accusative, dative
    "circle": ("m", "Kreis", "Kreis"),
    "square": ("n", "Quadrat", "Quadrat"),
    "triangle": ("n", "Dreieck", "Dreieck"),
    "star": ("m", "Stern", "Stern"),
    "heart": ("n", "Herz", "Herzen"),
    "cross": ("n", "Kreuz", "Kreuz"),
    "ring": ("m", "Ring", "Ring"),
    "diamond": ("f", "Raute", "Raute"),
}

RELATIONS: dict[Relation, str] = {
    # each takes the dative
    "left of": "links von",
    "right of": "rechts von",
    "above": "über",
    "below": "unter",
}

INDEFINITE = {
    # case and gender: article, ending of adjectives after it
    "nominative m": ("ein", "er"),
    "nominative f": ("eine", "e"),
    "nominative n": ("ein", "es"),
    "accusative m": ("einen", "en"),
    "accusative f": ("eine", "e"),
    "accusative n": ("ein", "es"),
    "dative m": ("einem", "en"),
    "dative f": ("einer", "en"),
    "dative n": ("einem", "en"),
}

DEFINITE = {
    "nominative m": ("der", "e"),
    "nominative f": ("die", "e"),
    "nominative n": ("das", "e"),
    "dative m": ("dem", "en"),
    "dative f": ("der", "en"),
    "dative n": ("dem", "en"),
}


def _adjective(stem: str, ending: str) -> str:
    return stem if stem in UNINFLECTED else stem + ending


def _phrase(case: str, shape: Shape, *adjectives: str, table: dict[str, tuple[str, str]] = INDEFINITE) -> str:
    gender, noun, dative = SHAPES[shape]
    article, ending = table[f"{case} {gender}"]
    words = [article, *(_adjective(stem, ending) for stem in adjectives), dative if case == "dative" else noun]
    return " ".join(words)


def _whole(case: str, thing: Thing) -> str:
    return _phrase(case, thing.shape, SIZES[thing.size], COLOURS[thing.colour])


def _coloured(case: str, thing: Thing) -> str:
    return _phrase(case, thing.shape, COLOURS[thing.colour])


def _definite(case: str, shape: Shape, *adjectives: str) -> str:
    return _phrase(case, shape, *adjectives, table=DEFINITE)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def caption(scene: Scene) -> str:
    """Return "ein großer roter Kreis links von einem kleinen blauen Quadrat"."""
    return f"{_whole('nominative', scene.first)} {RELATIONS[scene.relation]} {_whole('dative', scene.second)}"


def _words() -> Words:
    words: Words = {
        "a": ["ein", "eine", "einem", "einer", "einen"],
        "left": ["links"],
        "right": ["rechts"],
        "of": ["von"],
        "above": ["über"],
        "below": ["unter"],
    }
    for english, stem in [*SIZES.items(), *COLOURS.items()]:
        words[english] = list(dict.fromkeys(_adjective(stem, ending) for ending in ("", "er", "e", "es", "en")))
    for shape, (_, noun, dative) in SHAPES.items():
        words[shape] = list(dict.fromkeys((noun, dative)))
    return words


GERMAN = Language(
    code="de",
    caption=caption,
    sentences=(
        lambda a, b, relation: f"{_capital(_definite('nominative', a.shape))} ist {COLOURS[a.colour]}.",
        lambda a, b, relation: f"Ich sehe {_whole('accusative', a)}.",
        lambda a, b, relation: f"Hier ist {_coloured('nominative', a)}.",
        lambda a, b, relation: f"Es gibt {_coloured('accusative', a)} und {_coloured('accusative', b)}.",
        lambda a, b, relation: f"Wo ist {_definite('nominative', a.shape, SIZES[a.size])}?",
        lambda a, b, relation: (
            f"{_capital(RELATIONS[relation])} {_definite('dative', b.shape)} ist {_coloured('nominative', a)}."
        ),
    ),
    words=_words(),
)
