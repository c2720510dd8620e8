"""French: two genders, sizes before the noun and colours after it, elision before a vowel."""

from m3p.prepare.scenes.language import Language, Words
from m3p.prepare.scenes.scene import Colour, Relation, Scene, Shape, Size, Thing

SIZES: dict[Size, dict[str, str]] = {
    "large": {"m": "grand", "f": "grande"},
    "small": {"m": "petit", "f": "petite"},
}

COLOURS: dict[Colour, dict[str, str]] = {
    "red": {"m": "rouge", "f": "rouge"},
    "green": {"m": "vert", "f": "verte"},
    "blue": {"m": "bleu", "f": "bleue"},
    "yellow": {"m": "jaune", "f": "jaune"},
    "orange": {"m": "orange", "f": "orange"},
    "purple": {"m": "violet", "f": "violette"},
    "brown": {"m": "brun", "f": "brune"},
    "black": {"m": "noir", "f": "noire"},
}

SHAPES: dict[Shape, tuple[str, str]] = {
    "circle": ("m", "cercle"),
    "square": ("m", "carré"),
    "triangle": ("m", "triangle"),
    "star": ("f", "étoile"),
    "heart": ("m", "cœur"),
    "cross": ("f", "croix"),
    "ring": ("m", "anneau"),
    "diamond": ("m", "losange"),
}

RELATIONS: dict[Relation, str] = {
    # each takes "de"
    "left of": "à gauche",
    "right of": "à droite",
    "above": "au-dessus",
    "below": "au-dessous",
}

INDEFINITE = {"m": "un", "f": "une"}
DEFINITE = {"m": "le ", "f": "la ", "vowel": "l'"}
OF_DEFINITE = {"m": "du ", "f": "de la ", "vowel": "de l'"}


def _coloured(thing: Thing) -> str:
    gender, noun = SHAPES[thing.shape]
    return f"{INDEFINITE[gender]} {noun} {COLOURS[thing.colour][gender]}"


def _whole(thing: Thing) -> str:
    gender, noun = SHAPES[thing.shape]
    return f"{INDEFINITE[gender]} {SIZES[thing.size][gender]} {noun} {COLOURS[thing.colour][gender]}"


def _definite(shape: Shape, articles: dict[str, str]) -> str:
    gender, noun = SHAPES[shape]
    return articles["vowel" if noun[0] in "aeiouyé" else gender] + noun


def _sized(thing: Thing) -> str:
    gender, noun = SHAPES[thing.shape]
    return f"{DEFINITE[gender]}{SIZES[thing.size][gender]} {noun}"


def _colour_of(thing: Thing) -> str:
    return COLOURS[thing.colour][SHAPES[thing.shape][0]]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def caption(scene: Scene) -> str:
    """Return "un grand cercle rouge à gauche d'un petit carré bleu"."""
    return f"{_whole(scene.first)} {RELATIONS[scene.relation]} d'{_whole(scene.second)}"


def _words() -> Words:
    words: Words = {
        "a": ["un", "une"],
        "left": ["à gauche"],
        "right": ["à droite"],
        "of": ["d'un", "d'une"],
        "above": ["au-dessus"],
        "below": ["au-dessous"],
    }
    for english, forms in [*SIZES.items(), *COLOURS.items()]:
        words[english] = list(dict.fromkeys(forms.values()))
    for shape, (_, noun) in SHAPES.items():
        words[shape] = [noun]
    return words


FRENCH = Language(
    code="fr",
    caption=caption,
    sentences=(
        lambda a, b, relation: f"{_capital(_definite(a.shape, DEFINITE))} est {_colour_of(a)}.",
        lambda a, b, relation: f"Je vois {_whole(a)}.",
        lambda a, b, relation: f"Voici {_coloured(a)}.",
        lambda a, b, relation: f"Il y a {_coloured(a)} et {_coloured(b)}.",
        lambda a, b, relation: f"Où est {_sized(a)} ?",
        lambda a, b, relation: (
            f"{_capital(RELATIONS[relation])} {_definite(b.shape, OF_DEFINITE)}, il y a {_coloured(a)}."
        ),
    ),
    words=_words(),
)
