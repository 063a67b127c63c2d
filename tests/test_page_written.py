"""Writing the report: all or nothing, beside the audit or elsewhere, as HTML, Markdown and PDF."""

import json
import os
import shutil
from pathlib import Path

import pytest

from auditor.errors import ConfigError, StoreError
from auditor.report import browser
from auditor.report.browser import NAMES, VARIABLE, find_chromium, print_pdf
from auditor.report.page import write_report
from tests.report_cases import invented_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_run(tmp_path_factory.mktemp("written") / "run", n_variants=1, n=200)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_page_and_its_figures_are_written_beside_the_audit(copy: Path) -> None:
    before = below(copy)
    written = write_report(copy, kind="html")
    assert written[0] == copy / "report.html"
    assert {str(path.relative_to(copy)) for path in written} == below(copy) - before
    figures = [path for path in written[1:] if path.parent == copy / "figures"]
    assert figures == written[1:]
    assert {path.suffix for path in figures} == {".png", ".svg"}
    first = {path: path.read_bytes() for path in written}
    assert write_report(copy, kind="html") == written
    assert {path: path.read_bytes() for path in written} == first


def test_markdown_goes_where_it_is_told_with_the_figures_that_it_shows(
    copy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "elsewhere" / "privacy.md"
    [first, *figures] = write_report(copy, kind="md", out=out)
    assert first == out
    text = out.read_text(encoding="utf-8")
    assert any(f"figures/{path.name}" in text for path in figures)
    assert all(path.parent == out.parent / "figures" for path in figures)
    assert not (copy / "figures").exists()


def test_a_folder_gets_the_report_under_its_own_name(copy: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    assert write_report(copy, kind="html", out=there)[0] == there / "report.html"


def test_what_is_no_finished_audit_writes_nothing(copy: Path, tmp_path: Path) -> None:
    content = json.loads((copy / "audit.json").read_text())
    (copy / "audit.json").write_text(json.dumps({**content, "schema_version": "99"}))
    before = below(copy)
    with pytest.raises(StoreError, match="schema version"):
        write_report(copy, kind="html")
    with pytest.raises(StoreError, match="finished audit"):
        write_report(tmp_path / "nothing", kind="html", out=tmp_path / "x.html")
    assert below(copy) == before
    assert not (tmp_path / "x.html").exists()


def test_figures_that_cannot_be_written_leave_the_report_as_it_was(copy: Path) -> None:
    (copy / "report.html").write_text("old")
    (copy / "figures").write_text("a file in the place of the folder")
    before = below(copy)
    with pytest.raises(StoreError) as raised:
        write_report(copy, kind="html")
    assert "--out" in raised.value.fix
    assert "--output-path" not in str(raised.value)
    assert (copy / "report.html").read_text() == "old"
    assert below(copy) == before


def test_a_report_that_cannot_be_written_is_one_error(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be a file that can be written"):
        write_report(copy, kind="html", out=tmp_path / "file" / "report.html")


needs_chromium = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get(VARIABLE) or "", *NAMES)),
    reason=f"needs a Chromium: none of {', '.join(NAMES)} on PATH, and no {VARIABLE}",
)


@needs_chromium
def test_a_pdf_is_printed_where_there_is_a_chromium(copy: Path) -> None:
    before = below(copy)
    assert write_report(copy, kind="pdf") == [copy / "report.pdf"]
    assert below(copy) - before == {"report.pdf"}
    printed = (copy / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF-")
    assert b"/Title (compleak-llm: models/chat)" in printed
    assert printed.count(b"/Type /Page\n") > 3


@needs_chromium
def test_a_title_in_other_letters_is_known_again() -> None:
    page = "<!DOCTYPE html><title>compleak-llm: 模型</title><p>one page"
    assert print_pdf(page).startswith(b"%PDF-")


def test_without_a_chromium_the_error_says_what_to_do(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(copy))
    before = below(copy)
    assert find_chromium() is None
    with pytest.raises(ConfigError) as raised:
        write_report(copy, kind="pdf")
    assert "--format html" in raised.value.fix
    assert below(copy) == before


def test_a_chromium_that_is_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=VARIABLE):
        find_chromium()


def stand_in(folder: Path, script: str) -> Path:
    """A program in the place of a browser that does not do its work."""
    path = folder / "chromium"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("echo cannot open display >&2; exit 1", "cannot open display"),
        ("exit 0", "it wrote nothing"),
        # As a browser does that is not let into the folder: it prints what it says instead.
        (
            'for a; do case "$a" in --print-to-pdf=*) echo "%PDF-1.4 /Title (not found)" > '
            '"${a#--print-to-pdf=}";; esac; done',
            "another page",
        ),
        ("sleep 60", "nothing after 1 s"),
    ],
)
def test_a_browser_that_does_not_print_is_one_error(
    script: str, seen: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(stand_in(tmp_path, script)))
    monkeypatch.setattr(browser, "TIMEOUT_S", 1)
    before = below(copy)
    with pytest.raises(ConfigError) as raised:
        write_report(copy, kind="pdf")
    assert seen in raised.value.seen
    assert below(copy) == before


def test_what_cannot_be_run_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stand_in(tmp_path, "")
    path.write_bytes(b"\x00\x01 no program")
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(ConfigError, match="must print the page to PDF"):
        print_pdf("<p>")
