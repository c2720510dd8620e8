import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3p.batch import Batch, Picture, Sequence
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.m3p import M3P, Outputs
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import ask_contrast
from m3p.objectives.tasks.forms import Alone, PackedPairs
from m3p.objectives.tasks.masked_regions import ask_regions
from m3p.objectives.tasks.masked_words import ask_words
from m3p.objectives.tasks.matching import ask_match
from m3p.packing import Packer
from m3p.visual import VisualConfig
from m3p.visual.patches import Patches, PatchTokens
from m3p.visual.regions import Regions, RegionTokens

SHAPE = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 12, "positions": 20}
SOURCES: dict[str, VisualConfig] = {
    "regions": Regions(kind="regions", feature_size=5, classes=3),
    "patches": Patches(kind="patches", size=8, patch=4),
}


def build(visual: VisualConfig | None, **settings: object) -> M3P:
    config = ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t", "dropout": 0.0, **settings})
    return build_model(config, 30, visual, TASKS.values() if visual else [TASKS["masked_words"]], seed=0)


def picture(visual: VisualConfig, seed: int = 0) -> Picture:
    if isinstance(visual, Patches):
        return PatchTokens(np.random.default_rng(seed).integers(0, 256, visual.memory_shape, np.uint8), visual.patch)
    return regions(seed)


def regions(seed: int = 0, tokens: int = 4) -> RegionTokens:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 2, (tokens, 2)) / 2
    boxes = np.concatenate([corner, corner + 0.5], 1).astype(np.float32)
    features = rng.normal(size=(tokens, 5)).astype(np.float32)
    return RegionTokens(features, boxes, rng.integers(0, 3, tokens))


def words(seed: int = 0, length: int = 5) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(4, 30, length)


def text_only(visual: VisualConfig) -> Batch:
    packer = Packer(*visual.features)
    _, first = packer.add(Sequence(words()))
    ask_words(packer, first + np.array([1, 3]), words()[[1, 3]])
    return packer.finish(1)


def picture_only(visual: VisualConfig) -> Batch:
    packer = Packer(*visual.features)
    _, first = packer.add(Sequence(np.array([0]), picture(visual)))
    ask_regions(packer, first + 1 + np.array([0, 2]), [(picture(visual), np.array([0, 2]))])
    return packer.finish(1)


def empty(visual: VisualConfig) -> Batch:
    return Packer(*visual.features).finish(0)


def everything(visual: VisualConfig) -> Batch:
    packer = Packer(*visual.features)
    for seed in (0, 1):
        text, _ = packer.add(Sequence(words(seed)))
        image, _ = packer.add(Sequence(np.array([0]), picture(visual, seed)))
        joint, first = packer.add(Sequence(words(seed), picture(visual, seed)))
        ask_contrast(packer, range(text, text + 1), range(image, image + 1), np.array([seed]), [str(seed)], [str(seed)])
        ask_match(packer, range(joint, joint + 1), bool(seed))
        ask_words(packer, first + np.array([1]), words(seed)[[1]])
        ask_regions(packer, first + 5 + np.array([1]), [(picture(visual, seed), np.array([1]))])
    return packer.finish(2)


def backward(outputs: Outputs) -> None:
    """A loss that reads all outputs, as the engine's does."""
    loss = outputs.touch
    for output in outputs.tasks.values():
        loss = loss + output.square().sum()
    torch.autograd.backward(loss)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("batch", [text_only, picture_only, empty, everything])
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(source: str, batch: object) -> None:
    assert callable(batch)
    visual = SOURCES[source]
    model = build(visual)
    outputs = model(batch(visual))
    assert outputs.touch.item() == 0
    backward(outputs)
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


def test_what_a_batch_does_not_ask_for_gets_a_gradient_of_zero() -> None:
    model = build(SOURCES["regions"])
    backward(model(text_only(SOURCES["regions"])))
    unused = ("visual.", "heads.masked_regions", "heads.matching", "heads.contrastive")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if name.startswith(unused):
            assert not parameter.grad.any(), name
    used = model.get_parameter("encoder.layers.0.qkv.weight").grad
    assert used is not None
    assert used.any()


def test_a_network_without_pictures_works_alone() -> None:
    packer = Packer(1)
    _, first = packer.add(Sequence(words()))
    ask_words(packer, first + np.array([2]), words()[[2]])
    model = build(None)
    backward(model(packer.finish(1)))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_outputs_exist_for_what_is_asked_and_nothing_else() -> None:
    visual = SOURCES["regions"]
    model = build(visual)
    assert {name: tuple(o.shape) for name, o in model(everything(visual)).tasks.items()} == {
        "masked_words": (),  # a summed loss
        "masked_regions": (2, 5 + 3),
        "matching": (2,),
        "contrastive": (4, 8),
    }
    assert model(text_only(visual)).tasks.keys() == {"masked_words"}
    assert model(empty(visual)).tasks == {}


@pytest.mark.long
@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(1, 6)), min_size=1, max_size=5))
def test_a_sequence_is_encoded_the_same_alone_and_among_others(shapes: list[tuple[int, int | None]]) -> None:
    visual = SOURCES["regions"]
    model = build(visual).eval()
    sequences = [
        Sequence(words(seed, length), None if tokens is None else regions(seed, tokens))
        for seed, (length, tokens) in enumerate(shapes)
    ]
    with torch.inference_mode():
        together, _, _ = model.encode(pack(visual, *sequences))
        alone = torch.cat([model.encode(pack(visual, sequence))[0] for sequence in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def pack(visual: VisualConfig, *sequences: Sequence) -> Batch:
    packer = Packer(*visual.features)
    for sequence in sequences:
        packer.add(sequence)
    return packer.finish(len(sequences))


def test_the_order_of_picture_tokens_does_not_matter_and_that_of_words_does() -> None:
    visual = SOURCES["regions"]
    model, tokens, seen = build(visual).eval(), words(), regions()
    turned = RegionTokens(seen.features[::-1].copy(), seen.boxes[::-1].copy())
    with torch.inference_mode():
        plain, _, _ = model.encode(pack(visual, Sequence(tokens, seen)))
        other_picture, _, _ = model.encode(pack(visual, Sequence(tokens, turned)))
        other_text, _, _ = model.encode(pack(visual, Sequence(tokens[[0, 2, 1, 3, 4]], seen)))
    torch.testing.assert_close(plain[0], other_picture[0], atol=1e-6, rtol=0)
    assert (plain[0] - other_text[0]).abs().max() > 1e-4


def test_recomputing_layers_changes_no_gradient() -> None:
    visual = SOURCES["regions"]
    gradients = []
    for recompute in (False, True):
        model = build(visual, dropout=0.3, recompute=recompute)
        torch.manual_seed(5)
        backward(model(everything(visual)))
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, again = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=0, rtol=0)


def test_a_recomputed_layer_keeps_its_input_alone() -> None:
    visual = SOURCES["regions"]
    kept = []
    for recompute in (False, True):
        model = build(visual, recompute=recompute)
        kept.append(numbers_kept(model, everything(visual)))
    assert kept[1] < kept[0] / 2


def numbers_kept(model: M3P, batch: Batch) -> int:
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.encode(batch)
    return sum(sizes)


TWO_TOWERS = {"encode_pictures": False, "pooling": "mean"}


@pytest.mark.parametrize("source", SOURCES)
def test_of_two_towers_words_are_encoded_without_the_picture_and_its_tokens_not_at_all(source: str) -> None:
    visual = SOURCES[source]
    model = build(visual, **TWO_TOWERS).eval()
    seen = picture(visual)
    with torch.inference_mode():
        alone, _, _ = model.encode(pack(visual, Sequence(words())))
        both, _, _ = model.encode(pack(visual, Sequence(np.array([0]), seen), Sequence(words())))
        assert model.visual is not None
        boxes = torch.empty(0, 4) if seen.boxes is None else torch.from_numpy(seen.boxes)
        wanted = model.visual(torch.from_numpy(seen.features), boxes)
    torch.testing.assert_close(both[1 + seen.tokens :], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(both[1 : 1 + seen.tokens], wanted, atol=1e-6, rtol=0)


def apart(visual: VisualConfig) -> Batch:
    """Two pairs, whose texts and pictures stand alone, as both contrast and cosine ask about them."""
    packer = Packer(*visual.features)
    texts, _ = packer.add_many(np.concatenate([words(0), words(1)]), np.array([5, 5]))
    images, _ = packer.add_many(np.zeros(2, np.int64), np.ones(2, np.int64), [picture(visual, 0), picture(visual, 1)])
    alone = Alone(texts, images, np.arange(2), *[["a", "b"]] * 4)
    for task in ("contrastive", "cosine"):
        TASKS[task].ask(packer, PackedPairs(alone=alone))
    return packer.finish(2)


@pytest.mark.parametrize("batch", [text_only, empty, apart])
def test_a_frozen_text_encoder_gets_no_gradient_and_all_the_rest_does(batch: object) -> None:
    assert callable(batch)
    visual = SOURCES["regions"]
    model = build(visual, **TWO_TOWERS, dropout=0.5, freeze=["text"])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert model.train() is model
    backward(model(batch(visual)))
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("text.", "encoder."))
        assert (parameter.grad is None) == frozen, name
        torch.testing.assert_close(parameter, before[name], atol=0, rtol=0)


def test_a_text_that_is_remembered_is_encoded_once_and_the_same() -> None:
    visual = SOURCES["regions"]
    settings = {**TWO_TOWERS, "freeze": ["text"]}
    plain, remembering = build(visual, **settings), build(visual, **settings, remember_texts=True)
    remembering.train()
    batch, calls = apart(visual), []
    remembering.encoder.register_forward_hook(lambda *_: calls.append(1))
    first, again = remembering.encode(batch)[0], remembering.encode(batch)[0]
    assert len(calls) == 3  # two texts, and the lone start of both pictures
    torch.testing.assert_close(first, plain.train().encode(batch)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(again, first, atol=0, rtol=0)
    remembering.eval().encode(batch)
    assert len(calls) == 4  # evaluation encodes all at once


def test_the_projection_of_texts_is_frozen_alone() -> None:
    """Beside the centre of texts, which is measured."""
    model = build(SOURCES["regions"], freeze=["text_projection"], text_centre=True)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["heads.contrastive.centre", "heads.contrastive.text.weight"]


def test_a_frozen_text_encoder_drops_nothing_in_training() -> None:
    visual = SOURCES["regions"]
    model = build(visual, **TWO_TOWERS, dropout=0.5, freeze=["text"])
    batch = pack(visual, Sequence(words()))
    torch.testing.assert_close(model.train().encode(batch)[0], model.eval().encode(batch)[0], atol=0, rtol=0)


def test_a_task_that_reads_anothers_head_gets_its_output_and_its_own_targets() -> None:
    visual = SOURCES["regions"]
    model = build(visual)
    assert "cosine" not in model.heads
    outputs = model(apart(visual))
    assert outputs.tasks["cosine"] is outputs.tasks["contrastive"]
    assert outputs.targets["cosine"]["rows"].tolist() == [0, 1]
    assert "cosine" not in model(everything(visual)).tasks  # which asks for contrast alone
