"""The report as its reader meets it: opened in Chromium, wide and on a phone, in light and dark.

`tests/browser/check.mjs` looks, and says what it saw; what may not be is said here.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from auditor.report.page import write_report
from tests.report_cases import invented_run

FOLDER = Path(__file__).parent / "browser"
CASES: dict[str, dict[str, Any]] = {
    "plain": {"include_text": True},
    "hostile": {"n_variants": 12, "hostile": True, "warned": True, "include_text": True},
    "alone": {"beyond": False},
}
NAMES = list(CASES)
# Letters smaller than this are not read on a phone, in CSS pixels.
SMALLEST = 8.5
MOST_BYTES = 5 * 1024**2

pytestmark = pytest.mark.slow


def must_be_there(found: object, what: str) -> None:
    """Skip where a browser is missing; in CI, where it must be, fail."""
    if not found and os.environ.get("CI"):
        pytest.fail(f"{what} must be installed in CI")
    if not found:
        pytest.skip(f"needs {what}, to open the report in")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen on each page."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    must_be_there(chromium, "chromium")
    must_be_there(shutil.which("node"), "node")
    installed = (FOLDER / "node_modules" / "playwright-core").is_dir()
    must_be_there(installed, "tests/browser/node_modules: npm ci --prefix tests/browser")
    folder = tmp_path_factory.mktemp("browser")
    pages = []
    for name, given in CASES.items():
        run = invented_run(folder / name, **given)
        pages.append(str(write_report(run, kind="html", out=folder / f"{name}.html")[0]))
    done = subprocess.run(
        [
            *("node", str(FOLDER / "check.mjs"), "--chromium", str(chromium)),
            *("--out", str(folder / "out"), *pages),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads((folder / "out" / "findings.json").read_text())["pages"])


@pytest.fixture(params=NAMES)
def page(request: pytest.FixtureRequest, seen: dict[str, Any]) -> dict[str, Any]:
    return dict(seen[request.param])


def test_it_is_valid_html_and_small(page: dict[str, Any]) -> None:
    assert page["html"] == []
    assert page["bytes"] < MOST_BYTES


def test_nothing_is_asked_of_any_network_and_nothing_goes_wrong(page: dict[str, Any]) -> None:
    visits = [*page["views"], page["without_script"], page["interaction"], page["paper"]]
    assert len(visits) == 7
    for visit in visits:
        assert visit["requests"] == []
        assert visit["errors"] == []
        assert visit["dialogs"] == []
    assert page["interaction"]["pwned"] is None


def test_axe_finds_nothing(page: dict[str, Any]) -> None:
    found = [one for view in page["views"] for one in view["axe"]["found"]]
    assert found == []
    assert page["views"][0]["axe"]["n_passed"] > 20


def test_no_words_lie_on_others_and_none_is_too_small(page: dict[str, Any]) -> None:
    for view in page["views"]:
        figures = view["figures"]
        assert figures["n_texts"] > 50
        assert figures["overlaps"] == []
        assert figures["outside"] == []
        assert figures["smallest"]["px"] >= SMALLEST


def test_no_view_is_wider_than_its_window(page: dict[str, Any]) -> None:
    assert [view["overflow"] for view in page["views"]] == [[]] * 4


def test_without_a_script_everything_shows(page: dict[str, Any]) -> None:
    found = page["without_script"]
    for what in ("sections", "tables", "rows", "figures"):
        assert found[what]["n"] == found[what]["n_seen"] > 0
    assert found["drawings"] == found["figures"]["n"]
    # Controls that would do nothing are not there.
    assert found["controls"] == 0


def test_columns_sort_by_mouse_and_keyboard(page: dict[str, Any]) -> None:
    for looks in page["interaction"]["sorted"].values():
        assert looks["before"]["aria"] is None
        steps = [looks[name] for name in ("clicked", "entered", "spaced")]
        assert [step["aria"] for step in steps] == ["descending", "ascending", "descending"]
        for step in steps:
            assert step["n_sorted"] == 1
            present = [value for value in step["values"] if value is not None]
            assert present == sorted(present, reverse=step["aria"] == "descending")
            # What is absent is last, whichever way.
            assert step["values"][: len(present)] == present


def test_rows_and_figures_are_chosen_by_variant_and_by_setting(page: dict[str, Any]) -> None:
    chosen = page["interaction"]["chosen"]
    assert chosen["n_boxes"] >= 3
    assert chosen["before"]["n_with"] > 0
    assert chosen["left_out"] == {**chosen["before"], "n_with": 0}
    assert chosen["back"] == chosen["before"]
    found = page["interaction"]["filtered"]
    assert found["n_first"] < found["n_every"] == found["n_rows"]
    assert found["chosen"] == [found["asked"]]


def test_marks_say_their_numbers_to_the_pointer_and_to_the_keyboard(page: dict[str, Any]) -> None:
    pointed = page["interaction"]["pointed"]
    assert len(pointed) >= 5
    for one in pointed:
        assert one["said"] == one["note"]
        assert any(letter.isdigit() for letter in one["said"])
        assert one["stepped"]
        assert one["gone"]


def test_tables_are_copied_as_numbers_and_harmless_text(page: dict[str, Any]) -> None:
    for table in page["interaction"]["copied"].values():
        assert table["n_rows"] > 0
        assert table["ragged"] == 0
        assert table["numbers"] > table["n_rows"]
        assert table["not_numbers"] == []
        assert table["formulas"] == []
        assert table["controls"] == 0


def test_paper_is_white_and_nothing_is_cut(page: dict[str, Any]) -> None:
    paper = page["paper"]
    assert paper["overflow"] == []
    assert paper["paint"] == "rgb(255, 255, 255)"
    assert paper["n_pages"] >= 4
