"""Calibration texts: cut as they should be, from the right place, and none of them a record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auditor import AuditConfig, audit
from auditor.calibration import MEMBERS_SOURCE, read_calibrations, third_set
from auditor.cli import main
from auditor.compress import parse_variants
from auditor.config import CompressConfig, Source
from auditor.demo.letters import letters
from auditor.errors import ConfigError, RecordsError
from auditor.records import record_id
from tests.conftest import N, write_records
from tests.tiny import byte_tokenizer

WANDA = "prune-wanda:sparsity=0.5"


def config(folder: Path, **more: Any) -> CompressConfig:
    given = {"model": str(folder), "variant": WANDA, "out": "x", **more}
    return CompressConfig.model_validate(given)


def read(given: CompressConfig, known: list[str] | None = None) -> Any:
    pairs = [(record_id(text), text) for text in known or []]
    specs = parse_variants([given.variant])
    return read_calibrations(given, specs, byte_tokenizer(), context=64, known=lambda: pairs)


def test_windows_are_the_texts_joined_by_the_end_of_text(tmp_path: Path) -> None:
    texts = letters(30, seed=9)
    path = write_records(tmp_path / "c.jsonl", texts)
    given = {"calibration": str(path), "calibration_samples": 20, "calibration_tokens": 40}
    found = read(config(tmp_path, **given))["given"]
    assert found.windows.shape == (20, 40)
    tokenizer = byte_tokenizer()
    whole = tokenizer.decode(found.windows.reshape(-1).tolist())
    parts = whole.split("<|endoftext|>")
    assert parts[:-1] == list(found.texts[: len(parts) - 1])
    assert found.texts[len(parts) - 1].startswith(parts[-1])
    assert set(found.texts) <= set(texts)
    use = found.use
    assert (use.n_samples, use.n_tokens, use.n_records) == (20, 800, len(found.texts))
    assert use.ids == [record_id(text) for text in found.texts]
    assert use.source == str(path)
    # The same seed gives the same windows, another one others.
    again = read(config(tmp_path, **given))["given"]
    assert np.array_equal(again.windows, found.windows)
    other = read(config(tmp_path, **given, seed=1))["given"]
    assert other.use.sha256 != use.sha256


def test_windows_are_no_longer_than_the_context(tmp_path: Path) -> None:
    path = write_records(tmp_path / "c.jsonl", letters(30, seed=9))
    given = {"calibration": str(path), "calibration_samples": 4, "calibration_tokens": 512}
    assert read(config(tmp_path, **given))["given"].windows.shape == (4, 64)


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    path = write_records(tmp_path / "c.jsonl", ["abc " * 25, "xyz " * 25])
    given = {"calibration": str(path), "calibration_samples": 9, "calibration_tokens": 32}
    with pytest.raises(RecordsError, match="9 x 32 = 288 tokens") as caught:
        read(config(tmp_path, **given))
    assert "202 tokens in 2 texts" in caught.value.seen
    assert "--calibration-samples 6" in caught.value.fix


def test_nothing_is_read_where_nothing_asks(tmp_path: Path) -> None:
    assert read(config(tmp_path, variant="cluster", calibration="no/such.jsonl")) == {}


def test_without_texts_it_is_refused_and_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither members nor nonmembers") as caught:
        read(config(tmp_path))
    assert "calibration.jsonl" in caught.value.seen


def test_a_third_set_is_found_beside_the_records(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    members = write_records(tmp_path / "members.jsonl", ["a"])
    given = {"members": str(members), "nonmembers": str(members)}
    assert third_set(config(tmp_path / "model", **given)) is None
    third = write_records(tmp_path / "calibration.jsonl", ["b"])
    assert third_set(config(tmp_path / "model", **given)) == Source(path=str(third))

    parts = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "test", "validation")}
    folder = str(tmp_path / "set" / "data")
    DatasetDict(parts).save_to_disk(folder)
    splits = {"members": f"{folder},split=train", "nonmembers": f"{folder},split=test"}
    found = third_set(config(tmp_path / "model", **splits))
    assert found == Source(path=folder, split="validation")
    taken = {"members": f"{folder},split=train", "nonmembers": f"{folder},split=validation"}
    assert third_set(config(tmp_path / "model", **taken)) is None


@pytest.mark.parametrize("how", ["whole", "other spaces", "other words around"])
def test_records_among_the_texts_are_refused(how: str, tmp_path: Path) -> None:
    texts = letters(20, seed=9)
    record = texts[3]
    if how == "other spaces":
        record = record.replace(" ", "  \n")
    elif how == "other words around":
        record = f"Dear all, {record} Kind regards, the clinic."
    path = write_records(tmp_path / "c.jsonl", texts)
    given = {"calibration": str(path), "calibration_samples": 10, "calibration_tokens": 60}
    # So few windows that only some texts are used: a whole copy is found in all of them.
    given["calibration_samples"] = 1 if how == "whole" else sum(map(len, texts)) // 60
    others = letters(50, seed=77)
    with pytest.raises(RecordsError, match="must be neither members nor nonmembers") as caught:
        read(config(tmp_path, **given), known=[*others, record])
    assert record_id(record) in caught.value.seen
    allowed = read(
        config(tmp_path, **given, allow_calibration_on_members=True), known=[*others, record]
    )
    assert allowed["given"].use.n_records
    assert read(config(tmp_path, **given), known=others)["given"].use.n_records


@pytest.fixture
def calibrated(subject: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    texts = [text[:60] for text in letters(8 * N, seed=3)][3 * N :]
    return {
        **subject,
        "calibration": str(write_records(tmp_path / "third.jsonl", texts)),
        "calibration_samples": 16,
        "calibration_tokens": 32,
        "output_path": str(tmp_path / "run"),
    }


def test_an_audit_with_a_calibrated_variant(calibrated: dict[str, Any], tmp_path: Path) -> None:
    given = {**calibrated, "variants": WANDA}
    result = audit(AuditConfig.model_validate(given))
    receipt = result.variant(WANDA).receipt
    assert receipt is not None
    assert receipt.calibration is not None
    assert receipt.calibration.n_tokens == 16 * 32
    needle = json.loads(Path(calibrated["calibration"]).read_text().splitlines()[0])["text"]
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or needle[10:40].encode() not in path.read_bytes()
    # Other texts make another variant, whose scores are computed anew.
    again = audit(AuditConfig.model_validate({**given, "calibration_samples": 8}))
    ran = {step.variant: step.n_forward_passes for step in again.timings.variants}
    assert ran["original"] == 0
    assert ran[WANDA] > 0


def test_calibrating_on_members_needs_leave_and_is_said(
    calibrated: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    variant = f"{WANDA},calibration=members"
    given = {**calibrated, "variants": variant, "calibration": None}
    flags = [p for k, v in given.items() if v is not None for p in (f"--{k}", str(v))]
    assert main(["audit", *flags]) == 2
    assert "--allow-calibration-on-members" in capsys.readouterr().err
    given["allow_calibration_on_members"] = True
    result = audit(AuditConfig.model_validate(given))
    (found,) = [v for v in result.variants if v.variant != "original"]
    assert found.receipt is not None
    assert found.receipt.calibration is not None
    assert found.receipt.calibration.source == MEMBERS_SOURCE
    members = [json.loads(x)["text"] for x in Path(given["members"]).read_text().splitlines()]
    assert set(found.receipt.calibration.ids) <= {record_id(text) for text in members}
    assert "calibrated-on-members" in {item.code for item in result.warnings}
