"""Two audits of the same records, paired: figures against direct computation; what is refused."""

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from auditor import AuditConfig, AuditResult, audit
from auditor.cli import main
from auditor.compare import compare_runs
from auditor.report.compared import show
from auditor.report.figures import interval
from auditor.results.compared import ComparedRuns
from auditor.run import open_run
from tests.conftest import N, write_records
from tests.test_run import PRUNED, edit_scores, folder_of, tree
from tests.tiny import byte_tokenizer, save, tiny_model

ATTACKS = ["loss", "zlib", "min-k", "min-k-plus-plus", "ref", "ez"]
ALONE = {"variants": "original", "reference": None}


@pytest.fixture(scope="module")
def later(subject: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Another model of the same family, and the same records in another order."""
    folder = tmp_path_factory.mktemp("later")
    model = save(tiny_model("llama", seed=5), folder / "model", dtype=torch.bfloat16)
    found = {**subject, "model": str(model), "variants": "bnb-nf4,prune-magnitude:sparsity=0.25"}
    for side in ("members", "nonmembers"):
        lines = Path(subject[side]).read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        random.Random(4).shuffle(texts)
        found[side] = str(write_records(folder / f"{side}.jsonl", texts))
    return found


def audited(given: dict[str, Any], output: Path, **changes: Any) -> Path:
    audit(AuditConfig.model_validate({**given, **changes, "output_path": str(output)}))
    return output


@pytest.fixture(scope="module")
def first(
    subject: dict[str, Any], done: AuditResult, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The attacks on one version alone; what is learned is in `test_compare_learned`."""
    copy = shutil.copytree(folder_of(done), tmp_path_factory.mktemp("first") / "run")
    return audited(subject, Path(copy), attacks=ATTACKS)


@pytest.fixture(scope="module")
def second(later: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited(later, tmp_path_factory.mktemp("second") / "run", attacks=ATTACKS)


@pytest.fixture(scope="module")
def compared(first: Path, second: Path) -> ComparedRuns:
    return compare_runs(first, second)


def signals(folder: Path, variant: str) -> Any:
    """Rows of one version, sorted by id."""
    table = pq.read_table(folder / "scores.parquet").to_pandas()
    return table[table["variant"] == variant].sort_values("record_id")


def difference(result: ComparedRuns, variant: str, attack: str, metric: str) -> Any:
    found = {(item.variant, item.attack, item.metric): item for item in result.comparisons}
    return found[variant, attack, metric]


def naive_delong(is_member: Any, before: Any, after: Any) -> tuple[float, float]:
    """Difference of two AUCs and its standard error, pair by pair."""
    kernels = [
        (s[is_member][:, None] > s[~is_member]) + 0.5 * (s[is_member][:, None] == s[~is_member])
        for s in (before, after)
    ]
    change = kernels[1] - kernels[0]
    rows, columns = change.mean(axis=1), change.mean(axis=0)
    variance = rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns)
    return change.mean(), np.sqrt(variance)


def test_figures_are_those_of_direct_computation(
    compared: ComparedRuns, first: Path, second: Path
) -> None:
    assert [item.variant for item in compared.versions] == ["original", "bnb-nf4"]
    assert (compared.n_members, compared.n_nonmembers) == (N, N)
    for version in compared.versions:
        before, after = (signals(folder, version.variant) for folder in (first, second))
        assert before["record_id"].tolist() == after["record_id"].tolist()
        label = before["is_member"].to_numpy()
        assert list(version.before) == list(version.after) == ATTACKS
        for attack in ATTACKS:
            x, y = before[attack].to_numpy(), after[attack].to_numpy()
            aucs = [roc_auc_score(label, values) for values in (x, y)]
            assert version.before[attack].auc.value == pytest.approx(aucs[0], abs=1e-12)
            assert version.after[attack].auc.value == pytest.approx(aucs[1], abs=1e-12)
            value, se = naive_delong(label, x, y)
            found = difference(compared, version.variant, attack, "auc")
            assert found.difference.value == pytest.approx(value, abs=1e-12)
            reach = norm.ppf(0.975) * se
            assert found.difference.high - found.difference.value == pytest.approx(reach, abs=1e-12)
            assert found.p_value == pytest.approx(2 * norm.sf(abs(value) / se), abs=1e-12)
            rates = []
            for values in (x, y):
                threshold = np.sort(values[~label])[::-1][int(0.2 * N)]
                rates.append((values[label] > threshold).mean())
            found = difference(compared, version.variant, attack, "tpr@0.2")
            assert found.difference.value == pytest.approx(rates[1] - rates[0], abs=1e-12)
            assert version.before[attack].tpr_at_fpr["0.2"].value == pytest.approx(rates[0])
            assert difference(compared, version.variant, attack, "tpr@0.01").p_value is None


def test_each_audits_own_figures_are_repeated(compared: ComparedRuns, done: AuditResult) -> None:
    for version in compared.versions:
        own = done.variant(version.variant)
        assert version.before == own.attacks
        assert version.perplexity_before == own.perplexity
        other = open_run(Path(compared.after.folder)).result.variant(version.variant)
        assert version.perplexity_after == other.perplexity
        for attack, found in other.attacks.items():
            # The records stand in another order here, and sums of floats end otherwise.
            for at in ("value", "low", "high"):
                expected = pytest.approx(getattr(found.auc, at), abs=1e-12)
                assert getattr(version.after[attack].auc, at) == expected


def test_one_primary_comparison_a_version_and_holm_over_each_family(
    compared: ComparedRuns,
) -> None:
    families: dict[str, list[Any]] = {"primary": [], "secondary": []}
    for item in compared.comparisons:
        families[item.family].append(item)
    assert [(x.variant, x.attack, x.metric) for x in families["primary"]] == [
        (name, "ez", "auc") for name in ("original", "bnb-nf4")
    ]
    assert len(families["secondary"]) == 2 * len(ATTACKS) * 3 - 2
    for family in families.values():
        tested = sorted((x.p_value, x.p_adjusted) for x in family if x.p_value is not None)
        for at, (_, adjusted) in enumerate(tested):
            steps = [(len(tested) - k) * tested[k][0] for k in range(at + 1)]
            assert adjusted == pytest.approx(min(1.0, max(steps)), abs=1e-12)


def test_what_only_one_audit_has_is_left_out_by_name(
    compared: ComparedRuns, first: Path, second: Path
) -> None:
    assert compared.left_out == {
        PRUNED: f"not in {second}",
        "prune-magnitude:sparsity=0.25": f"not in {first}",
    }
    assert compared.notes == []


def test_the_other_way_round_the_signs_turn(
    compared: ComparedRuns, first: Path, second: Path
) -> None:
    turned = compare_runs(second, first)
    for item in (item for item in compared.comparisons if item.metric == "auc"):
        other = difference(turned, item.variant, item.attack, "auc")
        assert other.difference.value == pytest.approx(-item.difference.value, abs=1e-12)
        assert other.p_value == pytest.approx(item.p_value, abs=1e-12)


def test_an_audit_beside_itself_differs_in_nothing(first: Path) -> None:
    found = compare_runs(first, first)
    assert [note.code for note in found.notes] == ["same-model"]
    assert len(found.versions) == 3
    for item in found.comparisons:
        if item.metric != "tpr@0.01":
            assert (item.difference.value, item.p_value) == (0.0, 1.0)


def plant(folder: Path, attack: str, tmp_path: Path, *, only: str | None = None) -> Path:
    """A copy of a run with a signal that knows the members well, in one column of its scores."""
    copy = Path(shutil.copytree(folder, tmp_path / f"planted-{attack}-{only}"))
    rng = np.random.default_rng(7)

    def edit(frame: Any) -> Any:
        values = rng.normal(size=len(frame)) + 2.0 * frame["is_member"]
        rows = frame["variant"] == only if only is not None else np.ones(len(frame), dtype=bool)
        frame[attack] = np.where(rows, values, frame.get(attack, np.nan))
        return frame

    edit_scores(copy, edit)
    return copy


def printed(result: ComparedRuns, width: int) -> str:
    file = io.StringIO()
    show(result, Console(file=file, width=width, color_system=None))
    return file.getvalue()


def test_a_planted_difference_is_found_and_shown(first: Path, second: Path, tmp_path: Path) -> None:
    result = compare_runs(first, plant(second, "ez", tmp_path, only="bnb-nf4"))
    found = difference(result, "bnb-nf4", "ez", "auc")
    assert found.difference.low > 0.2
    assert found.p_adjusted < 1e-4
    assert difference(result, "original", "ez", "auc").p_adjusted > 0.05
    lines = printed(result, 100).splitlines()
    assert [line.endswith("<0.001 *") for line in lines if line.startswith("  AUC")] == [
        False,
        True,
    ]
    text = printed(compare_runs(first, plant(second, "zlib", tmp_path)), 100)
    assert "4 of 22 secondary comparisons differ" in text
    assert re.search(r"^  bnb-nf4 +zlib  AUC +\+0\.\d{3} \[\+0\.\d{3}, .*p <0\.001$", text, re.M)


@pytest.mark.parametrize("width", [75, 99, 100, 160])
def test_no_figure_is_cut_off(compared: ComparedRuns, width: int) -> None:
    text = printed(compared, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for version in compared.versions:
        assert version.variant in text
        assert f"{version.perplexity_before:.2f}" in text
        assert f"{version.perplexity_after:.2f}" in text
        found = difference(compared, version.variant, "ez", "auc").difference
        for figure, signed in (
            (version.before["ez"].auc, False),
            (version.after["ez"].auc, False),
            (found, True),
        ):
            value, _, rest = interval(figure, signed=signed).partition(" ")
            assert value in words
            assert rest in words
    assert f"{PRUNED}: not in" in words


def test_names_are_text_and_not_markup(compared: ComparedRuns) -> None:
    name = "[red]x[/red]"
    version = compared.versions[1].model_copy(update={"variant": name})
    result = compared.model_copy(update={"versions": [version], "left_out": {name: name}})
    assert printed(result, 100).count(name) == 3


def test_notes_say_what_else_differs(
    later: dict[str, Any], subject: dict[str, Any], first: Path, tmp_path: Path
) -> None:
    changes = {"variants": "original", "dtype": "float16", "primary": "loss"}
    other = audited(later, tmp_path / "run", reference=subject["model"], **changes)
    found = compare_runs(first, other)
    assert [(note.code, note.severity) for note in found.notes] == [
        ("other-reference", "warning"),
        ("other-primary", "warning"),
        ("other-dtype", "warning"),
    ]
    assert found.primary_attack == "ez"
    assert compare_runs(other, first).primary_attack == "loss"
    assert compare_runs(first, other, primary="min-k").primary_attack == "min-k"
    assert "ref and ez" in printed(found, 100)


def test_without_a_reference_in_one_the_others_primary_is_taken(
    later: dict[str, Any], first: Path, tmp_path: Path
) -> None:
    other = audited(later, tmp_path / "run", **ALONE)
    found = compare_runs(first, other)
    assert found.primary_attack == "min-k-plus-plus"
    assert found.left_out["ref"] == found.left_out["ez"] == f"not in {other}"


def test_rates_and_level_can_be_chosen(first: Path, second: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"
    before = tree(first), tree(second)
    arguments = ["compare", str(first), str(second), "--fpr", "0.3,0.25", "--confidence", "0.8"]
    assert main([*arguments, "--out", str(out)]) == 0
    result = ComparedRuns.model_validate_json(out.read_text())
    assert result == compare_runs(first, second, fprs=(0.25, 0.3), confidence=0.8)
    assert list(result.versions[0].after["ez"].tpr_at_fpr) == ["0.25", "0.3"]
    assert result.confidence == 0.8
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]
    assert (tree(first), tree(second)) == before


def test_every_field_says_what_it_holds() -> None:
    schema = ComparedRuns.model_json_schema()
    for node in (schema, *schema["$defs"].values()):
        for name, value in node.get("properties", {}).items():
            assert "description" in value, name


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["compare", *map(str, arguments)]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: ")
    assert "Traceback" not in found.err
    assert found.out == ""
    return found.err


def with_tokenizer(later: dict[str, Any], folder: Path) -> dict[str, Any]:
    model = shutil.copytree(later["model"], folder / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["Dr "])
    tokenizer.save_pretrained(model)
    return {**later, "model": str(model)}


def swapped(later: dict[str, Any], _: Path) -> dict[str, Any]:
    return {**later, "members": later["nonmembers"], "nonmembers": later["members"]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda given, _: {**given, "limit": 55}, ["110 records are in both, of 120", "and 110"]),
        (swapped, ["120 of the 120 shared records are on the other side"]),
        (with_tokenizer, ["the same tokenizer"]),
        (
            lambda given, _: {**given, "max_length": 40},
            ["records have another length, cut to 64 tokens and to 40"],
        ),
    ],
)
def test_audits_that_cannot_be_compared_are_refused(
    change: Callable[[dict[str, Any], Path], dict[str, Any]],
    expected: list[str],
    later: dict[str, Any],
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = audited(change(later, tmp_path), tmp_path / "run", **ALONE)
    text = refused(capsys, first, other, "--out", tmp_path / "out.json")
    for part in expected:
        assert part in text
    assert not (tmp_path / "out.json").exists()


def test_no_attack_in_common(
    later: dict[str, Any], first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = audited(later, tmp_path / "run", **ALONE, attacks="loss")
    shutil.copytree(first, tmp_path / "copy")
    edit_scores(tmp_path / "copy", lambda frame: frame.drop(columns="loss"))
    assert "an attack in common" in refused(capsys, tmp_path / "copy", other)
    # With one in common that neither named before the run, one has to be named.
    edit_scores(other, lambda frame: frame.rename(columns={"loss": "zlib"}))
    assert "--primary, one of zlib" in refused(capsys, first, other)
    assert compare_runs(first, other, primary="zlib").primary_attack == "zlib"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--fpr", "0.01,2"], "between 0 and 1"),
        (["--fpr", "some"], "--fpr"),
        (["--confidence", "3"], "--confidence"),
        (["--primary", "min-kk"], "--primary, one of loss"),
        (["--out", "AUDIT"], "must not be there yet"),
        (["--out", "AUDIT/x.json"], "choose another --out"),
        (["--limit", "3"], "--limit"),
    ],
)
def test_bad_flags(
    flags: list[str],
    expected: str,
    first: Path,
    second: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(first)
    given = [flag.replace("AUDIT", str(first / "audit.json")) for flag in flags]
    assert expected in refused(capsys, first, second, *given)
    assert tree(first) == before
