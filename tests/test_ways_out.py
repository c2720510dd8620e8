"""Each way out that a message about runs, weights and settings names is gone: the message, what it says, the same call again.

Those about recipes are in tests/recipe/test_ways_out.py, those about data in tests/data/test_ways_out.py.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from m3p.checkpoints.init_from import start_from
from m3p.checkpoints.resumable import check_resumable
from m3p.cli.main import app
from m3p.errors import UserError
from m3p.export import export_run
from m3p.forecast.forecast import find_kind
from m3p.model.build import build_model, read_encoder_shape
from m3p.model.config import ModelConfig
from m3p.objectives import OBJECTIVES
from m3p.paths import Address, opened
from m3p.recipe.load import parse_recipe
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.search import search
from m3p.runs import open_run
from m3p.training.deepspeed.config import read_deepspeed_config
from m3p.training.stop import check_no_stop_file
from tests.checkpoints.test_resumable import changed, state
from tests.test_export import other_vocabulary, write_run
from tests.tiny import tiny_recipe

MATCHING = [f"objectives.{name}.tasks={{matching: 1}}" for name in ("image_caption", "code_switched")]


def refused(message: str) -> "pytest.RaisesExc[UserError]":
    return pytest.raises(UserError, match=message)


def test_weights_that_may_hold_programs_are_saved_anew_by_the_command_that_is_named(
    xlmr_folder: Path, tmp_path: Path
) -> None:
    folder, new = tmp_path / "downloaded", tmp_path / "new"
    shutil.copytree(xlmr_folder, folder)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = ModelConfig(initialise=folder)
    with refused(r"model\.safetensors is missing.*python -c \"") as caught:
        build_model(config, 402, None, [], 0)
    command = re.search(r'python -c "(.*)", and copy the other files of the folder beside it', str(caught.value))
    assert command, str(caught.value)
    exec(command[1].replace("NEW_FOLDER", str(new)))
    for file in folder.iterdir():
        if not (new / file.name).exists():
            shutil.copy(file, new)
    assert build_model(ModelConfig(initialise=new), model.config.vocab_size, None, [], 0)


def test_layers_and_tokenizer_of_a_start(xlmr_folder: Path, tiny: Path, tmp_path: Path) -> None:
    words = json.loads((xlmr_folder / "config.json").read_text())["vocab_size"]
    config = ModelConfig(initialise=xlmr_folder, layers=9)
    with refused(r"has (\d+); lower it") as caught:
        read_encoder_shape(config, words)
    limit = re.search(r"has (\d+); lower it", str(caught.value))
    assert limit
    assert read_encoder_shape(config.model_copy(update={"layers": int(limit[1])}), words)
    other = parse_recipe(tiny_recipe(tiny.parent), "tiny").tokenizer_folder
    config = ModelConfig(initialise=xlmr_folder, tokenizer=other)
    with refused(r"leave model\.tokenizer out to use the folder's own"):
        build_model(config, words, None, [], 0)
    assert build_model(config.model_copy(update={"tokenizer": None}), words, None, [], 0)


@pytest.mark.long
def test_the_vocabulary_that_is_named_is_that_of_the_weights(tiny: Path, tmp_path: Path) -> None:
    model = write_run(tiny, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    with refused(r"; set model\.tokenizer=(.*)$") as caught:
        start_from(model, tmp_path / "out", None, other_vocabulary(tiny, tmp_path / "other"))
    named = Path(str(caught.value).rpartition("model.tokenizer=")[2])
    start_from(model, tmp_path / "out", None, named)


@pytest.mark.long
def test_evaluations_that_are_named_in_the_message_are_there(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(tiny, run, *MATCHING, "evaluation.other={path: " + str(tiny.parent / "shards" / "train") + "}")
    with refused(r"no evaluation 'dev' in its recipe; it has (.*)\. Or name any --data FOLDER"):
        evaluate_run(run, ["dev"])
    with refused("it holds one result, and train, other would be scored; name one"):
        evaluate_run(run, options=Options(json_file=tmp_path / "x.json"))
    evaluate_run(run, ["train"], Options(json_file=tmp_path / "x.json"))
    with refused("leave out train, .* or leave out --data"):
        evaluate_run(run, ["train"], Options(data=tiny.parent / "shards" / "train"))
    (found,) = evaluate_run(run, options=Options(data=tiny.parent / "shards" / "train"))
    assert found.scoring == "cross"
    with refused(r"score otherwise \(--scoring\)"):
        evaluate_run(run, ["train"], Options(scoring="dual"))
    evaluate_run(run, ["train"], Options(scoring="cross"))
    with refused(r"trained on .*matching; this needs one whose tasks\.contrastive has a weight"):
        search(run, "dog", "train", 3)


@pytest.mark.long
def test_an_export_that_cannot_be_written_so(tiny: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run", *MATCHING)
    with refused("use --format transformers"):
        export_run(tmp_path / "run", tmp_path / "out", "sentence-transformers")
    export_run(tmp_path / "run", tmp_path / "out", "transformers")
    with refused("is not empty; name a new folder"):
        export_run(tmp_path / "run", tmp_path / "out")
    export_run(tmp_path / "run", tmp_path / "new")
    (tmp_path / "new" / "m3p.json").unlink()
    with refused("export the run again"):
        open_run(tmp_path / "new")
    export_run(tmp_path / "run", tmp_path / "again")
    assert open_run(tmp_path / "again")


def test_a_run_of_another_recipe_goes_on_with_the_field_that_is_named(tmp_path: Path) -> None:
    before, now = state(), state(changed("run.seed", 7))
    with refused("Put these back to go on, set run.accept_changes=true to go on with the changes"):
        check_resumable(tmp_path, before, now, accept=False)
    assert check_resumable(tmp_path, before, now, accept=True)
    assert not check_resumable(tmp_path, before, state(), accept=False)
    assert parse_recipe(tiny_recipe(tmp_path), "tiny", ["run.accept_changes=true"]).run.accept_changes


def test_a_stopped_run_goes_on_without_its_file(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    with refused("remove the file to train on"):
        check_no_stop_file(tmp_path)
    (tmp_path / "STOP").unlink()
    check_no_stop_file(tmp_path)


def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = str(Address("https://me:secret@host/data"))
    with refused(r"write \$\{NAME\} in the place of the password, and set the environment variable NAME"):
        opened(stored, "path")
    with refused("the environment variable NAME is not set; set it before the start"):
        opened(Address("https://me:${NAME}@host/data"), "path")
    monkeypatch.setenv("NAME", "secret")
    assert opened(Address("https://me:${NAME}@host/data"), "path") == "https://me:secret@host/data"


def test_settings_of_deepspeed_that_are_the_recipes_are_taken_out(tmp_path: Path) -> None:
    path, settings = tmp_path / "ds.json", {"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}
    path.write_text(json.dumps(settings))
    with refused(r"gradient_clipping \(set optimizer\.clip in the recipe\)\. Take it out of the file"):
        read_deepspeed_config(path)
    del settings["gradient_clipping"]
    path.write_text(json.dumps(settings))
    assert read_deepspeed_config(path)
    assert parse_recipe(tiny_recipe(tmp_path), "tiny", ["optimizer.clip=1.0"])


def test_word_lists_are_made_by_the_command_that_is_named(tiny: Path, tmp_path: Path) -> None:
    raw = tiny_recipe(tiny.parent)["objectives"]["code_switched"]
    raw["switching"] = {"dictionary": str(tmp_path / "lists"), "languages": ["de", "xx"]}

    def check() -> None:
        OBJECTIVES["code_switched"].model_validate(raw).check_files()

    with refused("there is no folder .*; `m3p prepare dictionary` writes them"):
        check()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "en-de.tsv").write_text("dog\tHund\n")
    app(["prepare", "dictionary", str(tmp_path / "raw"), "--output", str(tmp_path / "lists")], standalone_mode=False)
    with refused("Take 'xx' out, or add its list"):
        check()
    raw["switching"]["languages"] = ["de"]
    check()


def test_the_kinds_that_are_named_are_known() -> None:
    with refused("known: ") as caught:
        find_kind("H1000")
    for name in str(caught.value).rpartition("known: ")[2].split(", "):
        find_kind(name)
