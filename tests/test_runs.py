"""Opening a run, one of its checkpoints and an export; and what stands on that."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import m3p
from m3p.checkpoints.files import State, read_state, write_state
from m3p.checkpoints.init_from import start_from
from m3p.checkpoints.seen_pictures import write_seen
from m3p.data.identity import picture_numbers
from m3p.errors import UserError
from m3p.export import export_run
from m3p.locks import hold
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.load import dump_recipe, parse_recipe
from m3p.retrieval.evaluate import Options, _caption_source, evaluate_run
from m3p.retrieval.pictures import gallery_of
from m3p.retrieval.scoring import scorer_of
from m3p.retrieval.search import search
from m3p.runs import open_run
from tests.test_export import write_run
from tests.tiny import tiny_recipe

SOURCE = Path(m3p.__file__).parent


def record_captions(checkpoint: Path, languages: list[str]) -> State:
    """Let a checkpoint's record say what captions training saw."""
    state = read_state(checkpoint).model_copy(update={"captioned": languages})
    write_state(checkpoint, state)
    return state


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    write_run(tiny, tmp_path / "run")
    record_captions(tmp_path / "run" / "checkpoints" / "step-00000003", ["en"])
    return tmp_path / "run"


@pytest.mark.long
def test_a_run_a_checkpoint_and_an_export_open_alike(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    checkpoint = run / "checkpoints" / "step-00000003"
    records = [open_run(path).record for path in (run, checkpoint, tmp_path / "export")]
    assert records[0] == records[1] == records[2]
    assert records[0].captioned_languages == ["en"]
    assert (records[0].run, records[0].checkpoint, records[0].step) == ("run", "step-00000003", 3)


@pytest.mark.parametrize("reader", ["m3p.runs", "m3p.checkpoints.init_from"])
def test_a_run_that_trains_on_is_read_at_what_is_newest_by_then(
    run: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Evaluation, export and search open a run; model.weights reads one: each while the trainer prunes."""
    old, model = run / "checkpoints" / "step-00000003", open_run(run).model

    def trains_on(path: Path) -> State:
        if old.exists():  # chosen, and to be read now
            new = Path(shutil.copytree(old, old.with_name(".new.partial")))
            write_state(new, read_state(old).model_copy(update={"step": 6}))
            new.rename(old.with_name("step-00000006"))
            shutil.rmtree(old)
        return read_state(path)

    monkeypatch.setattr(f"{reader}.read_state", trains_on)
    if reader == "m3p.runs":
        assert open_run(run).step == 6
    else:
        assert start_from(model, run, None).captioned == ["en"]
    assert not old.exists()


def test_a_checkpoint_copied_elsewhere_needs_no_run_folder(run: Path, tmp_path: Path) -> None:
    from m3p.recipe.load import load_recipe

    checkpoint = run / "checkpoints" / "step-00000003"
    recipe = load_recipe(run / "recipe.yaml").model_dump(mode="json", exclude_none=True)
    write_state(checkpoint, read_state(checkpoint).model_copy(update={"recipe": recipe}))
    shutil.copytree(checkpoint, tmp_path / "kept")
    assert open_run(tmp_path / "kept").record.weights == open_run(run).record.weights


@pytest.mark.long
def test_an_export_of_which_a_file_was_replaced_is_refused(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    record = tmp_path / "export" / "m3p.json"
    record.write_text(record.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(UserError, match="the two files are not of one export"):
        open_run(tmp_path / "export")


@pytest.mark.long
def test_an_export_with_another_vocabulary_is_refused(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    (tmp_path / "export" / "sentencepiece.bpe.model").unlink()  # what is left is the same vocabulary in another file
    assert open_run(tmp_path / "export").step == 3
    content = json.loads((tmp_path / "export" / "tokenizer.json").read_text())
    content["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})
    (tmp_path / "export" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json is another vocabulary than was exported"):
        open_run(tmp_path / "export")


@pytest.mark.parametrize(
    ("field", "then"),
    [
        ("model.pooling=mean", "model.pooling: first then, mean now"),
        ("model.shape.heads=4", "model.shape.heads: 2 then, 4 now"),
        ("model.shape.layer_norm_eps=0.5", "model.shape.layer_norm_eps: 1e-05 then, 0.5 now"),
        ("objectives.image_caption.max_tokens=8", "objectives.image_caption.max_tokens: 32 then, 8 now"),
    ],
)
def test_a_recipe_that_was_changed_since_is_not_that_of_the_checkpoint(
    run: Path, tiny: Path, tmp_path: Path, field: str, then: str
) -> None:
    checkpoint = run / "checkpoints" / "step-00000003"
    stored = parse_recipe(tiny_recipe(tiny.parent), "tiny").model_dump(mode="json", exclude_none=True)
    write_state(checkpoint, read_state(checkpoint).model_copy(update={"recipe": stored}))
    free = ["model.dropout=0.3", "run.steps=99", "evaluation={}", "objectives.image_caption.batch_size=9"]
    for changes in (free, [*free, field]):
        (run / "recipe.yaml").write_text(dump_recipe(parse_recipe(tiny_recipe(tiny.parent), "tiny", changes)))
        if field not in changes:
            assert open_run(run).step == 3
            continue
        for opened in (run, checkpoint):
            with pytest.raises(UserError, match=re.escape(then)):
                open_run(opened)
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert open_run(tmp_path / "copy").recipe.model.pooling == "first"


@pytest.mark.long
def test_two_calls_do_not_score_for_one_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3p.retrieval.evaluate.PATIENCE", 0)
    (run / "evaluation").mkdir(exist_ok=True)
    with hold(run / "evaluation" / ".train.lock", 0) as other:
        assert other
        with pytest.raises(UserError, match=r"train\.json: another call is scoring for this file"):
            evaluate_run(run, ["train"])
    evaluate_run(run, ["train"])
    assert not list((run / "evaluation").glob(".*"))


@pytest.mark.long
def test_results_say_what_the_record_says(run: Path, tiny: Path) -> None:
    (result,) = evaluate_run(run)
    opened = open_run(run)
    assert (result.captioned_languages, result.selection_split) == (["en"], None)
    assert (result.checkpoint, result.step, result.weights) == ("step-00000003", 3, opened.record.weights)
    assert result.caption_source is None
    assert result.mean_never_captioned is not None
    assert result.truncated_captions == {"de": 0, "en": 0, "ja": 0}


@pytest.mark.long
def test_results_count_the_pictures_that_training_saw(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    source = gallery_of(opened, "train").source
    write_seen(tmp_path / "run", picture_numbers(source)[:10])
    (result,) = evaluate_run(tmp_path / "run")
    assert result.pictures_seen == 10
    write_seen(tmp_path / "run", np.zeros(0, np.uint64))
    (result,) = evaluate_run(tmp_path / "run")
    assert (result.pictures_seen, result.selection_split) == (0, None)


def test_captions_are_from_where_the_shards_say() -> None:
    labelled = EvaluationConfig(path="shards", caption_source="human")
    assert _caption_source(labelled, {"caption_source": "machine translation"}) == "machine translation"
    assert _caption_source(labelled, {"caption_source": "not stated"}) == "human"
    assert _caption_source(EvaluationConfig(path="shards"), {}) is None


@pytest.mark.long
def test_what_is_not_recorded_is_not_claimed(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tiny, tmp_path / "run")
    (result,) = evaluate_run(tmp_path / "run")
    assert (result.captioned_languages, result.mean_never_captioned) == (None, None)
    assert "not recorded" in " ".join(capsys.readouterr().out.split())


@pytest.mark.long
def test_captions_that_are_cut_are_counted(tiny: Path, tmp_path: Path) -> None:
    short = [f"objectives.{name}.max_tokens=4" for name in ("multilingual_text", "image_caption", "code_switched")]
    write_run(tiny, tmp_path / "run", *short)
    (result,) = evaluate_run(tmp_path / "run")
    tokenizer = open_run(tmp_path / "run").tokenizer
    captions = gallery_of(open_run(tmp_path / "run"), "train").pool.captions
    long = {
        name: sum(len(tokenizer.encode(caption.text, 99)) > 4 for caption in some) for name, some in captions.items()
    }
    assert result.truncated_captions == long
    assert sum(long.values()) > 0


@pytest.mark.long
def test_every_pair_can_be_scored_by_the_cross_encoder(run: Path) -> None:
    (every,) = evaluate_run(run, options=Options(scoring="cross"))
    (short,) = evaluate_run(run, options=Options(rerank=1000))
    assert every.scoring == "cross"
    assert every.shortlist is None
    for language, result in every.languages.items():
        assert result.text_to_image_ranks == short.languages[language].text_to_image_ranks
        assert result.image_to_text_ranks == short.languages[language].image_to_text_ranks
    assert {path.name for path in (run / "evaluation").glob("*.json")} == {"train-cross.json", "train-rerank1000.json"}


@pytest.mark.long
def test_any_folder_of_shards_and_an_export_are_scored(run: Path, tiny: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    (own,) = evaluate_run(run)
    shutil.copytree(tiny.parent / "shards" / "train", tmp_path / "elsewhere")
    (result,) = evaluate_run(
        tmp_path / "export", options=Options(data=tmp_path / "elsewhere", json_file=tmp_path / "result.json")
    )
    for language, found in result.languages.items():
        assert found.fingerprint == own.languages[language].fingerprint
        assert found.mean_recall == pytest.approx(own.languages[language].mean_recall, abs=1)  # ties, other batches
    assert json.loads((tmp_path / "result.json").read_text())["split"] == "elsewhere"
    with pytest.raises(UserError, match=r"leave out train"):
        evaluate_run(run, ["train"], Options(data=tmp_path / "elsewhere"))
    (tmp_path / "other").mkdir()
    other = (tmp_path / "elsewhere").rename(tmp_path / "other" / "elsewhere")
    for _ in range(2):  # the same data again: in the same place
        evaluate_run(tmp_path / "export", options=Options(data=other))
    results = sorted((tmp_path / "export" / "evaluation").glob("*.json"))
    told = {path.name: json.loads(path.read_text())["dataset"] for path in results}
    assert told == {"elsewhere.json": str(tmp_path / "elsewhere"), "elsewhere-2.json": str(other)}


@pytest.mark.long
def test_the_results_of_an_older_checkpoint_stand_beside_those_of_the_run(run: Path) -> None:
    evaluate_run(run / "checkpoints" / "step-00000003")
    assert [path.name for path in (run / "evaluation").glob("*.json")] == ["train-step-00000003.json"]


def test_a_search_embeds_pictures_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = search(run, "Hund", "", 3)

    def never(*arguments: object) -> None:
        raise AssertionError("the pictures are embedded again")

    with monkeypatch.context() as patch:
        patch.setattr("m3p.retrieval.scoring.Scorer.embed_pictures", never)
        again, page = search(run, "Hund", "", 3)
    assert first == again
    assert page.read_text().count("data:image/png") == 3
    (kept,) = (run / "embeddings").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert search(run, "Hund", "", 3)[0] == first


def test_the_public_face_gives_what_evaluation_scores(run: Path, tiny: Path) -> None:
    model, opened = m3p.load(str(run), batch_size=3), open_run(run)
    raw = tiny.parent / "raw" / "regions"
    files = sorted(raw.glob("*.npz"))[:7]
    pictures = gallery_of(opened, "train")
    order = [pictures.pool.images.index(path.stem) for path in files]
    found = model.embed_pictures([files[0], str(files[1]), *[path.read_bytes() for path in files[2:]]])
    np.testing.assert_allclose(found, scorer_of(opened).embed_pictures([pictures.visuals[n] for n in order]), atol=1e-6)
    texts = ["dog cat", "Hund", "犬", "moon", "tree", "river", "bread"]
    np.testing.assert_allclose(np.linalg.norm(model.embed_texts(texts), axis=1), 1, atol=1e-5)
    assert model.embed_texts([]).shape == (0, 32)
    assert model.match([], []).shape == (0,)
    logits = model.match(texts, files)
    assert logits.dtype == np.float32
    assert logits.shape == (7,)
    pairs = np.arange(7).repeat(2).reshape(-1, 2)
    np.testing.assert_allclose(
        logits, scorer_of(opened).match(texts, [pictures.visuals[n] for n in order], pairs), atol=1e-5
    )
    assert model.tokenize(["dog cat"]) == [opened.tokenizer.encode("dog cat", 32).tolist()]


def test_the_public_face_says_what_it_wants(run: Path, tiny: Path) -> None:
    model = m3p.load(run)
    with pytest.raises(
        UserError, match=r"p000\.png: this network was trained on region features and cannot see pixels"
    ):
        model.embed_pictures([tiny.parent / "raw" / "p000.png"])
    with pytest.raises(UserError, match=r"texts: number 1, 'b\\ud800', holds half a character"):
        model.embed_texts(["a", "b\ud800"])
    with pytest.raises(UserError, match="give a list of str"):
        model.embed_texts("dog")
    with pytest.raises(UserError, match="give a list of paths"):
        model.embed_pictures(str(tiny))
    with pytest.raises(UserError, match="1 texts and 0 pictures"):
        model.match(["dog"], [])
    with pytest.raises(UserError, match="/nowhere: no such file"):
        model.embed_pictures(["/nowhere"])


def test_reading_a_run_does_not_import_training() -> None:
    files = [SOURCE / "runs.py", SOURCE / "api.py", SOURCE / "export.py"]
    files += [*(SOURCE / "retrieval").glob("*.py"), *(SOURCE / "checkpoints").glob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong = [name for name in names if name.startswith(("m3p.training", "deepspeed"))]
            assert not wrong, f"{file}: imports {wrong}"


@pytest.mark.program
def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, m3p; assert m3p.__version__; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
