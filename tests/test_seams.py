"""Nobody asks for a task, a visual source or an objective by its name: what is asked of one is an attribute of its class."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3p.objectives import OBJECTIVES
from m3p.objectives.tasks import TASKS, choose_tasks
from m3p.recipe.recipe import Recipe
from tests.launch import ROOT

PACKAGE = ROOT / "trainer" / "m3p"
KINDS = {str(definition["properties"]["kind"]["const"]) for definition in Recipe.model_json_schema()["$defs"].values()
         if "const" in definition.get("properties", {}).get("kind", {})}  # fmt: skip
NAMES = {*TASKS, *OBJECTIVES, *KINDS}
LOOK_UPS = {"get", "pop", "setdefault", "index", "count", "startswith", "endswith", "getattr", "hasattr"}


def compared(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each place of a program that compares a name, or looks something up by it."""
    for node in ast.walk(ast.parse(source)):
        asked: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Literal":  # the field that declares a kind
            asked = [node.slice]
        elif isinstance(node, ast.BinOp):  # sets of names: `a & {"name"}`
            asked = [node.left, node.right]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            asked = list(node.args) if name in LOOK_UPS else []
        for one in asked:
            yield from ((getattr(one, "lineno", 0), value) for value in literals(one) if value in NAMES)


def literals(node: ast.AST) -> Iterator[str]:
    """Yield the texts of a literal: one, or those of a tuple, list, set or dict of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for element in node.elts:
            yield from literals(element)
    elif isinstance(node, ast.Dict):
        for key in node.keys:
            if key is not None:
                yield from literals(key)


def test_no_task_visual_kind_or_objective_is_asked_for_by_name() -> None:
    assert {"regions", "patches"} <= KINDS
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in compared(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["make it an attribute of the class:", *found])


@pytest.mark.parametrize(
    "program",
    [
        'if task == "matching": pass',
        'x = "contrastive" in tasks',
        'x = task in ("masked_words", "other")',
        'x = heads["masked_regions"]',
        'x = counts.get("matching", 0)',
        'x = {"matching", "other"} & active.keys()',
        'match kind:\n    case "patches" | "regions": pass',
        'x = getattr(objectives, "code_switched")',
        'x = visual.kind != "regions"',
    ],
)
def test_every_way_to_ask_by_name_is_found(program: str) -> None:
    assert list(compared(program))


def test_every_task_names_itself_once_and_its_forms_say_who_offers_it() -> None:
    assert all(name == task.name for name, task in TASKS.items())
    for config in OBJECTIVES.values():
        assert set(config.possible_tasks) <= TASKS.keys()
        if config.needs_pictures:
            assert set(config.possible_tasks) == {name for name, task in TASKS.items() if task.forms}


def rows_of_rooms() -> list[list[str]]:
    """Return the rows of docs/index.md's table of folders and files of the package, the topmost first."""
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split("## Where things live")[1]
    return [row.split(", ") for row in page.split("```text\n")[1].split("```")[0].splitlines()]


def imported(path: Path) -> Iterator[str]:
    """Yield the folders and files at the top of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{name.name}" for name in node.names] if node.module == "m3p" else [node.module or ""]
            )
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("m3p."))


def test_imports_go_down_the_table_of_rooms_and_never_up() -> None:
    level = {room: number for number, row in enumerate(rows_of_rooms()) for room in row}
    here = {path.stem for path in PACKAGE.iterdir()}
    assert level.keys() <= here
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own in {"__init__", "__main__"}:
            continue
        for other in imported(path):
            if level.get(other, len(level)) < level.get(own, len(level)) or {own, other} == {"model", "data"}:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_one_file_and_one_line_are_what_a_registry_wants() -> None:
    """Each task and each visual source is named in its own file and in the registry, and in no other file of its folder."""
    for folder, names in ((PACKAGE / "objectives" / "tasks", set(TASKS)), (PACKAGE / "visual", KINDS)):
        for name in names:
            homes = [path for path in folder.rglob("*.py") if declares(path, name)]
            assert len(homes) == 1, (name, homes)


def declares(path: Path, name: str) -> bool:
    """Say whether a class in the file has this name as its `name` or `kind`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                text = ast.unparse(statement)
                if text in {f"name = {name!r}", f"kind: Literal[{name!r}]"}:
                    return True
    return False


def test_a_task_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        choose_tasks(["matching", "nothing"])


def test_a_run_is_opened_without_what_scores_it() -> None:
    program = ast.parse((PACKAGE / "runs.py").read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(program) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in modules if name.startswith("m3p.retrieval")], "retrieval stands on runs, not under it"
