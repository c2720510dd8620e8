"""What is worth saying of the tars of a folder: how captions were found, what is not read, pictures that come twice.

`m3p index` and `m3p prepare` say it when they have written an index, `m3p data lint` when it has walked the tars again.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from m3p.atomic import final_path
from m3p.data.languages import LANGUAGE_TAG
from m3p.data.records import OBJECT, ONE_LINE
from m3p.data.shards.index_file import IndexFile, open_index
from m3p.data.shards.shard_table import Shard
from m3p.data.shards.tar_index import TarIndex
from m3p.terminal import one_line

NAMED = 8
"""Names of files and fields in one message."""
MAX_COMPARED = 50_000_000
"""Samples of a folder up to which equal pictures are looked for: 400 MB of memory."""


def notes(folder: str, tars: Mapping[str, TarIndex]) -> Iterator[str]:
    """Yield what is worth saying of the tars that were walked, by their names; one line each."""
    found = tars.values()
    samples = sum(index.samples for index in found)
    layouts, unread = (
        sum(counters, Counter[str]())
        for counters in zip(*((index.layouts, index.unread) for index in found), strict=True)
    )
    for layout, number in layouts.items():
        if layout not in (OBJECT, ONE_LINE):
            yield f"{folder}: the captions of {number:,} of {samples:,} samples come from {layout}."
    if len(layouts) > 1:
        yield f"{folder}: its samples have captions in {len(layouts)} layouts: {_listed(layouts)}."
    yield from _odd_languages(folder, sum((index.captions for index in found), Counter[str]()))
    if unread:
        yield f"{folder}: nothing is read from {_listed(unread)} (samples that have it)."
    if placeholders := sum((index.placeholders for index in found), Counter[str]()):
        yield (
            f"{folder}: captions that only say that there is none are trained on and searched for as they stand: "
            f"{_listed(placeholders)}: leave them out where the captions come from."
        )
    if links := sum(index.links for index in found):
        yield (
            f"{folder}: {links:,} files of its tars are links, which are not followed, so their samples lack them: pack the tars "
            "again with the files themselves (tar --dereference --hard-dereference)."
        )
    if followed := [name for name, index in tars.items() if index.followed]:
        yield (
            f"{folder}: behind the end of {', '.join(followed[:5])}{' and others' if len(followed) > 5 else ''} stands more, "
            "which is not read (tars put together with cat?): pack each as a tar of its own."
        )


def _odd_languages(folder: str, captions: Counter[str]) -> Iterator[str]:
    """Yield a line for languages with names of other forms than `m3p prepare` takes, and for two names of one language."""
    odd = Counter({name: number for name, number in captions.items() if not LANGUAGE_TAG.fullmatch(name)})
    if odd:
        yield (
            f"{folder}: {_listed(odd)} are no language codes such as de, zh-Hant or pt-BR; a recipe must name these languages "
            "just so, and no vocabulary or word list goes by such names: rename them."
        )
    alike: dict[str, list[str]] = {}
    for name in sorted(captions):
        alike.setdefault(name.casefold().replace("_", "-"), []).append(name)
    for names in (names for names in alike.values() if len(names) > 1):
        counted = _listed(Counter({name: captions[name] for name in names}))
        yield f"{folder}: {counted} count as languages of their own: rename them to one, or name each in the recipe."


def unusable_samples(folder: str, tars: Collection[TarIndex]) -> Iterator[str]:
    """Yield a line if training will skip some of the samples."""
    samples, unusable = (
        sum(counts) for counts in zip(*((index.samples, index.unusable) for index in tars), strict=True)
    )
    if unusable:
        reasons = sum((index.reasons for index in tars), Counter[str]())
        why = f"; of texts: {_listed(reasons)}" if reasons else ""
        yield f"{folder}: {unusable:,} of {samples:,} samples lack a picture, a caption, text or readable regions{why}."


def equal_pictures(folder: Path, shards: Iterable[Shard]) -> Iterator[str]:
    """Yield lines on pictures of an indexed folder that come twice: the same bytes, or two under one name of a published set."""
    shards = list(shards)
    if sum(shard.samples for shard in shards) > MAX_COMPARED:
        yield f"{final_path(folder)}: more than {MAX_COMPARED:,} samples: equal pictures were not looked for."
        return
    indexes = [open_index(folder / shard.index_name, shard.samples) for shard in shards if shard.samples]
    contents = np.concatenate([np.frombuffer(index.contents, np.uint64) for index in indexes])
    there = contents[contents != 0]
    distinct = len(np.unique(there))
    if distinct < len(there):
        yield (
            f"{final_path(folder)}: {len(there):,} samples have only {distinct:,} different pictures (a row a caption?). "
            "Those of one picture count as one picture with all their captions in evaluation and are no negatives of each other."
        )
    yield from _shared_names(folder, indexes)


def _shared_names(folder: Path, indexes: Iterable[IndexFile]) -> Iterator[str]:
    """Yield a line if different pictures have one name of a published set."""
    columns = [
        np.stack([np.frombuffer(one.contents, np.uint64), np.frombuffer(one.published, np.uint64)])
        for one in indexes
        if len(one.published) == len(one.contents)
    ]  # older files have no names
    both = np.concatenate([np.zeros((2, 0), np.uint64), *columns], axis=1)
    pictures = np.unique(both[:, both.all(axis=0)], axis=1)[1]  # for each picture its name
    names, counts = np.unique(pictures, return_counts=True)
    shared = counts[counts > 1]
    if len(shared):
        yield (
            f"{final_path(folder)}: {shared.sum():,} different pictures share {len(shared):,} of {len(names):,} published_id. "
            "Pictures of one published_id count as one that was encoded again: they are no negatives of each other, and one "
            "found in another folder stands for both. If they are not the same, give each its own."
        )


def _listed(counts: Counter[str]) -> str:
    """Return names with their numbers, the commonest first."""
    common = counts.most_common(NAMED)
    more = f" and {len(counts) - len(common)} more" if len(counts) > len(common) else ""
    return one_line(", ".join(f"{name} ({number:,})" for name, number in common) + more)
