import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m3p.errors import UserError
from m3p.prepare.detector import Detector, read_classes
from tests.detectors import LABELS, MAKERS, QUERIES, WIDTH, make_detector

Folders = Callable[[str], Path]
SOFTMAX = {"detr", "yolos"}
KEPT = 6


def picture(seed: int, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def raw_output(detector: Detector, pictures: list[Any]) -> Any:
    """Return what `transformers` itself gives."""
    inputs = {name: torch.cat([one[name] for one in pictures]) for name in pictures[0]}
    with torch.no_grad():
        return detector._model(**inputs)


@pytest.mark.long
@pytest.mark.parametrize("kind", MAKERS)
def test_regions_are_those_of_transformers(detector_folder: Folders, kind: str) -> None:
    detector = Detector(detector_folder(kind), KEPT, 3, "cpu")
    pictures = [detector.prepare(picture(seed)) for seed in range(2)]
    found, raw = detector.find(pictures), raw_output(detector, pictures)
    assert detector.classes == LABELS
    for one, logits, boxes, features in zip(found, raw.logits, raw.pred_boxes, raw.last_hidden_state, strict=True):
        # One row a query in the order of their scores, and no class "no object".
        scores = logits.softmax(-1)[:, :-1].amax(-1) if kind in SOFTMAX else logits.sigmoid().amax(-1)
        best = scores.sort(descending=True).indices[:KEPT]
        centre, size = boxes[best, :2], boxes[best, 2:]
        corners = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)
        np.testing.assert_allclose(one["boxes"], corners, atol=1e-6)
        np.testing.assert_allclose(one["features"], features[-QUERIES:][best], atol=1e-5)
        assert one["features"].shape == (KEPT, WIDTH)
        real = logits[best][:, :LABELS]
        whole = real.softmax(-1) if kind in SOFTMAX else real.sigmoid() / real.sigmoid().sum(-1, keepdim=True)
        probs, ids = whole.sort(-1, descending=True)
        np.testing.assert_array_equal(one["class_ids"], ids[:, :3])
        np.testing.assert_allclose(one["class_probs"], probs[:, :3], atol=1e-6)


@pytest.mark.parametrize("kind", ["detr", "yolos"])
def test_boxes_and_likeliest_classes_are_those_of_its_own_postprocessing(detector_folder: Folders, kind: str) -> None:
    detector = Detector(detector_folder(kind), QUERIES, 1, "cpu")
    inputs = [detector.prepare(picture(3))]
    theirs = detector._processor.post_process_object_detection(
        raw_output(detector, inputs), threshold=0.0, target_sizes=torch.tensor([[1, 1]])
    )[0]
    order = theirs["scores"].sort(descending=True, stable=True).indices
    (mine,) = detector.find(inputs)
    np.testing.assert_array_equal(mine["class_ids"][:, 0], theirs["labels"][order])
    np.testing.assert_allclose(mine["boxes"], theirs["boxes"][order].clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("no_object_is_label", [False, True])
def test_no_class_and_no_score_is_of_no_object(no_object_is_label: bool) -> None:
    logits = torch.zeros(1, 2, LABELS + 1)
    logits[0, 0, -1] = 9.0  # nothing is there
    logits[0, 1, 2] = 1.0
    scores, distribution = read_classes(logits, LABELS + no_object_is_label, no_object_is_label)
    assert scores[0, 0] < scores[0, 1]
    assert distribution.shape[2] == LABELS
    torch.testing.assert_close(distribution.sum(-1), torch.ones(1, 2))
    torch.testing.assert_close(distribution[0, 0], torch.full((LABELS,), 1 / LABELS))


def test_scores_of_a_sigmoid_each_become_a_distribution() -> None:
    scores, distribution = read_classes(torch.tensor([[[0.0, 2.0, -200.0]]]), 3, False)
    assert scores.item() == pytest.approx(0.8808, abs=1e-4)
    assert distribution[0, 0].tolist() == pytest.approx([0.5 / 1.3808, 0.8808 / 1.3808, 0], abs=1e-4)
    with pytest.raises(UserError, match="gives 3 logits for 5 labels"):
        read_classes(torch.zeros(1, 1, 3), 5, False)


def test_folders_that_cannot_be_used_are_named(detector_folder: Folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        Detector(tmp_path, 1, 1, "cpu")
    (tmp_path / "config.json").write_text((detector_folder("detr") / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="safetensors alone; other files are pickles"):
        Detector(tmp_path, 1, 1, "cpu")


def test_a_folder_without_a_head_is_refused(detector_folder: Folders, tmp_path: Path) -> None:
    folder = make_detector(tmp_path, "yolos")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("class_labels_classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks \d+ weights of YolosForObjectDetection, such as class_labels_classifier"
    ):
        Detector(folder, 1, 1, "cpu")


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    folder = make_detector(tmp_path, "yolos")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    text = (folder / "config.json").read_text()
    mapped = '"auto_map": {"AutoConfig": "evil.C", "AutoModelForObjectDetection": "evil.M"}, "model_type": "evil",'
    (folder / "config.json").write_text(text.replace('"model_type": "yolos",', mapped))
    with pytest.raises(UserError, match="cannot be loaded"):
        Detector(folder, 1, 1, "cpu")
    assert not (tmp_path / "ran").exists()


def test_absurd_sizes_are_refused_before_anything_is_built(detector_folder: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(detector_folder("yolos"), tmp_path / "yolos"))
    config = json.loads((folder / "config.json").read_text())
    for field, value, says in (
        ("num_hidden_layers", 10**6, "num_hidden_layers = 1000000: at most 1,000; put back"),
        ("num_detection_tokens", 10**9, "num_detection_tokens = 1000000000: at most 16,777,216; put back"),
        ("intermediate_size", 48, "their sizes are not those in config.json: put back the one that belongs"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(UserError, match=says):
            Detector(folder, 1, 1, "cpu")
