"""The user's mistakes, through the real program: one message on stderr, exit code 2, no traceback."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.launch import ROOT, alone

pytestmark = pytest.mark.program


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data that a test may break; returns its recipe."""
    target = tmp_path / "data"
    shutil.copytree(tiny.parent, target)
    recipe = target / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tiny.parent), str(target)))
    return recipe


def refused(recipe: Path, *overrides: str) -> str:
    """Start a run that must be refused; return its message."""
    words = ["--recipe", str(recipe), "--deepspeed_config", str(ROOT / "ds_configs" / "zero1.json")]
    done = alone(ROOT / "trainer" / "run.py", *words, "run.steps=5", "schedule.warmup_steps=0", *overrides)
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    return done.stderr[done.stderr.index("error: ") :]


def test_every_mistake_of_a_recipe_at_once(tiny: Path) -> None:
    message = refused(tiny, "run.checkpoint_evry=3", "optimizer.clip=-1", "objectives.image_caption.batch_size=1")
    assert "run.checkpoint_evry: there is no such field; did you mean checkpoint_every?" in message
    assert "optimizer.clip = -1: input should be greater than or equal to 0" in message
    assert "objectives.image_caption.batch_size = 1" in message


def test_a_missing_shard(copy: Path) -> None:
    (copy.parent / "shards" / "train" / "shard-000001.tar").unlink()
    assert "shard-000001.tar" in refused(copy)


def test_a_truncated_tar(copy: Path) -> None:
    shard = copy.parent / "shards" / "train" / "shard-000001.tar"
    os.truncate(shard, shard.stat().st_size - 2000)
    message = refused(copy)
    assert "shard-000001.tar" in message
    assert "m3p index" in message


def test_an_empty_dictionary_with_switching_on(copy: Path) -> None:
    for path in (copy.parent / "shards" / "dictionary").glob("en-*.tsv"):
        path.write_text("")
    message = refused(copy)
    assert "m3p prepare dictionary" in message


def test_regions_of_another_width(tiny: Path) -> None:
    message = refused(tiny, "visual.feature_size=7")
    assert "visual.feature_size = 7" in message
    assert "width 6" in message


def test_captions_in_a_language_that_the_shards_do_not_have(tiny: Path) -> None:
    message = refused(tiny, "objectives.image_caption.sources.0.languages=[en,tlh]")
    assert "no caption in tlh" in message
    assert "de, en, ja" in message


def test_shards_that_were_changed_after_they_were_indexed(copy: Path) -> None:
    """Only a worker meets one, in the middle of the run: still one message, naming shard and reason."""
    for shard in sorted((copy.parent / "shards" / "train").glob("*.tar")):
        offsets = np.load(shard.with_suffix(".idx"))
        data = bytearray(shard.read_bytes())
        for start in offsets[:-1].tolist():
            data[start + 148 : start + 156] = (
                b"7777777\0"  # a tar header's checksum, of another sum of bytes than any that fits
            )
        shard.write_bytes(data)
    message = refused(copy, "data.workers=1")
    assert "holds other samples than those that were indexed (changed since): run `m3p index` again" in message
    assert "shard-00000" in message


def test_a_recipe_that_runs_code(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("run: !!python/object/apply:os.system ['touch ran']\n")
    assert "is not plain YAML" in refused(recipe)
    assert not (tmp_path / "ran").exists()


def test_a_deepspeed_file_that_sets_what_is_the_recipes(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 8, "gradient_clipping": 1.0}))
    message = refused(tiny, "--deepspeed_config", str(path))
    assert "train_batch_size (set objectives.NAME.batch_size in the recipe)" in message
    assert "gradient_clipping (set optimizer.clip in the recipe)" in message
