"""What each language of the scenes provides: a caption, other sentences, and its word list."""

from collections.abc import Callable
from dataclasses import dataclass

from m3p.prepare.scenes.scene import Relation, Scene, Thing

Sentence = Callable[[Thing, Thing, Relation], str]
"""A sentence about two things and where the first stands; it may leave out much of that."""

Words = dict[str, list[str]]
"""English word to its forms in a language. All inflected forms that captions use are listed: with base forms only,
German and Czech captions would be made of words that code-switching never showed."""


@dataclass(frozen=True)
class Language:
    """One language; every file beside this one that is named after a language defines one."""

    code: str
    """BCP-47 tag."""
    caption: Callable[[Scene], str]
    """The caption of a scene, with case, gender and number as they should be."""
    sentences: tuple[Sentence, ...]
    """Patterns for monolingual text; none has the form of a caption."""
    words: Words
    """The word list from English; empty for English itself."""
