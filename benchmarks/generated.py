"""Data of the published size, out of nothing: a vocabulary, pairs with regions, text and a word list, to measure speed on.

    python benchmarks/generated.py FOLDER [--words 250002 --pairs 1024 --texts 2048 --feature-size 2048]

FOLDER then holds what the paths of trainer/m3p/recipes/m3p_base.yaml name under data_shards/. Lengths are those of `mixed.py`.
What the words and features say is random: speed does not depend on it, and nothing can be learnt from it.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from mixed import CAPTION, REGIONS, TEXT
from PIL import Image
from sentencepiece import sentencepiece_model_pb2

from m3p.data.tokenizer import SENTENCEPIECE_FILE
from m3p.prepare.dictionary import prepare_dictionary
from m3p.prepare.regions import pack_regions
from m3p.prepare.shards import ShardWriter

LANGUAGES = ("en", "de", "fr", "cs")
CLASSES = 1600
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_words(count: int) -> list[str]:
    """Return `count` different words of four letters."""
    assert count <= len(LETTERS) ** 4
    return ["".join(LETTERS[number // 26**place % 26] for place in range(4)) for number in range(count)]


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """Write a sentencepiece model in which every word is one piece: XLM-R's ids of len(words) + 5 words."""
    proto: Any = sentencepiece_model_pb2  # its classes are made at import
    model, kinds = proto.ModelProto(), proto.ModelProto.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for number, word in enumerate(words):
        model.pieces.add(piece=f"▁{word}", score=-1.0 - number * 1e-5, type=kinds.NORMAL)
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    folder.mkdir(parents=True)
    (folder / SENTENCEPIECE_FILE).write_bytes(model.SerializeToString())


def write_pairs(folder: Path, rng: np.random.Generator, words: list[str], pairs: int, feature_size: int) -> None:
    """Write captioned pictures with regions. No two pictures are alike: pairs of one picture are no negatives of each other."""
    with ShardWriter(folder, "captions", 256) as writer:
        for number in range(pairs):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (number & 255, number >> 8 & 255, number >> 16)).save(picture, "PNG")
            count = int(rng.integers(REGIONS[0], REGIONS[1], endpoint=True))
            corner = rng.random((count, 2), np.float32) / 2
            regions = {
                "boxes": np.concatenate([corner, corner + np.float32(0.4)], 1),
                "features": rng.standard_normal((count, feature_size), np.float32).astype(np.float16),
                "class_ids": rng.integers(1, CLASSES, count).astype(np.int32),
            }
            record = {"id": str(number), "captions": {"en": [_passage(rng, words, CAPTION)]}}
            members = {"png": picture.getvalue(), "json": json.dumps(record).encode()}
            writer.write({**members, "regions.npz": pack_regions(regions)})


def write_texts(folder: Path, rng: np.random.Generator, words: list[str], texts: int) -> None:
    """Write passages, as many in each of `LANGUAGES`."""
    for language in LANGUAGES:
        with ShardWriter(folder / language, "text", 4096, language) as writer:
            for _ in range(texts // len(LANGUAGES)):
                writer.write({"txt": _passage(rng, words, TEXT).encode()})


def write_dictionary(folder: Path, raw: Path, rng: np.random.Generator, words: list[str]) -> None:
    """Write word lists that translate every word into another."""
    raw.mkdir()
    for language in LANGUAGES[1:]:
        others = rng.permutation(words)
        lines = [f"{word}\t{other}\n" for word, other in zip(words, others, strict=True)]
        (raw / f"en-{language}.tsv").write_text("".join(lines))
    prepare_dictionary(raw, folder)


def _passage(rng: np.random.Generator, words: list[str], lengths: tuple[int, int]) -> str:
    """Words for a sequence of `lengths` tokens, <s> and </s> counted."""
    length = int(rng.integers(lengths[0], lengths[1], endpoint=True)) - 2
    return " ".join(words[i] for i in rng.integers(len(words), size=length))


def generate(folder: Path, size: int, pairs: int, texts: int, feature_size: int) -> None:
    """Write everything into `folder`, which must not exist."""
    rng, words = np.random.default_rng(0), make_words(size - 5)
    write_tokenizer(folder / "tokenizer", words)
    write_pairs(folder / "cc3m", rng, words, pairs, feature_size)
    write_texts(folder / "text", rng, words, texts)
    write_dictionary(folder / "dictionary", folder / "raw", rng, words[:20_000])


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--words", type=int, default=250_002, help="vocabulary")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--texts", type=int, default=2048)
    parser.add_argument("--feature-size", type=int, default=2048)
    options = parser.parse_args()
    generate(options.folder, options.words, options.pairs, options.texts, options.feature_size)


if __name__ == "__main__":
    main()
