"""YAML of a size that can be held: a page of it can stand for more values than any memory has.

An alias (`*name`) stands for all that its anchor names, so that nine lines of nine aliases each are
a billion values to whoever walks through them, or through their text. What refers to itself has no
end at all.
"""

from typing import Any

import yaml

# Values that a document may stand for, aliases written out, and how deep they may be nested.
MOST_VALUES = 20_000
DEEPEST = 50
TOO_DEEP = f"it is nested more than {DEEPEST} deep, or refers to itself"
# Whatever a document provokes in the library: numbers of too many digits, dates that do not exist.
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError)


class Loader(yaml.SafeLoader):
    """Plain values alone, no deeper than allowed: the library takes the square of the depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """See `yaml.composer.Composer`."""
        if self._depth > DEEPEST:
            raise yaml.YAMLError(TOO_DEEP)
        self._depth += 1
        found: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return found


def compose(loader: Loader) -> yaml.Node | None:
    """The one document as nodes; None where there is nothing in it.

    Raises:
        YAML_ERRORS: It is no YAML, stands for too many values, or is nested too deeply.
    """
    root: yaml.Node | None = loader.get_single_node()
    if root is not None:
        _count(root, {}, 1)
    return root


def load(text: str) -> Any:  # noqa: ANN401 - whatever YAML holds
    """The values of a document, plain ones alone; errors as in `compose`."""
    loader = Loader(text)
    try:
        root = compose(loader)
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values that a node stands for, aliases written out."""
    found = known.get(id(node))
    if found is None:
        if depth > DEEPEST:
            raise yaml.YAMLError(TOO_DEEP)
        found = 1 + sum(_count(part, known, depth + 1) for part in _parts(node))
        known[id(node)] = found
    if found > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values")
    return found


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
