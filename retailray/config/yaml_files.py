"""YAML that is read with care: no key twice, and no aliases that multiply."""

import itertools
from collections.abc import Hashable

import yaml

MOST_VALUES = 100_000  # of a config file


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that raises an error for a duplicate key; PyYAML would silently ignore the first value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.YAMLError(f"{key!r} is given twice, in lines {seen[key]} and {line}")
            if isinstance(key, str):
                seen[key] = line
        return super().construct_mapping(node, deep)


def load_yaml(data: bytes) -> object:
    loader = _UniqueKeys(data)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (number := _num_values(node, {})) > MOST_VALUES:
            raise yaml.YAMLError(f"{number} values after expanding aliases (*name); the limit is {MOST_VALUES}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds when its aliases are written out. Raises YAMLError where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise yaml.YAMLError("an alias (*name) refers to a value that contains it")
    if id(node) not in known:
        known[id(node)] = 0  # until it is counted
        pairs = isinstance(node, yaml.MappingNode)
        inside = itertools.chain.from_iterable(node.value) if pairs else node.value
        known[id(node)] = 1 + sum(_num_values(one, known) for one in inside)
    return known[id(node)]
