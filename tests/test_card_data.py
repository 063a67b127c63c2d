"""Lists from the data sets that a model's card names: from here alone, and said to be a guess."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from auditor import AuditConfig, audit
from auditor.cli import main
from auditor.demo.letters import letters
from auditor.errors import ConfigError
from auditor.targets.card_data import LIMIT, named_in
from auditor.targets.lists import Listed, with_records
from tests.conftest import write_records

ROWS = [{"text": f"{number} sheep"} for number in range(5)]


def data_set(folder: Path, *splits: str, kind: str = "jsonl", rows: Any = ROWS) -> Path:
    """A folder that the datasets library reads by the names of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        else:
            lines = (json.dumps(row) for row in rows)
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def with_card(folder: Path, *names: str) -> Path:
    """A model's folder whose card names data sets."""
    folder.mkdir(parents=True, exist_ok=True)
    front = "".join(f"- {name}\n" for name in names)
    (folder / "README.md").write_text(f"---\nlicense: mit\ndatasets:\n{front}---\n# M\n")
    return folder


def settled(model: Path | str, told: list[str] | None = None, **given: Any) -> Listed:
    tell = (lambda _: None) if told is None else told.append
    return with_records(AuditConfig.model_validate({"model": str(model), **given}), tell)


def refusal(model: Path | str, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settled(model, **given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "splits", "other"),
    [
        ("jsonl", ("train", "test", "validation"), "test"),
        ("jsonl", ("train", "validation"), "validation"),
        ("parquet", ("train", "test"), "test"),
    ],
)
def test_train_is_taken_for_members_and_test_for_the_others(
    kind: str, splits: tuple[str, ...], other: str, tmp_path: Path
) -> None:
    model, told = with_card(tmp_path / "m", "data"), []
    data_set(model / "data", *splits, kind=kind)
    found = settled(model, told)
    assert (found.source, found.data_set) == ("card", "data")
    assert str(found.config.members) == f"{model / 'data'},split=train"
    assert str(found.config.nonmembers) == f"{model / 'data'},split={other}"
    assert found.config.membership == "given"
    assert found.config.limit == LIMIT
    assert "from the card" in told[0]
    assert "1,000" in told[1]
    assert settled(model, limit=7).config.limit == 7
    assert settled(model, limit=None).config.limit is None


def test_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    model = with_card(tmp_path / "m", "saved")
    part = datasets.Dataset.from_list(ROWS)
    whole = datasets.DatasetDict({"train": part, "test": part})
    whole.save_to_disk(model / "saved")
    assert settled(model).data_set == "saved"
    # Its own files name others: they must not lead away.
    state = model / "saved" / "train" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"] = [{"filename": "../../../secret.arrow"}]
    state.write_text(json.dumps(content))
    assert "names data elsewhere" in refusal(model)


def test_the_first_that_can_be_had_is_taken(tmp_path: Path) -> None:
    model = with_card(tmp_path / "m", "owner/not-here", "empty", "alone", "good", "later")
    (model / "empty").mkdir()
    data_set(model / "alone", "train")
    for name in ("good", "later"):
        data_set(model / name, "train", "test")
    assert settled(model).data_set == "good"
    shutil.rmtree(model / "good")
    shutil.rmtree(model / "later")
    message = refusal(model)
    assert "owner/not-here (neither in the model's folder nor in the hub's cache)" in message
    assert "alone (no split test or validation beside train: train)" in message
    assert "--members owner/not-here,split=train --nonmembers owner/not-here,split=test" in message


def test_target_json_is_asked_first_and_given_lists_before_both(tmp_path: Path) -> None:
    model = with_card(tmp_path / "m", "data")
    data_set(model / "data", "train", "test")
    data_set(model, "members", "nonmembers")
    part = {"members": "members.jsonl", "nonmembers": "nonmembers.jsonl"}
    (model / "target.json").write_text(json.dumps({"audit": part}))
    assert settled(model).source == "target.json"
    assert settled(model, data="x.jsonl").source == "given"


def test_a_data_set_that_leads_elsewhere_is_not_read(tmp_path: Path) -> None:
    for name in ("../secret", str(tmp_path / "secret"), "https://example.org/x", "."):
        data_set(tmp_path / "secret", "train", "test")
        assert "none of them" in refusal(with_card(tmp_path / "m", name))
    model = with_card(tmp_path / "m", "data")
    data_set(model / "data", "train", "test")
    card = model / "data" / "README.md"
    for files in (
        "https://example.org/x.jsonl",
        "../../secret/train.jsonl",
        "/etc/passwd",
        "hf://d/x",
    ):
        card.write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n"
            f"  - split: train\n    path: {files}\n---\n"
        )
        assert "names data elsewhere" in refusal(model), files
    card.unlink()
    (model / "data" / "test.jsonl").unlink()
    (model / "data" / "test.jsonl").symlink_to(tmp_path / "secret" / "test.jsonl")
    assert "a link to a file elsewhere" in refusal(model)
    (model / "data" / "test.jsonl").unlink()
    (model / "data" / "more").symlink_to(tmp_path / "secret", target_is_directory=True)
    assert "a link to a folder" in refusal(model)


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("datasets: x\n", ["x"]),
        ("datasets: [a, a, 3, '', null, b]\n", ["a", "b"]),
        ("datasets: {a: b}\n", []),
        ("license: mit\n", []),
        ("- a\n", []),
        ("", []),
    ],
)
def test_what_a_card_names(front: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}---\nText\n")
    assert named_in(tmp_path / "README.md") == expected
    assert named_in(tmp_path / "no.md") == []


@pytest.mark.parametrize("front", ["datasets: [\n", "a: &a [*a, *a]\ndatasets: *b\n", "x: 1\n"])
def test_a_card_that_cannot_be_read_is_one_error(front: str, tmp_path: Path) -> None:
    end = "" if front == "x: 1\n" else "---\n"
    (tmp_path / "README.md").write_text(f"---\n{front}{end}")
    message = refusal(tmp_path)
    assert "front matter" in message
    assert "--members and --nonmembers" in message


def hub_cache(root: Path, kind: str, name: str, source: Path) -> None:
    """What the hub's cache looks like after a download: blobs, and links in a snapshot."""
    folder = root / f"{kind}s--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "blobs").mkdir()
    for path in source.iterdir():
        shutil.copy(path, folder / "blobs" / path.name)
        (snapshot / path.name).symlink_to(folder / "blobs" / path.name)


SETTLE = """
import json, socket
from auditor import AuditConfig
from auditor.targets.lists import with_records
def refused(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refused
found = with_records(AuditConfig(model="owner/model"))
print(json.dumps([found.source, found.data_set, str(found.config.members)]))
with_records(AuditConfig(model="owner/other"))
"""


def test_ids_are_taken_from_the_hubs_cache_and_nothing_is_fetched(tmp_path: Path) -> None:
    """Though the hub is not switched off: a card must not decide what is downloaded."""
    root = tmp_path / "hub"
    hub_cache(root, "model", "owner/model", with_card(tmp_path / "m", "owner/data"))
    hub_cache(root, "dataset", "owner/data", data_set(tmp_path / "d", "train", "test"))
    hub_cache(root, "model", "owner/other", with_card(tmp_path / "o", "owner/absent"))
    environment = {**os.environ, "HF_HUB_CACHE": str(root), "HF_HUB_OFFLINE": "0"}
    environment["HF_HOME"] = str(tmp_path / "home")
    run = subprocess.run(
        [sys.executable, "-c", SETTLE],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert found[:2] == ["card", "owner/data"]
    assert found[2] == f"{root / 'datasets--owner--data' / 'snapshots' / ('a' * 40)},split=train"
    assert "owner/absent (neither in the model's folder nor in the hub's cache)" in run.stderr
    assert "--members owner/absent,split=train" in run.stderr


def test_the_columns_are_not_guessed(
    subject: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m"
    shutil.copytree(subject["model"], model)
    with_card(model, "data")
    rows = [{"question": "How many?", "answer": str(number)} for number in range(60)]
    data_set(model / "data", "train", rows=rows)
    data_set(model / "data", "test", rows=[{**row, "answer": "x"} for row in rows])
    plan = ["audit", "--model", str(model), "--dry-run", "--output-path", str(tmp_path / "out")]
    assert main(plan) == 2
    printed = capsys.readouterr().err
    assert "columns: question, answer" in printed
    assert "--text-column" in printed
    named = ["--prompt-column", "question", "--completion-column", "answer", "--allow-overlap"]
    assert main([*plan, *named, "--min-records", "2"]) == 2
    assert "each side must have" in capsys.readouterr().err, "the columns were read"


def test_an_audit_says_that_the_lists_are_a_cards(subject: dict[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(subject["model"], model)
    with_card(model, "letters")
    (model / "letters").mkdir()
    texts = [text[:50] for text in letters(60, seed=5)]
    write_records(model / "letters" / "train.jsonl", texts[:30])
    write_records(model / "letters" / "test.jsonl", texts[30:])
    out = tmp_path / "out"
    given = {"model": str(model), "bootstrap": 100, "min_records": 20, "fpr": "0.2"}
    result = audit(AuditConfig.model_validate({**given, "limit": 25, "output_path": str(out)}))
    assert (result.records.source, result.records.data_set) == ("card", "letters")
    assert result.records.members.n_audited == 25
    (warned,) = [item for item in result.warnings if item.code == "from-card"]
    assert warned.severity == "warning"
    assert "data set letters" in warned.message
    assert "not known" in warned.message
    assert main(["report", str(out), "--format", "md"]) == 0
    said = "Both lists are splits of letters"
    assert said in (out / "report.md").read_text(encoding="utf-8")
    card = tmp_path / "README.md"
    assert main(["card", str(out), "--readme", str(card), "--create"]) == 0
    assert said in card.read_text(encoding="utf-8")
    # What stands in audit.json repeats it by hand.
    again = AuditConfig.model_validate(result.config)
    assert again.members is not None
    assert again.members.split == "train"
