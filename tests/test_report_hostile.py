"""Whatever models, records, paths and libraries are called, the report shows it and obeys none."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from auditor.finished import Finished, read_finished
from auditor.report.markdown import render_markdown
from auditor.report.page import render_page
from auditor.report.plots import draw
from auditor.results import AuditResult
from tests.page_reading import Read, read
from tests.report_cases import invented_run
from tests.report_parts import HOSTILE

# Fields of audit.json that hold text from outside, or sentences that name such text.
FREE = {
    "absent",
    "advice",
    "canonical",
    "checkpoint",
    "code",
    "file",
    "kind",
    "library",
    "message",
    "method",
    "model_type",
    "module",
    "name",
    "reason",
    "source",
}
# The same where every item or value is one, anywhere or at the top.
ALL_FREE = {"left_out", "notes", "repairs", "tokens"}
TOP_FREE = {"attacks_left_out", "environment", "versions"}
# Of these fields the schema says which words there are.
CHOSEN = {
    ("artifacts", "kind"),
    ("controls", "name"),
    ("epsilon", "method"),
    ("records", "source"),
}
# What the audit says in words of its own, or in hashes.
TAME = {
    "against",
    "against_versions",
    "attack",
    "attacks",
    "chosen",
    "dtype",
    "family",
    "ids",
    "kind",
    "learner",
    "left_out_ids",
    "method",
    "metric",
    "name",
    "primary_attack",
    "question",
    "record_id",
    "record_ids",
    "schema_version",
    "search",
    "setting",
    "severity",
    "sha256",
    "source",
    "started_at",
    "status",
    "supervision",
    "tokenizer_sha256",
    "variant",
    "version",
    "versions",
}
VARIANT = "bnb-nf4"
BITS = (
    *HOSTILE,
    "</style><style>*{display:none}</style>",
    "</textarea></table></details>",
    "<!--",
    "]]>",
    "' onmouseover='alert(1)",
    '" style="background:url(//evil.example)',
    "\u0085\u2029\u2066\ufeff\u00ad",
    "\\|\\\\",
    "![x](//evil.example/x.png)",
    "<https://evil.example>",
    "\n\n    code\n\n---\n",
)
LETTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.lists(
    st.lists(
        st.one_of(st.sampled_from(BITS), st.text(LETTERS, max_size=6)), min_size=1, max_size=4
    ).map("".join),
    min_size=3,
    max_size=9,
)
MARKDOWN_KINDS = {"html_block", "html_inline", "link_open", "em_open", "hr"}
# Controls, and marks that turn the direction of what is read.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# A failing example costs a page each: it is shown as it was found, and not made smaller.
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.fixture(scope="module")
def tame(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("tame") / "run"
    return read_finished(invented_run(folder, n=120, n_variants=2, warned=True, include_text=True))


@pytest.fixture(scope="module")
def tame_page(tame: Finished) -> Read:
    return read(render_page(tame, draw(tame)))


def poisoned(tame: Finished, texts: list[str]) -> Finished:
    """The same audit with hostile text in every field that can hold it."""
    supply = cycle(texts)
    variant = f"{VARIANT}:{texts[0]}"
    dump = tame.result.model_dump(mode="json")
    config = dump.pop("config")
    found = _poisoned(dump, supply, variant, ())
    config |= {"model": next(supply) or "m", "members": {"path": next(supply) or "p"}}
    result = AuditResult.model_validate({**found, "config": config})
    signals = {_named(name, variant): values for name, values in tame.signals.items()}
    return replace(tame, result=result, signals=signals)


def _poisoned(value: Any, supply: Iterator[str], variant: str, place: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {
            _named(key, variant): _poisoned(item, supply, variant, (*place, key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_poisoned(item, supply, variant, place) for item in value]
    if not isinstance(value, str):
        return value
    field = place[-1] if place else ""
    is_chosen = any((above, field) in CHOSEN for above in place)
    is_free = field in FREE or bool(ALL_FREE & {*place[-2:]}) or bool(TOP_FREE & {*place[:1]})
    return f"{value} {next(supply)}" if is_free and not is_chosen else _named(value, variant)


def _named(name: str, variant: str) -> str:
    return variant if name == VARIANT else name


def test_every_field_of_free_text_is_poisoned(tame: Finished) -> None:
    """What stays tame is known: a field that the schema gets later must be thought of here."""
    left: set[str] = set()

    def walk(value: Any, field: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, key)
        elif isinstance(value, list):
            for item in value:
                walk(item, field)
        elif isinstance(value, str) and "POISON" not in value:
            left.add(field)

    result = poisoned(tame, ["POISON"] * 3).result
    # Folders that the audit named itself, and that no report shows.
    walk(result.model_dump(mode="json", exclude={"config", "stored"}), "")
    assert left <= TAME


def test_the_page_shows_it_and_obeys_nothing(tame: Finished, tame_page: Read) -> None:
    tags = {one.tag for one in tame_page.elements}
    attributes = {name for one in tame_page.elements for name in one.attributes}

    def count(page: Read, tag: str) -> int:
        return sum("svg" not in one.parents for one in page.of(tag))

    @settings(max_examples=6, deadline=None, phases=WITHOUT_SHRINKING, derandomize=True)
    @given(texts=TEXTS)
    def check(texts: list[str]) -> None:
        finished = poisoned(tame, texts)
        page = render_page(finished, draw(finished))
        seen = read(page)
        assert {one.tag for one in seen.elements} <= tags
        for tag in ("script", "style", "title", "section", "table", "figure", "details", "meta"):
            assert count(seen, tag) == count(tame_page, tag), tag
        for one in seen.elements:
            assert set(one.attributes) <= attributes, (one.tag, one.attributes)
            assert (one.attributes.get("href") or "#").startswith(("#", "data:,"))
            assert "evil" not in (one.attributes.get("style") or "")
        assert "<!--" not in page
        assert not OBEYED.search(page)

    check()


def test_markdown_shows_it_and_obeys_nothing(tame: Finished) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    structure = (
        "fence",
        "blockquote_open",
        "heading_open",
        "table_open",
        "tr_open",
        "th_open",
        "image",
    )

    def tally(finished: Finished) -> dict[str, int]:
        text = render_markdown(finished)
        assert not OBEYED.search(text)
        tokens = parser.parse(text)
        every = [*tokens, *(child for token in tokens for child in token.children or [])]
        kinds = [token.type for token in every]
        assert not set(kinds) & MARKDOWN_KINDS
        return {kind: kinds.count(kind) for kind in structure}

    @settings(max_examples=20, deadline=None, phases=WITHOUT_SHRINKING, derandomize=True)
    @given(texts=TEXTS)
    def check(texts: list[str]) -> None:
        assert tally(poisoned(tame, texts)) == tally(tame)

    check()
