"""The embeddings of a gallery, kept in the run folder, so that a query embeds itself alone."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3p.atomic import replacing
from m3p.data.order.shuffle import Place
from m3p.data.source import Source
from m3p.retrieval.pictures import load_pictures, open_source, stored_picture
from m3p.retrieval.scoring import scorer_of
from m3p.runs import Run
from m3p.terminal import warn


@dataclass(frozen=True)
class EmbeddedGallery:
    """Pictures of a source with their embeddings."""

    source: Source
    images: list[str]
    """[N] ids."""
    embeddings: NDArray[np.float32]
    """[N, projection], of unit length."""
    places: NDArray[np.int64]
    """[N, 2] shard and sample of each picture."""

    def stored(self, number: int) -> bytes:
        """Return the stored picture; empty where there is none that can be shown."""
        shard, sample = self.places[number].tolist()
        return stored_picture(self.source, Place(0, shard, sample))


def embedded_gallery(run: Run, name: str) -> EmbeddedGallery:
    """Return the pictures of evaluation `name`, embedded: kept from an earlier call, or embedded now and kept.

    Kept embeddings are those of the same weights, the same shards and the same reading of pictures. Raises UserError.
    """
    config = run.evaluation(name)
    source = open_source(run.recipe, name, config)
    path = run.folder / "embeddings" / f"{name}-{_key(run, source)}.npz"
    if path.is_file() and (kept := _read(path, source)):
        return kept
    pictures = load_pictures(run.recipe, name, config)
    embeddings = scorer_of(run, config.batch_size).embed_pictures(pictures.visuals)
    places = np.array([(place.shard, place.sample) for place in pictures.places], np.int64)
    found = EmbeddedGallery(source, pictures.pool.images, embeddings, places)
    _keep(path, name, found)
    return found


def _key(run: Run, source: Source) -> str:
    """Hash what the embeddings follow from."""
    shards = [(shard.name, shard.samples, shard.fingerprint) for shard in source.manifest.shards]
    visual = run.recipe.visual
    assert visual is not None, "a source of pictures was opened"
    return sha256(repr((run.record.weights, visual.model_dump_json(), shards)).encode()).hexdigest()[:16]


def _keep(path: Path, name: str, gallery: EmbeddedGallery) -> None:
    """Write embeddings beside the run, in place of those of other weights or shards; a folder that is not ours stays as it is."""
    try:
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.glob("*.npz"):
            if old.stem.rpartition("-")[0] == name:
                old.unlink(missing_ok=True)
        ids = np.frombuffer("\0".join(gallery.images).encode("utf-8", "surrogateescape"), np.uint8)
        with replacing(path, durable=False) as aside, aside.open("wb") as file:
            np.savez(file, embeddings=gallery.embeddings, places=gallery.places, images=ids)
    except OSError as error:
        warn(f"{path} cannot be written ({error}): the next search embeds the pictures again")


def _read(path: Path, source: Source) -> EmbeddedGallery | None:
    """Return what `_keep` wrote; None for a damaged file, which is said."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            embeddings, places = arrays["embeddings"], arrays["places"]
            images = arrays["images"].tobytes().decode("utf-8", "surrogateescape").split("\0")
        if not len(embeddings) == len(places) == len(images):
            raise ValueError("its arrays differ in length")
    except Exception as error:  # on broken bytes numpy's and zipfile's parsers raise nearly anything
        warn(f"{path} cannot be read ({error}): the pictures are embedded again")
        return None
    return EmbeddedGallery(source, images, embeddings, places)
