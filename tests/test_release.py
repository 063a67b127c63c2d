"""`release` and the gate of `audit`, end to end on real audits of tiny models."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from auditor import AuditConfig, AuditResult, audit
from auditor.cli import main
from auditor.results import Release, Releases
from tests.conftest import write_records
from tests.test_audit import flags
from tests.test_run import PRUNED, edit_result, edit_scores, folder_of, tree

NAMES = ["original", "bnb-nf4", PRUNED]
QUICK: dict[str, Any] = {"learners": "logistic", "folds": 3, "repeats": 1, "bootstrap": 100}


def audited(given: dict[str, Any], output: Path, **changes: Any) -> AuditResult:
    return audit(AuditConfig.model_validate({**given, **changes, "output_path": str(output)}))


@pytest.fixture(scope="session")
def told_apart(subject: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Nonmembers of another kind, which whoever holds a version tells from the members."""
    path = tmp_path_factory.mktemp("told-apart") / "nonmembers.jsonl"
    lines = Path(subject["nonmembers"]).read_text().splitlines()
    write_records(path, [json.loads(line)["text"].upper()[:50] for line in lines])
    given = {key: value for key, value in subject.items() if key != "reference"}
    return {**given, **QUICK, "nonmembers": str(path)}


@pytest.fixture(scope="session")
def leaky(told_apart: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """An audit whose every release gives away much, and may give away that much."""
    output = tmp_path_factory.mktemp("leaky") / "run"
    return audited(told_apart, output, at_most="auc=1", release=f"original,{PRUNED}")


def release(folder: Path, *arguments: str | Path) -> int:
    return main(["release", str(folder), *map(str, arguments)])


def judged(folder: Path, tmp_path: Path, *arguments: str | Path) -> Releases:
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}.json"
    assert release(folder, *arguments, "--out", out) == 0
    return Releases.model_validate_json(out.read_text())


def in_words(text: str) -> str:
    return " ".join(text.split())


def test_the_figures_are_those_of_the_audit(
    done: AuditResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every set, to the last digit; and the run's folder stays as it is."""
    folder = folder_of(done)
    before = tree(folder)
    out = tmp_path / "new" / "releases.json"
    assert release(folder, "--out", out) == 0
    found = Releases.model_validate_json(out.read_text())
    assert done.leakage is not None
    assert found == done.leakage.releases
    assert [path.name for path in out.parent.iterdir()] == ["releases.json"]
    assert tree(folder) == before
    sets = {tuple(one.versions) for one in found.sets}
    assert sets == {held for k in (1, 2, 3) for held in combinations(NAMES, k)}
    assert len(found.sets) == len(sets)
    assert found.with_reference
    assert found.gate is not None
    assert found.gate.versions == NAMES
    printed = capsys.readouterr().out
    assert found.advice in in_words(printed)
    for name in NAMES:
        assert name in printed
    assert "3 versions, 7 sets judged, the attacker holds the reference too" in printed


def test_a_set_gives_away_what_its_attacker_finds(done: AuditResult) -> None:
    """A version alone, the original beside a variant, all: the attackers of NR, SR and MR."""
    assert done.leakage is not None
    assert done.leakage.releases is not None
    sets = {tuple(one.versions): one for one in done.leakage.releases.sets}
    attackers = [
        one
        for one in done.leakage.settings
        if one.with_reference and one.attack in ("single", "paired", "combined")
    ]
    assert len(attackers) == len(sets) == 7
    for one in attackers:
        assert sets[tuple(one.versions)].auc == one.figures.auc
        assert sets[tuple(one.versions)].tpr_at_fpr == one.figures.tpr_at_fpr
    for held, one in sets.items():
        costs = [float(done.variant(name).perplexity or "nan") for name in held]
        assert one.perplexity_worst == max(costs)
        assert one.perplexity_mean == pytest.approx(sum(costs) / len(costs))


def gate(found: Releases) -> Release:
    assert found.gate is not None
    return found.gate


@pytest.mark.parametrize("fail_on", ["over", "undecided"])
def test_over_the_bound_is_exit_code_3(
    leaky: AuditResult, fail_on: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["--at-most", "auc=0.6", "--fail-on", fail_on, "--out", out]
    assert release(folder_of(leaky), *arguments) == 3
    printed = capsys.readouterr()
    found = Releases.model_validate_json(out.read_text())
    assert gate(found).versions == NAMES, "a bound given anew is for all, unless versions are named"
    assert gate(found).verdict == "over"
    assert "to be released: all 3 versions: AUC" in printed.out
    assert printed.err.startswith("error: the release must stay within auc=0.6\n  seen: ")
    assert "is shown to give away more than was allowed" in printed.err
    assert f"{gate(found).auc.value:.3f}" in printed.err
    assert f"  do:   {found.advice}" in printed.err
    assert "Traceback" not in printed.err


def undecided(done: AuditResult) -> tuple[list[str], str]:
    """A release of the audit, and a bound that lies within its interval."""
    assert done.leakage is not None
    assert done.leakage.releases is not None
    widest = max(done.leakage.releases.sets, key=lambda one: one.auc.high or 0.0)
    low, high = widest.auc.low, widest.auc.high
    assert low is not None
    assert high is not None
    assert high > 0.5
    return widest.versions, f"auc={(max(low, 0.5) + high) / 2:.6f}"


@pytest.mark.parametrize(("fail_on", "code"), [(None, 0), ("over", 0), ("undecided", 3)])
def test_undecided_is_as_bad_as_the_gate_says(
    done: AuditResult, fail_on: str | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    versions, bound = undecided(done)
    arguments = ["--at-most", bound, "--versions", ",".join(versions)]
    assert (
        release(folder_of(done), *arguments, *(["--fail-on", fail_on] if fail_on else [])) == code
    )
    printed = capsys.readouterr()
    assert f"at most {bound.removeprefix('auc=')}: undecided" in in_words(printed.out)
    assert ("is not shown to stay within the bound" in printed.err) == (code == 3)


def test_under_the_bound_all_is_well(
    done: AuditResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--at-most", "auc=0.99", "--fail-on", "undecided"]
    found = judged(folder_of(done), tmp_path, *arguments)
    assert {one.verdict for one in found.sets} == {"under"}
    assert "All 3 versions are shown to stay within the bound" in found.advice
    assert capsys.readouterr().err == ""


def test_a_bound_on_a_tpr_has_its_rate_judged(done: AuditResult, tmp_path: Path) -> None:
    """At a rate that the audit had not looked at; figures beside it stay as they are."""
    found = judged(folder_of(done), tmp_path, "--at-most", "tpr=0.9@fpr=0.25")
    assert found.metric == "tpr@0.25"
    assert done.leakage is not None
    assert done.leakage.releases is not None
    aucs = {tuple(one.versions): one.auc for one in done.leakage.releases.sets}
    for one in found.sets:
        assert list(one.tpr_at_fpr) == ["0.01", "0.2", "0.25"]
        assert one.auc == aucs[tuple(one.versions)]
        figure = one.tpr_at_fpr["0.25"]
        assert figure.low is not None
        assert figure.high is not None
        expected = "under" if figure.high <= 0.9 else "over" if figure.low > 0.9 else "undecided"
        assert one.verdict == expected


def test_the_audits_own_bound_is_taken(
    leaky: AuditResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its own release, until others are named."""
    found = judged(folder_of(leaky), tmp_path, "--fail-on", "undecided")
    assert leaky.leakage is not None
    assert found == leaky.leakage.releases
    assert gate(found).versions == ["original", PRUNED]
    named = judged(folder_of(leaky), tmp_path, "--versions", f"{PRUNED},bnb-nf4")
    assert gate(named).versions == ["bnb-nf4", PRUNED]
    assert [one.auc for one in named.sets] == [one.auc for one in found.sets]


def test_what_is_there_is_not_written_over(
    done: AuditResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    out.write_text("mine")
    assert release(folder_of(done), "--out", out) == 2
    assert "must not be there yet" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert release(folder_of(done), "--out", out / "x.json") == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fail-on", "over"], "need a bound"),
        (["--versions", "bnb-nf4"], "--versions and --fail-on need a bound"),
        (["--at-most", "auc=0.6", "--versions", "bnb-int8"], "unknown version of this audit"),
        (["--at-most", "auc=0.6", "--versions", "bnb-nf5"], "did you mean 'bnb-nf4'"),
        (["--at-most", "tpr=0.05@fpr=0.01"], "needs 1000 nonmembers; there are 60"),
        (["--at-most", "auc=0.4"], "from 0.5 to 1"),
        (["--at-most", "0.6"], "must be tpr=VALUE@fpr=RATE or auc=VALUE"),
        (["--at-most", "auc=0.6", "--fail-on", "never"], "--fail-on"),
    ],
)
def test_what_cannot_be_asked(
    arguments: list[str], expected: str, done: AuditResult, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(folder_of(done))
    assert release(folder_of(done), *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert expected in in_words(printed.err)
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert tree(folder_of(done)) == before


def break_scores(folder: Path, version: str) -> None:
    def edit(frame: Any) -> Any:
        frame.loc[(frame["variant"] == version) & (frame.index % 7 == 0), "loss"] = float("nan")
        return frame

    edit_scores(folder, edit)


def test_a_version_that_was_not_judged_closes_the_gate(
    done: AuditResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder_of(done), tmp_path / "copy"))
    break_scores(copy, PRUNED)
    bound = ["--at-most", "auc=0.99"]
    assert release(copy, *bound, "--fail-on", "over", "--out", tmp_path / "out.json") == 3
    printed = capsys.readouterr()
    assert f"{PRUNED} was not: its signal loss is not a finite number" in printed.err
    assert not (tmp_path / "out.json").exists()
    # Named without a gate it is an error all the same; without it the others pass.
    assert release(copy, *bound, "--versions", f"original,{PRUNED}") == 2
    assert f"{PRUNED} was not" in capsys.readouterr().err
    assert release(copy, *bound, "--fail-on", "undecided", "--versions", "original,bnb-nf4") == 0
    found = judged(copy, tmp_path)
    assert [part.version for part in found.parts] == ["original", "bnb-nf4"]


def run_again(given: dict[str, Any], folder: Path, *arguments: str) -> int:
    """The audit once more from its stored scores."""
    return main(["audit", *flags(given, folder), *arguments])


@pytest.mark.parametrize("how", ["flags", "recipe"])
@pytest.mark.parametrize(
    ("bound", "code", "verdict"), [("auc=0.6", 3, "over"), ("auc=1", 0, "under")]
)
def test_the_gate_of_an_audit_closes_after_all_files_are_written(
    told_apart: dict[str, Any],
    leaky: AuditResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    how: str,
    bound: str,
    code: int,
    verdict: str,
) -> None:
    copy = Path(shutil.copytree(folder_of(leaky), tmp_path / "copy"))
    for name in ("audit.json", "scores.parquet", "exposure.parquet"):
        (copy / name).unlink()
    gate_of = {"at_most": bound, "release": ["original", "bnb-nf4"], "fail_on": "over"}
    if how == "recipe":
        recipe = tmp_path / "gate.yaml"
        recipe.write_text("# A gate.\n" + json.dumps(gate_of))
        arguments = ["--recipe", str(recipe)]
    else:
        arguments = ["--at-most", bound, "--release", "original,bnb-nf4", "--fail-on", "over"]
    assert run_again(told_apart, copy, *arguments) == code
    printed = capsys.readouterr().err
    assert ("is shown to give away more than was allowed" in printed) == (code == 3)
    result = AuditResult.model_validate_json((copy / "audit.json").read_text())
    assert (copy / "scores.parquet").is_file()
    assert (copy / "exposure.parquet").is_file()
    assert result.leakage is not None
    assert result.leakage.releases is not None
    found = gate(result.leakage.releases)
    assert (found.versions, found.verdict) == (["original", "bnb-nf4"], verdict)
    if code == 3:
        assert f"  do:   {result.leakage.releases.advice}" in printed


@pytest.mark.usefixtures("poisoned_pruning")
def test_a_broken_variant_closes_the_gate_of_an_audit(
    told_apart: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = ["--at-most", "auc=1", "--fail-on", "over"]
    assert run_again(told_apart, output, *arguments) == 3
    printed = capsys.readouterr().err
    assert f"{PRUNED} was not: " in printed
    assert "leave it out of the release" in printed
    result = AuditResult.model_validate_json((output / "audit.json").read_text())
    assert result.leakage is not None
    # Left out by name, in the result and in the warnings; the others are judged.
    assert list(result.leakage.left_out) == [PRUNED]
    assert "finite" in result.leakage.left_out[PRUNED]
    assert [w.code for w in result.warnings if PRUNED in w.message] == [
        "broken-variant",
        "left-out",
    ]
    assert result.leakage.releases is not None
    assert len(result.leakage.releases.sets) == 3
    # Without it in the release the gate is open, and so it is for `release`.
    without = ["--release", "original,bnb-nf4"]
    assert run_again(told_apart, output, *arguments, *without) == 0
    assert release(output, "--fail-on", "over") == 0
    assert release(output, "--at-most", "auc=1", "--fail-on", "over") == 3


def test_a_gate_that_could_not_judge_is_refused_or_closed(
    told_apart: dict[str, Any],
    leaky: AuditResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate_of = ["--at-most", "auc=1", "--fail-on", "over"]
    for named in (["--settings", "NR,SR"], ["--attacks", "loss,paired"]):
        assert run_again(told_apart, tmp_path / "run", *gate_of, *named) == 2
        assert "needs the attack that holds many versions" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    copy = Path(shutil.copytree(folder_of(leaky), tmp_path / "copy"))
    alone = {**told_apart, "variants": "original"}
    assert run_again(alone, copy, *gate_of) == 3
    assert "there are not two versions" in capsys.readouterr().err


def test_a_run_without_its_scores_or_of_an_older_kind(
    done: AuditResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for missing in ("tokens", "scores.parquet", "audit.json"):
        copy = Path(shutil.copytree(folder_of(done), tmp_path / missing))
        path = copy / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert release(copy, "--out", tmp_path / "out.json") == 2
        printed = capsys.readouterr().err
        assert missing in printed
        assert "Traceback" not in printed
    copy = Path(shutil.copytree(folder_of(done), tmp_path / "older"))
    edit_result(copy, lambda content: content.pop("stored"))
    assert release(copy) == 2
    assert "run the audit again" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
