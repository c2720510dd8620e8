"""A tiny run for tests: a few pictures with regions, captions, text, word lists, and a recipe of all three objectives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from m3p.prepare.captions import prepare_captions
from m3p.prepare.dictionary import prepare_dictionary
from m3p.prepare.pairs import Options
from m3p.prepare.pictures import PictureFolder
from m3p.prepare.text import prepare_text
from m3p.prepare.tokenizer import prepare_tokenizer

WORDS = {
    "en": ["dog", "cat", "tree", "house", "river", "bird", "moon", "stone", "bread", "chair"],
    "de": ["Hund", "Katze", "Baum", "Haus", "Fluss", "Vogel", "Mond", "Stein", "Brot", "Stuhl"],
    "ja": ["犬", "猫", "木", "家", "川", "鳥", "月", "石", "パン", "椅子"],
}
FEATURE_SIZE = 6
CLASSES = 10


def make_tiny(folder: Path, visual: str = "regions", samples: int = 30) -> Path:
    """Write data and recipe into `folder`; return the recipe's path. Its run folder is `folder`/run."""
    rng = np.random.default_rng(0)
    pairs = [rng.choice(len(WORDS["en"]), 2, replace=False).tolist() for _ in range(samples)]
    raw = folder / "raw"
    (raw / "regions").mkdir(parents=True)
    (raw / "text").mkdir()
    (raw / "dictionary").mkdir()
    with (raw / "train.jsonl").open("w") as file:
        for number, words in enumerate(pairs):
            file.write(json.dumps(_record(raw, rng, number, words)) + "\n")
    for language, words in WORDS.items():
        lines = [" ".join(words[i] for i in rng.permutation(len(words))[:6]) + "." for _ in range(40)]
        (raw / "text" / f"{language}.txt").write_text("\n".join(lines) + "\n")
        if language != "en":
            entries = [f"{en}\t{word}" for en, word in zip(WORDS["en"], words, strict=True)]
            (raw / "dictionary" / f"en-{language}.tsv").write_text("\n".join(entries) + "\n")
    shards = folder / "shards"
    options = Options(PictureFolder(raw), regions=raw / "regions", samples_per_shard=8)
    prepare_captions(raw / "train.jsonl", shards / "train", options)
    prepare_text(raw / "text", shards / "text", samples_per_shard=16)
    prepare_dictionary(raw / "dictionary", shards / "dictionary")
    prepare_tokenizer(sorted((raw / "text").glob("*.txt")), shards / "tokenizer", vocabulary=64, split_cjk=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(folder, visual), sort_keys=False))
    return recipe


def tiny_recipe(folder: Path, visual: str = "regions") -> dict[str, Any]:
    """Return the recipe as plain data; the folders are those that `make_tiny` fills."""
    shards = folder / "shards"
    captions = {"path": str(shards / "train"), "languages": ["en"]}
    pair_tasks = {"masked_words": 1.0, "masked_regions": 1.0, "matching": 1.0, "contrastive": 1.0}
    sources = {
        "regions": {"kind": "regions", "feature_size": FEATURE_SIZE, "classes": CLASSES},
        "patches": {"kind": "patches", "size": 16, "patch": 8, "crop": 0.5, "flip": True},
    }
    return {
        "run": {"folder": str(folder / "run"), "steps": 20, "checkpoint_every": 10, "evaluate": False, "timeout_seconds": 120},
        "model": {
            "tokenizer": str(shards / "tokenizer"),
            "shape": {"layers": 2, "width": 32, "heads": 2, "feed_forward": 64, "positions": 66},
            "dropout": 0.0,
        },
        "visual": sources[visual],
        "objectives": {
            "multilingual_text": {
                "weight": 1, "batch_size": 6, "micro_batch": 3, "max_tokens": 32,
                "sources": [{"path": str(shards / "text" / "*")}],
            },
            "image_caption": {
                "weight": 1, "batch_size": 7, "micro_batch": 2, "max_tokens": 32,
                "sources": [captions], "tasks": pair_tasks,
            },
            "code_switched": {
                "weight": 1, "batch_size": 7, "micro_batch": 3, "max_tokens": 32,
                "sources": [captions], "tasks": pair_tasks,
                "switching": {"dictionary": str(shards / "dictionary"), "word_rate": 0.5},
            },
        },
        "data": {"workers": 0, "window": 2},
        "optimizer": {"learning_rate": 0.003, "clip": 1.0},
        "schedule": {"shape": "linear", "warmup_steps": 4},
        "evaluation": {"train": {"path": str(shards / "train"), "batch_size": 8, "seen_in_training": True}},
    }  # fmt: skip


def _record(raw: Path, rng: np.random.Generator, number: int, words: list[int]) -> dict[str, Any]:
    """Draw one picture (its colour says its words) and its regions; return its record."""
    name = f"p{number:03d}"
    pixels = rng.integers(0, 60, (20, 20, 3)) + np.array([words[0] * 15, words[1] * 15, 40])
    Image.fromarray(pixels.astype(np.uint8)).save(raw / f"{name}.png")
    count = 3 + number % 3
    corner = rng.random((count, 2)) * 0.5
    features = rng.normal(size=(count, FEATURE_SIZE)).astype(np.float16)
    features[:, :2] += np.array(words) / 3
    np.savez(
        raw / "regions" / f"{name}.npz",
        boxes=np.concatenate([corner, corner + 0.4], 1).astype(np.float32),
        features=features,
        class_ids=np.array([words[i % 2] for i in range(count)], np.int16),
    )
    captions = {code: [" ".join(WORDS[code][w] for w in words)] for code in WORDS}
    return {"id": name, "image": f"{name}.png", "captions": captions}
