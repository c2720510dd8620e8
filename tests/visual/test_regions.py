import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.errors import BadSample, UserError
from m3p.visual.regions import Regions, RegionTokens

WIDTH, CLASSES = 4, 9
REGIONS = Regions(kind="regions", feature_size=WIDTH, classes=CLASSES, max_regions=3)


def arrays(count: int = 2, **changes: Any) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    corner = rng.random((count, 2)) / 2
    found: dict[str, Any] = {
        "boxes": np.concatenate([corner, corner + 0.5], 1).astype(np.float32),
        "features": (rng.normal(size=(count, WIDTH)) * 10).astype(np.float16),
        "class_ids": np.arange(count, dtype=np.int32),
        **changes,
    }
    return {name: array for name, array in found.items() if array is not None}


def packed(content: dict[str, NDArray[Any]], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(buffer, **content)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def load(regions: Regions = REGIONS, count: int = 2, **changes: Any) -> RegionTokens:
    return regions.load({"regions.npz": packed(arrays(count, **changes))}, None)


def test_features_have_unit_length_and_keep_their_direction() -> None:
    found, stored = load(), arrays()
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-6)
    raw = stored["features"].astype(np.float32)
    np.testing.assert_allclose(found.features, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(found.boxes, stored["boxes"])
    assert found.features.dtype == np.float32
    assert found.boxes.dtype == np.float32


def test_a_feature_of_zeros_stays_one() -> None:
    assert not load(features=np.zeros((2, WIDTH), np.float16)).features.any()


def test_the_first_regions_are_kept() -> None:
    found = load(count=5)
    assert found.class_ids is not None
    assert found.class_ids.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.boxes, arrays(5)["boxes"][:3])


def test_of_several_classes_the_likeliest_is_taken() -> None:
    found = load(
        class_ids=np.array([[3, 5], [7, 1]]), class_probs=np.array([[0.2, 0.7], [0.6, 0.3]], np.float16)
    ).class_ids
    assert found is not None
    assert found.tolist() == [5, 7]
    first = load(class_ids=np.array([[3, 5], [7, 1]])).class_ids
    assert first is not None
    assert first.tolist() == [3, 7]


WHOLE = Regions(kind="regions", feature_size=WIDTH, classes=CLASSES, max_regions=3, class_target="distribution")


def test_the_stored_distribution_adds_up_to_one_over_all_classes() -> None:
    ids, probs = np.array([[3, 5], [7, 1]]), np.array([[0.2, 0.6], [0.5, 0.0]], np.float16)
    found = load(WHOLE, class_ids=ids, class_probs=probs)
    assert found.class_ids is not None
    assert found.class_ids.tolist() == [5, 7]  # as before: what background is goes by the likeliest
    whole = found.class_distribution_at(np.array([1, 0, 0]))
    assert whole is not None
    assert whole.shape == (3, CLASSES)
    np.testing.assert_allclose(whole[0], np.eye(CLASSES)[7])
    np.testing.assert_allclose(whole[1], 0.25 * np.eye(CLASSES)[3] + 0.75 * np.eye(CLASSES)[5], rtol=1e-3)
    np.testing.assert_array_equal(whole[1], whole[2])
    one = load(WHOLE, class_probs=np.array([0.5, 0.1], np.float16)).class_distribution_at(np.arange(2))
    np.testing.assert_array_equal(one, np.eye(CLASSES)[:2])
    assert load(class_ids=ids, class_probs=probs).class_distribution_at(np.arange(2)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "unreadable regions.npz.*class_probs"),
        ({"class_probs": np.array([0.0, 0.5])}, "all zero"),
        ({"class_probs": np.array([-0.1, 0.5])}, "negative"),
        ({"class_probs": np.array([np.nan, 0.5])}, "not finite"),
        ({"class_ids": np.array([[0, 99], [1, 2]]), "class_probs": np.array([[0.9, 0.1]] * 2)}, r"0\.\.99 is outside"),
    ],
)
def test_a_distribution_that_is_none_is_a_bad_sample(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        load(WHOLE, **changes)


def test_classes_are_not_asked_for_where_the_recipe_has_none() -> None:
    regions = Regions(kind="regions", feature_size=WIDTH, classes=0)
    assert load(regions, class_ids=None).class_ids is None
    assert load(regions, class_ids=np.array([10**6, 0])).class_ids is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": np.ones((2, WIDTH + 1), np.float16)}, r"features are \(2, 5\), but visual.feature_size is 4"),
        ({"features": np.ones(2, np.float16)}, r"features are \(2,\)"),
        ({"features": np.ones((0, WIDTH)), "boxes": np.ones((0, 4))}, "at least one"),
        ({"boxes": np.ones((1, 4), np.float32)}, r"boxes are \(1, 4\) for 2 regions"),
        ({"boxes": np.ones((2, 5), np.float32)}, r"boxes are \(2, 5\)"),
        ({"boxes": np.float32(1)}, r"boxes are \(\) for 2 regions"),
        ({"boxes": np.array([["a"] * 4] * 2)}, "boxes are <U1: want numbers"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "NaN, infinity"),
        ({"boxes": np.array([[0.5, 0, 0.3, 1]] * 2, np.float16)}, "boxes end before they begin: want x1, y1, x2, y2"),
        (
            {"boxes": np.array([[0, 0, 320, 200.5]] * 2, np.float32)},
            r"boxes run from 0 to 320: want x1, y1, x2, y2 in 0..1; divide pixels by width and height",
        ),
        ({"boxes": np.array([[-0.2, 0, 0.5, 1]] * 2, np.float32)}, "boxes run from -0.2 to 1"),
        ({"features": np.full((2, WIDTH), np.inf, np.float16)}, "NaN, infinity"),
        ({"features": np.full((2, WIDTH), "a")}, "features are <U1: want numbers"),
        ({"features": np.full((2, WIDTH), 1e39)}, "a number beyond float32 in the features"),
        ({"features": np.array([{}, {}], object)}, "unreadable regions.npz"),
        ({"features": None}, "unreadable regions.npz.*features"),
        ({"class_ids": None}, "unreadable regions.npz.*class_ids"),
        ({"class_ids": np.array([0, CLASSES])}, r"0\.\.9 is outside 0\.\.8 \(visual.classes\)"),
        ({"class_ids": np.array([-1, 0])}, r"outside 0\.\.8"),
        ({"class_ids": np.array([0])}, "class_ids"),
        ({"class_ids": np.zeros((2, 0), int)}, "class_ids"),
        ({"class_ids": np.zeros((2, 1, 1), int)}, "class_ids"),
        ({"class_ids": np.array(["cat", "dog"])}, "class_ids"),
        ({"class_ids": np.zeros((2, 2), int), "class_probs": np.zeros((2, 1))}, "class_probs"),
        ({"class_ids": np.zeros((2, 1), int), "class_probs": np.zeros((2, 2))}, "class_probs"),
    ],
)
def test_regions_that_cannot_be_used_are_a_bad_sample(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        load(**changes)


@pytest.mark.parametrize("name", ["boxes", "features", "class_ids", "class_probs"])
def test_a_file_that_is_no_array_is_a_bad_sample(name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed(arrays()))) as whole, zipfile.ZipFile(buffer, "w") as changed:
        for entry in {*whole.namelist(), f"{name}.npy"}:
            changed.writestr(entry, b"no" if entry == f"{name}.npy" else whole.read(entry))
    with pytest.raises(BadSample, match=f"unreadable regions.npz: {name} is no array"):
        REGIONS.load({"regions.npz": buffer.getvalue()}, None)


@pytest.mark.parametrize("content", [b"", b"no", pickle.dumps([1]), npy(), b"PK" + bytes(40)])
def test_what_is_no_npz_is_a_bad_sample(content: bytes) -> None:
    with pytest.raises(BadSample, match=r"unreadable regions\.npz"):
        REGIONS.load({"regions.npz": content}, None)


def test_a_box_may_stick_out_by_what_a_detector_rounds() -> None:
    assert load(boxes=np.array([[-0.004, 0, 1.004, 1]] * 2, np.float32)).boxes.max() > 1


def test_a_size_that_no_memory_holds_is_a_bad_sample() -> None:
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (999999999999, 4), }"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("boxes.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(BadSample, match=r"unreadable regions\.npz"):
        REGIONS.load({"regions.npz": buffer.getvalue()}, None)


def test_a_sample_without_regions_is_bad() -> None:
    with pytest.raises(BadSample, match=r"no member regions\.npz"):
        REGIONS.load({"jpg": b""}, None)


@pytest.mark.long
@settings(max_examples=300)
@given(st.data(), st.booleans())
def test_broken_bytes_are_a_bad_sample_or_usable_never_a_crash(data: st.DataObject, compressed: bool) -> None:
    content = bytearray(packed(arrays(), compressed))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    try:
        found = REGIONS.load({"regions.npz": bytes(content[:cut])}, None)
    except BadSample:
        return
    assert found.features.shape[1] == WIDTH
    assert np.isfinite(found.features).all()


def test_a_source_of_another_width_is_refused() -> None:
    REGIONS.check("shards", WIDTH)
    with pytest.raises(UserError, match=r"visual.feature_size = 4, but .* has region features of width 5"):
        REGIONS.check("shards", 5)
    with pytest.raises(UserError, match=r"has no region features: .* use kind: patches"):
        REGIONS.check("shards", None)


def test_feature_place_and_size_all_count_in_the_embedding() -> None:
    torch.manual_seed(0)
    embedder = REGIONS.embedder(8, 1e-5)
    features = torch.randn(1, WIDTH).repeat(3, 1)
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.6, 0.6], [0.4, 0.1, 0.6, 0.3]])
    out = embedder(features, boxes)
    assert out.shape == (3, 8)
    assert len({tuple(row.tolist()) for row in out}) == 3
    assert not torch.equal(out, embedder(-features, boxes))
