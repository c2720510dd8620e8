"""Embed texts from a folder that `m3p export --format sentence-transformers` wrote, without m3p: for exported_recall.py.

    python benchmarks/exported_embed.py FOLDER transformers|sentence-transformers TEXTS.json OUTPUT.npz

TEXTS.json holds a list of texts; OUTPUT.npz gets `embeddings` float32 [N, D] and the versions of the packages as `packages`.
"""

import json
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

BATCH = 64


def with_sentence_transformers(folder: str, texts: list[str]) -> np.ndarray:
    """Embed as a user of sentence-transformers does."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cpu").encode(texts, batch_size=BATCH, show_progress_bar=False)


@torch.inference_mode()
def with_transformers(folder: str, texts: list[str]) -> np.ndarray:
    """Embed with AutoTokenizer and AutoModel; pooling and projection by the files beside them."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    limit = json.loads(Path(folder, "sentence_bert_config.json").read_text())["max_seq_length"]
    first = json.loads(Path(folder, "1_Pooling", "config.json").read_text())["pooling_mode_cls_token"]
    weight = load_file(Path(folder, "2_Dense", "model.safetensors"))["linear.weight"]
    parts = []
    for start in range(0, len(texts), BATCH):
        some = tokenizer(
            texts[start : start + BATCH], padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        hidden, real = model(**some).last_hidden_state, some["attention_mask"].unsqueeze(-1)
        pooled = hidden[:, 0] if first else (hidden * real).sum(1) / real.sum(1)
        parts.append(torch.nn.functional.normalize(pooled @ weight.T, dim=-1))
    return torch.cat(parts).numpy()


def main() -> None:
    """Embed the texts; refuse to run where m3p can be imported, which would prove nothing."""
    folder, library, texts, output = sys.argv[1:]
    if find_spec("m3p"):
        sys.exit("m3p can be imported here: use the interpreter of an environment without it, and no PYTHONPATH")
    embed = {"transformers": with_transformers, "sentence-transformers": with_sentence_transformers}[library]
    found = embed(folder, json.loads(Path(texts).read_text(encoding="utf-8")))
    packages = json.dumps({each.metadata["Name"]: each.version for each in distributions()}, sort_keys=True)
    np.savez(output, embeddings=np.asarray(found, np.float32), packages=np.array(packages))


if __name__ == "__main__":
    main()
