"""Kinds of samples: what the stored files of a sample become when they are read, one registered object a kind.

A source holds samples of one kind, which its manifest names. Whatever reads samples (index, reader, source, mix, the common
part of the objectives) asks the kind, and knows none by name: a further kind is a class like those here and one entry in
`KINDS`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from m3p.data.records import Members, choose_captions, passage, read_record
from m3p.visual import STORED_FILES
from m3p.visual.decode import IMAGE_KINDS

CAPTION_TOKENS = 20
"""Tokens taken for every caption: the index does not know which of a picture's captions a sample draws."""
BYTES_OF_NUMBER = 2
"""Region features are float16."""

Record = Any
"""What a kind makes of a sample's files. Only the kind itself, and objectives made for it, look inside."""


class Kind(Protocol):
    """What the stored files of a sample become when they are read."""

    name: ClassVar[str]
    """As in manifest.json, and in `m3p index --kind`."""
    needs: ClassVar[str]
    """What a sample must have, in words."""
    has_pictures: ClassVar[bool]
    """Whether a sample has a picture beside its text, which is decoded later."""
    needs_language: ClassVar[bool]
    """Whether its texts name no language, so that the manifest must."""
    files: ClassVar[frozenset[str]]
    """Extensions of the files that it reads; of pairs, those that records.py takes for captions as well."""
    measured: ClassVar[str]
    """Extension of the file by which the length of a sample is told: the index notes its bytes."""

    def reader(self, language: str | None, languages: Sequence[str] | None) -> Callable[[Members], Record]:
        """Return what reads the files of one sample of a source. It raises BadSample.

        Args:
            language: of texts that name none; None where they all do.
            languages: texts in these alone are used; None: all.
        """

    def label(self, number: int, record: Record) -> str:
        """Return what the name of a sample with a picture has behind that of its shard, where it has this number."""

    def texts(self, record: Record, language: str) -> Mapping[str, list[str]]:
        """Return all texts of a sample, by language; `language` is that of its source."""

    def lengths(
        self, sizes: NDArray[np.uint32], bytes_of_token: float, region_features: int | None
    ) -> NDArray[np.float64]:
        """Return roughly how many tokens samples have, from the bytes of their `measured` files [N]: [N].

        Args:
            bytes_of_token: of text of the source.
            region_features: width D of stored region features; None without regions.
        """


class Text:
    """Passages: KEY.txt in the language of the source. A record is the passage, a str."""

    name: ClassVar[str] = "text"
    needs: ClassVar[str] = "text (KEY.txt)"
    has_pictures: ClassVar[bool] = False
    needs_language: ClassVar[bool] = True
    files: ClassVar[frozenset[str]] = frozenset({"txt"})
    measured: ClassVar[str] = "txt"

    def reader(self, language: str | None, languages: Sequence[str] | None) -> Callable[[Members], str]:
        """Return what reads one passage. It raises BadSample."""
        return _passage

    def label(self, number: int, record: str) -> str:
        """Return "": a passage has no name of its own."""
        return ""

    def texts(self, record: str, language: str) -> Mapping[str, list[str]]:
        """Return the passage."""
        return {language: [record]}

    def lengths(
        self, sizes: NDArray[np.uint32], bytes_of_token: float, region_features: int | None
    ) -> NDArray[np.float64]:
        """Return the passages' bytes by the bytes of a token."""
        return sizes / bytes_of_token


def _passage(members: Members) -> str:
    return passage(members.get("txt"))


class Caption(NamedTuple):
    """The record of a pair."""

    captions: dict[str, list[str]]
    """Language -> the captions in it, at least one."""
    concept: str
    """Pictures of one concept share their captions; "" where the record names none."""
    id: str
    """The picture's name; "" where the record has none."""
    published: str = ""
    """The picture's name in published sets, SET/ID; "" where the record has none."""


class Captions:
    """Pictures with captions in one or more languages. A record is a `Caption`."""

    name: ClassVar[str] = "captions"
    needs: ClassVar[str] = f"a picture (jpg, png, webp) or stored features ({', '.join(STORED_FILES)}), and a caption"
    has_pictures: ClassVar[bool] = True
    needs_language: ClassVar[bool] = False
    files: ClassVar[frozenset[str]] = frozenset({"json", *STORED_FILES, *IMAGE_KINDS})
    measured: ClassVar[str] = "regions.npz"

    def reader(self, language: str | None, languages: Sequence[str] | None) -> Callable[[Members], Caption]:
        """Return what reads the captions of one picture. It raises BadSample."""
        chosen = None if languages is None else list(languages)

        def read(members: Members) -> Caption:
            record = read_record(members, language)
            captions = choose_captions(record.captions, chosen)
            return Caption(captions, record.concept, record.id, record.published)

        return read

    def label(self, number: int, record: Caption) -> str:
        """Return "/ID", or "#NUMBER" where the record has no id."""
        return f"/{record.id}" if record.id else f"#{number}"

    def texts(self, record: Caption, language: str) -> Mapping[str, list[str]]:
        """Return the captions."""
        return record.captions

    def lengths(
        self, sizes: NDArray[np.uint32], bytes_of_token: float, region_features: int | None
    ) -> NDArray[np.float64]:
        """Return the tokens of a caption and of stored regions; patches, the same number for all, are not counted."""
        return CAPTION_TOKENS + sizes / (BYTES_OF_NUMBER * (region_features or 1))


TEXT, CAPTIONS = Text(), Captions()
KINDS: dict[str, Kind] = {kind.name: kind for kind in (TEXT, CAPTIONS)}
"""All kinds, by the name that stands in a manifest."""
