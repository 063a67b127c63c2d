"""Where YAML values stand in their text, and values as YAML text."""

from typing import Any

import yaml


def as_yaml(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    """A value as block YAML in its own order, one line a scalar, ending in a line feed."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text


def colon_end(text: str, key: yaml.Node) -> int:
    """Where a mapping's key ends, colon included."""
    return text.index(":", key.end_mark.index) + 1


def content_end(text: str, node: yaml.Node) -> int:
    """Where a value ends, without the comments and blank lines that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return max(
            content_end(text, part) for part in (last if isinstance(last, tuple) else [last])
        )
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())


def tree(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    """A value as text that is equal where values and their kinds are equal, NaN too."""
    if isinstance(value, dict):
        parts = sorted(f"{tree(key)}: {tree(item)}" for key, item in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(tree, value)) + "]"
    return f"{type(value).__name__} {value!r}"
