"""The entries of `model-index`: ours are taken out and put in as text, those of others stay."""

from typing import Any, NamedTuple

import yaml

from auditor.card.yaml_text import as_yaml, content_end


class Entries(NamedTuple):
    """What a `model-index` must hold.

    Attributes:
        after: Its whole value, as `huggingface_hub` reads it.
        ours: The results among them that this audit gives.
        old: Which of the results that stand there now are ours and go, by their place.
    """

    after: list[dict[str, Any]]
    ours: list[dict[str, Any]]
    old: list[int]


def replaced_entries(text: str, node: yaml.Node, entries: Entries, newline: str) -> str | None:
    """The front matter with our results replaced among those of others.

    New ones stand where the first of the old ones stood, or behind all others.

    Args:
        text: The front matter.
        node: The value of its `model-index`.
        entries: What it must hold.
        newline: What ends a line.

    Returns:
        None where the results are not written one below the other; the caller reads what is
        returned again before it is used.
    """
    results = _results(node)
    if results is None:
        return None
    dashes = [_dash(text, item) for item in results.value]
    if None in dashes:
        return None
    spans = []
    for dash, item in zip(dashes, results.value, strict=True):
        assert dash is not None
        end = content_end(text, item)
        spans.append((dash, _line_end(text, end)))
    column = results.start_mark.column
    lines = as_yaml(entries.ours).rstrip("\n").split("\n") if entries.ours else []
    new = "".join(" " * column + line + newline for line in lines)
    at = spans[entries.old[0]][0] if entries.old else spans[-1][1]
    if at and text[at - 1] not in "\r\n":
        new = newline + new
    edited, place = [], 0
    for index, (start, end) in enumerate(spans):
        edited.append(text[place:start])
        if start == at:
            edited.append(new)
        edited.append("" if index in entries.old else text[start:end])
        place = end
    if at == spans[-1][1]:
        edited.append(new)
    return "".join([*edited, text[place:]])


def _results(node: yaml.Node) -> yaml.SequenceNode | None:
    """The `results` of the one model, where they are a block sequence."""
    if not (isinstance(node, yaml.SequenceNode) and len(node.value) == 1):
        return None
    model = node.value[0]
    if not isinstance(model, yaml.MappingNode) or model.flow_style or node.flow_style:
        return None
    for key, value in model.value:
        if key.value == "results" and isinstance(value, yaml.SequenceNode):
            return None if value.flow_style or not value.value else value
    return None


def _dash(text: str, item: yaml.Node) -> int | None:
    """Where the line of an item's dash begins; None where it is not alone before the item."""
    start = item.start_mark.index
    begin = start - item.start_mark.column
    return begin if text[begin:start].strip() == "-" else None


def _line_end(text: str, at: int) -> int:
    """Where the line ends that `at` stands in, its end included."""
    while at < len(text) and text[at] not in "\r\n":
        at += 1
    if text.startswith("\r\n", at):
        return at + 2
    return min(at + 1, len(text))
