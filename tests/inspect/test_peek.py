"""Of trainer/m3p/inspect/peek.py and page.py."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3p.batch import Sequence
from m3p.data.shards.index_folder import index_folder
from m3p.errors import UserError
from m3p.inspect.page import page
from m3p.inspect.peek import ShownTurn, Word, _changes, _seen, peek
from m3p.packing import Packer
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from m3p.visual.patches import Patches, PatchTokens
from tests.data.broken import Members, pair, write
from tests.tiny import make_tiny


def shown(recipe_path: Path, step: int = 1, limit: int = 50, *overrides: str) -> list[ShownTurn]:
    recipe = load_recipe(recipe_path, overrides)
    return peek(recipe, build_objectives(recipe), step, limit)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("patches"), "patches")


def test_the_turns_of_a_step_are_those_of_training(tiny: Path) -> None:
    recipe = load_recipe(tiny)
    objectives = build_objectives(recipe)
    for turn, found in zip(recipe.plan().turns(3), peek(recipe, objectives, 4, 50), strict=True):
        whole = objectives[turn.objective].batch(turn.positions, turn.positions)
        assert [sample.name for sample in found.samples] == whole.names
        masked = sum(bool(word.was) for sample in found.samples for line in sample.lines for word in line.words)
        assert masked == len(whole.targets["masked_words"]["labels"])
        if "masked_regions" in whole.targets:
            hidden = sum(line.masked_regions for sample in found.samples for line in sample.lines)
            assert hidden == len(whole.targets["masked_regions"]["slots"]) > 0
            assert sum(line.regions for sample in found.samples for line in sample.lines) == len(whole.visual_slots)


def test_masked_words_show_what_they_were(tiny: Path) -> None:
    lines = [line for turn in shown(tiny) for sample in turn.samples for line in sample.lines]
    # Of a mismatched pair nothing is asked but that it is one.
    words = [word for line in lines if "no match" not in line.kind for word in line.words]
    assert {word.text for word in words if word.was} >= {"<mask>"}
    assert any(word.text == "<s>" for word in words)
    assert all(word.was for word in words if word.text == "<mask>")


def test_switched_words_show_what_they_stand_for(tiny: Path) -> None:
    samples = [sample for turn in shown(tiny) if "code_switched" in turn.title for sample in turn.samples]
    switched = {word.was: word.text for sample in samples for word in sample.switched if word.was}
    assert switched
    assert set(switched) & {"dog", "cat", "tree", "house", "river", "bird", "moon", "stone", "bread", "chair"}


def test_changes_are_told_word_by_word() -> None:
    assert _changes("a dog runs", "a Hund runs") == [Word("a "), Word("Hund", "dog"), Word(" runs")]
    assert _changes("a dog", "a dog") == [Word("a dog")]
    assert "".join(word.text for word in _changes("one dog two", "一犬 two")) == "一犬 two"


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_page_needs_nothing_else_and_shows_pictures_as_the_network_sees_them(patches: Path) -> None:
    turns = shown(patches)
    text = page(turns, "peek")
    sizes = {picture.size for picture in pictures(text)}
    assert (16, 16) in sizes, "what the network sees"
    assert (20, 20) in sizes, "what is stored"
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert 'lang="ja"' in text
    assert re.search(r"4 regions, [1-4] masked", text)
    assert "no match: the other half" in text


@pytest.mark.parametrize(
    "nasty", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&amp; </dd> \u202e x"]
)
def test_captions_of_strangers_are_text(tiny: Path, tmp_path: Path, nasty: str) -> None:
    def members(number: int) -> Members:
        record = {"id": nasty, "captions": {'en"><b>': [nasty], "en": [nasty]}}
        return {**pair(number), "json": json.dumps(record).encode()}

    write(tmp_path / "a.tar", [(str(number), members(number)) for number in range(4)])
    index_folder(tmp_path, "captions")
    source = f"objectives.image_caption.sources=[{{path: {tmp_path}}}]"
    settings = ("visual.feature_size=4", "objectives.code_switched=null", source)
    text = page([turn for turn in shown(tiny, 1, 3, *settings) if "image" in turn.title], "x")
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert len(re.findall("<article>", text)) == len(re.findall("</article>", text)) == 3


def test_bad_samples_are_said(tiny: Path, tmp_path: Path) -> None:
    samples = [(str(number), pair(number)) for number in range(6)]
    samples[2] = ("2", {**pair(2), "json": b"{"})
    write(tmp_path / "a.tar", samples)
    index_folder(tmp_path, "captions")
    source = f"objectives.image_caption.sources=[{{path: {tmp_path}}}]"
    turns = shown(tiny, 1, 50, "visual.feature_size=4", "objectives.code_switched=null", source)
    (turn,) = [turn for turn in turns if "image" in turn.title]
    assert any("json cannot be read" in line for line in turn.bad)
    assert "json cannot be read" in page(turns, "x")


def test_the_command_says_where_the_page_is(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from m3p.cli.data import peek_command

    peek_command(str(tiny), [], tmp_path / "x.html", 2, 3)
    assert re.match(r"9 samples of 3 turns: see .*x\.html", capsys.readouterr().out)
    assert (tmp_path / "x.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"--output .* cannot be written"):
        peek_command(str(tiny), [], tmp_path / "none" / "x.html", 1, 1)
    with pytest.raises(UserError, match=r"--step 99999999999999999999: beyond .* run\.steps = 20"):
        peek_command(str(tiny), [], tmp_path / "x.html", 99999999999999999999, 1)


def test_hidden_patches_are_shown_grey_and_the_rest_as_it_is() -> None:
    visual = Patches(kind="patches", size=32, patch=16)
    white = PatchTokens(np.full(visual.memory_shape, 255, np.uint8), 16)
    packer = Packer(*visual.features)
    packer.add(Sequence(np.zeros(1, np.int64), white))
    masked, _ = packer.add(Sequence(np.zeros(1, np.int64), white))
    packer.hide(masked, np.array([1]), white)
    rows = packer.finish(1).visual_rows.numpy()
    for number, wanted in enumerate([[255, 255, 255, 255], [255, 128, 255, 255]]):
        (picture,) = pictures(f'src="{_seen(visual, packer.finish(1), rows[4 * number :][:4])}"')
        middles = np.asarray(picture)[8::16, 8::16, 0].ravel()
        np.testing.assert_allclose(middles, wanted, atol=5)
