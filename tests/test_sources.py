"""Rows from every kind of source: read again by position, and errors that name file and line."""

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.config import Source
from auditor.errors import RecordsError
from auditor.sources import open_source

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
# Line separators that only Unicode knows, quotes, and line breaks inside a field.
ODD = st.text(st.sampled_from('ab,"\t\n\r\u2028\u0085é漢🙂 \\{}[]'), max_size=12)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(text.encode())
    elif path.suffix == ".json":
        path.write_bytes(json.dumps(rows, ensure_ascii=False, indent=1).encode())
    elif path.suffix == ".parquet":
        schema = pa.schema([("text", pa.string()), ("n", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=3)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["text", "n"])
            writer.writerows([row["text"], row["n"]] for row in rows)
    return path


@pytest.mark.parametrize("suffix", KINDS)
@given(texts=st.lists(ODD, max_size=12), data=st.data())
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rows_are_read_again_by_position(
    suffix: str, texts: list[str], data: st.DataObject, tmp_path: Path
) -> None:
    rows = [{"text": text, "n": str(number)} for number, text in enumerate(texts)]
    path = write(tmp_path / f"x{suffix}", rows)
    source = open_source(Source(path=str(path)))
    placed = list(source.stream())
    assert [item.row for item in placed] == rows
    positions = [item.position for item in placed]
    assert len(set(positions)) == len(rows)
    if rows:
        wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
        fresh = open_source(Source(path=str(path))) if suffix != ".json" else source
        found = fresh.read([positions[index] for index in wanted])
        assert found == [rows[index] for index in wanted]


@pytest.mark.parametrize(("suffix", "end"), [(".jsonl", "\r\n"), (".csv", "\r\n"), (".json", "")])
def test_byte_order_mark_crlf_and_blank_lines(suffix: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    content = {
        ".jsonl": f'{{"text": "é"}}{end}{end}{{"text": "b"}}{end}',
        ".csv": f"text{end}é{end}{end}b{end}",
        ".json": '[{"text": "é"}, {"text": "b"}]',
    }[suffix]
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    source = open_source(Source(path=str(path)))
    placed = list(source.stream())
    assert [item.row["text"] for item in placed] == ["é", "b"]
    assert [row["text"] for row in source.read([item.position for item in placed])] == ["é", "b"]


BAD = [
    ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "a.jsonl:2 must be a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl:2 must be an object"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2 must be UTF-8"),
    ("a.jsonl", b"[" * 100_000, "nested too deeply"),
    ("a.json", b'[{"text": "a"},\n {"text": ]', "a.json:2 must be JSON"),
    ("a.json", b'{"text": "a"}', "must be a JSON array"),
    ("a.json", b"\xfe\xff", "must be UTF-8"),
    ("a.csv", b'text,n\n"a",1\nb\n', "a.csv:3 must have as many fields"),
    ("a.csv", b'text\n"a\n', "must be CSV"),
    ("a.parquet", b"PAR1 no", "must be a Parquet file"),
    ("a.txt", b"x", "must end in .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "expected"), BAD)
def test_malformed_files_are_named_with_their_line(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordsError) as caught:
        list(open_source(Source(path=str(tmp_path / name))).stream())
    assert expected in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="can be read"):
        open_source(Source(path=str(tmp_path / "a.jsonl")))
    with pytest.raises(RecordsError, match="data set that can be loaded"):
        list(open_source(Source(path=str(tmp_path / "nothing"))).stream())


def test_a_data_set_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(4)]})
        for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    source = open_source(Source(path=str(tmp_path / "d"), split="test"))
    assert next(item.row["text"] for item in source.stream()) == "test 0"
    assert [row["text"] for row in source.read([3, 1])] == ["test 3", "test 1"]
    with pytest.raises(RecordsError, match="split") as caught:
        list(open_source(Source(path=str(tmp_path / "d"))).stream())
    assert "splits: train, test" in str(caught.value)


def test_a_folder_of_files_leaves_nothing_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    cache, folder = tmp_path / "cache", tmp_path / "folder"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder.mkdir()
    write(folder / "train.jsonl", [{"text": f"secret {i}", "n": str(i)} for i in range(5)])
    source = open_source(Source(path=str(folder)))
    assert [item.row["text"] for item in source.stream()][4] == "secret 4"
    assert source.read([2])[0]["text"] == "secret 2"
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_streaming_holds_no_texts(suffix: str, tmp_path: Path) -> None:
    n, text = 20_000, "x" * 400
    path = write(tmp_path / f"x{suffix}", [{"text": text, "n": str(i)} for i in range(n)])
    source: Any = open_source(Source(path=str(path)))
    tracemalloc.start()
    positions = [item.position for item in source.stream()]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(positions) == n
    assert held < n * 100, "positions only"
    assert peak < n * 400 / 2, "at no time all texts"
