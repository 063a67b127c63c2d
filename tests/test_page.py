"""The page: what is text stays text, nothing is fetched, and every number is there."""

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from auditor.finished import Finished, read_finished
from auditor.report.figures import justified
from auditor.report.page import breakable, render_page
from auditor.report.plots import draw
from auditor.report.view import readable
from auditor.results import AttackResult, Estimate
from tests.page_reading import Read, read
from tests.report_cases import invented_run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("plain") / "run"
    return read_finished(invented_run(folder, include_text=True, warned=True, n_variants=2))


@pytest.fixture(scope="module")
def page(plain: Finished) -> str:
    return render_page(plain, draw(plain))


@pytest.fixture(scope="module")
def seen(page: str) -> Read:
    return read(page)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    made = invented_run(folder, hostile=True, include_text=True, warned=True, n_variants=1)
    return read_finished(made)


@pytest.fixture(scope="module")
def hostile_page(hostile: Finished) -> str:
    return render_page(hostile, draw(hostile))


def test_what_came_from_data_is_text(hostile: Finished, hostile_page: str) -> None:
    seen = read(hostile_page)
    assert len(seen.of("script")) == len(seen.of("style")) == 1
    made = {one.tag for one in seen.elements}
    assert not made & {"img", "iframe", "object", "embed", "base", "form"}
    for one in seen.elements:
        assert not any(name.startswith("on") for name in one.attributes), one.attributes
        for name in ("href", "src", "action", "xlink:href"):
            target = one.attributes.get(name) or "#"
            assert target.startswith("#") or (one.tag, target) == ("link", "data:,"), target
    result = hostile.result
    assert readable(result.model.name) in seen.text
    assert "<script>" in result.model.name
    for variant in result.variants:
        assert readable(variant.variant) in seen.text
    for warned in result.warnings:
        if warned.code != "library-repaired":
            assert readable(warned.message) in seen.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", hostile_page)


def test_nothing_is_fetched(page: str) -> None:
    assert "://" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert "@import" not in page


def test_its_policy_names_its_own_style_and_script(seen: Read) -> None:
    [policy] = [m for m in seen.of("meta") if "http-equiv" in m.attributes]
    allowed = str(policy.attributes["content"])
    assert allowed.startswith("default-src 'none'; ")
    assert "'unsafe-inline'" not in allowed.replace("style-src-attr 'unsafe-inline'", "")
    for tag in ("style", "script"):
        [element] = seen.of(tag)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in allowed


def test_the_same_audit_gives_the_same_bytes(plain: Finished, page: str) -> None:
    again = read_finished(plain.folder)
    assert render_page(again, draw(again)) == page


def test_warnings_stand_above_the_answer(plain: Finished, seen: Read) -> None:
    answer = seen.text.index("The answer")
    assert len(plain.result.warnings) > 5
    for warned in plain.result.warnings:
        if warned.code != "library-repaired":
            assert seen.text.index(warned.message) < answer
    for item in plain.result.artifacts:
        assert seen.text.index(item.message) < answer
    severe = [one for one in seen.of("div") if one.attributes.get("class") == "severe"]
    found = [*plain.result.artifacts, *plain.result.warnings]
    assert len(severe) == sum(one.severity == "severe" for one in found) > 0
    assert all("Warning" in one.text for one in severe)
    # What a library was mended for is one line, by name.
    assert seen.text.count("computes wrongly here") == 1


def numbers(figures: AttackResult) -> list[Estimate]:
    return [figures.auc, *figures.tpr_at_fpr.values(), figures.balanced_accuracy]


def test_every_number_of_the_audit_is_in_its_tables(plain: Finished, seen: Read) -> None:
    result = plain.result
    assert result.leakage is not None
    assert result.blind is not None
    cells = [one for one in seen.of("td") if "data-value" in one.attributes]
    shown = {
        tuple(float(str(one.attributes.get(f"data-{k}", "nan"))) for k in ("value", "low", "high"))
        for one in cells
    }
    figures = [one for variant in result.variants for one in variant.attacks.values()]
    figures += [one.figures for one in result.leakage.settings]
    wanted = [estimate for one in figures for estimate in numbers(one)]
    compared = [*result.comparisons, *result.leakage.comparisons]
    wanted += [item.difference for item in compared]
    wanted += [result.blind.auc, *result.blind.tpr_at_fpr.values()]
    present = [one for one in wanted if one.value is not None]
    assert len(present) > 150
    for one in present:
        assert (one.value, one.low, one.high) in shown
    values = {value for value, _, _ in shown}
    assert values >= {item.p_adjusted for item in compared if item.p_adjusted is not None}
    # What is absent says why.
    reasons = {one.absent for one in wanted if one.absent}
    assert reasons
    for reason in reasons:
        assert reason in seen.text


def test_headings_ids_and_labels_are_in_order(seen: Read) -> None:
    levels = [int(one.tag[1]) for one in seen.elements if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [one.attributes["id"] for one in seen.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for one in seen.elements:
        for name in str(one.attributes.get("aria-labelledby") or "").split():
            assert name in ids
    for one in (*seen.of("a"), *seen.of("use")):
        assert str(one.attributes["href"])[1:] in ids
    assert len(seen.of("main")) == 1
    regions = [one for one in seen.of("div", role="region") if one.attributes["tabindex"] == "0"]
    assert len(regions) == len(seen.of("table")) == len(seen.of("caption"))
    assert all(one.attributes.get("scope") in ("col", "row") for one in seen.of("th"))


def test_without_script_everything_shows(seen: Read) -> None:
    hidden = [one for one in seen.elements if "hidden" in one.attributes]
    assert [one.attributes.get("id") for one in hidden] == ["tip"]
    assert not seen.of("button")
    assert not seen.of("select")


def test_records_are_shown_token_by_token(plain: Finished, seen: Read) -> None:
    shown = [one for one in seen.of("p") if one.attributes.get("class") == "tokens"]
    views = plain.result.token_views
    assert len(shown) == len(views) > 0
    for one, view in zip(shown, views, strict=True):
        assert one.text == readable("".join(view.tokens))
    titles = [one.attributes["title"] for one in seen.of("span") if "title" in one.attributes]
    assert len(titles) == sum(len(view.tokens) - view.first for view in views)
    first = next(iter(views[0].log_p.items()))
    assert f"{first[0]} {first[1][0]:.2f}".replace("-", "−") in str(titles[0])
    [style] = seen.of("style")
    classes = {name for one in seen.of("span") for name in str(one.attributes.get("class")).split()}
    for name in classes:
        if re.match(r"[pd]\d+-", name):
            assert f".{name}{{" in style.text


def test_names_for_the_script_are_data(hostile: Finished, hostile_page: str) -> None:
    [main] = read(hostile_page).of("main")
    names = json.loads(str(main.attributes["data-names"]))
    assert names == [readable(one.variant) for one in hostile.result.variants]


def of(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, n_members=1, n_nonmembers=1, method="")


@pytest.mark.parametrize(
    ("found", "how", "shown"),
    [
        (of(0.7241, 0.7083, 0.7404), {}, ("0.724", "[0.708, 0.740]")),
        (of(0.4922, 0.2501, 0.7361), {}, ("0.49", "[0.25, 0.74]")),
        (of(0.92345, 0.92301, 0.92389), {}, ("0.923", "[0.923, 0.924]")),
        (of(0.0812, 0.05, 0.1234), {"percent": True}, ("8.1", "[5.0, 12.3]")),
        (of(0.3, 0.1, 0.5), {"percent": True}, ("30", "[10, 50]")),
        (of(-0.00043, -0.00076, -0.0001), {"signed": True}, ("−0.00043", "[−0.00076, −0.00010]")),
        (of(0.0, 0.0, 0.0), {"signed": True}, ("0.000", "[0.000, 0.000]")),
        (of(-0.0004, -0.044, 0.031), {"signed": True, "percent": True}, ("0.0", "[−4.4, +3.1]")),
    ],
)
def test_figures_have_the_digits_that_their_intervals_justify(
    found: Estimate, how: dict[str, bool], shown: tuple[str, str]
) -> None:
    assert justified(found, **how) == shown


def test_an_absent_figure_is_a_dash() -> None:
    absent = Estimate(value=None, n_members=1, n_nonmembers=1, method="", absent="too few")
    assert justified(absent) == justified(None) == ("–", "")


def test_what_cannot_be_seen_is_marked() -> None:
    assert readable("a\u202eb\x00c\u200bd") == "a\ufffdb\ufffdc\ufffdd"
    kept = "tab\t line\n wide\u3000 fixed\u00a0 joined\u200d שלום 模型"
    assert readable(kept) == kept


def test_long_names_may_be_parted_and_stay_text() -> None:
    assert breakable("prune:sparsity=0.5") == "prune:<wbr>sparsity=0.5"
    assert breakable("<b>a/b:c=d&e") == "&lt;b&gt;a/<wbr>b:<wbr>c=<wbr>d&amp;e"
    assert read(str(breakable("<b>a/b:c=d&#x3a;e_f"))).text == "<b>a/b:c=d&#x3a;e_f"


def test_the_page_speaks_of_no_place_on_this_machine(page: str) -> None:
    assert str(Path.cwd()) not in page
