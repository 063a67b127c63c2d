"""What fuzzing found in files that belong to an audit, made anew: so it never goes stale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditor import bounded_yaml
from auditor.errors import MOST_LETTERS, CompleakError, StoreError
from auditor.finished import read_finished, read_result
from auditor.results import AuditResult
from auditor.results.whole import fault
from tests.report_cases import invented_run

Content = dict[str, Any]


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_run(tmp_path_factory.mktemp("whole") / "run", n=60, n_variants=2)


def _primary(content: Content) -> Content:
    found: Content = content["variants"][0]["attacks"][content["primary_attack"]]
    return found


def _another_rate(content: Content) -> None:
    rates = content["variants"][1]["attacks"][content["primary_attack"]]["tpr_at_fpr"]
    rates["0.123"] = next(iter(rates.values()))


def _no_figure_to_judge_by(content: Content) -> None:
    content["leakage"]["releases"]["bound"] = {"metric": "tpr@0.07", "at_most": 0.5}


EDITS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no version": (lambda c: c["variants"].clear(), "no version"),
    "twice": (lambda c: c["variants"].append(c["variants"][1]), "a version twice: bnb-nf4"),
    "confidence": (lambda c: c.update(confidence=95), "a confidence of 95"),
    "figure": (lambda c: _primary(c)["auc"].update(high=1e308), "a figure of"),
    "no rate": (
        lambda c: _primary(c).update(tpr_at_fpr={"often": _primary(c)["auc"]}),
        "a false positive rate of 'often'",
    ),
    "another rate": (_another_rate, "other false positive rates"),
    "metric": (lambda c: c["comparisons"][0].update(metric="tpr@x"), "a metric 'tpr@x'"),
    "judged by": (_no_figure_to_judge_by, "without its TPR at 0.07"),
}


def test_what_an_audit_wrote_fits(audit: Path) -> None:
    assert fault(read_result(audit / "audit.json")) is None


@pytest.mark.parametrize("name", EDITS)
def test_a_result_whose_parts_do_not_fit_is_refused(name: str, audit: Path, tmp_path: Path) -> None:
    edit, told = EDITS[name]
    content = json.loads((audit / "audit.json").read_text(encoding="utf-8"))
    edit(content)
    # To the schema it is right: only its parts do not fit each other.
    AuditResult.model_validate(content)
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StoreError, match="must be as the audit wrote it") as error:
        read_result(path)
    assert told in error.value.seen


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "-1e999", "9" * 5000])
def test_a_number_that_is_none_is_refused(number: str, audit: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    text = (audit / "audit.json").read_text(encoding="utf-8")
    path.write_text(text.replace('"confidence": 0.95', f'"confidence": {number}', 1))
    assert path.read_text() != text
    with pytest.raises(StoreError, match="must be the result of an audit"):
        read_result(path)


COLUMNS: dict[str, tuple[str, pa.Array]] = {
    "ids of numbers": ("record_id", pa.array([1], pa.int64())),
    "sides of structs": ("is_member", pa.array([{"a": True}])),
    "lengths of floats": ("n_tokens", pa.array([1.5])),
    "groups of lists": ("group", pa.array([[1]])),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_scores_of_other_types_are_refused(name: str, audit: Path, tmp_path: Path) -> None:
    column, value = COLUMNS[name]
    table = pq.read_table(audit / "scores.parquet", use_threads=False)
    others = pa.chunked_array([pa.concat_arrays([value] * len(table))])
    _refused(audit, tmp_path, table.set_column(table.column_names.index(column), column, others))


def test_scores_with_a_column_twice_are_refused(audit: Path, tmp_path: Path) -> None:
    table = pq.read_table(audit / "scores.parquet", use_threads=False)
    _refused(audit, tmp_path, table.append_column("loss", table["loss"]))


def _refused(audit: Path, tmp_path: Path, table: pa.Table) -> None:
    (tmp_path / "audit.json").write_bytes((audit / "audit.json").read_bytes())
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(StoreError, match=r"scores\.parquet must be as the audit wrote it"):
        read_finished(tmp_path)


def test_yaml_that_stands_for_more_than_it_says_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 4)}]" for n in range(1, 9)]
    with pytest.raises(bounded_yaml.YAML_ERRORS, match="stands for more than"):
        bounded_yaml.load("\n".join(lines))
    # A handful of aliases is what they are for.
    assert bounded_yaml.load("\n".join(lines[:3]))["a2"][3][3] == ["x"] * 4
    with pytest.raises(bounded_yaml.YAML_ERRORS, match="refers to itself"):
        bounded_yaml.load("a: &a [*a]")


def test_an_error_never_repeats_a_whole_file() -> None:
    told = str(CompleakError("must", seen="a\n" * 10_000, fix="b" * 10_000))
    assert len(told) < 4 * MOST_LETTERS
    assert told.startswith("must\n  seen: a\n") and "  do:   bbb" in told
