"""The report in Markdown, read by a Markdown parser: hostile text comes out as text."""

import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from auditor.compress.receipt import Receipt
from auditor.finished import Finished, read_finished
from auditor.report.answer import answer
from auditor.report.command import repeat_command
from auditor.report.figures import justified, p_value
from auditor.report.markdown import MOST_LETTERS, escape, fenced, render_markdown
from auditor.report.plain import printable
from auditor.report.plots import draw, files
from auditor.results import AuditResult, Warned
from tests.report_cases import invented_run

JOINER = "\u2060"
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    '"><img src=x onerror=alert(1)>',
    "--> <!-- compleak-llm:end -->",
    "```\ncode",
    "`a` ``b``",
    "[x](https://evil.example) ![y](z)",
    "https://evil.example www.evil.example <https://evil.example> me@evil.example",
    "@org/team fixes #12",
    "=cmd()|' /C calc'!A0",
    "\u202egnp.exe\x1b[31m\x00\u2028",
    "**a** __b__ ~~c~~ *d* _e_ $x$",
    "# h",
    "- x",
    "+ x",
    "1. x",
    "1)",
    "---",
    "===",
    ":-:",
    "> q",
    "&lt;b&gt; &#60;",
    "\\",
    "a\\",
    "\\| b",
    "    four",
    "[a]: b",
    "[!NOTE]",
    "",
]


def parser() -> MarkdownIt:
    """GitHub's Markdown: tables, strikethrough, HTML, and links that are made of addresses."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def inline(tokens: list[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or []]


def kinds(tokens: list[Token]) -> set[str]:
    return {token.type for token in [*tokens, *inline(tokens)]}


def text_of(token: Token) -> str:
    return "".join(child.content for child in token.children or []).translate(
        {ord(JOINER): "", 0xA0: " "}
    )


def rows(tokens: list[Token]) -> list[list[list[str]]]:
    """Every table as rows of cells' texts."""
    tables: list[list[list[str]]] = []
    for before, token in pairwise([*tokens[:1], *tokens]):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif before.type in ("td_open", "th_open"):
            tables[-1][-1].append(text_of(token))
    return tables


anything = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=20),
    st.text("`*_<>[]()|#-+=:.!&~\\ \n1a@", max_size=9),
)


def only_text(tokens: list[Token]) -> bool:
    return {child.type for child in inline(tokens)} <= {"text", "text_special"}


@settings(max_examples=300, deadline=None)
@given(text=anything)
@example(text="a\n---")
def test_escaped_text_is_the_text_wherever_it_stands(text: str) -> None:
    wanted = printable(text).strip()
    escaped = escape(text)
    for line, kind in (
        (f"| {escaped} | x |\n| :-- | --: |\n| x | {escaped} |", "th"),
        (f"- {escaped}", "li"),
        (f"> [!WARNING]\n> {escaped}", "blockquote"),
        (f"para\n\n{escaped}\n\nnext", "p"),
        (f"# {escaped}", "h1"),
        (f"**{escaped}x**", "strong"),
    ):
        tokens = parser().parse(line)
        found = [text_of(token) for token in tokens if token.type == "inline"]
        tags = kinds(tokens)
        assert not tags & {
            "html_block",
            "html_inline",
            "link_open",
            "image",
            "code_inline",
            "fence",
        }
        assert not tags & {"code_block", "hr", "s_open", "em_open", "hardbreak"}
        if kind == "th":
            cells = [cell for row in rows(tokens)[0] for cell in row]
            assert [cell.strip() for cell in cells] == [wanted, "x", "x", wanted]
        elif kind == "blockquote":
            assert found == [f"[!WARNING]{wanted}"] or wanted == ""
            assert "table_open" not in tags
        elif kind == "strong":
            assert found == [f"{wanted}x"]
        elif wanted:
            assert wanted in found
        assert (kind in ("strong",)) or "strong_open" not in tags


def test_nobody_is_called_and_no_address_is_linked() -> None:
    linking = MarkdownIt("gfm-like", {"linkify": False}).parse(escape("https://a.example"))
    assert "link_open" not in kinds(linking)
    assert escape("see https://a.example") == "see https\\://a.example"
    assert escape("WWW.a.example") == "WWW\\.a.example"
    assert escape("@org #12") == f"@{JOINER}org \\#{JOINER}12"
    assert escape("prune-magnitude:sparsity=0.5") == "prune-magnitude:sparsity=0.5"
    assert escape("0.944") == "0.944"


@settings(max_examples=100, deadline=None)
@given(command=st.one_of(anything, st.text("`~\n a", max_size=12)))
def test_no_command_leaves_its_block(command: str) -> None:
    tokens = parser().parse(f"{fenced(command)}\n\nafter\n")
    assert [token.type for token in tokens] == [
        "fence",
        "paragraph_open",
        "inline",
        "paragraph_close",
    ]
    assert tokens[2].content == "after"
    assert tokens[0].content.rstrip("\n").replace("\ufffd", "") == "".join(
        letter for letter in command if letter == "\n" or letter.isprintable()
    ).rstrip("\n")


# --- the whole report


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return read_finished(invented_run(tmp_path_factory.mktemp("plain") / "run", n=240))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    return read_finished(invented_run(folder, n=240, n_variants=12, hostile=True, warned=True))


def changed(finished: Finished, **update: Any) -> Finished:
    values = {name: getattr(finished, name) for name in Finished.__dataclass_fields__}
    return Finished(**{**values, "result": finished.result.model_copy(update=update)})


def test_what_must_be_known_and_the_answer_come_first(plain: Finished) -> None:
    warned = Warned(code="limited", message="Only the first 10 were read.", severity="warning")
    severe = Warned(code="apart", message="The lists differ.", severity="severe")
    finished = changed(plain, warnings=[severe, warned])
    text = render_markdown(finished)
    found = answer(finished.result)
    marks = [
        "> [!CAUTION]\n> The lists differ.",
        "> [!WARNING]\n> Only the first 10 were read.",
        f"**{escape(found.headline)}**",
        *(escape(sentence) for sentence in found.sentences),
        "## Each version alone",
        "![Leakage against utility](figures/release.png)",
        "![ROC curves](figures/roc.png)",
        "![Differences to the original](figures/forest.png)",
        "## Several versions held together",
        "Exposed records:",
        "## What to publish together",
        "## Receipts of the variants",
        "## How it was done",
        "```sh\ncompleak-llm audit",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert repeat_command(finished.result) in text
    assert text.endswith("```\n")
    assert not text.count("\n\n\n")
    leakage = finished.result.leakage
    assert leakage is not None
    assert leakage.releases is not None
    assert text.count(escape(leakage.releases.advice)) == 1


def test_its_tables_hold_the_figures(plain: Finished) -> None:
    result = plain.result
    versions, attackers, sets, receipts, data = rows(parser().parse(render_markdown(plain)))
    assert [row[0] for row in versions[1:]] == [one.variant for one in result.variants]
    tests = {x.variant: x for x in result.comparisons if x.family == "primary"}
    for row, one in zip(versions[1:], result.variants, strict=True):
        auc = one.attacks[result.primary_attack].auc
        assert " ".join(justified(auc)) in row
        if one.variant in tests:
            assert " ".join(justified(tests[one.variant].difference, signed=True)) in row
            assert row[-1].rstrip(" *") == p_value(tests[one.variant].p_adjusted)
    assert result.leakage is not None
    beyond = [x for x in result.leakage.settings if x.supervision != "none" and x.setting != "NR"]
    assert len(attackers) - 1 == len(beyond)
    for row, setting in zip(attackers[1:], beyond, strict=True):
        assert row[0] == setting.setting
        assert " ".join(justified(setting.figures.auc)) in row
        assert ("with the reference" in row[1]) == setting.with_reference
    assert sets[1][0] == f"all {len(result.variants)} versions"
    assert [row[0] for row in receipts[1:]] == [row[0] for row in versions[1:]]
    assert data[2] == ["Audited", "120", "120"]


def test_it_links_the_figures_that_are_written(plain: Finished, tmp_path: Path) -> None:
    alone = invented_run(tmp_path / "run", n=120, n_variants=0, reference=False, beyond=False)
    for finished in (plain, read_finished(alone)):
        linked = re.findall(r"\]\(figures/(\w+\.png)\)", render_markdown(finished))
        written = [name for name in files(draw(finished)) if re.fullmatch(r"[a-z]+\.png", name)]
        assert sorted(linked) == sorted(written)


def test_hostile_text_comes_out_as_text(hostile: Finished) -> None:
    text = render_markdown(hostile)
    tokens = parser().parse(text)
    found = kinds(tokens)
    assert not found & {"html_block", "html_inline", "link_open", "code_inline", "hr", "em_open"}
    assert {token.type for token in tokens if token.type.startswith("h")} == {
        "heading_open",
        "heading_close",
    }
    images = [child.attrs["src"] for child in inline(tokens) if child.type == "image"]
    assert set(images) <= {f"figures/{name}.png" for name in ("roc", "forest", "release")}
    for table in rows(tokens):
        assert len({len(row) for row in table}) == 1
    assert sum(token.type == "fence" for token in tokens) == 1
    # What it was called stands there.
    seen = "\n".join(text_of(token) for token in tokens if token.type == "inline")
    for one in hostile.result.variants:
        assert printable(one.variant) in seen
    assert "<script>" in seen
    assert not {unicodedata.category(letter) for letter in text} & {"Cs", "Cn", "Zl", "Zp"}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_it_fits_into_a_comment(hostile: Finished) -> None:
    assert len(render_markdown(hostile)) < MOST_LETTERS
    # Names as long as paths may be: what is long is shortened, and whole parts are left out.
    variants = hostile.result.variants[1:]
    long = {one.variant: f"checkpoint:/{'d|' * 2000}{i}" for i, one in enumerate(variants)}
    text = hostile.result.model_dump_json()
    for name, longer in long.items():
        text = text.replace(json.dumps(name, ensure_ascii=False), json.dumps(longer))
    finished = changed(hostile, **dict(AuditResult.model_validate_json(text)))
    rendered = render_markdown(finished)
    assert len(rendered) <= MOST_LETTERS
    assert "Left out for want of room: receipts" in rendered


def test_the_same_audit_gives_the_same_bytes(plain: Finished) -> None:
    again = read_finished(plain.folder)
    assert render_markdown(again) == render_markdown(plain)


def test_little_is_enough(tmp_path: Path) -> None:
    """One version, no reference, nothing together, no receipt, no blind baseline."""
    folder = invented_run(tmp_path / "run", n=120, n_variants=0, reference=False, beyond=False)
    finished = read_finished(folder)
    receipt: Receipt | None = None
    bare = finished.result.variants[0].model_copy(update={"receipt": receipt, "perplexity": None})
    text = render_markdown(changed(finished, variants=[bare], blind=None))
    for part in ("Several versions", "What to publish", "forest.png", "Exposed"):
        assert part not in text
    assert "Only the original was audited" in text
    assert "None" not in text
    assert "nan" not in text.replace("finance", "")
