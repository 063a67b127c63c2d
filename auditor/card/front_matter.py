"""The YAML on top of a README: a few keys are set, every other byte stays.

huggingface_hub writes the whole block anew and loses comments and flow style with it. Here YAML is
only asked where a value begins and ends; the text between is replaced, and the result is read
again and compared before it is used.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from auditor.bounded_yaml import YAML_ERRORS, Loader, compose
from auditor.card.entries import Entries, replaced_entries
from auditor.card.readme import BOM, CardError, front_matter, lines_of, newline_of, usual_newline
from auditor.card.yaml_text import as_yaml, colon_end, content_end, tree

MODEL_INDEX = "model-index"


def read_keys(path: Path, text: str) -> dict[str, Any]:
    """The front matter's keys and values; empty where there is none.

    Args:
        path: The README, for errors.
        text: Its text.

    Raises:
        CardError: It is not closed, not YAML, no mapping, or holds a key twice.
    """
    lines = lines_of(text)
    found = front_matter(path, lines)
    if found is None:
        return {}
    block = "".join(lines[found.first : found.last])
    return _parsed(path, block).values


def with_keys(path: Path, text: str, keys: dict[str, str], entries: Entries | None = None) -> str:
    """The README with keys of its front matter set; one is added on top where there is none.

    Args:
        path: The README, for errors.
        text: Its text.
        keys: Values of top-level keys, strings; a key that holds its value already, by itself or
            as the only one of a list, stays as it is written.
        entries: What `model-index` must hold; left out, it stays as it is.

    Raises:
        CardError: As for `read_keys`, or the block is written in a way that cannot be edited
            without touching the rest of it.
    """
    lines = lines_of(text)
    found = front_matter(path, lines)
    if found is None:
        newline = usual_newline(lines)
        mark = BOM if text.startswith(BOM) else ""
        body = text.removeprefix(BOM)
        top, block = f"{mark}---{newline}", ""
        rest = f"---{newline}" + (newline + body if body else "")
    else:
        newline = newline_of(lines[found.first - 1])
        top, block = "".join(lines[: found.first]), "".join(lines[found.first : found.last])
        rest = "".join(lines[found.last :])
    before = _parsed(path, block).values
    wanted: dict[str, Any] = {}
    for key, value in keys.items():
        if before.get(key) not in (value, [value]):
            wanted[key] = value
            block = _set(path, block, key, as_yaml({key: value}), newline)
    if entries is not None:
        wanted[MODEL_INDEX] = entries.after
        if before.get(MODEL_INDEX) != entries.after:
            block = _with_entries(path, block, entries, newline)
    _must_be_as_wanted(path, block, before, wanted)
    return top + block + rest


def _with_entries(path: Path, block: str, entries: Entries, newline: str) -> str:
    """`model-index` with its entries replaced in place, or written anew where that cannot be."""
    whole = as_yaml({MODEL_INDEX: entries.after})
    nodes = _parsed(path, block).nodes
    if MODEL_INDEX in nodes:
        edited = replaced_entries(block, nodes[MODEL_INDEX][1], entries, newline)
        if edited is not None:
            try:
                if _parsed(path, edited).values.get(MODEL_INDEX) == entries.after:
                    return edited
            except CardError:
                pass
    return _set(path, block, MODEL_INDEX, whole, newline)


def _set(path: Path, block: str, key: str, written: str, newline: str) -> str:
    """The block with one key written as given, in its place or at the end."""
    nodes = _parsed(path, block).nodes
    column = min((node.start_mark.column for node, _ in nodes.values()), default=0)
    lines = [" " * column + line for line in written.rstrip("\n").split("\n")]
    if key not in nodes:
        if block and not newline_of(lines_of(block)[-1]):
            block += newline
        return block + newline.join(lines) + newline
    key_node, value = nodes[key]
    start = colon_end(block, key_node)
    end = max(start, content_end(block, value))
    after = lines[0].partition(":")[2]
    if value.start_mark.index >= start and "\n" not in block[start:end] and len(lines) == 1:
        # A comment behind the value stays where it is.
        return block[:start] + after + block[end:]
    return block[:start] + newline.join([after, *lines[1:]]) + block[end:]


class _Parsed(NamedTuple):
    """A front matter that was read.

    Attributes:
        nodes: Key and value of every top-level key, with their places in the text.
        values: The same as values.
    """

    nodes: dict[str, tuple[yaml.Node, yaml.Node]]
    values: dict[str, Any]


def _parsed(path: Path, block: str) -> _Parsed:
    """Read a front matter.

    Raises:
        CardError: It is not YAML, no mapping in block style, or holds a key twice.
    """
    try:
        loader = Loader(block)
        root = compose(loader)
        if root is None:
            return _Parsed({}, {})
        _must_not_repeat(path, root, set())
        values = loader.construct_document(root)
    except YAML_ERRORS as error:
        raise CardError(
            f"the front matter of {path} must be YAML",
            seen=" ".join(str(error).split())[:200],
            fix="mend it, or leave --model-index and --variant out: the section alone needs no "
            "front matter",
        ) from error
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        seen = "a flow mapping, {...}" if isinstance(root, yaml.MappingNode) else "something else"
        raise CardError(
            f"the front matter of {path} must be keys and values, one below the other",
            seen=seen,
            fix="write it as lines of `key: value`",
        )
    return _Parsed({str(key.value): (key, value) for key, value in root.value}, values)


def _must_not_repeat(path: Path, node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _must_not_repeat(path, item, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names and key.value != "<<":
                    raise CardError(
                        f"every key in the front matter of {path} must stand there once",
                        seen=f"{key.value!r} again in line {key.start_mark.line + 1} of it",
                        fix="take one of the two out",
                    )
                names.add(key.value)
            _must_not_repeat(path, value, seen)


def _must_be_as_wanted(
    path: Path, block: str, before: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """What was edited must read as before but for what was set."""
    try:
        after = _parsed(path, block).values
    except CardError:
        after = {}
    if tree({**before, **wanted}) != tree(after):
        raise CardError(
            f"the front matter of {path} must be such that {', '.join(wanted)} can be set without "
            "touching the rest",
            seen="other keys refer to these by an anchor, or are written in an unusual way",
            fix="write them out as plain `key: value` lines",
        )
