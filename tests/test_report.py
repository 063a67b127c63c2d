"""What a person looks at: the table at every width, progress, the doctor."""

import io
import json
import time

import pytest
from rich.console import Console

from auditor import AuditResult
from auditor.cli import main
from auditor.report.figures import interval, p_value
from auditor.report.progress import Plain, Rich, Silent
from auditor.report.terminal import show
from auditor.results import Estimate, Warned


def printed(result: AuditResult, width: int) -> str:
    file = io.StringIO()
    show(result, Console(file=file, width=width, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 137, 138, 140, 171, 172, 200])
def test_no_figure_is_cut_off(done: AuditResult, width: int) -> None:
    text = printed(done, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for variant in done.variants:
        assert variant.variant in text
        found = variant.attacks["ez"].auc
        assert format(found.value, ".3f") in text
        assert f"[{found.low:.3f}, {found.high:.3f}]" in text
        tpr = variant.attacks["ez"].tpr_at_fpr["0.2"]
        assert f"[{100 * tpr.low:.1f}, {100 * tpr.high:.1f}]" in text
    for item in done.comparisons:
        if item.family == "primary":
            assert p_value(item.p_adjusted) in text


def test_warnings_stand_above_the_figures(done: AuditResult) -> None:
    severe = Warned(code="told-apart", message="The lists differ.", severity="severe")
    text = printed(done.model_copy(update={"warnings": [severe]}), 140)
    assert text.index("The lists differ.") < text.index("AUC")


def test_a_broken_variant_is_named(done: AuditResult) -> None:
    broken = done.variants[1].model_copy(
        update={"status": "broken", "reason": "not finite", "attacks": {}, "perplexity": None}
    )
    result = done.model_copy(update={"variants": [done.variants[0], broken]})
    for width in (80, 140, 200):
        assert "broken" in printed(result, width)


def test_names_are_text_and_not_markup(done: AuditResult) -> None:
    name = "[red]x[/red][link=file:///]y"
    odd = done.variants[1].model_copy(update={"variant": name})
    model = done.model.model_copy(update={"name": name})
    result = done.model_copy(update={"variants": [done.variants[0], odd], "model": model})
    for width in (80, 140, 200):
        assert printed(result, width).count(name) == 2


def test_figures_have_the_digits_that_they_deserve() -> None:
    some = Estimate(
        value=0.08123, low=0.05, high=0.1234, n_members=9, n_nonmembers=9, method="", absent=None
    )
    assert interval(some) == "0.081 [0.050, 0.123]"
    assert interval(some, percent=True) == "8.1 [5.0, 12.3]"
    assert interval(some, signed=True) == "+0.081 [+0.050, +0.123]"
    assert interval(None) == "–"
    assert [p_value(x) for x in (None, 0.0002, 0.04321, 1.0)] == ["–", "<0.001", "0.043", "1.000"]


def test_plain_progress(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Plain()
    shown.every_s = 0.0
    shown.note("reading records")
    shown.start("bnb-nf4", n_records=10, n_done=4)
    time.sleep(0.01)
    shown.advance(3, 300)
    shown.finish("done")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading records"
    assert lines[1] == "bnb-nf4: 4 of 10 records stored"
    assert lines[2].startswith("bnb-nf4: 7/10 records, ")
    assert "tokens/s" in lines[2]
    assert lines[3].startswith("bnb-nf4: done, ")


def test_rich_progress_shows_records_rate_and_outcome() -> None:
    file = io.StringIO()
    console = Console(file=file, width=140, force_terminal=True, color_system=None)
    with Rich(console) as shown:
        shown.note("reading")
        shown.start("prune[x]", n_records=1000, n_done=0)
        time.sleep(0.05)
        shown.advance(1000, 5000)
        shown.finish("done")
    text = file.getvalue()
    for part in ("prune[x]", "1,000/1,000 records", "tokens/s", "done"):
        assert part in text


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Silent()
    shown.note("x")
    shown.start("x", n_records=1, n_done=0)
    shown.advance(1, 1)
    shown.finish("x")
    assert capsys.readouterr() == ("", "")


def test_doctor_tries_every_compressor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("processor", "torch", "original", "bnb-int8", "bnb-nf4", "prune-magnitude"):
        assert name in text
    assert "does not work" not in text


def test_the_result_survives_json(done: AuditResult) -> None:
    assert AuditResult.model_validate(json.loads(done.model_dump_json())) == done
