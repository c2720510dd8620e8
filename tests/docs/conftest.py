"""A folder such as a reader of the documents has: raw data, drawn scenes, and a tiny trained run in runs/demo."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.blocks import PAGES, ROOT, blocks

LINKED = ("trainer", "slurm", "ds_configs", "benchmarks", "docs", "quickstart.sh", "run_tests.sh")
TINY = ("run.steps=4", "schedule.warmup_steps=1", "run.checkpoint_every=2")
NAMES = {
    "en": ["black cat", "white dog", "red house", "green tree", "blue bird", "yellow moon"],
    "de": ["schwarze Katze", "weißer Hund", "rotes Haus", "grüner Baum", "blauer Vogel", "gelber Mond"],
    "fr": ["chat noir", "chien blanc", "maison rouge", "arbre vert", "oiseau bleu", "lune jaune"],
}
PICTURES = 150


def environment() -> dict[str, str]:
    """Return the surroundings of a reader's command: this checkout's code, a CPU, no warnings."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "trainer"), "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def run(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command line in `folder` as a reader does. Raises AssertionError where it fails."""
    words = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; each page gets a copy of it to write into."""
    folder = tmp_path_factory.mktemp("reader")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    _raw_data(folder)
    run("m3p prepare scenes --output data_shards/scenes --train 80 --held-out 12", folder)
    _tars_of_others(folder)
    _encoder(folder / "xlm-roberta-base", folder / "data_shards/scenes/tokenizer/sentencepiece.bpe.model")
    for page in PAGES:
        for block in blocks(page):
            if block.words[:1] == ["file"]:
                (folder / block.words[1]).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.words[1]).write_text(block.text, encoding="utf-8")
    run(f"m3p train --recipe demo --deepspeed_config zero1 {' '.join(TINY)}", folder)
    return folder


def _raw_data(folder: Path) -> None:
    """Write captioned pictures with regions, text and word lists, as docs/own-data.md names them."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "regions", "text", "dictionary"):
        (folder / name).mkdir()
    lines = []
    for number in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"pictures/p{number}.jpg")
        captions = {code: f"{names[number % 6]}, {names[number // 6 % 6]}" for code, names in NAMES.items()}
        lines.append(json.dumps({"id": f"p{number}", "image": f"p{number}.jpg", "captions": captions}))
        corner = rng.random((3, 2)).astype(np.float32) * 0.5
        boxes, features = np.concatenate([corner, corner + 0.4], 1), rng.normal(size=(3, 8)).astype(np.float16)
        np.savez(folder / f"regions/p{number}.npz", boxes=boxes, features=features, class_ids=np.arange(3))
    (folder / "pictures/train.jsonl").write_text("\n".join(lines[:130]) + "\n")
    (folder / "pictures/dev.jsonl").write_text("\n".join(lines[130:]) + "\n")
    for code, names in NAMES.items():
        (folder / f"text/{code}.txt").write_text("".join(f"{a}, {b}.\n" for a in names for b in names))
        pairs = [f"{en.split()[-1]}\t{name.split()[0]}" for en, name in zip(NAMES["en"], names, strict=True)]
        if code != "en":
            (folder / f"dictionary/en-{code}.tsv").write_text("\n".join(pairs) + "\n")


def _tars_of_others(folder: Path) -> None:
    """Put a tar of img2dataset's layout where docs/own-data.md says."""
    (folder / "data_shards/laion").mkdir()
    shutil.copy(ROOT / "tests/data/img2dataset/00000.tar", folder / "data_shards/laion/00000.tar")


def _encoder(folder: Path, vocabulary: Path) -> None:
    """Write a tiny XLM-R folder as `transformers` saves one, with the vocabulary of the scenes."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    from m3p.data.tokenizer import Tokenizer

    config = XLMRobertaConfig(
        vocab_size=Tokenizer(vocabulary.parent).size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=130, type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    shutil.copy(vocabulary, folder / vocabulary.name)
