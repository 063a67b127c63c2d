"""What a person looks at: the table at every width, progress, the doctor."""

import io
import json
import re
import time
from typing import Any

import pytest
from rich.console import Console

from auditor import AuditResult
from auditor.cli import main
from auditor.report.answer import answer
from auditor.report.figures import interval, p_value
from auditor.report.leakage import LESS
from auditor.report.progress import Plain, Rich, Silent
from auditor.report.terminal import show
from auditor.results import Estimate, Leakage, Warned


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


def test_no_name_moves_the_cursor(done: AuditResult) -> None:
    name = "a\x1b[2J\x9bb\u202ec\x07 é"
    odd = done.variants[1].model_copy(update={"variant": name})
    model = done.model.model_copy(update={"name": name})
    result = done.model_copy(update={"variants": [done.variants[0], odd], "model": model})
    for width in (80, 140):
        text = printed(result, width)
        assert text.count("a[2Jbc é") == 2
        assert all(line.isprintable() for line in text.split("\n"))


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


PRUNED = "prune-magnitude:sparsity=0.5"
LONG = "checkpoint:/models/clinic/letters/v2/pruned-by-hand-and-quantized"
EPSILON = {
    "method": "one-run",
    "attack": "ez",
    "versions": ["original"],
    "epsilon": 1.234,
    "delta": 1e-5,
    "confidence": 0.95,
}


def leakage_of(result: AuditResult) -> Leakage:
    assert result.leakage is not None
    return result.leakage


def changed(result: AuditResult, **changes: Any) -> AuditResult:
    """The audit with something else about several versions."""
    return result.model_copy(update={"leakage": leakage_of(result).model_copy(update=changes)})


def renamed(result: AuditResult, name: str) -> AuditResult:
    return AuditResult.model_validate_json(result.model_dump_json().replace(PRUNED, name))


def attackers(text: str) -> list[tuple[str, str]]:
    """What each attacker holds and what is printed of him, in a table or in a block of lines."""
    start = re.search(r"^what an attacker gets", text, re.M)
    assert start is not None
    part = text[start.start() :]
    part = part[: part.index("attacks, intervals at")]
    found = re.split(r"^(?=(?:NR|SR|MR)  )", part, flags=re.M)[1:]
    return [(re.split(r" {2,}|\n", one[4:].lstrip())[0], one) for one in found]


def everyone(text: str) -> str:
    return "".join(block for _, block in attackers(text))


@pytest.mark.parametrize("width", [60, 80, 99, 100, 110, 120, 137, 160, 200])
@pytest.mark.parametrize("name", [PRUNED, "bnb-int8", LONG])
def test_every_attacker_has_his_figures(done: AuditResult, width: int, name: str) -> None:
    result = renamed(done, name)
    text = printed(result, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    blocks = [block for _, block in attackers(text)]
    shown = [one for one in leakage_of(result).settings if one.with_reference]
    shown = [one for one in shown if one.supervision == "crossfit"]
    assert len(blocks) == len(shown) == 7
    for one, block in zip(shown, blocks, strict=True):
        squeezed = "".join(block.split())
        assert block.startswith(f"{one.setting}  ")
        texts = [
            interval(one.figures.auc),
            interval(one.figures.tpr_at_fpr["0.2"], percent=True),
        ]
        for found in leakage_of(result).comparisons:
            asked = (found.versions, found.with_reference, found.metric)
            if asked == (one.versions, True, "auc") and found.question != "SR over NR":
                texts.append(interval(found.difference, signed=True))
                texts.append(p_value(found.p_adjusted))
                assert all(word in block for word in LESS[found.question].split())
        assert (
            len(texts) == {"NR": 2, "SR": 4, "MR": 6 if len(one.versions) == 3 else 4}[one.setting]
        )
        # A figure may stand above its interval; neither is ever broken.
        for part in (part for text in texts for part in text.split(" [")):
            assert part.lstrip("[") in block
            assert squeezed.count(part.replace(" ", "")) >= 1


@pytest.mark.parametrize("width", [60, 100, 120, 160])
def test_attackers_are_called_by_what_they_hold(done: AuditResult, width: int) -> None:
    assert [name for name, _ in attackers(printed(done, width))] == [
        "original",
        "bnb-nf4",
        PRUNED,
        "original and bnb-nf4",
        f"original and {PRUNED}",
        "all 3 versions",
        "all but original",
    ]


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("name", ["gptq:bits=4,group_size=128", LONG])
def test_no_name_is_broken(done: AuditResult, name: str, width: int) -> None:
    part = everyone(printed(renamed(done, name), width))
    assert part.count(name) == 2


def test_below_100_columns_an_attacker_is_a_block(done: AuditResult) -> None:
    for width, is_block in ((60, True), (99, True), (160, False)):
        _, block = attackers(printed(done, width))[0]
        assert (block.splitlines()[0].rstrip() == "NR  original") == is_block


def test_a_finding_has_a_star_at_the_level_of_the_audit(done: AuditResult) -> None:
    comparisons = [
        item.model_copy(update={"p_adjusted": 0.07}) for item in leakage_of(done).comparisons
    ]
    result = changed(done, comparisons=comparisons)
    for width in (60, 120, 160):
        assert "0.070 *" not in printed(result, width)
        bolder = result.model_copy(update={"confidence": 0.9})
        assert "0.070 *" in printed(bolder, width)


def test_what_is_absent_everywhere_has_no_column(done: AuditResult) -> None:
    alone = [one for one in leakage_of(done).settings if one.setting == "NR"]
    for width in (60, 120, 160):
        part = everyone(printed(changed(done, settings=alone, comparisons=[]), width))
        assert "gain" not in part
        assert "p (Holm)" not in part
    few = [
        variant.model_copy(
            update={
                "attacks": {
                    name: found.model_copy(update={"tpr_at_fpr": {}})
                    for name, found in variant.attacks.items()
                }
            }
        )
        for variant in done.variants
    ]
    for width in (60, 120, 160):
        text = printed(done.model_copy(update={"variants": few}), width)
        assert "TPR" not in text[text.index("what an attacker gets") : text.index("controls:")]


def test_without_learned_attacks_those_without_training_are_shown(done: AuditResult) -> None:
    free = [one for one in leakage_of(done).settings if one.supervision == "none"]
    result = changed(
        done,
        supervision=[],
        settings=free,
        comparisons=[],
        controls=[],
        releases=None,
        exposed=None,
    )
    for width in (60, 100, 160):
        text = printed(result, width)
        assert "what an attacker gets without learning" in text
        assert "learned attacks" not in text
        for one in free:
            assert f"{one.setting}  {one.attack}" in text
            assert format(one.figures.auc.value, ".3f") in text


def test_shadows_have_a_table_of_their_own(done: AuditResult) -> None:
    settings = leakage_of(done).settings
    shadow = [
        one.model_copy(update={"supervision": "shadow"})
        for one in settings
        if one.supervision == "crossfit"
    ]
    result = changed(done, supervision=["crossfit", "shadow"], settings=[*settings, *shadow])
    for width in (60, 160):
        text = printed(result, width)
        assert text.index("what an attacker gets,") < text.index("who learned on shadow audits")
        assert text.count("MR  all 3 versions") == 2


def test_facts_are_a_line_each(done: AuditResult) -> None:
    leakage = leakage_of(done)
    result = AuditResult.model_validate(
        {
            **done.model_dump(),
            "leakage": {**leakage.model_dump(), "epsilon": [EPSILON]},
        }
    )
    text = " ".join(printed(result, 160).split())
    assert f"controls: {len(leakage.controls)} of {len(leakage.controls)} passed" in text
    assert leakage.best is not None
    assert (
        f"best of {leakage.best.n_candidates} training-free signals: {leakage.best.attack}" in text
    )
    assert leakage.exposed is not None
    assert f"exposed: {leakage.exposed.n_newly} members are found at 20% FPR" in text
    assert "epsilon of the training is at least 1.23 at delta 1e-05 (one-run, ez, 95%)" in text
    assert leakage.releases is not None
    assert leakage.releases.advice in text


def test_names_of_attackers_are_text_and_not_markup(done: AuditResult) -> None:
    name = "[red]x[/red]"
    for width in (60, 120, 160):
        part = everyone(printed(renamed(done, name), width))
        assert part.count(name) == 2


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_answer_stands_below_the_tables_and_is_said_once(done: AuditResult, width: int) -> None:
    text = printed(done, width)
    lines = " ".join(text.split())
    found = answer(done)
    places = [lines.index("controls: "), lines.index(found.headline)]
    for sentence in found.sentences:
        assert lines.count(sentence) == 1
        places.append(lines.index(sentence))
    output = str(done.config["output_path"])
    folded = "".join(text.split())
    places.append(lines.index("results in"))
    assert places == sorted(places)
    assert folded.endswith(f"compleak-llmreport{output}makesthepagetolookat")
    assert "…" not in text


def test_a_folder_with_a_space_is_quoted_in_the_hint(done: AuditResult) -> None:
    result = done.model_copy(update={"config": {**done.config, "output_path": "my runs/a"}})
    assert "compleak-llm report 'my runs/a' makes the page" in printed(result, 140)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_gain_without_the_reference_is_shown_beside_the_rest(
    done: AuditResult, width: int
) -> None:
    leakage = leakage_of(done)
    title = "where a gain is found without the reference, holding:"
    assert title not in printed(done, width)
    shown = estimate(0.0412, 0.0313)
    comparisons = [
        item.model_copy(update={"difference": shown, "p_adjusted": 0.0123})
        if item.question == "SR over NR" and not item.with_reference and item.metric == "auc"
        else item
        for item in leakage.comparisons
    ]
    text = printed(changed(done, comparisons=comparisons), width)
    found = text[text.index(title) : text.index("learned attacks, intervals")]
    assert found.count("SR  original and") == 2
    assert found.count("0.012 *") == 2
    assert "MR" not in found
    assert max(map(len, text.splitlines())) <= width


def test_nothing_is_no_little_less_than_nothing() -> None:
    assert interval(estimate(-0.0001, 0.0002), signed=True) == "0.000 [0.000, 0.000]"
    assert interval(estimate(-0.0001, 0.004), signed=True) == "0.000 [-0.004, +0.004]"


def estimate(value: float, reach: float) -> Estimate:
    return Estimate(
        value=value,
        low=value - reach,
        high=value + reach,
        n_members=9,
        n_nonmembers=9,
        method="",
    )
