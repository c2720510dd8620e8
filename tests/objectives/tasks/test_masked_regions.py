import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.batch import Sequence
from m3p.keys import keys_of
from m3p.objectives.tasks.masked_regions import MaskedRegions, ask_regions, mask_regions
from m3p.objectives.tasks.matching import Matching
from m3p.packing import Packer
from m3p.visual.patches import PatchTokens
from m3p.visual.pixels import scaled
from m3p.visual.regions import ClassDistribution, RegionTokens


def picture(regions: int, classes: list[int] | None = None) -> RegionTokens:
    rng = np.random.default_rng(0)
    features, boxes = rng.normal(size=(regions, 3)).astype(np.float32), rng.random((regions, 4), np.float32)
    return RegionTokens(features, boxes, None if classes is None else np.array(classes))


def keys(count: int, number: int = 0) -> NDArray[np.uint64]:
    """Keys of so many samples."""
    return keys_of(np.array([[number, place] for place in range(count)], np.uint64).reshape(-1, 2), "mask")


def test_fifteen_in_a_hundred_are_chosen_and_nine_in_ten_of_them_lose_their_feature() -> None:
    whole = picture(20_000)
    mask = mask_regions([whole], keys(1), 0.15, None)
    assert len(mask.places) / 20_000 == pytest.approx(0.15, abs=0.01)
    assert mask.hidden.mean() == pytest.approx(0.9, abs=0.02)


@given(st.integers(1, 12), st.floats(0.001, 0.999), st.integers(0, 10**9))
def test_at_least_one_is_chosen_and_what_is_hidden_shows_nothing_but_its_box(
    regions: int, rate: float, number: int
) -> None:
    whole = picture(regions)
    mask = mask_regions([whole], keys(1, number), rate, None)
    assert len(set(mask.places.tolist())) == len(mask.places) >= 1
    hidden = mask.places[mask.hidden]
    packer = Packer(3)
    shown, _ = packer.add(Sequence(np.array([0]), whole))
    masked, _ = packer.add(Sequence(np.array([0]), whole))
    packer.hide(masked, hidden, whole)
    batch = packer.finish(2)
    features, boxes = (tensor[batch.visual_rows].numpy() for tensor in (batch.visual_features, batch.visual_boxes))
    assert np.array_equal(features[:regions], whole.features), "where nothing is hidden it is whole"
    assert np.array_equal(boxes, np.concatenate([whole.boxes, whole.boxes]))
    rest = np.setdiff1d(np.arange(regions), hidden)
    assert np.array_equal(features[regions + rest], whole.features[rest])
    assert not features[regions + hidden].any()
    assert batch.embedded_rows == len(batch.visual_features) == regions + len(hidden)
    assert shown != masked


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(0, 10**9))
def test_background_is_never_chosen(classes: list[int], number: int) -> None:
    mask = mask_regions([picture(len(classes), classes)], keys(1, number), 0.9, background=0)
    assert all(classes[place] for place in mask.places)
    assert bool(len(mask.places)) == any(classes)


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 10**9))
def test_a_pictures_mask_is_its_own_whatever_others_are_masked_with_it(sizes: list[int], number: int) -> None:
    pictures = [picture(size, [1] * size) if size % 2 else picture(size) for size in sizes]
    owners = keys(len(sizes), number)
    together = dict(mask_regions(pictures, owners, 0.4, background=0).by_picture())
    assert list(together) == [place for place, size in enumerate(sizes) if size]
    for place, found in together.items():
        alone = mask_regions([pictures[place]], owners[place : place + 1], 0.4, background=0)
        assert found.places.tolist() == alone.places.tolist()
        assert found.hidden.tolist() == alone.hidden.tolist()
        assert set(found.pictures.tolist()) == {place}


def test_what_is_asked_is_the_true_picture_at_the_right_slots() -> None:
    packer, whole = Packer(3), picture(4, [5, 6, 7, 8])
    packer.add(Sequence(np.array([0, 2])))
    _, first = packer.add(Sequence(np.array([0, 9, 2]), whole))
    ask_regions(packer, first + 3 + np.array([1, 3]), [(whole, np.array([1, 3]))])
    targets = packer.finish(2).targets["masked_regions"]
    assert targets["slots"].tolist() == [2 + 3 + 1, 2 + 3 + 3]
    assert targets["classes"].tolist() == [6, 8]
    assert np.array_equal(targets["features"].numpy(), whole.features[[1, 3]])


def test_the_loss_is_the_relative_error_of_the_feature_and_the_entropy_of_the_class() -> None:
    targets = {"features": torch.tensor([[0.0, 2.0], [1.0, 0.0]]), "classes": torch.tensor([1, 0])}
    targets["least"] = torch.full((2,), 0.5)
    feature = torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    assert float(MaskedRegions().loss(feature, targets)) == pytest.approx(1 / 4 + 9 / 1)
    logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    entropy = np.log(3) + np.log(np.exp(2) + np.exp(1) + 1) - 2
    assert float(MaskedRegions().loss(torch.cat([feature, logits], 1), targets)) == pytest.approx(9.25 + entropy)
    assert MaskedRegions().count({"slots": torch.tensor([3, 4])}) == 2


def test_the_loss_of_a_distribution_is_its_divergence() -> None:
    wanted = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    targets = {"features": torch.zeros(2, 1), "classes": torch.tensor([0, 2]), "least": torch.ones(2)}
    soft = {**targets, "distribution": wanted}
    output = torch.cat([torch.zeros(2, 1), wanted.clamp(min=1e-30).log()], 1)
    assert float(MaskedRegions().loss(output, soft)) == pytest.approx(0, abs=1e-6)
    even = torch.zeros(2, 4)
    entropies = -sum(p * np.log(p) for p in (0.5, 0.5, 0.1, 0.2, 0.7))
    assert float(MaskedRegions().loss(even, soft)) == pytest.approx(2 * np.log(3) - entropies, rel=1e-5)
    sure = {**targets, "distribution": torch.eye(3)[[0, 2]]}  # of one class alone it is the cross-entropy
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = 0
    assert float(MaskedRegions().loss(logits, sure)) == pytest.approx(float(MaskedRegions().loss(logits, targets)))


def test_distributions_of_several_widths_share_a_batch() -> None:
    packer, pictures = Packer(3), list[RegionTokens]()
    for kept in (1, 3):
        ids = np.arange(2 * kept).reshape(2, kept)
        distribution = ClassDistribution(ids, np.full((2, kept), 1 / kept, np.float32), 9)
        pictures.append(picture(2)._replace(class_ids=ids[:, 0], distribution=distribution))
    packer.add(Sequence(np.array([0, 2])))
    ask_regions(packer, np.array([0, 1, 2]), [(pictures[0], np.array([1])), (pictures[1], np.array([0, 1]))])
    asked = packer.finish(1).targets["masked_regions"]["distribution"]
    assert asked.shape == (3, 9)
    assert asked.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert asked.argmax(1).tolist() == [1, 0, 3]


def test_pixels_are_foretold_as_the_network_sees_them() -> None:
    pixels = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    seen = {"features": scaled(pixels), "classes": torch.tensor([-1]), "least": torch.tensor([0.5])}
    found = torch.tensor([[0.5, 0.0, -1.0]])
    assert MaskedRegions().loss(found, {**seen, "features": pixels}) == MaskedRegions().loss(found, seen) > 0


def test_what_has_no_length_weighs_no_more_than_others() -> None:
    """A detector's padding, and patches of flat mid grey."""
    least = torch.tensor([picture(1).least_length])
    none = {"features": torch.zeros(1, 4), "classes": torch.tensor([-1]), "least": least}
    assert float(MaskedRegions().loss(torch.full((1, 4), 0.5), none)) <= 2
    for grey in (127, 128, 120):
        patch = PatchTokens(np.full((1, 4, 4, 3), grey, np.uint8), 4)
        flat = {
            "features": torch.from_numpy(patch.targets_at(np.array([0]))),
            "classes": torch.tensor([-1]),
            "least": torch.tensor([patch.least_length]),
        }
        assert float(MaskedRegions().loss(torch.full((1, 48), 0.1), flat)) < 1


def test_matching_is_the_entropy_of_its_logits() -> None:
    targets = {"labels": torch.tensor([1.0, 0.0]), "sequences": torch.tensor([0, 1])}
    found = Matching().loss(torch.tensor([2.0, -1.0]), targets)
    assert float(found) == pytest.approx(np.log(1 + np.exp(-2)) + np.log(1 + np.exp(-1)))
    assert Matching().count(targets) == 2
