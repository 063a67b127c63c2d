"""Mutations of binary formats: a table of other types, a header that says something else."""

import hashlib
import random
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutations import pair, word

LENGTH = 8  # bytes of a safetensors file before its header
NAMES = ("text", "messages", "variant", "record_id", "loss", "", "a" * 300, "is_member", "label")


def table(data: bytes, rng: random.Random) -> bytes:
    """A Parquet file whose columns are of other types, missing, doubled, or whose rows are."""
    found = _read(data)
    if found is None:
        return data[: rng.randrange(len(data) + 1)]
    names, columns = list(found.column_names), list(found.columns)
    at = rng.randrange(len(names)) if names else 0
    act = rng.randrange(8)
    if act <= 3 and names:
        columns[at] = _other(columns[at], rng)
    elif act == 4 and names:
        del names[at], columns[at]
    elif act == 5 and names:
        names[at] = rng.choice(NAMES)
    elif act == 6 and names:
        names.append(rng.choice((names[at], *NAMES)))
        columns.append(_other(columns[at], rng))
    else:
        n = rng.choice((0, 1, 2, len(found))) if len(found) else 0
        rows = pa.array([rng.randrange(len(found)) for _ in range(n)], pa.int64())
        columns = [column.take(rows) for column in columns]
    return _written(pa.Table.from_arrays(columns, names=names), found.schema.metadata, rng)


def _other(column: Any, rng: random.Random) -> Any:
    """A column as long, of other values."""
    n = len(column)
    made: list[Any] = [
        lambda: pa.nulls(n),
        lambda: pa.nulls(n, column.type),
        lambda: pa.array(
            [rng.choice((None, "", "x", "true", "1")) for _ in range(n)], pa.large_string()
        ),
        lambda: pa.array([b"\xff\x00"] * n, pa.binary()),
        lambda: pa.array([[1, None]] * n),
        lambda: pa.array([[["a"], []]] * n),
        lambda: pa.array([{"role": "user", "content": None}] * n),
        lambda: pa.array([[{"role": "user", "content": "x"}]] * n),
        lambda: pa.array([float("nan")] * n),
        lambda: pa.array([rng.choice((float("inf"), -1e308, 0.0)) for _ in range(n)]),
        lambda: pa.array([2**63 - 1] * n),
        lambda: pa.array([-(2**63)] * n),
        lambda: pa.array([2**64 - 1] * n, pa.uint64()),
        lambda: pa.array([True] * n),
        lambda: pa.array([2**62] * n, pa.timestamp("ns")),
        lambda: pa.array([2**62] * n, pa.timestamp("us", "Nowhere/Land")),
        lambda: pa.array([2**31 - 1] * n, pa.date32()),
        lambda: pa.array([2**40] * n, pa.duration("s")),
        lambda: pa.array([1] * n, pa.decimal128(38, 10)),
        lambda: pa.array([1.0] * n, pa.float16()),
        column.dictionary_encode,
        lambda: pa.array([[("k", 1), ("k", 2)]] * n, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([value.as_py() for value in column][::-1], column.type),
        lambda: pa.array([None, *[value.as_py() for value in column][1:]][:n], column.type),
    ]
    for _ in range(3):
        try:
            return rng.choice(made)()
        except (pa.ArrowException, ValueError, OverflowError):
            continue
    return pa.nulls(n)


def _written(table: Any, metadata: Any, rng: random.Random) -> bytes:
    if metadata is not None and rng.random() < 0.8:
        table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    compression = rng.choice(("none", "snappy", "zstd", "gzip"))
    size = rng.choice((1, 7, 1000))
    try:
        pq.write_table(table, sink, compression=compression, row_group_size=size)
    except (pa.ArrowException, ValueError):
        return b"PAR1"
    return sink.getvalue().to_pybytes()


@lru_cache(maxsize=256)
def _read(data: bytes) -> Any:
    """The table of a Parquet file, None where it is none any more."""
    # By path: from memory pyarrow was seen to abort at exit.
    with TemporaryDirectory() as folder:
        path = Path(folder, hashlib.sha256(data).hexdigest())
        path.write_bytes(data)
        try:
            found = pq.ParquetFile(path).read(use_threads=False)
        except Exception:
            return None
    return found if len(found) <= 4096 else None


def header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else; its length fits, most of the time."""
    length = int.from_bytes(data[:LENGTH], "little")
    text, body = data[LENGTH : LENGTH + length], data[LENGTH + length :]
    new = rng.choice((pair, pair, pair, word))(text, rng)
    size = len(new) if rng.random() < 0.9 else rng.choice((0, 1, 2**63, len(new) + 1, 10**9))
    return size.to_bytes(LENGTH, "little") + new + body
