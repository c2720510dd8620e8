"""English."""

from m3p.prepare.scenes.language import Language
from m3p.prepare.scenes.scene import Scene, Thing


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _whole(thing: Thing) -> str:
    return _a(f"{thing.size} {thing.colour} {thing.shape}")


def _coloured(thing: Thing) -> str:
    return _a(f"{thing.colour} {thing.shape}")


def caption(scene: Scene) -> str:
    """Return "a large red circle left of a small blue square"."""
    return f"{_whole(scene.first)} {scene.relation} {_whole(scene.second)}"


ENGLISH = Language(
    code="en",
    caption=caption,
    sentences=(
        lambda a, b, relation: f"The {a.shape} is {a.colour}.",
        lambda a, b, relation: f"I see {_whole(a)}.",
        lambda a, b, relation: f"Here is {_coloured(a)}.",
        lambda a, b, relation: f"There is {_coloured(a)} and {_coloured(b)}.",
        lambda a, b, relation: f"Where is the {a.size} {a.shape}?",
        lambda a, b, relation: f"{relation.capitalize()} the {b.shape} is {_coloured(a)}.",
    ),
    words={},
)
