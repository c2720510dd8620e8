"""What comes after training, on a tiny run that was really trained: evaluation, re-ranking, export, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from m3p.batch import Sequence
from m3p.checkpoints.selection import read_selection
from m3p.errors import UserError
from m3p.export import export_run
from m3p.packing import Packer
from m3p.recipe.load import load_recipe
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.pictures import gallery_of
from m3p.retrieval.scoring import Scorer, shortlist
from m3p.retrieval.search import search
from m3p.runs import open_run
from tests.launch import ROOT, alone, launch, metrics

pytestmark = pytest.mark.program

ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def command(recipe: Path, run: Path, *overrides: str) -> list[str]:
    """What trains on one rank, without a launcher."""
    words = [sys.executable, str(ROOT / "trainer" / "run.py"), "--recipe", str(recipe)]
    return [*words, "--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"), f"run.folder={run}", *overrides]


def program(recipe: Path, run: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """Train, and wait for the end."""
    _, program, *words = command(recipe, run, *overrides)
    return alone(Path(program), *words)


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = program(tiny, folder, "run.steps=6", "schedule.warmup_steps=1", "run.evaluate=true")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_run_folder_holds_what_other_tools_rely_on(run: Path) -> None:
    names = {"recipe.yaml", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation", "status"}
    assert names <= {path.name for path in run.iterdir()}
    assert (run / "status").read_text() == "done\n"
    assert (run / "checkpoints" / "latest").read_text() == "step-00000006\n"
    found = json.loads((run / "evaluation" / "train.json").read_text())
    assert {"protocol", "split", "scoring", "images", "captions", "languages"} <= found.keys()
    assert {"text_to_image", "image_to_text", "mean_recall"} <= found["languages"]["de"].keys()
    assert (found["captioned_languages"], found["selection_split"]) == (["en"], None)
    assert (found["checkpoint"], found["step"]) == ("step-00000006", 6)
    assert (run / "evaluation" / "train.html").read_text().count("data:image/png") > 5


@pytest.mark.launcher
def test_evaluations_during_training_choose_a_checkpoint_and_change_no_step(tiny: Path, tmp_path: Path) -> None:
    usual = ("run.steps=6", "schedule.warmup_steps=1", "model.dropout=0.1", "run.checkpoint_every=2")
    for name, settings in (("plain", ()), ("selected", ("run.select_on=train", "run.evaluate=true"))):
        launch(tiny, ROOT / "ds_configs" / "zero2.json", 2, *usual, *settings, f"run.folder={tmp_path / name}")
    plain, selected = (metrics(tmp_path / name) for name in ("plain", "selected"))
    assert [line["losses"] for line in plain] == [line["losses"] for line in selected]
    run = tmp_path / "selected"
    scored = read_selection(run)
    assert [one.step for one in scored] == [2, 4, 6]
    best = max(scored, key=lambda one: one.mean_recall)
    opened = open_run(run / "checkpoints" / "best")
    assert (opened.step, opened.record.selected_on) == (best.step, "train")
    found = json.loads((run / "evaluation" / f"train-step-{best.step:08d}.json").read_text())
    assert (found["step"], found["selection_split"]) == (best.step, "train"), "the best is what is evaluated at the end"
    others = [one.step for one in scored if one.step != best.step]
    assert all(open_run(run / "checkpoints" / f"step-{step:08d}").record.selected_on is None for step in others[-1:])


def test_an_evaluation_that_will_fail_is_refused_before_the_training(tiny: Path, tmp_path: Path) -> None:
    done = program(tiny, tmp_path / "run", "run.evaluate=true", "evaluation.train.path=/nowhere")
    assert done.returncode == 2
    assert "error: evaluation.train: /nowhere is not a source" in done.stderr
    assert not (tmp_path / "run").exists()


def test_weights_of_another_vocabulary_of_the_same_size_are_refused(run: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "vocabulary"
    other.mkdir()
    own = load_recipe(tiny).tokenizer_folder / "sentencepiece.bpe.model"
    (other / own.name).write_bytes(own.read_bytes() + b"\xc2\x3e\x00")  # as many pieces, and a field that says nothing
    done = program(tiny, tmp_path / "run", f"model.weights={run}", f"model.tokenizer={other}")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "was trained with another vocabulary" in done.stderr


def test_reranking_by_the_cross_encoder_stands_beside_the_first_result(run: Path) -> None:
    (result,) = evaluate_run(run, ["train"], Options(rerank=4))
    assert result.scoring == "dual+cross"
    assert result.shortlist is not None
    assert result.shortlist.k == 4
    assert (run / "evaluation" / "train-rerank4.json").is_file()


def test_embeddings_and_matching_do_not_depend_on_the_batch(run: Path) -> None:
    opened = open_run(run)
    model, tokenizer, pictures = opened.model, opened.tokenizer, gallery_of(opened, "train")
    texts = ["dog cat", "moon", "stone bread river"]
    pairs = np.array([[c, n] for c in range(3) for n in range(5)])
    one, many = (Scorer(model, tokenizer, 32, size) for size in (1, 50))
    np.testing.assert_allclose(one.embed_texts(texts), many.embed_texts(texts), atol=1e-6)
    np.testing.assert_allclose(one.embed_pictures(pictures.visuals), many.embed_pictures(pictures.visuals), atol=1e-6)
    visuals = pictures.visuals
    np.testing.assert_allclose(one.match(texts, visuals, pairs), many.match(texts, visuals, pairs), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(many.embed_texts(texts), axis=1), 1, atol=1e-5)


def test_searching_ranks_the_pictures_and_shows_them(run: Path) -> None:
    hits, page = search(run, "Hund Katze", "", 3)
    assert len({hit.image for hit in hits}) == 3
    assert hits[0].score >= hits[1].score >= hits[2].score
    assert page.read_text().count("data:image/png") == 3
    with pytest.raises(UserError, match="no evaluation 'test' to search; it has train"):
        search(run, "Hund", "test", 3)


def test_the_exported_folder_gives_the_same_logits_to_transformers(run: Path, tmp_path: Path) -> None:
    from transformers import XLMRobertaForMaskedLM

    message = export_run(run, tmp_path / "export")
    assert "step 6" in message
    opened = open_run(run)
    model = opened.model
    tokens = opened.tokenizer.encode("dog cat tree moon", 32)
    packer = Packer(*model.features)
    packer.add(Sequence(tokens))
    packer.target("masked_words", slots=np.arange(len(tokens)))  # without labels the head gives logits
    theirs = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "export").eval()
    with torch.inference_mode():
        ours = model(packer.finish(1)).tasks["masked_words"]
        other = theirs(torch.from_numpy(tokens)[None]).logits[0]
    assert float((ours - other).abs().max()) < 1e-5
    with pytest.raises(UserError, match="is not empty"):
        export_run(run, tmp_path / "export")


def test_another_recipe_does_not_go_on_from_this_run(tiny: Path, run: Path) -> None:
    done = program(tiny, run, "run.steps=6", "schedule.warmup_steps=1", "optimizer.learning_rate=0.5", "run.seed=3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "optimizer.learning_rate: 0.003 then, 0.5 now" in done.stderr
    assert "run.seed: 0 then, 3 now" in done.stderr


def test_a_signal_while_the_program_starts_is_kept_for_the_first_step(tiny: Path, tmp_path: Path) -> None:
    words = command(tiny, tmp_path / "run", "run.steps=400", "run.evaluate=false")
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: blocks(process.pid, signal.SIGUSR1))
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-3000:]
    assert (tmp_path / "run" / "status").read_text() == "stopped signal 1\n"
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000001\n"


def blocks(process: int, number: signal.Signals) -> bool:
    """Tell whether a process keeps a signal for later (man proc, SigBlk)."""
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigBlk")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_fine_tuning_starts_where_the_other_run_ended(tiny: Path, run: Path, tmp_path: Path) -> None:
    # At a rate of nothing the weights stay what they were at the start.
    settings = ("run.steps=2", "schedule.warmup_steps=0", "run.evaluate=false", f"model.weights={run}")
    done = program(tiny, tmp_path / "tuned", *settings, "optimizer.learning_rate=1e-30", "run.seed=5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert open_run(tmp_path / "tuned").record.weights == open_run(run).record.weights


def test_texts_longer_than_the_start_has_positions_for_are_refused(tiny: Path, run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "start")
    settings = ("model.shape=null", "model.tokenizer=null", f"model.initialise={tmp_path / 'start'}")
    done = program(tiny, tmp_path / "run", *settings, "objectives.multilingual_text.max_tokens=65")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "objectives.multilingual_text.max_tokens = 65: model.initialise" in done.stderr
    assert "has 66 positions and holds 64 tokens; lower max_tokens" in done.stderr


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint of a run"):
        evaluate_run(tmp_path)


def test_a_shortlist_is_the_best_in_order() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.7]], np.float32)
    assert shortlist(scores, 3).tolist() == [[1, 3, 2]]
    assert shortlist(scores, 9).tolist() == [[1, 3, 2, 0]]
