"""Reads YAML that may come from anybody: plain data alone, bounded in size before anything is built from it."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
"""Size of a file, in bytes."""
MAX_NODES = 100_000
"""Values in a file, counted where aliases (`*name`) and merge keys (`<<`) have been replaced by what they stand for."""


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises yaml.YAMLError, ValueError or RecursionError."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise yaml.YAMLError(f"it has more than {MAX_BYTES:,} bytes")
    return parse_yaml(content.decode("utf-8"))


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises yaml.YAMLError, ValueError or RecursionError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_NODES:
            raise yaml.YAMLError(f"with its aliases replaced it has more than {MAX_NODES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


MAX_DIGITS = 1000
"""Characters of a whole number: to Python, one of more than 4,300 digits cannot be shown."""


class _Loader(yaml.SafeLoader):
    """Plain YAML without tags.

    A key that stands twice in a section is an error: YAML would take the last one without a word. `yes`, `no`, `on` and `off`
    are words, as in YAML 1.2: `no` is also a language. Where a field wants true or false, they still count as that.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises yaml.YAMLError."""
        seen: set[Any] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a list or a section stands in the place of a name", problem_mark=name.start_mark
                )
            if name.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{name.value} stands twice in", problem_mark=node.start_mark
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """Raises yaml.YAMLError for a number that is too long to be one: YAML has them in hexadecimal and in sixties, too."""
        if len(node.value) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                problem=f"a number of {len(node.value):,} characters", problem_mark=node.start_mark
            )
        return int(self.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values `node` stands for, aliases counted as often as they are used. Raises yaml.YAMLError.

    `known` holds the sizes of nodes already counted, by their identity; 0 marks one that is being counted.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError("an alias stands inside of what it names, so that it has no end")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_size(child, known) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_size(name, known) + _size(value, known) for name, value in node.value)
    known[id(node)] = total
    return total
