"""What was allowed stands first in what is shown, and no copied cell is a formula."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.caveats import ALLOWED
from auditor.finished import read_finished
from auditor.report.markdown import MOST_NOTICES, render_markdown
from auditor.report.view_head import notices
from auditor.results import Warned
from tests.report_cases import invented_run

SCRIPT = Path(__file__).parent.parent / "auditor" / "report" / "templates" / "report.js"
# What is put into the function of the page that writes a field: JSON in, JSON out.
PROGRAM = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
QUOTED
console.log(JSON.stringify(given.map(quoted)));
"""
FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n@x",
    " \u00a0=1",
    "\u200b=1",
    "\ufeff-1",
    "\x00+1",
    "|calc",
    "%0",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff20x",
    '=HYPERLINK("file:///etc/hosts";"a")',
    "a;=1",
    "a; \t@x;b",
)
PLAIN = ("bnb-nf4", "prune-magnitude:sparsity=0.5", "a+b", "0.5", "it's", 'say "no"', "a;b", "")


def _quoted(texts: tuple[str, ...]) -> list[str]:
    """Texts as the page writes them into a CSV."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    [line] = re.findall(r"^ *const quoted = .*$", SCRIPT.read_text("utf-8"), re.MULTILINE)
    found = subprocess.run(
        [node, "-e", PROGRAM.replace("QUOTED", line)],
        input=json.dumps(texts),
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return json.loads(found.stdout)


def test_no_copied_cell_is_a_formula() -> None:
    """Neither as it is, nor where a spreadsheet parts fields at semicolons."""
    for text, field in zip(FORMULAS, _quoted(FORMULAS), strict=True):
        assert field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")
        for part in field[1:-1].split(";"):
            assert not re.match(r"[^\w'\"]*[=+\-@|%＝＋－＠]", part), (text, field)
        assert field[1:-1].replace("'", "").replace('""', '"') == text


def test_a_cell_that_is_none_is_copied_as_it_is() -> None:
    assert [field[1:-1].replace('""', '"') for field in _quoted(PLAIN)] == list(PLAIN)


def test_what_was_allowed_stands_before_a_long_list_of_other_warnings(tmp_path: Path) -> None:
    finished = read_finished(invented_run(tmp_path / "run", n=120, n_variants=2, warned=True))
    others = [
        Warned(code="left-out", message=f"Other {at}.", severity="warning")
        for at in range(MOST_NOTICES + 5)
    ]
    allowed = [Warned(code=code, message=f"It was {code}.", severity="warning") for code in ALLOWED]
    result = finished.result.model_copy(update={"warnings": [*others, *allowed]})
    loud = [notice.text for notice in notices(result) if notice.severity == "warning"]
    assert loud[: len(ALLOWED)] == [one.message for one in allowed]
    page = render_markdown(replace(finished, result=result))
    assert all(f"It was {code}." in page.replace("\\", "") for code in ALLOWED)


def test_every_promise_names_tests_that_are_there() -> None:
    root = SCRIPT.parents[3]
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (root / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (root / file).read_text("utf-8"), (file, test)
