"""The page of error messages: its words stand in the program, and every file that raises a user's error is on it."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, prose

PACKAGE = ROOT / "trainer" / "m3p"
PAGE = ROOT / "docs" / "troubleshooting.md"
ERRORS = {"UserError", "OneRankError"}


def paragraphs(label: str) -> list[str]:
    """Return the code of the page's paragraphs that begin with `label` in bold."""
    text = "\n".join(prose(PAGE))
    found = re.findall(rf"\*\*{label}:\*\*(.+?)(?:\n\n|$)", text, re.DOTALL)
    return [code for paragraph in found for code in re.findall(r"`([^`]+)`", paragraph)]


def texts(tree: ast.AST) -> str:
    """Return all texts of a file of Python, those of f-strings with their values left out."""
    return "\0".join(
        "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Constant)
    )


def raises_for_users(path: Path) -> bool:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id in ERRORS for call in calls)


@pytest.mark.long
def test_the_words_of_messages_are_those_of_the_program() -> None:
    every = "\0".join(texts(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py"))
    words = paragraphs("Words")
    assert len(words) > 50
    assert [word for word in words if word not in every] == []


@pytest.mark.long
def test_every_file_that_raises_a_users_error_has_its_family() -> None:
    named = set(paragraphs("Files"))
    raising = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if raises_for_users(path)}
    assert raising - named == set(), "files whose messages docs/troubleshooting.md has no family for"
    assert [name for name in named if not (PACKAGE / name).is_file()] == []
