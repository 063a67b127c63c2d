"""Keys of a README's front matter are set as text; every other byte of it stays."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from auditor.card.entries import Entries
from auditor.card.front_matter import read_keys, with_keys
from auditor.card.readme import BOM, CardError

PATH = Path("README.md")
BASE = {"base_model": "org/name"}
OTHER = {
    "task": {"type": "text-generation"},
    "dataset": {"type": "d", "name": "D"},
    "metrics": [{"type": "accuracy", "value": 0.5}],
}


def result(value: float) -> dict[str, Any]:
    """A result that is ours."""
    metrics = [{"type": "auc", "value": value, "args": {"tool": "compleak-llm"}}]
    return {**OTHER, "metrics": metrics}


def entries(after: list[dict[str, Any]], ours: list[dict[str, Any]], old: list[int]) -> Entries:
    return Entries(after=[{"name": "m", "results": after}], ours=ours, old=old)


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-99, 99),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(["org/name", "- x", "a: b", "#", "---", "'", "yes", "2024-01-01", "|"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["license", "tags", "base_model", "model-index", "x", "language", "datasets"]
)


@st.composite
def blocks(draw: st.DrawFn) -> str:
    """A front matter as somebody's tool or hand might have written it."""
    parts = []
    for key, value in draw(st.dictionaries(KEYS, VALUES, max_size=5)).items():
        parts += draw(st.lists(st.sampled_from(["# a comment", "", "  # indented"]), max_size=1))
        style = draw(st.sampled_from([None, True, False]))
        text = yaml.safe_dump({key: value}, default_flow_style=style, allow_unicode=True)
        text = text.rstrip("\n")
        # A mapping in flow style would be the whole block; only its value may be.
        parts.append(text if not text.startswith("{") else f"{key}: {text}")
        if draw(st.booleans()) and "\n" not in text and text[-1] not in "|>":
            parts[-1] += "  # why"
    return "".join(f"{part}\n" for part in parts)


@settings(max_examples=70, deadline=None)
@example(block="base_model:\n- a/b  # first\n# a comment\nx: 1\n", newline="\n")
@example(block="base_model: 'a/b' # why\n", newline="\r\n")
@example(block="base_model:\n", newline="\n")
@given(block=blocks(), newline=st.sampled_from(["\n", "\r\n"]))
def test_a_key_is_set_and_all_else_stays(block: str, newline: str) -> None:
    assume("\n---\n" not in f"\n{block}")
    text = f"---\n{block}---\n\n# T\n".replace("\n", newline)
    before = read_keys(PATH, text)
    changed = with_keys(PATH, text, BASE)
    assert changed.endswith("---\n\n# T\n".replace("\n", newline))
    kept = ["org/name"] if before.get("base_model") == ["org/name"] else "org/name"
    assert repr(read_keys(PATH, changed)) == repr({**before, "base_model": kept})
    assert with_keys(PATH, changed, BASE) == changed
    if "base_model" not in before:
        assert changed.replace(f"base_model: org/name{newline}", "") == text
    # Every line that is none of the key's is there as it was, in its order.
    lines = [line for line in text.split(newline) if line.startswith(("#", "license", "x:"))]
    assert [line for line in changed.split(newline) if line in lines] == lines


@settings(max_examples=40, deadline=None)
@given(block=blocks(), newline=st.sampled_from(["\n", "\r\n"]))
def test_entries_are_added_to_any_front_matter(block: str, newline: str) -> None:
    assume("\n---\n" not in f"\n{block}" and "model-index" not in block)
    text = f"---\n{block}---\n".replace("\n", newline)
    first = entries([result(0.7)], [result(0.7)], [])
    added = with_keys(PATH, text, {}, first)
    assert added.startswith(text[: -len(f"---{newline}")])
    assert read_keys(PATH, added)["model-index"] == first.after
    again = entries([result(0.8)], [result(0.8)], [0])
    renewed = with_keys(PATH, added, {}, again)
    assert renewed == added.replace("0.7", "0.8")
    assert with_keys(PATH, renewed, {}, again) == renewed


WRITTEN = """---
license: mit  # ours
tags: [a, "b", 'c']
model-index:
# what others found
- name: m  # the name
  results:
    # first
    - task: {type: text-generation}
      dataset:
        type: d
        name: 'D'
      metrics: [{type: accuracy, value: 0.5}]
    # second
    - task: {type: text-generation}
      dataset: {type: d, name: "D"}
      metrics:
      - {type: accuracy, value: 0.5}
language:
- en   # of course
---
# T
"""


def test_entries_of_others_keep_their_text() -> None:
    first = entries([OTHER, OTHER, result(0.7)], [result(0.7)], [])
    added = with_keys(PATH, WRITTEN, {}, first)
    assert read_keys(PATH, added)["model-index"] == first.after
    head, tail = WRITTEN.split("language:")
    assert added.startswith(head)
    assert added.endswith(f"language:{tail}")
    assert (
        with_keys(PATH, added, {}, entries(first.after[0]["results"], [result(0.7)], [2])) == added
    )
    new = entries([OTHER, OTHER, result(0.1)], [result(0.1)], [2])
    assert with_keys(PATH, added, {}, new) == added.replace("0.7", "0.1")


def test_old_entries_go_from_between_those_of_others() -> None:
    ours = (
        "    - task: {type: text-generation}\n      dataset: {type: d, name: D}\n      metrics:\n"
    )
    ours += "      - {type: auc, value: 0.7, args: {tool: compleak-llm}}\n"
    text = WRITTEN.replace("    # second\n", f"{ours}    # second\n")
    new = entries([OTHER, result(0.9), OTHER], [result(0.9)], [1])
    changed = with_keys(PATH, text, {}, new)
    assert read_keys(PATH, changed)["model-index"] == new.after
    before, after = text.split(ours)
    assert changed.startswith(before)
    assert changed.endswith(after)


@pytest.mark.parametrize(
    "written",
    [
        "model-index: [{name: m, results: [{task: {type: text-generation}, dataset: {type: d, "
        "name: D}, metrics: [{type: accuracy, value: 0.5}]}]}]\n",
        "model-index:\n- name: m\n  results: []\n",
        "model-index:\n  - {name: m, results: []}\n",
        "model-index:\n",
        "model-index: []  # none yet\n",
    ],
)
def test_what_is_written_otherwise_is_written_anew(written: str) -> None:
    text = f"---\na: 1  # one\n{written}z: [1,2]\n---\n"
    kept = [OTHER] if "accuracy" in written else []
    new = entries([*kept, result(0.9)], [result(0.9)], [])
    changed = with_keys(PATH, text, {}, new)
    assert read_keys(PATH, changed) == {"a": 1, "model-index": new.after, "z": [1, 2]}
    assert changed.startswith("---\na: 1  # one\n")
    assert changed.endswith("z: [1,2]\n---\n")
    assert with_keys(PATH, changed, {}, new) == changed


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "---\n{k}\n---\n"),
        ("# T\r\n", "---\r\n{k}\r\n---\r\n\r\n# T\r\n"),
        (f"{BOM}# T\n", f"{BOM}---\n{{k}}\n---\n\n# T\n"),
        (f"{BOM}---\na: 1\n---\n", f"{BOM}---\na: 1\n{{k}}\n---\n"),
        ("---\n---\n", "---\n{k}\n---\n"),
        ("---\n# none\n---", "---\n# none\n{k}\n---"),
        ("---\n  a: 1\n  b: 2\n---\n", "---\n  a: 1\n  b: 2\n  {k}\n---\n"),
        ("---\na: |\n  text\n\n---\n", "---\na: |\n  text\n\n{k}\n---\n"),
        ("---\nbase_model: |\n  x\n\n# c\na: 1\n---\n", "---\n{k}\n\n# c\na: 1\n---\n"),
        ("---\nbase_model: &b x  # c\n---\n", "---\n{k}  # c\n---\n"),
        ('---\n"base_model":   [a/b,\n  c/d]   # c\nz: 1\n---\n', None),
    ],
)
def test_where_a_key_goes(text: str, wanted: str | None) -> None:
    changed = with_keys(PATH, text, BASE)
    if wanted is None:
        wanted = '---\n"base_model": org/name   # c\nz: 1\n---\n'
    assert changed == wanted.replace("{k}", "base_model: org/name")
    assert with_keys(PATH, changed, BASE) == changed


@pytest.mark.parametrize("written", ["base_model: org/name # c\n", "base_model:\n- org/name\n"])
def test_a_key_that_says_so_already_is_left_alone(written: str) -> None:
    assert with_keys(PATH, f"---\n{written}---\n", BASE) == f"---\n{written}---\n"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("---\na: 1\n", "line 1 opens it"),
        ("\n---\n# T\n", "line 2 opens it"),
        ("---\na: [1\n---\n", "must be YAML"),
        ("---\na: !!python/object:os.system x\n---\n", "must be YAML"),
        ("---\na: 1\na: 2\n---\n", "'a' again in line 2"),
        ("---\na: {b: 1, b: 2}\n---\n", "'b' again"),
        ("---\n- a\n---\n", "keys and values"),
        ("---\n{a: 1}\n---\n", "flow mapping"),
        ("---\na: 1\n...\nb\n---\n", "must be YAML"),
        ("---\nbase_model: &x b\ny: *x\n---\n", "such that base_model can be set"),
        ("---\na: \x00\n---\n", "must be YAML"),
    ],
)
def test_what_cannot_be_edited(text: str, seen: str) -> None:
    with pytest.raises(CardError) as caught:
        with_keys(PATH, text, BASE)
    assert seen in str(caught.value)
