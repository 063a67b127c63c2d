"""Two audits whose versions were judged together: what was learned is compared with more care."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import norm

from auditor import AuditResult
from auditor.compare import compare_runs
from auditor.report.figures import interval
from auditor.results.compared import ComparedRuns
from auditor.run import read_result
from tests.test_compare import audited, difference, naive_delong, plant, printed, signals
from tests.test_run import edit_result, edit_scores, folder_of
from tests.tiny import save, tiny_model

LEARNED = ["single", "single-ref", "paired", "paired-ref"]
NF4 = "bnb-nf4"


@pytest.fixture(scope="module")
def first(done: AuditResult) -> Path:
    return folder_of(done)


@pytest.fixture(scope="module")
def second(subject: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same records, another model, and a cheaper way of learning."""
    folder = tmp_path_factory.mktemp("second")
    model = save(tiny_model("llama", seed=5), folder / "model", dtype=torch.bfloat16)
    cheaper = {"model": str(model), "learners": "logistic", "folds": 3, "repeats": 2}
    return audited(subject, folder / "run", **cheaper)


@pytest.fixture(scope="module")
def compared(first: Path, second: Path) -> ComparedRuns:
    return compare_runs(first, second)


def test_what_was_learned_is_compared_with_the_wider_interval(
    compared: ComparedRuns, first: Path, second: Path
) -> None:
    assert [note.code for note in compared.notes] == ["learned-anew"]
    assert compared.notes[0].message.startswith("single, single-ref, paired, paired-ref: ")
    assert compared.left_out == {}
    before, after = (signals(folder, NF4) for folder in (first, second))
    label = before["is_member"].to_numpy()
    for attack in [*LEARNED, "gap", "ez-gap", "loss"]:
        value, se = naive_delong(label, *(rows[attack].to_numpy() for rows in (before, after)))
        wider = np.sqrt(2) if attack in LEARNED else 1.0
        found = difference(compared, NF4, attack, "auc")
        assert found.difference.value == pytest.approx(value, abs=1e-12)
        reach = found.difference.high - found.difference.value
        assert reach == pytest.approx(wider * norm.ppf(0.975) * se, abs=1e-12)
        assert found.p_value == pytest.approx(2 * norm.sf(abs(value) / (wider * se)), abs=1e-12)
    # Beside the original there is nothing to learn about the original.
    original = compared.versions[0]
    assert set(LEARNED) & set(original.before) == {"single", "single-ref"}


def test_each_audits_own_figures_of_what_it_learned_are_repeated(
    compared: ComparedRuns, first: Path, second: Path
) -> None:
    """With and without the reference, each with the accident of training that was found for it."""
    for folder, side in ((first, "before"), (second, "after")):
        leakage = read_result(folder / "audit.json").leakage
        assert leakage is not None
        known = {
            (one.attack + ("-ref" if one.with_reference else ""), one.versions[-1]): one
            for one in leakage.settings
            if one.setting != "MR" and one.supervision == "crossfit"
        }
        assert len(known) == 2 * (3 + 2)
        for version in compared.versions:
            for attack, found in getattr(version, side).items():
                if attack in LEARNED:
                    assert found == known[attack, version.variant].figures


def reach(folder: Path, attack: str) -> float:
    """How far the interval goes below the AUC, on the scale on which it is made."""
    auc = compare_runs(folder, folder).versions[1].before[attack].auc
    return float(logit(auc.value) - logit(auc.low))


def test_the_factor_is_what_the_audit_says_or_else_the_most(first: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(first, tmp_path / "copy"))

    def edit(content: dict[str, Any]) -> None:
        for one in content["leakage"]["settings"]:
            if (one["attack"], one["versions"]) == ("single", [NF4]):
                one["noise_share"] = 0.44 if one["with_reference"] else 0.21

    edit_result(copy, edit)
    said = {attack: reach(copy, attack) for attack in ("single", "single-ref")}
    edit_result(copy, lambda content: content.update(leakage=None))
    most = {attack: reach(copy, attack) for attack in said}
    assert said["single"] == pytest.approx(1.1 / np.sqrt(2) * most["single"], abs=1e-12)
    assert said["single-ref"] == pytest.approx(1.2 / np.sqrt(2) * most["single-ref"], abs=1e-12)


def test_a_planted_signal_in_one_audit_and_in_both(
    first: Path, second: Path, tmp_path: Path
) -> None:
    """Nothing shows how much of its accident two audits share: the root of 2 is the most."""
    runs = [
        plant(folder, "new", tmp_path / str(at), only=NF4)
        for at, folder in enumerate((first, second))
    ]
    result = compare_runs(*runs)
    assert "new" not in result.versions[0].before
    before, after = (signals(folder, NF4) for folder in runs)
    label = before["is_member"].to_numpy()
    value, se = naive_delong(label, *(rows["new"].to_numpy() for rows in (before, after)))
    found = difference(result, NF4, "new", "auc").difference
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.high - found.value == pytest.approx(np.sqrt(2) * norm.ppf(0.975) * se, abs=1e-12)
    # In one audit only it is left out, and the rest is compared.
    half = compare_runs(runs[0], second)
    assert half.left_out["new"] == f"not in {second}"


@pytest.mark.parametrize("width", [75, 100, 160])
def test_a_learned_attack_can_be_the_headline(first: Path, second: Path, width: int) -> None:
    result = compare_runs(first, second, primary="paired-ref")
    text = printed(result, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    figure = interval(result.versions[1].before["paired-ref"].auc)
    assert all(part in text for part in figure.split(" ", 1))
    primary = [item for item in result.comparisons if item.family == "primary"]
    assert [(item.variant, item.attack) for item in primary] == [
        (version.variant, "paired-ref") for version in result.versions[1:]
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_findings_stand_in_columns_and_no_interval_is_broken(
    first: Path, second: Path, tmp_path: Path, width: int
) -> None:
    copy = Path(shutil.copytree(second, tmp_path / "copy"))

    def edit(frame: Any) -> Any:
        rng = np.random.default_rng(7)
        for attack in ("min-k-plus-plus", "single-ref", "loss"):
            frame[attack] = rng.normal(size=len(frame)) + 2.0 * frame["is_member"]
        return frame

    edit_scores(copy, edit)
    text = printed(compare_runs(first, copy), width)
    assert max(map(len, text.splitlines())) <= width
    part = text[text.index("secondary comparisons differ") :].splitlines()[1:]
    found = [line for line in part if re.search(r"\[\+\d.*\]  ? *p <0\.001", line)]
    assert len(found) == 12
    if width >= 100:
        assert len({line.index("[") - len(line.split("[")[0].split()[-1]) for line in found}) == 1
        assert len({line.index("p <0.001") for line in found}) == 1
    assert any(line.startswith("  and ") and line.rstrip().endswith("see --out") for line in part)
