"""The whole audit, for real, on tiny models: results, second run, kill and resume, bad input."""

import json
import random
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from auditor import AuditConfig, AuditResult, audit
from auditor.cli import main
from tests.conftest import N
from tests.forks import Forked, in_small_shards, started
from tests.tiny import save, tiny_model


def output_of(result: AuditResult) -> Path:
    return Path(result.config["output_path"])


def flags(subject: dict[str, Any], output: Path) -> list[str]:
    given = {**subject, "output_path": output, "display": "none"}
    return [part for key, value in given.items() for part in (f"--{key}", str(value))]


def comparable(path: Path) -> dict[str, Any]:
    """`audit.json` without what may differ between equal runs: their cost, and where they lie."""
    content = json.loads((path / "audit.json").read_text())
    content.pop("timings")
    content["config"].pop("output_path")
    for variant in content["variants"]:
        for cost in ("compress_s", "compress_peak_bytes"):
            variant["receipt"].pop(cost)
    return content


def test_what_lies_in_the_output_folder(done: AuditResult, subject: dict[str, Any]) -> None:
    output = output_of(done)
    assert AuditResult.model_validate_json((output / "audit.json").read_text()) == done
    table = pq.read_table(output / "scores.parquet").to_pandas()
    attacks = ["loss", "zlib", "min-k", "min-k-plus-plus", "ref", "ez"]
    keys = ["record_id", "variant", "is_member", "n_tokens", "group"]
    assert list(table.columns)[: len(keys) + len(attacks)] == [*keys, *attacks]
    beyond = {"gap", "ez-gap", "single", "paired", "single-ref", "paired-ref"}
    over_all = {"mean-rank", "combined", "combined-ref", "blind"}
    assert set(table.columns[len(keys) + len(attacks) :]) == beyond | over_all
    assert table[table["variant"] != "original"][list(over_all)].isna().all(axis=None)
    original = table[table["variant"] == "original"]
    assert done.blind is not None
    assert done.leakage is not None
    found = {
        one.attack + ("-ref" if one.with_reference else ""): one.figures.auc.value
        for one in done.leakage.settings
        if len(one.versions) == 3 and one.attack == "combined"
    }
    for column, value in {**found, "blind": done.blind.auc.value}.items():
        expected = roc_auc_score(original["is_member"], original[column])
        assert value == pytest.approx(expected, abs=1e-12), column
    assert list(done.stored) == ["original", "reference", "bnb-nf4", "prune-magnitude:sparsity=0.5"]
    assert all(
        (output / "tokens" / name / "manifest.json").is_file() for name in done.stored.values()
    )
    variants = ["original", "bnb-nf4", "prune-magnitude:sparsity=0.5"]
    assert table["variant"].tolist() == [name for name in variants for _ in range(2 * N)]
    assert table["is_member"].tolist() == ([True] * N + [False] * N) * 3
    assert np.isfinite(table[attacks].to_numpy()).all()
    assert done.primary_attack == "ez"
    assert [item.variant for item in done.comparisons if item.family == "primary"] == variants[1:]
    for name, rows in table.groupby("variant"):
        for attack in attacks:
            expected = roc_auc_score(rows["is_member"], rows[attack])
            found = done.variant(name).attacks[attack].auc.value
            assert found == pytest.approx(expected, abs=1e-12)


def test_every_record_went_through_every_version_once(done: AuditResult) -> None:
    assert [step.variant for step in done.timings.variants] == [
        "original",
        "reference",
        "bnb-nf4",
        "prune-magnitude:sparsity=0.5",
    ]
    assert {step.n_forward_records for step in done.timings.variants} == {2 * N}


def test_receipts_are_counted(done: AuditResult) -> None:
    assert done.variant("original").receipt.n_changed == 0
    pruned = done.variant("prune-magnitude:sparsity=0.5").receipt
    assert pruned.sparsity == pytest.approx(0.5, abs=0.001)
    assert done.variant("bnb-nf4").receipt.bits_per_weight == pytest.approx(4.5)


def test_tpr_is_refused_with_the_count_that_is_needed(done: AuditResult) -> None:
    found = done.variant("original").attacks["loss"].tpr_at_fpr["0.01"]
    assert found.value is None
    assert "1000" in found.absent.replace(",", "")
    assert str(N) in found.absent


def test_a_second_run_makes_no_pass(
    done: AuditResult, subject: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output_of(done), copy)
    config = AuditConfig.model_validate({**subject, "output_path": str(copy)})
    again = audit(config)
    assert sum(step.n_forward_passes for step in again.timings.variants) == 0
    assert comparable(copy) == comparable(output_of(done))
    other = config.model_copy(update={"attacks": ("loss",), "primary": "loss", "fpr": (0.2,)})
    changed = audit(other)
    assert sum(step.n_forward_passes for step in changed.timings.variants) == 0
    assert changed.attacks == ["loss"]


def test_no_text_in_any_file(done: AuditResult, subject: dict[str, Any]) -> None:
    rows = Path(subject["members"]).read_text().splitlines()[:20]
    needles = [json.loads(row)["text"][10:30].encode() for row in rows]
    files = [path for path in output_of(done).rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path


def test_text_is_written_only_when_asked_for(subject: dict[str, Any], tmp_path: Path) -> None:
    given = {**subject, "variants": "original", "reference": None, "include_text": True}
    audit(AuditConfig.model_validate({**given, "output_path": str(tmp_path)}))
    text = pq.read_table(tmp_path / "scores.parquet")["text"].to_pylist()
    rows = Path(subject["members"]).read_text().splitlines()
    assert text[:N] == [json.loads(row)["text"] for row in rows]


def run(subject: dict[str, Any], output: Path, *, limits: dict[int, int] | None = None) -> Forked:
    log = output.with_name(f"{output.name}-said")
    return Forked(in_small_shards, ["audit", *flags(subject, output)], log, limits=limits)


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("tokens/*/shard-*.parquet"))


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(subject: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 at random moments; then the files are those of an undisturbed run."""
    undisturbed = tmp_path / "undisturbed"
    first = run(subject, undisturbed)
    first.ended()
    assert first.returncode == 0
    random.seed(5)
    output, seen, kills = tmp_path / "run", 0, 0
    for attempt in range(12):
        process = run(subject, output)
        deadline = time.monotonic() + 120
        aim = seen + random.randint(1, 12)
        while process.returncode is None and time.monotonic() < deadline:
            if attempt < 11 and len(shards(output)) >= aim:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        _, printed = process.ended()
        now = len(shards(output))
        assert now >= seen, "what was finished must stay"
        seen = now
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, printed
        kills += 1
    assert process.returncode == 0, printed
    assert kills >= 2
    assert not list(output.rglob("*.part"))
    assert comparable(output) == comparable(undisturbed)
    ours, theirs = ((path / "scores.parquet").read_bytes() for path in (output, undisturbed))
    assert ours == theirs
    names = [[path.name for path in shards(folder)] for folder in (output, undisturbed)]
    assert names[0] == names[1], "the digest of every shard is in its name"


def test_half_written_files_are_cleared(subject: dict[str, Any], tmp_path: Path) -> None:
    given = {**subject, "variants": "original", "reference": None, "output_path": str(tmp_path)}
    config = AuditConfig.model_validate(given)
    audit(config)
    left = next(tmp_path.glob("tokens/original-*")) / ".shard-00000-ab.parquet.123.part"
    left.write_bytes(b"half")
    audit(config)
    assert not left.exists()


@pytest.mark.slow
def test_ctrl_c_stops_cleanly(subject: dict[str, Any], tmp_path: Path) -> None:
    process = run(subject, tmp_path / "run")
    deadline = time.monotonic() + 120
    while not shards(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, printed = process.ended()
    assert process.returncode == 130, printed
    assert "the same command goes on" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_two_processes_store_what_one_does(subject: dict[str, Any], tmp_path: Path) -> None:
    for world, name in ((1, "one"), (2, "two")):
        given = ["audit", *flags(subject, tmp_path / name)]
        processes = started(in_small_shards, given, tmp_path / f"{name}-said", world=world)
        said = [one.ended(240.0) for one in processes]
        assert [one.returncode for one in processes] == [0] * world, said
    one, two = comparable(tmp_path / "one"), comparable(tmp_path / "two")
    assert one["environment"].pop("n_processes") == 1
    assert two["environment"].pop("n_processes") == 2
    assert one == two
    names = [[path.name for path in shards(tmp_path / name)] for name in ("one", "two")]
    assert names[0] == names[1], "the digest of every shard is in its name"


@pytest.mark.slow
def test_no_space_left_is_one_error_and_goes_on_later(
    subject: dict[str, Any], tmp_path: Path
) -> None:
    """A real limit on the size of files: the first shard that is larger cannot be written."""
    process = run(subject, tmp_path / "run", limits={resource.RLIMIT_FSIZE: 8_000})
    _, printed = process.ended()
    assert process.returncode == 2, printed
    assert "must be a folder that can be written" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run" / "audit.json").exists()
    assert not list((tmp_path / "run").rglob("*.part"))
    process = run(subject, tmp_path / "run")
    _, printed = process.ended()
    assert process.returncode == 0, printed


def test_the_folder_of_another_audit_is_refused(
    done: AuditResult, subject: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (output_of(done) / "audit.json").read_bytes()
    assert main(["audit", *flags({**subject, "limit": 55}, output_of(done))]) == 2
    printed = capsys.readouterr().err
    assert "this very audit" in printed
    assert (output_of(done) / "audit.json").read_bytes() == before


@pytest.mark.usefixtures("poisoned_pruning")
def test_nan_in_one_variant_leaves_the_others(subject: dict[str, Any], tmp_path: Path) -> None:
    result = audit(AuditConfig.model_validate({**subject, "output_path": str(tmp_path)}))
    broken = result.variant("prune-magnitude:sparsity=0.5")
    assert broken.status == "broken"
    assert "finite" in str(broken.reason)
    assert result.variant("bnb-nf4").status == "ok"
    assert result.warnings[0].code == "broken-variant"
    names = set(pq.read_table(tmp_path / "scores.parquet")["variant"].to_pylist())
    assert names == {"original", "bnb-nf4"}


def test_a_reference_with_another_tokenizer(subject: dict[str, Any], tmp_path: Path) -> None:
    from tests.tiny import byte_tokenizer

    other = save(tiny_model("gpt2"), tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["Dr "])
    tokenizer.save_pretrained(other)
    given = {**subject, "reference": str(other), "variants": "original"}
    result = audit(AuditConfig.model_validate({**given, "output_path": str(tmp_path / "run")}))
    assert "ref" in result.attacks
    assert "tokenizer" in result.attacks_left_out["ez"]
    assert result.primary_attack == "min-k-plus-plus"


def test_dry_run_writes_nothing(
    subject: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *flags(subject, tmp_path / "run"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for word in ("60 members", "bnb-nf4", "passes", "time", "memory"):
        assert word in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"members": "missing.jsonl"}, "does not exist"),
        ({"model": "missing"}, "must be a folder"),
        ({"limit": 10}, "at least 50 records"),
        ({"nonmembers": "MEMBERS"}, "must not stand on both sides"),
        ({"text_column": "body"}, "columns: text"),
        ({"attacks": "ez", "reference": None}, "needs a reference"),
        ({"device": "cuda:77"}, "--device cuda"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    subject: dict[str, Any],
    changes: dict[str, Any],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**subject, **changes}
    if given["nonmembers"] == "MEMBERS":
        given["nonmembers"] = given["members"]
    given = {key: value for key, value in given.items() if value is not None}
    assert main(["audit", *flags(given, tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run" / "audit.json").exists()
