"""A finished audit, read from its folder: no model is opened and no record is read.

    audit.json        the result
    scores.parquet    a row per version and record: ids, sides, lengths, groups, signals
    tokens/           token statistics, a folder per version

What is judged later (releases, shadows, two audits beside each other) starts from here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from auditor.config import AuditConfig
from auditor.errors import CompleakError, StoreError
from auditor.records import records_sha256
from auditor.results import AuditResult
from auditor.scoring.scores import Float64
from auditor.store import VariantStore, plan_shards
from auditor.subject import REFERENCE

# What a row of scores.parquet says of its record; every column of numbers beside is an attack's.
OF_RECORD = ("record_id", "is_member", "n_tokens", "group")
AGAIN = "run the audit again: stored scores are kept"


@dataclass(frozen=True)
class Run:
    """One finished audit of n records.

    Attributes:
        folder: Where it lies.
        result: Its `audit.json`.
        ids: Shape (n,), in the order of the audit.
        is_member: bool, shape (n,).
        n_tokens: int64, shape (n,): tokens of each record after truncation.
        groups: int64, shape (n,): near-duplicates of each other have the same number.
        signals: Version to attack to float64 of shape (n,), the original first; an attack that
            says nothing about a version is not there.
        stores: Token statistics of the same versions, and of the reference where there is one; no
            shard is read before it is asked for.
        left_out: Versions that cannot be judged, with the reason.
    """

    folder: Path
    result: AuditResult
    ids: npt.NDArray[np.str_]
    is_member: npt.NDArray[np.bool_]
    n_tokens: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    signals: dict[str, dict[str, Float64]]
    stores: dict[str, VariantStore]
    left_out: dict[str, str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def original(self) -> str:
        """Name of the original among the versions."""
        return self.result.variants[0].variant

    @property
    def config(self) -> AuditConfig:
        """The configuration that it was run with.

        Raises:
            StoreError: It is none that this version knows.
        """
        try:
            return AuditConfig.model_validate(self.result.config)
        except (ValidationError, CompleakError) as error:
            raise StoreError(
                f"{self.folder / 'audit.json'} must hold a configuration of this version",
                seen=_first(error),
                fix=AGAIN,
            ) from error


def read_result(path: Path) -> AuditResult:
    """Read `audit.json`.

    Raises:
        StoreError: It is not there, or not of this schema.
    """
    try:
        return AuditResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} must be the result of an audit by this version", seen=_first(error), fix=AGAIN
        ) from error


def open_run(folder: Path) -> Run:
    """Read a finished audit; nothing is written.

    Args:
        folder: The audit's output folder.

    Raises:
        StoreError: It holds no audit, one of another version, or one whose scores are missing,
            damaged, or those of other records.
    """
    if not folder.is_dir():
        raise StoreError(
            f"{folder} must be the output folder of an audit",
            seen="it does not exist" if not folder.exists() else "it is a file",
            fix="give the --output-path of a finished audit",
        )
    if not (folder / "audit.json").exists():
        raise StoreError(
            f"{folder} must be the output folder of an audit",
            seen="there is no audit.json in it",
            fix="give the --output-path of a finished audit, or let that audit finish",
        )
    result = read_result(folder / "audit.json")
    for name in ("scores.parquet", "tokens"):
        if not (folder / name).exists():
            raise StoreError(f"{folder} must hold its scores", seen=f"no {name}", fix=AGAIN)
    if not result.stored:
        raise StoreError(
            f"{folder / 'audit.json'} must say where the scores of each version lie",
            seen="the result of an earlier version, which did not",
            fix=AGAIN,
        )
    return _opened(folder, result)


def _opened(folder: Path, result: AuditResult) -> Run:
    table = _read_table(folder / "scores.parquet")
    attacks = [name for name in table.column_names if name not in (*OF_RECORD, "variant")]
    rows: pa.Table | None = None
    signals, left_out = {}, {}
    for variant in result.variants:
        name = variant.variant
        if variant.status == "broken":
            left_out[name] = variant.reason or "it is broken"
            continue
        part = table.filter(pc.equal(table["variant"], name))
        rows = part.select(OF_RECORD) if rows is None else rows
        if not part.num_rows or not part.select(OF_RECORD).equals(rows):
            raise _not_whole(folder, f"not every record once for {name}")
        values, reason = _signals(part, attacks)
        if reason is None:
            signals[name] = values
        else:
            left_out[name] = reason
    original = result.variants[0].variant
    if rows is None or original not in signals:
        raise StoreError(
            f"the scores of {original} in {folder} must be finite numbers, or there is nothing to "
            "compare with",
            seen=left_out.get(original, "none"),
            fix=AGAIN,
        )
    ids, is_member = rows["record_id"].to_numpy().astype(np.str_), rows["is_member"].to_numpy()
    _must_be_of(folder, result, records_sha256(ids, is_member))
    n_tokens = rows["n_tokens"].to_numpy()
    return Run(
        folder=folder,
        result=result,
        ids=ids,
        is_member=is_member,
        n_tokens=n_tokens,
        groups=rows["group"].to_numpy(),
        signals=signals,
        stores=_stores(folder, result, list(signals), ids=ids, n_tokens=n_tokens),
        left_out=left_out,
    )


def _read_table(path: Path) -> pa.Table:
    """`scores.parquet` without the texts that may stand in it, and without a gap in its keys."""
    try:
        columns = pq.read_schema(path)
        keys = [*OF_RECORD, "variant"]
        if missing := [name for name in keys if name not in columns.names]:
            raise _not_whole(path.parent, f"no column {missing[0]}")
        attacks = [field.name for field in columns if pa.types.is_floating(field.type)]
        table = pq.read_table(path, columns=[*keys, *attacks], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _not_whole(path.parent, _first(error)) from error
    if gaps := [name for name in keys if table[name].null_count]:
        raise _not_whole(path.parent, f"column {gaps[0]} has gaps")
    return table


def _signals(part: pa.Table, attacks: list[str]) -> tuple[dict[str, Float64], str | None]:
    """The signals of one version, and why it must be left out, if it must.

    A column that is empty throughout belongs to an attack that says nothing about this version.
    """
    found: dict[str, Float64] = {}
    for attack in attacks:
        values = part[attack].to_numpy().astype(np.float64)
        n_bad = int((~np.isfinite(values)).sum())
        if not n_bad:
            found[attack] = values
        elif not np.isnan(values).all():
            return {}, f"its signal {attack} is not a finite number for {n_bad:,} records"
    return found, None if found else "its scores hold no number"


def _must_be_of(folder: Path, result: AuditResult, seen: str) -> None:
    if seen != result.records.sha256:
        raise StoreError(
            f"the scores in {folder} must be those of the records in its audit.json",
            seen=f"records {seen[:16]} in the scores, {result.records.sha256[:16]} in audit.json",
            fix=AGAIN,
        )


def _stores(
    folder: Path,
    result: AuditResult,
    names: list[str],
    *,
    ids: npt.NDArray[np.str_],
    n_tokens: npt.NDArray[np.int64],
) -> dict[str, VariantStore]:
    shards = plan_shards(n_tokens)
    stores = {}
    for name in [*names, *([REFERENCE] if result.reference is not None else [])]:
        if name not in result.stored:
            raise StoreError(
                f"{folder / 'audit.json'} must say where the scores of each version lie",
                seen=f"nothing about {name}",
                fix=AGAIN,
            )
        place = folder / "tokens" / result.stored[name]
        stores[name] = VariantStore.opened(place, name, shards=shards, record_ids=ids)
        _must_be_of(folder, result, str(stores[name].fingerprint.get("records")))
    return stores


def _not_whole(folder: Path, seen: str) -> StoreError:
    must = f"{folder / 'scores.parquet'} must be as the audit wrote it"
    return StoreError(must, seen=seen, fix=AGAIN)


def _first(error: Exception) -> str:
    """What is wrong, in one line; of a schema's many complaints the first."""
    if isinstance(error, ValidationError):
        first: Any = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error).splitlines()[0] if str(error) else type(error).__name__
