"""What README and docs say is there: blocks are tested in a known way, links lead somewhere, names are those of the code."""

import json
from pathlib import Path

import pytest
import yaml

from m3p.recipe.load import load_recipe, parse_recipe
from m3p.recipe.recipe import Recipe
from tests.docs.blocks import CLASSES, LANGUAGES, PAGES, ROOT, Block, anchors, blocks, code, commands, links, prose
from tests.docs.command_line import Wrong, check
from tests.docs.names import check_name

BLOCKS = [block for page in PAGES for block in blocks(page)]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README_LINES = 120
README_COLUMNS = 120


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_is_of_a_known_language_and_class(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language == "bash":
        assert block.words, f"{block.name}: say how it is tested, <!-- test: CLASS --> (tests/docs/blocks.py)"
        assert block.words[0] in CLASSES
        if block.words[0] == "in":
            return
        assert len(block.words) == 1 or block.words[:2] == ["run", "with"]


@pytest.mark.long
@pytest.mark.parametrize(
    "block", [block for block in of("bash") if block.words[:1] != ["in"]], ids=lambda block: block.name
)
def test_every_command_exists_with_its_options(block: Block) -> None:
    assert commands(block.text), f"{block.name} holds no command"
    for command in commands(block.text):
        try:
            check(command)
        except Wrong as wrong:
            pytest.fail(f"{block.name}: {command}\n{wrong}")


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.name)
def test_every_part_of_a_recipe_is_valid(block: Block) -> None:
    part = yaml.safe_load(block.text)
    raw = yaml.safe_load((ROOT / "trainer/m3p/recipes/demo.yaml").read_text())
    whole = part if "run" in part and "model" in part else merged(raw, part)
    assert isinstance(parse_recipe(whole, block.name), Recipe)


def merged(whole: dict[str, object], part: dict[str, object]) -> dict[str, object]:
    """Put the sections of `part` into those of `whole`; of a section with another `kind` nothing stays."""
    for name, value in part.items():
        old = whole.get(name)
        same = isinstance(value, dict) and isinstance(old, dict) and value.get("kind") == old.get("kind")
        whole[name] = merged(old, value) if same and isinstance(old, dict) and isinstance(value, dict) else value
    return whole


@pytest.mark.parametrize("block", of("json"), ids=lambda block: block.name)
def test_every_json_block_is_json(block: Block) -> None:
    for line in block.text.splitlines() if block.text.count("\n{") else [block.text]:
        json.loads(line)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}: no such heading"


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_names_in_the_text_are_those_of_the_code(page: Path) -> None:
    wrong = []
    for line, name in code(page):
        try:
            check_name(name)
        except Wrong as why:
            wrong.append(f"{page.relative_to(ROOT)}:{line}: `{name}`: {why}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_nothing_is_left_to_be_written(page: Path) -> None:
    text = "\n".join(prose(page))
    assert not [word for word in ("TODO", "FIXME", "XXX", "TBD") if word in text]


def test_the_front_page_fits_its_size() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert max(map(len, lines)) <= README_COLUMNS


def test_shipped_recipes_are_those_of_the_table() -> None:
    shipped = {path.stem for path in (ROOT / "trainer/m3p/recipes").glob("*.yaml")}
    named = {name for _, name in code(ROOT / "docs/recipes.md")}
    assert shipped <= named
    for name in shipped:
        load_recipe(ROOT / "trainer/m3p/recipes" / f"{name}.yaml")
