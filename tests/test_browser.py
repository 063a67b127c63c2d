"""The report in a browser: seen, measured and used as a reader would.

`tests/browser/check.mjs` opens the pages in Chromium and writes down what it finds; here it is
judged. One page more has a fault of each kind: what finds nothing there finds nothing anywhere.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from auditor.finished import read_finished
from auditor.report.browser import find_chromium
from auditor.report.page import render_page
from auditor.report.plots import draw
from tests.report_cases import invented_run

pytestmark = pytest.mark.slow

CHECKS = Path(__file__).parent / "browser"
CASES: dict[str, dict[str, Any]] = {
    "plain": {"include_text": True},
    "hostile": {"n_variants": 12, "hostile": True, "warned": True, "include_text": True},
    "alone": {"beyond": False},
}
# Letters smaller than this are not read on a phone.
SMALLEST_PX = 8.5
MOST_BYTES = 5_000_000
WHITE = "rgb(255, 255, 255)"
Page = dict[str, Any]


def missing() -> str | None:
    """What is not here of what these tests need."""
    if shutil.which("node") is None:
        return "node"
    if find_chromium() is None:
        return "Chromium"
    if not (CHECKS / "node_modules").is_dir():
        return "tests/browser/node_modules: npm ci --prefix tests/browser"
    return None


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """What the browser found on each page; skipped where there is none, in CI a failure."""
    if lacking := missing():
        if os.environ.get("CI"):
            pytest.fail(f"in CI there must be {lacking}")
        pytest.skip(f"needs {lacking}")
    folder = tmp_path_factory.mktemp("browser")
    paths = [CHECKS / "faults.html"]
    for name, asked in CASES.items():
        finished = read_finished(invented_run(folder / name, **asked))
        path = folder / f"{name}.html"
        path.write_text(render_page(finished, draw(finished)), encoding="utf-8")
        paths.append(path)
    command = ["node", "check.mjs", "--chromium", str(find_chromium()), "--out", str(folder)]
    ran = subprocess.run(
        [*command, *map(str, paths)],
        cwd=CHECKS,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    pages: dict[str, Page] = json.loads((folder / "findings.json").read_text())["pages"]
    return pages


@pytest.fixture(params=list(CASES))
def page(request: pytest.FixtureRequest, found: dict[str, Page]) -> Page:
    return found[request.param]


def visits(page: Page) -> list[dict[str, Any]]:
    """Every time that the page was opened."""
    return [*page["views"], page["without_script"], page["interaction"], page["paper"]]


def test_nothing_is_asked_of_a_network(page: Page) -> None:
    assert [one["requests"] for one in visits(page)] == [[]] * 7


def test_no_error_and_nothing_hostile_is_run(page: Page) -> None:
    for one in visits(page):
        assert one["errors"] == []
        assert one["dialogs"] == []
    assert page["interaction"]["pwned"] is None


def test_it_is_valid_html_and_small(page: Page) -> None:
    assert page["html"] == []
    assert page["bytes"] < MOST_BYTES


def test_it_is_accessible(page: Page) -> None:
    rules = [one["axe"] for one in page["views"] if one["axe"] is not None]
    assert [one["found"] for one in rules] == [[]] * 3
    # Rules that found nothing to look at do not count as passed.
    for one, least in zip(rules, (40, 1, 1), strict=True):
        assert one["n_passed"] >= least


def test_nothing_is_wider_than_its_window(page: Page) -> None:
    assert [one["overflow"] for one in page["views"]] == [[]] * 4


def test_labels_of_figures_can_be_read(page: Page) -> None:
    for view in page["views"]:
        figures = view["figures"]
        assert figures["overlaps"] == []
        assert figures["outside"] == []
        assert figures["smallest"]["px"] >= SMALLEST_PX, figures["smallest"]
        assert figures["n_figures"] >= 8
        assert figures["n_texts"] > 10 * figures["n_figures"]


def test_all_of_it_shows_without_scripts(page: Page) -> None:
    seen = page["without_script"]
    for what in ("sections", "tables", "rows", "figures"):
        assert seen[what]["n_seen"] == seen[what]["n"] > 0, what
    assert seen["drawings"] == seen["figures"]["n"]
    assert seen["controls"] == 0


def test_it_prints(page: Page) -> None:
    paper = page["paper"]
    assert paper["overflow"] == []
    assert paper["paint"] == WHITE
    assert 3 <= paper["n_pages"] <= 60


def test_columns_are_sorted_by_mouse_and_keyboard(page: Page) -> None:
    sorted_by = page["interaction"]["sorted"]
    assert set(sorted_by) >= {"figures", "comparisons", "receipt-overview"}
    for table, steps in sorted_by.items():
        assert steps["before"]["aria"] is None
        values = [value for value in steps["before"]["values"] if value is not None]
        assert values, table
        n_absent = len(steps["before"]["values"]) - len(values)
        for step, order in (
            ("clicked", "descending"),
            ("entered", "ascending"),
            ("spaced", "descending"),
        ):
            assert steps[step]["aria"] == order
            assert steps[step]["n_sorted"] == 1
            # What is absent comes last, whichever way.
            wanted = sorted(values, reverse=order == "descending")
            assert steps[step]["values"] == [*wanted, *[None] * n_absent], table


def test_variants_are_left_out_and_taken_back(page: Page) -> None:
    chosen = page["interaction"]["chosen"]
    assert chosen["n_boxes"] >= 3
    assert chosen["before"]["n_with"] > 0
    assert chosen["left_out"] == {"n_with": 0, "n_without": chosen["before"]["n_without"]}
    assert chosen["back"] == chosen["before"]


def test_rows_are_filtered_by_setting(page: Page) -> None:
    filtered = page["interaction"]["filtered"]
    assert 0 < filtered["n_first"] < filtered["n_every"] == filtered["n_rows"]
    assert filtered["chosen"] == [filtered["asked"]]
    assert 0 < filtered["n_chosen"] < filtered["n_rows"]


def test_pointing_shows_the_numbers(page: Page) -> None:
    pointed = page["interaction"]["pointed"]
    assert len(pointed) >= 5
    for one in pointed:
        assert one["said"] == one["note"]
        assert re.search(r"\d", one["said"])
        # From the keyboard the same, and Escape takes it away.
        assert re.search(r"\d", one["stepped"] or "")
        assert one["gone"]


def test_a_table_is_copied_as_csv(page: Page) -> None:
    for table in page["interaction"]["copied"].values():
        assert table["n_rows"] > 0
        assert table["ragged"] == 0
        assert table["numbers"] > table["n_rows"]
        assert table["not_numbers"] == []
        assert table["controls"] == 0
        # A cell that began like a formula was put there.
        assert table["formulas"] == []
        assert table["guarded"] == ['\'=HYPERLINK("file:///etc/hosts", "a,b")']


def test_a_fault_of_each_kind_is_found(found: dict[str, Page]) -> None:
    page = found["faults"]
    light, dark, narrow, _ = page["views"]
    assert any("asked-for.png" in one for one in light["requests"])
    assert any("undefinedFunction" in one for one in light["errors"])
    assert light["dialogs"] == ["obeyed"]
    assert page["interaction"]["pwned"] is True
    assert any("element-permitted-content" in one or "close-order" in one for one in page["html"])
    assert {"color-contrast", "image-alt"} <= {one["id"] for one in light["axe"]["found"]}
    assert [one["id"] for one in dark["axe"]["found"]] == ["color-contrast"]
    assert light["overflow"][0] != "0 px"
    assert "span#unbroken" in narrow["overflow"]
    assert "span#unbroken" in page["paper"]["overflow"]
    [overlap] = light["figures"]["overlaps"]
    assert '"one label" and "over another"' in overlap
    [outside] = light["figures"]["outside"]
    assert '"beyond the frame"' in outside
    assert light["figures"]["smallest"] == {"px": 5, "words": "too small", "title": "a figure"}
    seen = page["without_script"]
    assert seen["sections"] == {"n": 2, "n_seen": 1}
    assert seen["tables"]["n_seen"] < seen["tables"]["n"]
