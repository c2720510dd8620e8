"""Shards for `loader.py`: JPEG pictures of 224 pixels with captions, and passages of text, as plain WebDataset tars."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from m3p.prepare.shards import ShardWriter
from m3p.prepare.tokenizer import prepare_tokenizer

SIZE = 224
WORDS = 20_000
PER_SHARD = {"pictures": 500, "text": 2_000}


def make(folder: Path, pictures: int, passages: int) -> None:
    """Write `folder`/pictures, `folder`/text and `folder`/tokenizer, unless they are there."""
    rng = np.random.default_rng(0)
    words = _words(rng)
    if not (folder / "tokenizer").is_dir():
        corpus = folder / "corpus.txt"
        folder.mkdir(parents=True, exist_ok=True)
        corpus.write_text("\n".join(_sentence(rng, words, 20) for _ in range(20_000)), encoding="utf-8")
        prepare_tokenizer([corpus], folder / "tokenizer", vocabulary=8_000)
    if not (folder / "pictures" / "manifest.json").is_file():
        with ShardWriter(folder / "pictures", "captions", PER_SHARD["pictures"]) as writer:
            for _ in range(pictures):
                captions = {"captions": {"en": [_sentence(rng, words, int(rng.integers(8, 16)))]}}
                writer.write({"jpg": _picture(rng), "json": json.dumps(captions).encode()})
    if not (folder / "text" / "manifest.json").is_file():
        with ShardWriter(folder / "text", "text", PER_SHARD["text"], language="en") as writer:
            for _ in range(passages):
                writer.write({"txt": _sentence(rng, words, int(rng.integers(15, 45))).encode()})


def _words(rng: np.random.Generator) -> list[str]:
    letters = np.array(list("eeeettaaooiinnsshhrrddllccuummwwffggyyppbbvk"))
    return ["".join(rng.choice(letters, int(length))) for length in rng.integers(2, 10, WORDS)]


def _sentence(rng: np.random.Generator, words: list[str], length: int) -> str:
    """Words by Zipf's law, as in text."""
    ranks = np.minimum(rng.zipf(1.3, length), WORDS) - 1
    return " ".join(words[rank] for rank in ranks.tolist()).capitalize() + "."


def _picture(rng: np.random.Generator) -> bytes:
    """Return a smooth picture with grain: about 10 kB, as photographs of this size are."""
    coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (SIZE, SIZE, 3), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
