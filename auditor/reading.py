"""What the first pass over the records found, kept beside the scores.

    OUTPUT/tokens/records-DIGEST.parquet     a row for each row of the sources; never a text

To know how long records are, whose copies they are and on which side they stand, all of them are
read and encoded once, a minute for a million short ones. A run that goes on, or is judged again,
takes it from here. What is kept counts only where everything that decides it is the same: the bytes
of the sources, columns, tokenizer, lengths, limits and versions. A file that is damaged or about
something else is passed over and made anew.
"""

import hashlib
import platform
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from auditor.config import AuditConfig
from auditor.environment import installed
from auditor.files import sha256_of, written_whole
from auditor.scoring.encode import Encoder
from auditor.store import DIGITS, digest

# To be raised whenever something else would be found in the same records.
READING_VERSION = 1
LIBRARIES = ("compleak-llm", "transformers", "tokenizers", "jinja2", "numpy", "scipy")
COLUMNS = ("text_column", "messages_column", "prompt_column", "completion_column", "label_column")
KEY = b"about"

Column = npt.NDArray[Any]


class Found(NamedTuple):
    """What is kept of rows on the first pass: an array each, some seventy bytes a row in all.

    Attributes:
        ids: 16 hex digits each, as bytes.
        is_member: The side.
        source: Number of the source.
        position: Where the row stands in it.
        n_tokens: Tokens after truncation.
        n_scored: Those of them that are scored.
        truncated: Whether tokens were cut off.
        empty: Whether it holds no text.
    """

    ids: Column
    is_member: Column
    source: Column
    position: Column
    n_tokens: Column
    n_scored: Column
    truncated: Column
    empty: Column


class Alike(NamedTuple):
    """Near-duplicates among the rows.

    Attributes:
        near: Whether half of the row stands on the other side, bool, shape (n,).
        groups: Rows that are near-duplicates have the same number, int64, shape (n,); -1 where the
            row is not audited.
    """

    near: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64]


class Reading(NamedTuple):
    """One first pass over all sources."""

    found: Found
    alike: Alike


KINDS = Found("S16", "?", "i8", "i8", "i8", "i8", "?", "?")  # type: ignore[arg-type]
SCHEMA = pa.schema(
    [
        ("ids", pa.uint64()),
        ("is_member", pa.bool_()),
        ("source", pa.int64()),
        ("position", pa.int64()),
        ("n_tokens", pa.int64()),
        ("n_scored", pa.int64()),
        ("truncated", pa.bool_()),
        ("empty", pa.bool_()),
        ("near", pa.bool_()),
        ("groups", pa.int64()),
    ]
)


def about(config: AuditConfig, encoder: Encoder) -> str | None:
    """A digest of everything that decides what a first pass finds.

    Args:
        config: Where the records are and how they are read.
        encoder: What counts their tokens.

    Returns:
        None where it cannot be told: a data set's bytes are the library's affair, and a tokenizer
        in Python is more than its vocabulary.
    """
    # It comes with torch, which whoever reads a finished audit does without.
    from auditor.compress.checkpoint import tokenizer_sha256

    given = [config.members, config.nonmembers] if config.data is None else [config.data]
    paths = [Path(source.path).expanduser() for source in given if source is not None]
    tokenizer = encoder.tokenizer
    if not all(path.is_file() for path in paths) or not tokenizer.is_fast:
        return None
    try:
        sources = [[path.suffix.lower(), sha256_of(path)] for path in paths]
    except OSError:  # reading it will say what is wrong
        return None
    return digest(
        {
            "reading": READING_VERSION,
            "sources": sources,
            "columns": {name: getattr(config, name) for name in COLUMNS},
            "limit": config.limit,
            "tokenizer": [type(tokenizer).__name__, tokenizer_sha256(tokenizer)],
            "special": tokenizer.special_tokens_map,
            "template": getattr(tokenizer, "chat_template", None),
            "max_length": encoder.max_length,
            "unicode": unicodedata.unidata_version,
            "python": platform.python_version(),
            "libraries": {name: installed(name) for name in LIBRARIES},
        }
    )


def packed(reading: Reading, key: str) -> bytes:
    """A reading as the bytes of a Parquet file, some twenty for each row.

    Args:
        reading: What was found.
        key: What it is about, see `about`.
    """
    found, alike = reading
    numbers = bytes.fromhex(b"".join(found.ids.tolist()).decode("ascii"))
    columns = [np.frombuffer(numbers, dtype=">u8").astype(np.uint64), *found[1:], *alike]
    schema = SCHEMA.with_metadata({KEY: key.encode()})
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def keep(folder: Path, content: bytes) -> None:
    """Write what `packed` gave, in the place of whatever was kept before.

    Raises:
        StoreError: The folder cannot be written.
    """
    path = folder / f"records-{hashlib.sha256(content).hexdigest()[:DIGITS]}.parquet"
    with written_whole(path) as part:
        part.write_bytes(content)
    for other in folder.glob("records-*.parquet"):
        if other != path:
            with suppress(OSError):
                other.unlink()


def kept(folder: Path, key: str) -> Reading | None:
    """The reading that is kept in a folder and is about `key`; None where there is none."""
    for path in sorted(folder.glob("records-*.parquet")):
        table = _whole_table(path, key)
        if table is not None:
            return _reading(table)
    return None


def _whole_table(path: Path, key: str) -> pa.Table | None:
    try:
        if not path.stem.endswith(f"-{sha256_of(path)[:DIGITS]}"):
            return None
        with pq.ParquetFile(path) as opened:
            table = opened.read(use_threads=False)
    except (OSError, pa.ArrowException):
        return None
    same = (table.schema.metadata or {}).get(KEY) == key.encode() and table.schema.equals(SCHEMA)
    return table if same else None


def _reading(table: pa.Table) -> Reading:
    columns = [table.column(name).to_numpy() for name in SCHEMA.names]
    text = columns[0].astype(">u8").tobytes().hex().encode("ascii")
    columns[0] = np.frombuffer(text, dtype="S16")
    return Reading(Found(*columns[:8]), Alike(*columns[8:]))
