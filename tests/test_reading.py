"""What the first pass found, kept: the same records without a second pass, and never stale."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditor.config import AuditConfig
from auditor.errors import RecordsError, StoreError
from auditor.records import Records, read_records
from auditor.scoring.encode import Encoded, Encoder, RecordText
from tests.tiny import byte_tokenizer

CONTEXT = 40


class Counting(Encoder):
    """An encoder that counts the records it was given."""

    n_encoded = 0

    def encode(self, texts: Sequence[RecordText]) -> list[Encoded]:
        """See `Encoder`."""
        self.n_encoded += len(texts)
        return super().encode(texts)


def texts(side: str) -> list[str]:
    """Copies, an empty one, a short one, a cut one, a text of the other side, letters of others."""
    twin = " ".join(f"w{i}" for i in range(14))
    more = [f"{side} caf\u00e9 {i}, \u201cline\u201d\nbreak" for i in range(9)]
    return [f"{twin} {side}", *more, more[0], "", "x", "both sides", side * 30]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format of the suffix."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def given(folder: Path, suffix: str = ".jsonl", **changes: Any) -> AuditConfig:
    """A configuration whose two sources lie in `folder`; written where they are not there."""
    paths = {}
    for side in ("members", "nonmembers"):
        paths[side] = folder / f"{side}{suffix}"
        if not paths[side].exists():
            write(paths[side], [{"text": t, "body": t[:9] + side} for t in texts(side[:3])])
    fields = {"model": "m", "min_records": 2, "allow_overlap": True}
    return AuditConfig.model_validate(
        {**fields, **{side: str(path) for side, path in paths.items()}, **changes}
    )


def read(config: AuditConfig, folder: Path, **changes: Any) -> tuple[Records, int]:
    """Records, read with what is kept in `folder`, and how many had to be encoded."""
    tokenizer = changes.pop("tokenizer", byte_tokenizer())
    encoder = Counting(tokenizer, changes.pop("max_length", CONTEXT))
    return read_records(config, encoder, folder=folder), encoder.n_encoded


def assert_same(records: Records, others: Records) -> None:
    for name in ("ids", "is_member", "n_tokens", "groups"):
        found, expected = getattr(records, name), getattr(others, name)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    assert records.summary == others.summary
    assert records.warnings == others.warnings
    assert list(records.stream()) == list(others.stream())


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("limit", [None, 12])
def test_kept_and_read_again(suffix: str, limit: int | None, tmp_path: Path) -> None:
    config = given(tmp_path, suffix, limit=limit)
    plain = read_records(config, Encoder(byte_tokenizer(), CONTEXT))
    first, n_encoded = read(config, tmp_path / "run")
    assert n_encoded > 20
    first.keep(tmp_path / "run")
    again, n_encoded = read(config, tmp_path / "run")
    assert n_encoded == 0
    assert_same(first, plain)
    assert_same(again, plain)
    assert again.summary.members.n_near_duplicates == 1
    assert again.summary.members.n_duplicates == 1
    before = sorted((tmp_path / "run").iterdir())
    again.keep(tmp_path / "run")
    assert sorted((tmp_path / "run").iterdir()) == before


def test_one_source_with_labels(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 3 == 0, "other": i % 2} for i in range(20)]
    path = write(tmp_path / "all.jsonl", rows)
    fields = {"model": "m", "data": str(path), "min_records": 2}
    config = AuditConfig.model_validate(fields)
    first, _ = read(config, tmp_path / "run")
    first.keep(tmp_path / "run")
    again, n_encoded = read(config, tmp_path / "run")
    assert n_encoded == 0
    assert_same(again, first)
    other = AuditConfig.model_validate({**fields, "label_column": "other"})
    told, n_encoded = read(other, tmp_path / "run")
    assert n_encoded == 20
    assert told.is_member.sum() == 10


@pytest.mark.parametrize(
    "changes", [{"limit": 11}, {"text_column": "body"}, {"max_length": 30}, {"tokenizer": True}]
)
def test_another_way_of_reading_is_another_reading(changes: dict[str, Any], tmp_path: Path) -> None:
    records, _ = read(given(tmp_path), tmp_path / "run")
    records.keep(tmp_path / "run")
    fields = {k: v for k, v in changes.items() if k in ("limit", "text_column")}
    how = {k: v for k, v in changes.items() if k not in fields}
    if "tokenizer" in how:
        how["tokenizer"] = byte_tokenizer()
        how["tokenizer"].add_tokens(["line", "both"])
    config = given(tmp_path, **fields)
    found, n_encoded = read(config, tmp_path / "run", **how)
    assert n_encoded > 20
    fresh, _ = read(config, tmp_path / "nothing", **how)
    assert_same(found, fresh)
    # It takes the place of the other, and is there from now on.
    found.keep(tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 1
    assert read(config, tmp_path / "run", **how)[1] == 0


def test_conversations_hang_on_the_template(tmp_path: Path) -> None:
    for side in ("members", "nonmembers"):
        rows = [{"messages": [{"role": "user", "content": f"{side} {i}"}]} for i in range(9)]
        write(tmp_path / f"{side}.jsonl", rows)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    read(given(tmp_path), tmp_path, tokenizer=tokenizer)[0].keep(tmp_path / "run")
    assert read(given(tmp_path), tmp_path / "run", tokenizer=tokenizer)[1] == 0
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    records, n_encoded = read(given(tmp_path), tmp_path / "run", tokenizer=tokenizer)
    assert n_encoded == 18
    assert records.texts([0])[0].text == "[user]members 0"


@pytest.mark.parametrize("swapped", [False, True])
def test_other_bytes_are_other_records(swapped: bool, tmp_path: Path) -> None:
    config = given(tmp_path)
    records, _ = read(config, tmp_path / "run")
    records.keep(tmp_path / "run")
    members, nonmembers = tmp_path / "members.jsonl", tmp_path / "nonmembers.jsonl"
    if swapped:  # the same two files, each on the other side
        config = given(tmp_path, members=str(nonmembers), nonmembers=str(members))
    else:  # one letter, the size and the time of the file as they were
        times = members.stat()
        members.write_bytes(members.read_bytes().replace(b"break", b"Break", 1))
        os.utime(members, ns=(times.st_atime_ns, times.st_mtime_ns))
    found, n_encoded = read(config, tmp_path / "run")
    assert n_encoded > 20
    assert found.summary.sha256 != records.summary.sha256


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed", "foreign"])
def test_what_is_damaged_is_made_anew(damage: str, tmp_path: Path) -> None:
    config, folder = given(tmp_path), tmp_path / "run"
    records, n_rows = read(config, folder)
    records.keep(folder)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[:-20])
        case "flipped":
            middle = len(whole) // 3
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case "empty":
            path.write_bytes(b"")
        case "renamed":
            path.rename(path.with_name("records-0123456789abcdef.parquet"))
        case "foreign":
            other = tmp_path / "other"
            other.mkdir()
            write(other / "members.jsonl", [{"text": f"another {i}"} for i in range(9)])
            path.unlink()
            read(given(other), tmp_path / "there")[0].keep(folder)
    again, n_encoded = read(config, folder)
    assert n_encoded == n_rows
    assert_same(again, records)
    again.keep(folder)
    assert [file.read_bytes() for file in folder.iterdir()] == [whole]


def test_kept_without_a_text_and_for_the_owner_alone(tmp_path: Path) -> None:
    read(given(tmp_path), tmp_path / "run")[0].keep(tmp_path / "run")
    (path,) = (tmp_path / "run").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert {str(field.type) for field in pq.read_schema(path)} == {"uint64", "bool", "int64"}
    assert not any(word in path.read_bytes() for word in (b"both", b"caf", b"members"))


def test_what_must_not_be_is_refused_from_what_is_kept(tmp_path: Path) -> None:
    read(given(tmp_path), tmp_path / "run")[0].keep(tmp_path / "run")
    for changes, said in (
        ({"allow_overlap": False}, "both sides"),
        ({"min_records": 500}, "at least 500"),
    ):
        with pytest.raises(RecordsError, match=said) as plain:
            read(given(tmp_path, **changes), tmp_path / "nothing")
        with pytest.raises(RecordsError) as kept:
            read(given(tmp_path, **changes), tmp_path / "run")
        assert str(kept.value) == str(plain.value)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_store(tmp_path: Path) -> None:
    records, _ = read(given(tmp_path), tmp_path / "run")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="must be a folder that can be written"):
        records.keep(tmp_path / "run")
