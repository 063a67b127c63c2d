"""The privacy section of a model card, from a finished audit to the bytes of the README."""

import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from auditor.card import CardError, CardWritten, write_card
from auditor.card.attackers import together
from auditor.card.metadata import figures
from auditor.card.push import PushError
from auditor.card.readme import BEGIN, END
from auditor.card.verdict import of_variant
from auditor.errors import ConfigError, StoreError
from auditor.finished import read_result
from auditor.report.answer import answer
from auditor.report.claims import read_claims
from auditor.report.figures import justified
from auditor.report.leakage import LESS
from auditor.report.plain import printable
from auditor.results import AuditResult
from tests.report_cases import invented_run

README = b"""\xef\xbb\xbf---\r
license: mit  # as the base\r
tags: [a,  'b']\r
---\r
# Model\r
\r
words  \r
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_run(tmp_path_factory.mktemp("card") / "run", n=400, n_variants=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "other"
    return invented_run(folder, n=120, n_variants=2, seed=1, reference=False)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "hostile"
    return invented_run(folder, n=120, n_variants=6, hostile=True, warned=True)


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_bytes(README)
    return path


def card(folder: Path, readme: Path, **how: Any) -> CardWritten:
    return write_card(folder, readme=readme, **how)


def result_of(folder: Path) -> AuditResult:
    return read_result(folder / "audit.json")


def rendered(text: str) -> str:
    """As the Hub and GitHub render it: tables, and HTML that stands in the text."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).disable("linkify").render(text)


def seen(text: str) -> str:
    """Markdown as a reader sees it, in one line."""
    html = re.sub(r"<[^>]*>", " ", rendered(text))
    for name, letter in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        html = html.replace(name, letter)
    return " ".join(html.split())


def test_the_section_says_what_was_found(run: Path, readme: Path) -> None:
    written = card(run, readme)
    figure = readme.parent / "compleak-llm-roc.png"
    assert written.paths == [figure, readme]
    assert written.pull_request is None
    assert figure.read_bytes().startswith(b"\x89PNG")
    content = readme.read_bytes()
    assert content.startswith(README + b"\r\n" + BEGIN.encode())
    assert content.endswith(END.encode() + b"\r\n")
    assert content.count(b"\n") == content.count(b"\r\n")
    result, text = result_of(run), seen(content.decode().replace("\r\n", "\n").lstrip("\ufeff"))
    found = answer(result)
    for part in (found.headline, *found.sentences):
        assert " ".join(part.split()) in text
    for version in result.variants:
        shown = " ".join(justified(version.attacks[result.primary_attack].auc))
        assert version.variant in text
        assert shown in text
        assert f"{version.perplexity:.2f}" in text
    rows = [row for group in together(result) for row in group]
    assert {row.setting.setting for row in rows} == {"NR", "SR", "MR"}
    assert {row.setting.with_reference for row in rows} == {False, True}
    for row in rows:
        assert " ".join(justified(row.setting.figures.auc)) in text
        if row.gain is not None:
            assert " ".join(justified(row.gain.difference, signed=True)) in text
    receipt = result.variants[1].receipt
    assert receipt is not None
    # Number and unit are not parted by a line's end.
    assert f"{receipt.bytes_disk / 1e6:.1f}\u00a0MB" in content.decode()
    assert "compleak-llm audit" in text
    assert f"compleak-llm {result.versions['compleak-llm']}" in text
    assert not any(one in text for one in (result.leakage.exposed.ids if result.leakage else []))


def test_it_is_renewed_to_the_byte(run: Path, other: Path, readme: Path) -> None:
    how = {"model_index": True, "eval_results": True}
    assert card(run, readme, **how).diff
    first = {path: path.read_bytes() for path in readme.parent.rglob("*") if path.is_file()}
    assert len(first) == 3
    assert card(run, readme, **how) == CardWritten([], "", None)
    # New figures replace old ones, and leave nothing of them.
    changed = card(other, readme, **how)
    assert len(changed.paths) == 3
    assert "\n-" in changed.diff
    assert "\r" not in changed.diff
    assert "\ufffd" not in changed.diff
    fresh = readme.parent / "fresh" / "README.md"
    fresh.parent.mkdir()
    fresh.write_bytes(README)
    card(other, fresh, **how)
    assert readme.read_bytes() == fresh.read_bytes()
    card(run, readme, **how)
    assert {path: path.read_bytes() for path in first} == first


def test_without_flags_the_front_matter_is_not_read(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    broken = b"---\na: [1\na: 2\n---\n# T\n"
    path.write_bytes(broken)
    card(run, path)
    assert path.read_bytes().startswith(broken)
    before = path.read_bytes()
    with pytest.raises(CardError, match="must be YAML"):
        card(run, path, model_index=True)
    assert path.read_bytes() == before


class Tags(HTMLParser):
    """Elements with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


KNOWN = {"h1", "h2", "h3", "p", "strong", "ul", "li", "code", "pre", "blockquote", "br", "img"}
KNOWN |= {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("alone", [False, True])
def test_hostile_words_are_text(hostile: Path, tmp_path: Path, alone: bool) -> None:
    result, path = result_of(hostile), tmp_path / "README.md"
    name = result.variants[1].variant
    assert "<script>" in name
    how = {"variant": name, "base_model": "org/name"} if alone else {}
    written = card(hostile, path, create=True, model_index=True, eval_results=True, **how)
    text = path.read_text(encoding="utf-8")
    tags = Tags(rendered(text)).found
    assert {tag for tag, _ in tags} <= KNOWN | ({"a"} if alone else set())
    for tag, attributes in tags:
        allowed = {"src", "alt", "width"} if tag == "img" else {"class", "style", "href"}
        assert set(attributes) <= allowed, tag
        assert attributes.get("src") in (None, "compleak-llm-roc.png")
        assert attributes.get("href") in (None, "https://huggingface.co/org/name")
    assert "<script>alert(1)" in seen(text)
    lines = [line.strip() for line in text.split("\n")]
    assert lines.count(BEGIN) == lines.count(END) == 1
    assert all(c.isprintable() or c in "\n\u00a0" for c in text + written.diff)
    again = card(hostile, path, model_index=True, eval_results=True, **how)
    assert again == CardWritten([], "", None)
    _, read = model_index_to_eval_results(yaml.safe_load(text.split("---\n")[1])["model-index"])
    assert len(read) == len(figures(result, name if alone else None))


def test_severe_warnings_stand_on_top(hostile: Path, tmp_path: Path) -> None:
    result, path = result_of(hostile), tmp_path / "README.md"
    card(hostile, path, create=True)
    text = seen(path.read_text(encoding="utf-8"))
    top = text.index(" ".join(answer(result).headline.split()))
    severe = [item.message for item in result.warnings if item.severity == "severe"]
    severe += [item.message for item in result.artifacts if item.kind != "file"]
    assert severe
    for message in severe:
        assert " ".join(printable(message).split()) in text[:top]


def test_the_card_of_one_variant(run: Path, readme: Path) -> None:
    how: dict[str, Any] = {"variant": "bnb-nf4", "base_model": "org/name", "model_index": True}
    card(run, readme, **how)
    text = readme.read_bytes().decode().replace("\r\n", "\n").lstrip("\ufeff")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("org/name", "quantized")
    assert "license: mit  # as the base\ntags: [a,  'b']\n" in text
    _, found = model_index_to_eval_results(front["model-index"])
    versions = {tuple(one.metric_args["versions"]) for one in found}
    assert versions == {("bnb-nf4",), ("original", "bnb-nf4")}
    words = seen(text)
    result = result_of(run)
    receipt = result.variant("bnb-nf4").receipt
    assert receipt is not None
    assert receipt.library in words
    assert f"{receipt.n_compressed:,} of {receipt.n_parameters:,} parameters" in words
    assert "org/name" in words
    other = result.variants[2].variant
    assert other not in words.split("compleak-llm audit")[0]
    assert card(run, readme, **how) == CardWritten([], "", None)


def test_a_variant_is_said_to_differ_only_where_the_audit_claims_it(tmp_path: Path) -> None:
    leaky = result_of(invented_run(tmp_path / "leaky", n=1000, n_variants=3, leak=1.0))
    claims = read_claims(leaky)
    assert claims.is_firm
    more = {change.versions[0] for change in claims.more}
    less = {change.versions[0] for change in claims.less}
    assert more
    assert less
    for version in leaky.variants[1:]:
        said = of_variant(leaky, version)
        alone = "not shown to give away more or less"
        alone = "gives away more" if version.variant in more else alone
        alone = "gives away less" if version.variant in less else alone
        assert alone in said.headline
        for question in ("SR over NR", "SR over original and reference"):
            held = ("original", version.variant)
            gains = any(change.versions == held for change in claims.gains[question])
            over = LESS[question]
            sentence = next(text for text in said.sentences if text.endswith(f"over {over}."))
            assert (" learns more: " in sentence) == gains
    nothing = result_of(invented_run(tmp_path / "null", n=400, n_variants=2, leak=0.0))
    for version in nothing.variants[1:]:
        said = of_variant(nothing, version)
        assert "is not shown to give away more or less" in said.headline
        assert not any(" learns more: " in text for text in said.sentences)
    # Where the audit has no answer, neither has the card of a version.
    told = result_of(invented_run(tmp_path / "told", n=120, n_variants=1, warned=True))
    assert told.blind is not None
    assert told.blind.told_apart
    assert of_variant(told, told.variants[1]).headline == answer(told).headline


def test_a_variant_must_be_one(run: Path, hostile: Path, readme: Path) -> None:
    broken = next(one for one in result_of(hostile).variants if one.status == "broken").variant
    for folder, name, words in (
        (run, "bnb-nf5", "did you mean 'bnb-nf4'"),
        (run, "original", "leave --variant out"),
        (hostile, broken, "is broken"),
    ):
        with pytest.raises(ConfigError) as caught:
            card(folder, readme, variant=name, base_model="org/name")
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="must name the original"):
        card(run, readme, variant="bnb-nf4", base_model="/a/path")
    assert readme.read_bytes() == README


def test_a_missing_readme_is_offered(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "README.md"
    with pytest.raises(CardError, match="README") as caught:
        card(run, path)
    assert "--create" in caught.value.fix
    assert not path.parent.exists()
    written = card(run, path, create=True)
    assert path.read_text().startswith("---\npipeline_tag: text-generation\n---\n\n# chat\n\n<!--")
    assert written.diff.startswith(f"--- {path.as_posix()}\n+++ ")
    # With a README there, --create changes nothing.
    assert card(run, path, create=True) == CardWritten([], "", None)


def test_a_figure_that_cannot_be_written_leaves_the_readme(run: Path, readme: Path) -> None:
    blocked = readme.parent / "compleak-llm-roc.png"
    blocked.mkdir()
    with pytest.raises(StoreError, match=r"compleak-llm-roc\.png"):
        card(run, readme, eval_results=True)
    blocked.rmdir()
    (readme.parent / ".eval_results").write_text("a file")
    with pytest.raises(StoreError, match=r"compleak-llm\.yaml"):
        card(run, readme, eval_results=True)
    readme.chmod(0o444)
    with pytest.raises(StoreError, match="written"):
        card(run, readme)
    assert readme.read_bytes() == README
    assert sorted(one.name for one in readme.parent.iterdir()) == [".eval_results", "README.md"]


def test_a_run_that_is_none(run: Path, readme: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StoreError, match="finished audit"):
        card(folder, readme)
    shutil.copytree(run, folder)
    (folder / "scores.parquet").unlink()
    with pytest.raises(StoreError, match="scores"):
        card(folder, readme)
    assert readme.read_bytes() == README


def test_nothing_is_contacted_unless_told(
    run: Path, readme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    card(run, readme, model_index=True, eval_results=True)
    assert asked == []
    readme.write_bytes(README)
    # A push that fails comes after the local files.
    with pytest.raises(PushError, match="org/model") as caught:
        card(run, readme, push="org/model")
    assert "local files are written" in caught.value.fix
    assert asked
    assert BEGIN.encode() in readme.read_bytes()
    readme.write_bytes(README)
    with pytest.raises(ConfigError, match="--push"):
        card(run, readme, push="model")
    assert readme.read_bytes() == README


@pytest.mark.parametrize(
    "how",
    [
        {"n_variants": 0},
        {"n_variants": 1, "beyond": False, "reference": False},
        {"n_variants": 8, "leak": 0.0},
    ],
    ids=str,
)
def test_every_kind_of_audit_has_a_card(tmp_path: Path, how: dict[str, Any]) -> None:
    folder, path = invented_run(tmp_path / "run", n=80, **how), tmp_path / "README.md"
    card(folder, path, create=True, model_index=True, eval_results=True)
    assert card(folder, path, model_index=True, eval_results=True) == CardWritten([], "", None)
    text = path.read_text(encoding="utf-8")
    assert "None" not in text
    html = rendered(text)
    assert html.count("<table>") == text.count("\n| :-- |")
