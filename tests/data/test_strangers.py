"""Shards that others wrote train unchanged: img2dataset's and webdataset's, through `m3p index` and the trainer itself."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import yaml
from PIL import Image

from m3p.data.shards.manifest import Manifest
from tests.launch import ROOT, metrics
from tests.test_trained_run import program
from tests.tiny import WORDS, tiny_recipe

STORED = Path(__file__).parent / "img2dataset" / "00000.tar"
"""What img2dataset 1.47.0 made of seven pictures in PNG, JPEG and WebP; `make_tars` below is how."""
PROGRAM = "IMG2DATASET"
"""Environment variable: an img2dataset program that is installed already, for the slow test."""


def picture(number: int, kind: str) -> bytes:
    cells = np.random.default_rng(number).integers(0, 255, (4, 6, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def caption(number: int) -> str:
    return f"{WORDS['en'][number % 10]} and {WORDS['en'][(number + 3) % 10]}"


def write_with_webdataset(folder: Path) -> tuple[Path, Path]:
    """Pairs in three languages and picture formats, and German text, as webdataset's documentation writes shards."""
    pairs, text = folder / "pairs", folder / "text"
    pairs.mkdir(parents=True)
    text.mkdir()
    with wds.ShardWriter(f"{pairs}/pairs-%06d.tar", maxcount=5, verbose=0) as writer:
        for number in range(12):
            extension, kind = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))[number % 3]
            captions = {code: [words[number % 10]] for code, words in WORDS.items()}
            writer.write(
                {
                    "__key__": f"sample{number:04d}",
                    extension: picture(number, kind),
                    "json": {"captions": captions, "more": [1]},
                }
            )
    with wds.ShardWriter(f"{text}/text-%06d.tar", maxcount=7, verbose=0) as writer:
        for number in range(20):
            writer.write({"__key__": f"{number:08d}", "txt": " ".join(WORDS["de"][: 2 + number % 8])})
    return pairs, text


def index(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "m3p", "index", str(folder), *options]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)


def recipe_of(tiny: Path, folder: Path, pairs: list[Path], text: Path) -> Path:
    recipe = tiny_recipe(tiny.parent, "patches")
    objectives: dict[str, Any] = recipe["objectives"]
    objectives["multilingual_text"]["sources"] = [{"path": str(text)}]
    for name in ("image_caption", "code_switched"):
        objectives[name]["sources"] = [{"path": str(path), "languages": ["en"]} for path in pairs]
    recipe["evaluation"] = {}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def train_on(tiny: Path, folder: Path, tars: Path) -> Path:
    """Index tars of img2dataset and shards of webdataset, train four steps on both; return the run."""
    pairs, text = write_with_webdataset(folder / "webdataset")
    before = {path: path.read_bytes() for parent in (tars, pairs, text) for path in parent.glob("*.tar")}
    index(tars, "--kind", "captions", "--language", "en")
    index(pairs, "--kind", "captions")
    index(text, "--kind", "text", "--language", "de")
    assert Manifest.load(pairs).captions == {"de": 12, "en": 12, "ja": 12}
    assert Manifest.load(text).samples == 20
    run = folder / "run"
    done = program(recipe_of(tiny, folder, [tars, pairs], text), run, "run.steps=4", "schedule.warmup_steps=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(metrics(run)) == 4
    assert {path: path.read_bytes() for path in before} == before, "shards are read, never written"
    return run


@pytest.mark.program
def test_tars_of_img2dataset_and_of_webdataset_train_unchanged(tiny: Path, tmp_path: Path) -> None:
    tars = tmp_path / "img2dataset"
    tars.mkdir()
    shutil.copy(STORED, tars)
    run = train_on(tiny, tmp_path, tars)
    assert Manifest.load(tars).captions == {"en": 8}
    assert not (run / "bad_samples.txt").exists()


@contextmanager
def server(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def make_tars(program: Path, folder: Path, pictures: int) -> Path:
    """Have img2dataset fetch generated pictures from a local server; one of its addresses leads nowhere."""
    www, out = folder / "www", folder / "tars"
    www.mkdir()
    with server(www) as address:
        lines = ["url,caption"]
        for number in range(pictures):
            extension, kind = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))[number % 3]
            (www / f"{number}.{extension}").write_bytes(picture(number, kind))
            lines.append(f'{address}/{number}.{extension},"{caption(number)}"')
        lines.append(f"{address}/none.jpg,a picture that is not there")
        (folder / "urls.csv").write_text("\n".join(lines) + "\n")
        options = {
            "url_list": folder / "urls.csv", "input_format": "csv", "url_col": "url", "caption_col": "caption",
            "output_format": "webdataset", "output_folder": out, "image_size": 32, "resize_mode": "keep_ratio",
            "processes_count": 1, "thread_count": 4, "number_sample_per_shard": 8,
        }  # fmt: skip
        command = [str(program), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        environment = {**os.environ, "WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"}
        subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment)
    return out


@pytest.mark.slow
def test_what_img2dataset_fetches_trains_unchanged(tiny: Path, tmp_path: Path) -> None:
    """Installs img2dataset into an environment of its own, unless IMG2DATASET names one that is there."""
    given = os.environ.get(PROGRAM)
    if not given:
        venv.create(tmp_path / "venv", with_pip=True)
        subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", "img2dataset"], check=True)
    tars = make_tars(Path(given or tmp_path / "venv/bin/img2dataset"), tmp_path, 20)
    stats = [json.loads(path.read_text()) for path in tars.glob("*_stats.json")]
    assert sum(part["successes"] for part in stats) == 20
    run = train_on(tiny, tmp_path, tars)
    assert Manifest.load(tars).samples == 20
    assert not (run / "bad_samples.txt").exists()
