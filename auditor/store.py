"""The store: token statistics on disk, one folder per variant, shard by shard.

    OUTPUT/tokens/audit.json                 what this folder is about: model, records, tokenizer
    OUTPUT/tokens/bnb-nf4-1a2b3c4d/          one version of the model; the digits: its fingerprint
        shard-00000-DIGEST.parquet ...       one row per record, four lists of token facts
        manifest.json                        written last: shards, receipt, status

A shard is a fixed set of records, so that the shards of all versions speak of the same records and
can be read side by side. What is finished is never computed again: a version with a manifest is
whole, one without goes on at its first missing shard. A shard carries the digest of its bytes in
its name and its version's fingerprint inside: one that was damaged, or comes from elsewhere, counts
as missing and is computed again.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from auditor.compress.receipt import Receipt
from auditor.errors import StoreError
from auditor.files import write_text, written_whole
from auditor.results import ModelIdentity, Result
from auditor.scoring.scores import Scores

# What the reference is called among the versions.
REFERENCE = "reference"
STORE_VERSION = 2
# Tokens of a shard at most: small enough that little is lost when a run is killed, large enough
# that a shard holds several batches. A million records of 200 tokens make some 6,000 of them.
SHARD_TOKENS = 2**15
# A small audit is cut finer, so that two processes or eight get equal shares of it.
LEAST_SHARD_TOKENS = 2**12
SHARDS = 64

DIGITS = 16  # of a shard's digest, in its name
SHARD_FILE = re.compile(rf"shard-(\d{{5,}})-[0-9a-f]{{{DIGITS}}}\.parquet")
COLUMNS = ("logp", "mu", "sigma", "hit")
SCHEMA = pa.schema(
    [
        ("record", pa.int64()),
        ("record_id", pa.string()),
        ("text_bytes", pa.int64()),
        ("zlib_bytes", pa.int64()),
        *((name, pa.list_(pa.float32())) for name in COLUMNS[:3]),
        ("hit", pa.list_(pa.bool_())),
    ]
)


class Manifest(Result):
    """What is known of a finished version of the model."""

    fingerprint: dict[str, Any]
    status: Literal["ok", "broken"]
    reason: str | None = None
    receipt: Receipt | None = None
    identity: ModelIdentity
    n_shards: int


class Shard(NamedTuple):
    """Some records of one version.

    Attributes:
        records: Their positions in the audit's records, int64, shape (n,).
        scores: Their token statistics, in the same order.
    """

    records: npt.NDArray[np.int64]
    scores: Scores


def plan_shards(n_tokens: npt.NDArray[np.integer]) -> list[npt.NDArray[np.int64]]:
    """Share out records over shards: longest first, at most `SHARD_TOKENS` tokens in each.

    Fewer tokens than would fill `SHARDS` shards are cut finer, down to `LEAST_SHARD_TOKENS`.

    Args:
        n_tokens: Tokens of each record, shape (n,).

    Returns:
        Positions of the records of each shard; every record stands in exactly one.
    """
    order = np.argsort(-n_tokens.astype(np.int64), kind="stable").astype(np.int64)
    filled = np.cumsum(n_tokens[order].astype(np.int64))
    total = int(filled[-1]) if len(filled) else 0
    size = min(SHARD_TOKENS, max(LEAST_SHARD_TOKENS, -(-total // SHARDS)))
    number = (filled - 1) // size
    cuts = np.flatnonzero(np.diff(number)) + 1
    return [part for part in np.split(order, cuts) if len(part)]


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping's JSON, hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class VariantStore:
    """The folder of one version of the model.

    Args:
        root: The store's folder.
        name: The version, as it is called in tables.
        fingerprint: Everything that determines its numbers.
        shards: The records of each shard.
        record_ids: Ids of all records of the audit.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        fingerprint: Mapping[str, Any],
        shards: list[npt.NDArray[np.int64]],
        record_ids: npt.NDArray[np.str_],
    ) -> None:
        self.name = name
        self.fingerprint = dict(fingerprint)
        self.shards = shards
        self._digest = digest(self.fingerprint)
        self._record_ids = record_ids
        safe = re.sub(r"[^A-Za-z0-9.=,_-]+", "_", name)[:80]
        self.folder = root / f"{safe}-{self._digest[:12]}"
        self._files: dict[int, list[Path]] = {}

    @classmethod
    def opened(
        cls,
        folder: Path,
        name: str,
        *,
        shards: list[npt.NDArray[np.int64]],
        record_ids: npt.NDArray[np.str_],
    ) -> "VariantStore":
        """A finished version from its folder alone; its shards are checked when they are read.

        Args:
            folder: The version's own folder.
            name: The version, as it is called in tables.
            shards: The records of each shard.
            record_ids: Ids of all records of the audit.

        Raises:
            StoreError: Its manifest is missing or damaged, or that of something else.
        """
        again = "run the audit again: what is stored whole is kept"
        path = folder / "manifest.json"
        must = f"the stored scores of {name} must be whole"
        try:
            found = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            seen = f"{path} is {'damaged' if path.is_file() else 'missing'}"
            raise StoreError(must, seen=seen, fix=again) from error
        store = cls(
            folder.parent,
            name,
            fingerprint=found.fingerprint,
            shards=shards,
            record_ids=record_ids,
        )
        if store.folder.name != folder.name:
            seen = f"{path} is the manifest of {store.folder.name}"
            raise StoreError(must, seen=seen, fix=again)
        if found.n_shards != len(shards):
            seen = f"{path} speaks of {found.n_shards} shards, the records make {len(shards)}"
            raise StoreError(must, seen=seen, fix=again)
        return store

    def manifest(self) -> Manifest | None:
        """The manifest, or None where the version is not finished or its shards are damaged."""
        path = self.folder / "manifest.json"
        try:
            found = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None
        if found.fingerprint != json.loads(json.dumps(self.fingerprint)):
            return None
        if found.status == "ok" and self.missing():
            return None
        return found

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there, or not whole."""
        self._list()
        return [number for number in range(len(self.shards)) if self._listed(number) is None]

    def write_shard(self, number: int, scores: Scores) -> None:
        """Write the scores of shard `number`, in the order of its records.

        Raises:
            StoreError: The folder cannot be written.
        """
        records = self.shards[number]
        if len(records) != len(scores):
            raise ValueError(f"shard {number} holds {len(records)} records, not {len(scores)}")
        offsets = pa.array(scores.offsets, pa.int32())
        lists = [pa.ListArray.from_arrays(offsets, pa.array(getattr(scores, c))) for c in COLUMNS]
        table = pa.Table.from_arrays(
            [
                pa.array(records),
                pa.array(self._record_ids[records].tolist(), pa.string()),
                pa.array(scores.text_bytes),
                pa.array(scores.zlib_bytes),
                *lists,
            ],
            schema=SCHEMA.with_metadata({"fingerprint": self._digest, "shard": str(number)}),
        )
        # The digest goes into the name, so that content and digest appear in one rename. Parquet's
        # own checksums cover the pages only, and a flipped bit in a header would pass for truth.
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none")
        content = sink.getvalue().to_pybytes()
        name = f"{_stem(number)}-{hashlib.sha256(content).hexdigest()[:DIGITS]}.parquet"
        with written_whole(self.folder / name) as part:
            part.write_bytes(content)
        for path in self.folder.glob(f"{_stem(number)}-*.parquet"):
            if path.name != name:  # damaged, or another's
                path.unlink(missing_ok=True)

    def manifest_of(
        self,
        *,
        identity: ModelIdentity,
        receipt: Receipt | None,
        status: Literal["ok", "broken"] = "ok",
        reason: str | None = None,
    ) -> Manifest:
        """What the manifest of this version will say."""
        return Manifest(
            fingerprint=self.fingerprint,
            status=status,
            reason=reason,
            receipt=receipt,
            identity=identity,
            n_shards=len(self.shards) if status == "ok" else 0,
        )

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, which makes the version whole."""
        write_text(self.folder / "manifest.json", manifest.model_dump_json(indent=1) + "\n")

    def read(self) -> Iterator[Shard]:
        """The shards one by one, in their order; errors as in `shard`."""
        for number in range(len(self.shards)):
            yield self.shard(number)

    def shard(self, number: int) -> Shard:
        """One shard; may be called from several threads at once.

        Raises:
            StoreError: It has been damaged since it was checked.
        """
        table = self._table(number)
        if table is None:
            raise StoreError(
                f"{self.folder / _stem(number)} must be whole",
                seen="a missing or damaged file",
                fix="run the audit again: only this shard is computed anew",
            )
        return Shard(self.shards[number], _scores(table))

    def _list(self) -> None:
        """See which files are there: thousands are listed once, and not once for each of them."""
        found: dict[int, list[Path]] = {}
        for path in self.folder.glob("shard-*.parquet"):
            if name := SHARD_FILE.fullmatch(path.name):
                found.setdefault(int(name[1]), []).append(path)
        self._files = found

    def _table(self, number: int) -> pa.Table | None:
        table = self._listed(number)
        if table is None:  # not listed yet, or written since
            self._list()
            table = self._listed(number)
        return table

    def _listed(self, number: int) -> pa.Table | None:
        for path in self._files.get(number, []):
            table = self._read_checked(path, number)
            if table is not None:
                return table
        return None

    def _read_checked(self, path: Path, number: int) -> pa.Table | None:
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if not path.stem.endswith(f"-{found[:DIGITS]}"):
                return None
            # By path and on one thread: from an in-memory file pyarrow aborted at exit at times.
            # `read_table` would set up a data set around the one file, in twice the time.
            with pq.ParquetFile(path) as opened:
                table = opened.read(use_threads=False)
        except (OSError, pa.ArrowException, ValueError, KeyError):
            return None
        metadata = table.schema.metadata or {}
        if metadata.get(b"fingerprint") != self._digest.encode():
            return None
        if metadata.get(b"shard") != str(number).encode() or not _is_sound(table):
            return None
        same = np.array_equal(table.column("record").to_numpy(), self.shards[number])
        return table if same else None


def _stem(number: int) -> str:
    return f"shard-{number:05d}"


def _is_sound(table: pa.Table) -> bool:
    """Whether there are four facts of every token, and no gap."""
    if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
        return False
    lists = [table.column(name).combine_chunks() for name in COLUMNS]
    return all(
        part.offsets.equals(lists[0].offsets) and not part.flatten().null_count for part in lists
    )


def _scores(table: pa.Table) -> Scores:
    columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
    offsets = columns["logp"].offsets.to_numpy().astype(np.int64)
    flat = {
        name: column.flatten().to_numpy(zero_copy_only=False) for name, column in columns.items()
    }
    return Scores(
        offsets=offsets - offsets[0],
        text_bytes=table.column("text_bytes").to_numpy(),
        zlib_bytes=table.column("zlib_bytes").to_numpy(),
        **flat,
    )
