import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m3p.model.attention import Layout
from m3p.model.heads import mean_of_sequences
from m3p.objectives.tasks.contrastive import ContrastiveHead
from m3p.objectives.tasks.masked_regions import RegionHead
from m3p.objectives.tasks.masked_words import WordHead
from m3p.objectives.tasks.matching import MatchingHead

WIDTH = 6


def hidden_of(lengths: list[int]) -> tuple[torch.Tensor, Layout]:
    hidden = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(0))
    return hidden, Layout(torch.tensor(lengths), max(lengths))


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 1), st.data())
def test_mean_pooling_is_the_mean_of_each_sequence(lengths: list[int], skip: int, data: st.DataObject) -> None:
    hidden, layout = hidden_of(lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    found = mean_of_sequences(hidden, layout, torch.tensor(chosen), skip)
    for row, number in zip(found, chosen, strict=True):
        start = sum(lengths[:number])
        wanted = hidden[start + skip : start + lengths[number]].mean(0)
        torch.testing.assert_close(row, wanted, atol=1e-6, rtol=0)


def contrastive(pooling: str = "first", temperature: float = 0.1) -> ContrastiveHead:
    torch.manual_seed(0)
    return ContrastiveHead(WIDTH, 4, pooling, temperature, learn_temperature=True)


@pytest.mark.parametrize(("pooling", "skip"), [("first", 0), ("mean", 1)])
def test_contrast_pools_texts_then_pictures_whose_start_token_is_no_part_of_the_mean(pooling: str, skip: int) -> None:
    lengths = [3, 4, 2, 5]
    hidden, layout = hidden_of(lengths)
    targets = {"text_sequences": torch.tensor([0, 2]), "image_sequences": torch.tensor([1, 3])}
    rows = contrastive(pooling).rows(hidden, layout, targets)
    parts = torch.split(hidden, lengths)
    if pooling == "first":
        wanted = [parts[number][0] for number in (0, 2, 1, 3)]
    else:
        wanted = [parts[0].mean(0), parts[2].mean(0), parts[1][skip:].mean(0), parts[3][skip:].mean(0)]
    torch.testing.assert_close(rows, torch.stack(wanted), atol=1e-6, rtol=0)


def test_products_of_texts_and_pictures_are_cosines_over_the_temperature() -> None:
    head, rows = contrastive(temperature=0.1), torch.randn(6, WIDTH)
    text, image = head(rows).chunk(2)
    cosine = nn.functional.cosine_similarity(head.text(rows[:3])[:, None], head.image(rows[3:])[None], dim=-1)
    torch.testing.assert_close(text @ image.T, cosine / 0.1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.embed_text(rows[:3]), text * 0.1, atol=1e-6, rtol=0)
    torch.testing.assert_close(head.embed_image(rows[3:]), image, atol=1e-6, rtol=0)


def with_residual(dropout: float = 0.0) -> ContrastiveHead:
    torch.manual_seed(0)
    head = ContrastiveHead(WIDTH, WIDTH, "mean", 0.1, True, hidden=12, dropout=dropout)
    head.initialise()
    return head


def test_a_residual_layer_starts_as_nothing_and_is_of_pictures_alone() -> None:
    head, rows = with_residual(), torch.randn(4, WIDTH)
    torch.testing.assert_close(head.embed_image(rows), nn.functional.normalize(rows, dim=1))
    assert head.down is not None
    nn.init.ones_(head.down.weight)
    assert not torch.allclose(head.embed_image(rows), nn.functional.normalize(rows, dim=1))
    torch.testing.assert_close(head.embed_text(rows), nn.functional.normalize(rows, dim=1))


def test_pictures_are_dropped_in_training_alone_and_texts_never() -> None:
    head, rows = with_residual(dropout=0.5), torch.ones(64, WIDTH)
    assert (head.embed_image(rows) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert not (head.embed_text(rows) == 0).any()
    head.eval()
    assert not (head.embed_image(rows) == 0).any()


def test_a_centre_moves_texts_of_unit_length_and_no_pictures() -> None:
    torch.manual_seed(0)
    head, rows = ContrastiveHead(WIDTH, WIDTH, "mean", 0.1, True, centre=True), 3 * torch.randn(4, WIDTH)
    head.initialise()
    unit = nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(head.embed_text(rows), unit)
    assert head.centre is not None
    with torch.no_grad():
        head.centre.fill_(-0.3)
    torch.testing.assert_close(head.embed_text(rows), nn.functional.normalize(unit - 0.3, dim=1))
    torch.testing.assert_close(head.embed_image(rows), unit)


def test_matching_reads_the_start_of_each_pair_that_is_asked_for() -> None:
    hidden, layout = hidden_of([3, 4, 2])
    head = MatchingHead(WIDTH)
    rows = head.rows(hidden, layout, {"sequences": torch.tensor([2, 0])})
    assert torch.equal(rows, hidden[[7, 0]])
    assert head(rows).shape == (2,)


def test_the_word_head_decodes_with_the_embedding_itself() -> None:
    words = nn.Embedding(11, WIDTH)
    head = WordHead(words, 1e-5)
    assert head.weight is words.weight
    assert head(torch.randn(3, WIDTH)).shape == (3, 11)


@pytest.mark.parametrize("classes", [0, 7])
def test_the_region_head_gives_a_feature_and_one_logit_a_class(classes: int) -> None:
    assert RegionHead(WIDTH, 5, classes, 1e-5)(torch.randn(3, WIDTH)).shape == (3, 5 + classes)
