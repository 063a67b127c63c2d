"""A finished audit read from its folder: whole, lazily, or with one clear error."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor import AuditConfig, AuditResult, audit
from auditor.attacks.signals import compute_signals
from auditor.cli import main
from auditor.compare import aligned
from auditor.errors import StoreError
from auditor.run import Run, open_run
from tests.conftest import N

ATTACKS = ["loss", "zlib", "min-k", "min-k-plus-plus", "ref", "ez"]
ALONE = ["single", "single-ref"]
BESIDE = ["gap", "ez-gap", "single", "paired", "single-ref", "paired-ref"]
PRUNED = "prune-magnitude:sparsity=0.5"


def folder_of(result: AuditResult) -> Path:
    return Path(result.config["output_path"])


@pytest.fixture
def copy(done: AuditResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder_of(done), tmp_path / "copy"))


@pytest.fixture(scope="module")
def run(done: AuditResult) -> Run:
    return open_run(folder_of(done))


def edit_scores(folder: Path, edit: Callable[[Any], Any]) -> None:
    path = folder / "scores.parquet"
    frame = edit(pq.read_table(path).to_pandas())
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)


def edit_result(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "audit.json").read_text())
    edit(content)
    (folder / "audit.json").write_text(json.dumps(content))


def tree(folder: Path) -> dict[str, str]:
    """Every file with the digest of its bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_everything_that_was_written_is_read_back(done: AuditResult, run: Run) -> None:
    assert run.result == done
    assert run.config.model_dump(mode="json") == done.config
    assert (len(run), run.original, run.left_out) == (2 * N, "original", {})
    table = pq.read_table(folder_of(done) / "scores.parquet").to_pandas()
    assert list(run.signals) == ["original", "bnb-nf4", PRUNED]
    for name, rows in table.groupby("variant"):
        assert rows["record_id"].tolist() == run.ids.tolist()
        beyond = ALONE if name == "original" else BESIDE
        assert list(run.signals[name])[:6] == ATTACKS
        assert set(run.signals[name]) == {*ATTACKS, *beyond}
        for attack in run.signals[name]:
            np.testing.assert_array_equal(run.signals[name][attack], rows[attack])
    first = table[table["variant"] == "original"]
    for column, values in (
        ("is_member", run.is_member),
        ("n_tokens", run.n_tokens),
        ("group", run.groups),
    ):
        assert values.dtype == first[column].to_numpy().dtype
        np.testing.assert_array_equal(values, first[column])
    assert run.is_member.dtype == np.bool_


def test_stored_scores_give_the_same_signals_again(run: Run) -> None:
    assert list(run.stores) == [*run.signals, "reference"]
    stores = {name: run.stores[name] for name in run.signals}
    again = compute_signals(
        stores, ATTACKS, is_member=run.is_member, reference=run.stores["reference"]
    )
    for name, expected in run.signals.items():
        found = again[name]
        assert found.perplexity == run.result.variant(name).perplexity
        for attack in ATTACKS:
            np.testing.assert_array_equal(found.by_attack[attack], expected[attack])


def test_no_shard_is_read_before_it_is_asked_for(copy: Path) -> None:
    for path in copy.glob("tokens/*/shard-*.parquet"):
        path.unlink()
    found = open_run(copy)
    with pytest.raises(StoreError, match="shard-00000 must be whole"):
        next(found.stores["bnb-nf4"].read())


def test_texts_are_not_taken_for_signals(subject: dict[str, Any], tmp_path: Path) -> None:
    changes = {"variants": "original", "reference": None, "include_text": True}
    audit(AuditConfig.model_validate({**subject, **changes, "output_path": str(tmp_path)}))
    assert "text" in pq.read_schema(tmp_path / "scores.parquet").names
    found = open_run(tmp_path)
    assert list(found.signals["original"]) == [*ATTACKS[:4], "single"]
    assert list(found.stores) == ["original"]


def test_an_attack_that_says_nothing_about_a_version_is_skipped(copy: Path) -> None:
    values = np.random.default_rng(0).normal(size=2 * N)

    def learned(frame: Any) -> Any:
        frame["later"] = np.where(frame["variant"] == PRUNED, np.tile(values, 3), np.nan)
        return frame

    edit_scores(copy, learned)
    found = open_run(copy)
    assert set(found.signals["original"]) == {*ATTACKS, *ALONE}
    assert set(found.signals["bnb-nf4"]) == {*ATTACKS, *BESIDE}
    assert set(found.signals[PRUNED]) == {*ATTACKS, *BESIDE, "later"}
    np.testing.assert_array_equal(found.signals[PRUNED]["later"], values)
    # Null instead of NaN says the same.
    table = pq.read_table(copy / "scores.parquet")
    column = pa.array(table["later"].to_numpy(), from_pandas=True)
    place = table.column_names.index("paired")
    pq.write_table(table.set_column(place, "paired", column), copy / "scores.parquet")
    assert open_run(copy).signals.keys() == found.signals.keys()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_version_whose_scores_hold_nan_is_left_out_by_name(copy: Path, value: float) -> None:
    def poison(frame: Any) -> Any:
        rows = frame.index[frame["variant"] == "bnb-nf4"][:3]
        frame.loc[rows, "min-k"] = value
        return frame

    edit_scores(copy, poison)
    found = open_run(copy)
    assert list(found.left_out) == ["bnb-nf4"]
    assert "min-k is not a finite number for 3 records" in found.left_out["bnb-nf4"]
    assert list(found.signals) == ["original", PRUNED]
    assert list(found.stores) == ["original", PRUNED, "reference"]


def test_without_a_finite_original_there_is_nothing(copy: Path) -> None:
    def poison(frame: Any) -> Any:
        frame.loc[0, "loss"] = np.nan
        return frame

    edit_scores(copy, poison)
    with pytest.raises(StoreError, match="scores of original"):
        open_run(copy)


@pytest.mark.usefixtures("poisoned_pruning")
def test_a_broken_variant_is_left_out_with_its_reason(
    subject: dict[str, Any], tmp_path: Path
) -> None:
    """A variant that really came out as NaN: it has a manifest, and no score."""
    changes = {"variants": PRUNED, "reference": None, "output_path": str(tmp_path)}
    config = AuditConfig.model_validate({**subject, **changes})
    result = audit(config)
    found = open_run(tmp_path)
    again = audit(config)
    assert [step.n_forward_passes for step in again.timings.variants] == [0, 0], "it is known"
    assert found.left_out == {PRUNED: result.variant(PRUNED).reason}
    assert list(found.signals) == list(found.stores) == ["original"]


def without(name: str) -> Callable[[Path], Any]:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def manifest_of(folder: Path, name: str) -> Path:
    stored = json.loads((folder / "audit.json").read_text())["stored"]
    return folder / "tokens" / stored[name] / "manifest.json"


def swapped_side(frame: Any) -> Any:
    frame.loc[frame["record_id"] == frame["record_id"][0], "is_member"] = False
    return frame


def other_shards(folder: Path) -> None:
    path = manifest_of(folder, PRUNED)
    path.write_text(re.sub(r'"n_shards": \d+', '"n_shards": 7', path.read_text()))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "it does not exist"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "there is no audit.json"),
    "file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "it is a file"),
    "schema": (
        lambda f: edit_result(f, lambda c: c.update(schema_version="2")),
        "schema version '2'",
    ),
    "not JSON": (lambda f: (f / "audit.json").write_text("{"), "by this version"),
    "old": (lambda f: edit_result(f, lambda c: c.pop("stored")), "an earlier version"),
    "configuration": (
        lambda f: edit_result(f, lambda c: c["config"].update(colour="red")),
        "a configuration of this version",
    ),
    "no scores": (without("scores.parquet"), "no scores.parquet"),
    "no tokens": (without("tokens"), "no tokens"),
    "damaged": (lambda f: (f / "scores.parquet").write_bytes(b"PAR1"), "as the audit wrote it"),
    "no groups": (lambda f: edit_scores(f, lambda t: t.drop(columns="group")), "no column group"),
    "gaps": (
        lambda f: edit_scores(f, lambda t: t.assign(record_id=t["record_id"].where(t.index > 0))),
        "column record_id has gaps",
    ),
    "a row": (
        lambda f: edit_scores(f, lambda t: t[t.index != 2 * N + 3]),
        "not every record once for bnb-nf4",
    ),
    "side": (lambda f: edit_scores(f, swapped_side), "must be those of the records"),
    "records": (
        lambda f: edit_result(f, lambda c: c["records"].update(sha256="0" * 64)),
        "0000000000000000 in audit.json",
    ),
    "a store": (
        lambda f: edit_result(f, lambda c: c["stored"].pop("bnb-nf4")),
        "nothing about bnb-nf4",
    ),
    "no manifest": (
        lambda f: manifest_of(f, "reference").unlink(),
        "stored scores of reference must be whole",
    ),
    "half a manifest": (
        lambda f: manifest_of(f, "bnb-nf4").write_text("{"),
        "stored scores of bnb-nf4 must be whole",
    ),
    "foreign manifest": (
        lambda f: shutil.copy(manifest_of(f, "original"), manifest_of(f, "bnb-nf4")),
        "is the manifest of bnb-nf4-",
    ),
    "shards": (other_shards, "speaks of 7 shards, the records make "),
    "escape": (
        lambda f: edit_result(f, lambda c: c["stored"].update({"bnb-nf4": ".."})),
        "must say where the scores of each version lie",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_whole_gets_one_clear_error(
    name: str, copy: Path, done: AuditResult, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = BAD[name]
    damage(copy)
    before = tree(copy)
    for pair in ((copy, folder_of(done)), (folder_of(done), copy))[: 1 + (name != "configuration")]:
        assert main(["compare", *map(str, pair)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert expected in printed.err
        assert "\n  do:" in printed.err
        assert "Traceback" not in printed.err
        assert printed.out == ""
    assert tree(copy) == before


def test_no_model_is_opened(copy: Path) -> None:
    code = "import sys; from auditor.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    arguments = ["compare", str(copy), str(copy)]
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "the identical model" in found.stdout
    assert not {"torch", "transformers"} & set(found.stdout.splitlines()[-1].split())


@given(seed=st.integers(0, 2**32 - 1))
def test_records_are_found_in_any_order(run: Run, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(len(run))
    other = replace(
        run,
        ids=run.ids[shuffled],
        is_member=run.is_member[shuffled],
        n_tokens=run.n_tokens[shuffled],
    )
    order = aligned(run, other)
    np.testing.assert_array_equal(other.ids[order], run.ids)
    np.testing.assert_array_equal(shuffled[order], np.arange(len(run)))
