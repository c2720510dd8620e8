"""A trained network as an encoder of MTEB (github.com/embeddings-benchmark/mteb, version 2), so that `mteb` runs its image tasks.

    import mteb
    from m3p.retrieval.mteb_encoder import MtebEncoder
    mteb.evaluate(MtebEncoder("exported"), mteb.get_tasks(["XM3600T2IRetrieval"]))

MTEB brings the data, asks for embeddings of texts and of pictures, and ranks by their cosine: what is called `dual` here.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3p import api
from m3p.errors import UserError

Floats = NDArray[np.float32]
Batch = Mapping[str, Any]
"""What MTEB's loaders give: columns by name, `text` a list of str, `image` a list of PIL images."""


class MtebEncoder:
    """The dual encoder of a run, a checkpoint or an export, by MTEB's EncoderProtocol.

    Args:
        path: what `m3p.load` opens.
        revision: as MTEB is to file the results; the hash of the weights if left out.
        device: unused, since the network is where `m3p.load` puts it; MTEB gives it.
        batch_size: texts or pictures that are forwarded at once.
    """

    def __init__(
        self, path: str | Path, revision: str | None = None, *, device: str | None = None, batch_size: int = 64
    ) -> None:
        self._model = api.load(path, batch_size)
        self._name = f"m3p/{Path(path).resolve().name}"
        self._revision = revision or self._model.run.record.weights

    def encode(self, inputs: Iterable[Batch], **settings: Any) -> Floats:
        """Return the embeddings of all texts or all pictures of `inputs`, [N, D], of unit length, in their order.

        `settings` are those of MTEB (task_metadata, prompt_type, ...): an embedding does not depend on the task. Raises UserError
        for documents that are a picture and a text at once.
        """
        parts = [self._embed(batch) for batch in inputs]
        return np.concatenate(parts) if parts else self._model.embed_texts([])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines of all pairs, [N, M]."""
        one, other = (torch.as_tensor(embeddings) for embeddings in (embeddings1, embeddings2))
        return one.reshape(-1, one.shape[-1]) @ other.reshape(-1, other.shape[-1]).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines of the pairs in the same places, [N]."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What MTEB is told of the network, a ModelMeta; made by MTEB, which must be installed."""
        from mteb.models.model_meta import ModelMeta  # late: nothing else here needs MTEB

        facts = {
            "name": self._name,
            "revision": self._revision,
            "modalities": ["text", "image"],
            "max_tokens": self._model.run.max_tokens,
            "embed_dim": int(self._model.embed_texts([]).shape[1]),
            "framework": ["PyTorch"],
            "similarity_fn_name": "cosine",
        }
        return ModelMeta.create_empty(overwrites=facts)

    def _embed(self, batch: Batch) -> Floats:
        texts, pictures = batch.get("text"), batch.get("image")
        if texts is not None and pictures is not None:
            raise UserError(
                "a document that is a picture and a text at once has no embedding: choose a task of texts and pictures"
            )
        if pictures is not None:
            return self._model.embed_pictures(list(pictures))
        if texts is None:
            raise UserError(f"a task of {', '.join(batch)}: texts and pictures alone have embeddings")
        return self._model.embed_texts([" ".join(text.split()) for text in texts])  # as in shards
