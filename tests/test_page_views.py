"""What the page says, case by case: nulls, few records, broken variants, no release."""

import time
from pathlib import Path

import pytest

from auditor.compress.receipt import Compressed, Skipped
from auditor.finished import Finished, read_finished
from auditor.report.page import render_page
from auditor.report.plots import Drawings, roc_drawing
from auditor.report.view import Grid, Row
from auditor.report.view_head import answer_view, keys, notices, releases_view, short_name
from auditor.report.view_method import method_view
from auditor.report.view_receipts import pattern, receipts_view
from auditor.report.view_records import MAX_CHARACTERS, MAX_IDS, exposed_view, tokens_view
from auditor.report.view_table import comparisons_grid, figures_grid, main_question
from auditor.results import AuditResult, Exposed, Leakage, SettingResult, TokenView
from tests.page_reading import read
from tests.report_cases import invented_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def leaking(folder: Path) -> Finished:
    return read_finished(invented_run(folder / "leaking", include_text=True, n_variants=2))


@pytest.fixture(scope="module")
def silent(folder: Path) -> Finished:
    return read_finished(
        invented_run(folder / "silent", leak=0.0, reference=False, n_variants=1, beyond=True)
    )


@pytest.fixture(scope="module")
def alone(folder: Path) -> Finished:
    return read_finished(invented_run(folder / "alone", beyond=False, n=60, n_variants=1))


@pytest.fixture(scope="module")
def many(folder: Path) -> Finished:
    return read_finished(invented_run(folder / "many", n_variants=12, n=120))


def without_multiples(finished: Finished) -> Drawings:
    roc = roc_drawing(finished, width="wide")
    return Drawings([], roc, roc_drawing(finished, width="narrow"), {}, [], {})


def leakage_of(result: AuditResult) -> Leakage:
    assert result.leakage is not None
    return result.leakage


def column(grid: Grid, title: str) -> int:
    return [one.title for one in grid.columns].index(title)


def words(grid: Grid, row: Row, title: str) -> str:
    return row.cells[column(grid, title)].text


def test_a_null_reads_as_one(silent: Finished) -> None:
    seen = read(render_page(silent, without_multiples(silent)))
    found = answer_view(silent.result)
    assert found.finding == "none"
    for key in found.keys:
        assert "gives away" not in key.says
        assert ": a gain" not in key.says
    [answer] = seen.of("section", id="answer")
    assert answer.attributes["class"] == "none"
    assert "no difference is shown" in answer.text


def test_key_figures_claim_nothing_where_nothing_may_be_claimed(leaking: Finished) -> None:
    claimed = keys(leaking.result, may_claim=True)
    muted = keys(leaking.result, may_claim=False)
    assert [key.value for key in claimed] == [key.value for key in muted]
    assert any("gives away more" in key.says for key in claimed)
    assert not any("gives away" in key.says or ": a gain" in key.says for key in muted)


def test_few_records_and_one_version_at_a_time(alone: Finished) -> None:
    page = render_page(alone, without_multiples(alone))
    seen = read(page)
    assert alone.result.leakage is None
    assert not seen.of("table", id="sets")
    assert "were not looked for" in seen.text
    absent = {
        one.absent
        for found in alone.result.variants[0].attacks.values()
        for one in found.tpr_at_fpr.values()
        if one.absent
    }
    assert absent
    for reason in absent:
        assert f"Left out: {reason}." in seen.text
    # A column in which nothing stands is no column.
    assert not any("TPR" in one.title for one in figures_grid(alone.result).columns)


def test_every_row_of_the_table_is_one_attacker(leaking: Finished) -> None:
    result = leaking.result
    grid = figures_grid(result)
    n_alone = sum(len(variant.attacks) for variant in result.variants)
    assert len(grid.rows) == 1 + n_alone + len(leakage_of(result).settings)
    assert all(len(row.cells) == len(grid.columns) for row in grid.rows)
    essential = [row for row in grid.rows if row.is_essential]
    assert 0 < len(essential) < len(grid.rows)
    learned = {words(grid, row, "Trained") for row in essential if row.setting != "NR"}
    assert learned == {"cross-fitted"}
    assert {words(grid, row, "Reference") for row in essential if row.setting == "MR"} == {"yes"}
    first = [row for row in essential if words(grid, row, "Trained") == "none"]
    assert {words(grid, row, "Attack") for row in first} == {result.primary_attack}
    for row in grid.rows:
        held = [int(place) for place in row.versions.split()]
        assert all(place < len(result.variants) for place in held)
        if row.setting == "SR":
            assert len(held) == 2
            assert held[0] == 0


def test_a_row_is_judged_by_its_primary_question(leaking: Finished) -> None:
    result = leaking.result
    together = [one for one in leakage_of(result).settings if one.attack == "combined"]

    def question(one: SettingResult) -> str:
        found = main_question(result, one)
        assert found is not None
        return found.question

    whole = [one for one in together if len(one.versions) == len(result.variants)]
    asked = {one.with_reference: question(one) for one in whole}
    assert asked == {False: "MR over SR", True: "MR over original and reference"}
    rest = [one for one in together if one not in whole]
    assert {question(one) for one in rest} == {"variants over original"}


def test_findings_are_those_of_the_corrected_tests(leaking: Finished) -> None:
    grid = comparisons_grid(leaking.result)
    at = column(grid, "p (Holm)")
    assert any(row.is_found for row in grid.rows)
    for row in grid.rows:
        p = row.cells[at].value
        assert row.is_found == (p is not None and p < 1 - leaking.result.confidence)
        assert row.cells[at].text.endswith(" *") == row.is_found


def test_sets_are_those_of_the_terminal(leaking: Finished) -> None:
    found = releases_view(leaking.result)
    assert found is not None
    releases = leakage_of(leaking.result).releases
    assert releases is not None
    whole = found.sets.rows[0]
    assert whole.versions.split() == [str(at) for at in range(len(leaking.result.variants))]
    assert len(found.sets.rows) <= len(releases.sets)
    parts = [row.cells[1].value for row in found.parts.rows]
    assert parts == [part.auc for part in releases.parts]


def test_a_broken_variant_is_named_and_compared_with_nothing(many: Finished) -> None:
    seen = read(render_page(many, without_multiples(many)))
    broken = [one for one in many.result.variants if one.status == "broken"]
    assert broken
    receipts = {one.name: one for one in receipts_view(many.result).receipts}
    for variant in broken:
        assert receipts[variant.variant].status.startswith("Broken")
        assert f"{variant.variant} (broken)" in seen.text
    severe = [one.text for one in notices(many.result) if one.severity == "severe"]
    assert any("broken" in text for text in severe)


def test_twelve_variants_are_quick_and_small(many: Finished) -> None:
    none = without_multiples(many)
    begun = time.process_time()
    page = render_page(many, none)
    assert time.process_time() - begun < 3
    assert len(page.encode()) < 1_000_000


def test_exposed_members_are_listed_up_to_a_hundred(leaking: Finished) -> None:
    leakage = leakage_of(leaking.result)
    assert leakage.exposed is not None
    ids = [f"{at:016x}" for at in range(MAX_IDS + 17)]

    def shown(exposed: Exposed) -> str:
        update = {"leakage": leakage.model_copy(update={"exposed": exposed})}
        result = leaking.result.model_copy(update=update)
        view = exposed_view(result)
        assert view is not None
        return f"{view.n_ids} {len(view.ids)} {view.absent} {[fact.text for fact in view.facts]}"

    some = leakage.exposed.model_copy(update={"ids": ids, "n_newly": 117, "n_no_longer": 4})
    assert shown(some).startswith("117 100  ")
    assert "'117', '4'" in shown(some)
    absent = Exposed(fpr=None, absent="too few nonmembers")
    assert shown(absent) == "0 0 too few nonmembers []"


def test_long_records_are_cut_and_say_so(leaking: Finished) -> None:
    n = 60_000
    long = TokenView(
        record_id="0" * 16,
        is_member=False,
        chosen="nonmember most like a member",
        tokens=["a"] * n,
        first=1,
        log_p={one.variant: [-1.0] * (n - 1) for one in leaking.result.variants},
    )
    view = tokens_view(leaking.result.model_copy(update={"token_views": [long]}))
    assert view is not None
    [record] = view.records
    assert record.why == "nonmember most like a member"
    left = n - len(record.tokens)
    assert 0 < left < n
    assert record.cut == f"and {left:,} tokens more, in audit.json"
    assert sum(len(one.title) + len(one.classes) for one in record.tokens) < MAX_CHARACTERS


def test_tokens_are_coloured_by_what_they_gave_away(leaking: Finished) -> None:
    original, variant = (one.variant for one in leaking.result.variants[:2])
    one = TokenView(
        record_id="0" * 16,
        is_member=True,
        chosen="newly exposed",
        tokens=["<s>", "sure", "unlikely", "likelier"],
        first=1,
        log_p={original: [0.0, -30.0, -3.0], variant: [-0.1, -30.0, -1.0], "reference": [-1.0] * 3},
    )
    view = tokens_view(leaking.result.model_copy(update={"token_views": [one]}))
    assert view is not None
    assert [track.key for track in view.tracks] == ["p0", "p1", "p2", "d1"]
    classes = [token.classes.split() for token in view.records[0].tokens]
    assert classes[0] == []
    assert [found[0] for found in classes[1:]] == ["p0-0", "p0-8", "p0-3"]
    assert [found[-1] for found in classes[1:]] == ["d1-0", "d1-0", "d1-3"]
    assert view.records[0].why == "member, newly exposed"
    assert view.records[0].tokens[1].title.startswith(f"log p: {original} 0.00, {variant} −0.10")


def test_modules_that_are_alike_are_one_row(leaking: Finished) -> None:
    assert pattern("model.layers.0.self_attn.q_proj") == "model.layers.*.self_attn.q_proj"
    assert pattern("transformer.h.11.mlp") == "transformer.h.*.mlp"
    assert pattern("lm_head2") == "lm_head2"
    variant = leaking.result.variants[1]
    assert variant.receipt is not None
    layers = [
        Compressed(
            module=f"model.layers.{at}.q",
            kind="Linear",
            n_parameters=100,
            n_changed=50 + at,
            sparsity=0.5,
            relative_error=float("nan") if at == 0 else 0.1 * at,
        )
        for at in range(3)
    ]
    skipped = [Skipped(module="embed", n_parameters=7, reason="embedding")]
    update = {"compressed": layers, "skipped": skipped}
    receipt = variant.receipt.model_copy(update=update)
    result = leaking.result.model_copy(
        update={
            "variants": [
                leaking.result.variants[0],
                variant.model_copy(update={"receipt": receipt}),
            ]
        }
    )
    view = receipts_view(result).receipts[1]
    assert view.modules is not None
    [row] = view.modules.rows
    assert [cell.text for cell in row.cells] == [
        *("model.layers.*.q", "Linear", "3", "300", "51.0", "50.0", "0.1000 to 0.2000")
    ]
    # A tied head is the same weights as the embedding: what is left is not the sum over modules.
    n_left = receipt.n_parameters - receipt.n_compressed
    assert f"{n_left:,} parameters: embedding" in [fact.text for fact in view.facts]


def test_a_model_has_the_name_that_people_use() -> None:
    assert short_name("/data/models/llama-gsm8k/") == "llama-gsm8k"
    assert short_name("org/model") == "org/model"
    assert short_name("a/b <script>alert(1)</script>") == "a/b <script>alert(1)</script>"
    assert short_name("/") == "/"


def test_how_it_was_done_is_whole(leaking: Finished) -> None:
    result = leaking.result
    text = read(render_page(leaking, without_multiples(leaking))).text
    for fact in method_view(result).fingerprints:
        assert fact.text in text
    for value in (result.model.sha256, result.model.tokenizer_sha256, result.records.sha256):
        assert value in text
    for name, number in result.versions.items():
        assert name in text
        assert number in text
    assert result.leakage is not None
    for control in leakage_of(result).controls:
        assert control.attack in text
    assert text.count("passed") + text.count("FAILED") >= len(leakage_of(result).controls)
    assert "compleak-llm audit" in text
