"""From pictures to a trained network, by way of a detector."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from m3p.cli.main import app
from m3p.data.loader.loader import MicroBatches
from m3p.data.order.plan import MicroBatchPlan
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.objectives.tasks import TASKS
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from tests.detectors import LABELS, WIDTH

MASKED = "masked_regions"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["prepare", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def train(recipe_file: Path, steps: int, *overrides: str) -> list[float]:
    """Train the masked regions of a recipe on one objective; return the mean loss of each step."""
    recipe = load_recipe(recipe_file, [f"objectives.image_caption.tasks={{{MASKED}: 1.0}}", *overrides])
    objective = {"image_caption": build_objectives(recipe)["image_caption"]}
    plan = MicroBatchPlan(recipe.plan(), 1, 0, {"image_caption": 100})
    vocabulary = Tokenizer(recipe.tokenizer_folder).size
    model = build_model(recipe.model, vocabulary, recipe.visual, [TASKS[MASKED]], seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for batch in MicroBatches(plan, objective).make(range(steps)):
        output = model(batch)
        targets = output.targets[MASKED]
        loss = TASKS[MASKED].loss(output.tasks[MASKED], targets) / TASKS[MASKED].count(targets) + output.touch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.long
def test_regions_of_a_detector_are_trained_on(
    tiny: Path, detector_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    records, folder, shards = tiny.parent / "raw" / "train.jsonl", tmp_path / "regions", tmp_path / "shards"
    said = run("regions", records, "--detector", detector_folder("yolos"), "--output", folder, "--regions", 4)
    visual = f"visual: {{kind: regions, feature_size: {WIDTH}, classes: {LABELS}, max_regions: 4}}"
    assert f"regions of 30 pictures made, 0 left out. In a recipe: {visual}" in said
    assert "30 were there already" in run(
        "regions", records, "--detector", detector_folder("yolos"), "--output", folder, "--regions", 4
    )
    assert f"regions {WIDTH} wide" in run("captions", records, "--regions", folder, "--output", shards)
    overrides = [
        visual.replace(": {", "={", 1),
        f"objectives.image_caption.sources=[{{path: {shards}, languages: [en]}}]",
        "objectives.multilingual_text.weight=0",
        "objectives.code_switched.weight=0",
        "evaluation={}",
    ]
    for target in ("likeliest", "distribution"):
        losses = train(tiny, 30, *overrides, f"visual.class_target={target}")
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses


@pytest.mark.long
def test_regions_of_a_folder_of_pictures_are_found_by_the_pictures_names(
    detector_folder: Callable[[str], Path], tiny: Path, tmp_path: Path
) -> None:
    records = [json.loads(line) for line in (tiny.parent / "raw" / "train.jsonl").read_text().splitlines()][:3]
    for number, record in enumerate(records):
        record["id"] = str(9 - number)
        record["image"] = str(tiny.parent / "raw" / record["image"])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for record in records:
        name = Path(record["image"]).name
        (pictures / name).write_bytes(Path(record["image"]).read_bytes())
        record["image"] = name
    (pictures / "bad.jpg").write_bytes(b"no picture")
    (pictures / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    folder = tmp_path / "regions"
    said = run("regions", pictures, "--detector", detector_folder("yolos"), "--output", folder)
    assert "bad.jpg: image 'bad.jpg' cannot be used" in said
    assert "regions of 3 pictures made, 1 left out" in said
    assert "3 samples" in run("captions", pictures / "all.jsonl", "--regions", folder, "--output", tmp_path / "shards")


def test_mistakes_are_told(detector_folder: Callable[[str], Path], tmp_path: Path) -> None:
    detector = detector_folder("yolos")
    with pytest.raises(UserError, match="does not exist: give a folder of pictures"):
        run("regions", tmp_path / "none", "--detector", detector, "--output", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        run("regions", tmp_path / "empty", "--detector", detector, "--output", tmp_path / "o")
    with pytest.raises(UserError, match="leave --images out"):
        run("regions", tmp_path / "empty", "--images", tmp_path, "--detector", detector, "--output", tmp_path / "o")
