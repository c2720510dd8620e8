"""The encoder that MTEB is given: by its protocol here, by MTEB itself in an environment of its own."""

import io
import json
import os
import subprocess
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import m3p
from m3p.errors import UserError
from m3p.export import export_run
from m3p.prepare.captions import prepare_captions
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.mteb_encoder import MtebEncoder
from tests.launch import ROOT
from tests.search.conftest import draw, seeing
from tests.tiny import WORDS

__all__ = ["seeing"]
MTEB = "mteb==2.26.24"
TEXTS = ["dog cat", "moon", "stone  bread"]


def pictures(number: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (number, 20, 20, 3)).astype(np.uint8)
    return [Image.fromarray(one) for one in pixels]


def test_loaders_of_texts_and_of_pictures_give_what_the_network_gives(seeing: Path) -> None:
    encoder, model = MtebEncoder(seeing), m3p.load(seeing)
    asked = {"task_metadata": None, "hf_split": "test", "hf_subset": "de", "prompt_type": None, "batch_size": 2}
    texts = encoder.encode([{"text": TEXTS[:2]}, {"text": TEXTS[2:]}], **asked)
    np.testing.assert_allclose(texts, model.embed_texts(["dog cat", "moon", "stone bread"]), atol=1e-6)
    shown = encoder.encode([{"image": pictures(3), "id": ["a", "b", "c"]}], **asked)
    np.testing.assert_allclose(shown, model.embed_pictures(pictures(3)), atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(texts, shown).numpy(), texts @ shown.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(texts, shown).numpy(), (texts * shown).sum(1), atol=1e-6)


def test_an_opened_picture_is_embedded_as_its_file_is(seeing: Path) -> None:
    picture, stored = pictures(1)[0].convert("RGBA"), io.BytesIO()
    picture.putalpha(picture.getchannel("R"))
    picture.save(stored, "PNG")
    shown = MtebEncoder(seeing).encode([{"image": [picture]}])
    np.testing.assert_allclose(shown, m3p.load(seeing).embed_pictures([stored.getvalue()]), atol=1e-6)


def test_what_has_no_embedding_is_refused(seeing: Path) -> None:
    encoder = MtebEncoder(seeing)
    with pytest.raises(UserError, match="a picture and a text at once"):
        encoder.encode([{"text": ["a"], "image": pictures(1)}])
    with pytest.raises(UserError, match="a task of audio: texts and pictures alone"):
        encoder.encode([{"audio": [b""]}])


def test_mteb_is_told_which_weights_these_are(seeing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = types.SimpleNamespace(ModelMeta=types.SimpleNamespace(create_empty=lambda overwrites: overwrites))
    for name in ("mteb", "mteb.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", told)
    meta: dict[str, Any] = MtebEncoder(seeing).mteb_model_meta
    assert meta["name"] == "m3p/run"
    assert meta["revision"] == m3p.load(seeing).run.record.weights
    assert meta["modalities"] == ["text", "image"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with MTEB, which sees this one's packages too."""
    home = tmp_path_factory.mktemp("mteb")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    inside = next(home.glob("lib/python*/site-packages"))
    (inside / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    words = [str(home / "bin" / "pip"), "install", "--quiet", MTEB]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{MTEB} cannot be installed: {done.stderr[-300:]}")
    return home / "bin" / "python"


def distinct(folder: Path) -> Path:
    """Write pictures of which no two have a caption in common: equal ones would tie, which MTEB ranks by their ids."""
    pairs = [(one, other) for one in range(10) for other in range(one + 1, 10)][:24]
    with (folder / "all.jsonl").open("w") as file:
        for number, pair in enumerate(pairs):
            draw(folder / f"{number}.png", number)
            both = {code: (words[pair[0]], words[pair[1]]) for code, words in WORDS.items()}
            captions = {code: [f"{one} {other}", f"{one} {one} {other}"] for code, (one, other) in both.items()}
            record = {"id": str(number), "image": f"{number}.png", "captions": captions}
            file.write(json.dumps(record) + "\n")
    prepare_captions(folder / "all.jsonl", folder / "shards")
    return folder / "shards"


@pytest.mark.program
@pytest.mark.slow
def test_the_real_mteb_gives_our_figures(seeing: Path, tmp_path: Path, python: Path) -> None:
    shards, export = distinct(tmp_path), tmp_path / "export"
    export_run(seeing, export)
    (ours,) = evaluate_run(export, (), Options(data=shards, json_file=tmp_path / "ours.json"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "trainer"), str(ROOT)]),
        "HF_HUB_OFFLINE": "1",
    }
    words = [str(python), str(ROOT / "tests" / "retrieval" / "mteb_task.py"), str(export), str(shards)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    for language, result in ours.languages.items():
        assert result.mteb is not None
        for way, name in (("text_to_image", "t2i"), ("image_to_text", "i2t")):
            scores = theirs[language][name]
            assert result.mteb[way]["nDCG@10"] == pytest.approx(100 * scores["ndcg_at_10"], abs=1e-2), (language, way)
            assert result.mteb[way]["hit@1"] == pytest.approx(100 * scores["hit_rate_at_1"], abs=1e-2), (language, way)
        assert result.text_to_image["R@5"] == pytest.approx(100 * theirs[language]["t2i"]["recall_at_5"], abs=1e-2)
