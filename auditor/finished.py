"""A finished audit as its reader sees it: `audit.json` and `scores.parquet`, nothing else.

    audit.json        the result
    scores.parquet    a row per version and record: ids, sides, lengths, groups, signals

The report and the model card are functions of these two files. What needs the token statistics
too (releases, shadows, two audits beside each other) opens a `run.Run`.
"""

import json
from collections import Counter
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
from auditor.errors import CompleakError, StoreError, first_line
from auditor.records import records_sha256
from auditor.results import SCHEMA_VERSION, AuditResult
from auditor.results.whole import fault, finite
from auditor.scoring.scores import Float64

# What a row of scores.parquet says of its record; every column of numbers beside is an attack's.
OF_RECORD = ("record_id", "is_member", "n_tokens", "group")
# The types of the columns that are no signals.
KEYS = {
    **{"record_id": "string", "is_member": "bool", "n_tokens": "int64", "group": "int64"},
    "variant": "string",
}
# Signals about all versions together, or about none: they stand in the original's rows.
OVER_ALL = ("mean-rank", "combined", "combined-ref", "blind")
AGAIN = "run the audit again: stored scores are kept"


@dataclass(frozen=True)
class Finished:
    """One finished audit of n records.

    Attributes:
        folder: Where it lies.
        result: Its `audit.json`.
        ids: Shape (n,), in the order of the audit.
        is_member: bool, shape (n,).
        n_tokens: int64, shape (n,): tokens of each record after truncation.
        groups: int64, shape (n,): near-duplicates of each other have the same number.
        signals: Version to attack to float64 of shape (n,), the original first; an attack that
            says nothing about a version is not there. Besides the attacks on one version, `gap`,
            `ez-gap`, `single`, `single-ref`, `paired` and `paired-ref`, the pairs being those of
            the original and the version.
        over_all: By name (`OVER_ALL`), float64 of shape (n,): signals of whoever holds all
            versions, and of the blind baseline, which is NaN for records that it left out.
        left_out: Versions that cannot be judged, with the reason.
    """

    folder: Path
    result: AuditResult
    ids: npt.NDArray[np.str_]
    is_member: npt.NDArray[np.bool_]
    n_tokens: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    signals: dict[str, dict[str, Float64]]
    over_all: dict[str, Float64]
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
                seen=complaint(error),
                fix=AGAIN,
            ) from error


def read_result(path: Path) -> AuditResult:
    """Read `audit.json`.

    Raises:
        StoreError: It is not there, or not of this schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _must_be_of_this_schema(path, text)
        result = AuditResult.model_validate_json(text)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path} must be the result of an audit by this version",
            seen=complaint(error),
            fix=AGAIN,
        ) from error
    if (seen := fault(result)) is not None:
        raise StoreError(f"{path} must be as the audit wrote it", seen=seen, fix=AGAIN)
    return result


def _must_be_of_this_schema(path: Path, text: str) -> None:
    content = json.loads(text, parse_float=finite, parse_constant=finite)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (None, SCHEMA_VERSION):
        raise StoreError(
            f"{path} must be of schema version {SCHEMA_VERSION}, the one that this version of "
            "compleak-llm reads",
            seen=f"schema version {str(version)[:40]!r}",
            fix="install the compleak-llm that wrote it, or run the audit again with this one: "
            "stored scores are kept",
        )


def must_hold_result(folder: Path) -> None:
    """A folder must be that of a finished audit.

    Raises:
        StoreError: It is not there, is no folder, or its audit has not finished; what is stored
            already is said.
    """
    must = f"{folder} must be the output folder of a finished audit"
    if not folder.is_dir():
        raise StoreError(
            must,
            seen="it does not exist" if not folder.exists() else "it is a file",
            fix="give the --output-path of a finished audit",
        )
    if (folder / "audit.json").exists():
        return
    if (folder / "tokens").is_dir():
        raise StoreError(
            must,
            seen=f"no audit.json: the audit has not finished; {_stored(folder / 'tokens')}",
            fix="give the same `compleak-llm audit` command again: it goes on where it stopped",
        )
    raise StoreError(
        must,
        seen="there is no audit.json in it",
        fix="give the --output-path of a finished audit",
    )


def _stored(tokens: Path) -> str:
    """Which versions of an unfinished audit are stored already, in words."""
    folders = sorted(entry for entry in tokens.iterdir() if entry.is_dir())
    done = [one.name.rsplit("-", 1)[0] for one in folders if (one / "manifest.json").exists()]
    begun = [one.name.rsplit("-", 1)[0] for one in folders if not (one / "manifest.json").exists()]
    parts = [f"scored: {', '.join(done)}"] if done else ["no version is scored yet"]
    parts += [f"begun: {', '.join(begun)}"] if begun else []
    return "; ".join(parts)


def read_finished(folder: Path) -> Finished:
    """Read a finished audit's two files; nothing is written.

    Args:
        folder: The audit's output folder.

    Raises:
        StoreError: It holds no finished audit, one of another version, or one whose scores are
            missing, damaged, or those of other records.
    """
    must_hold_result(folder)
    result = read_result(folder / "audit.json")
    if not (folder / "scores.parquet").exists():
        raise StoreError(f"{folder} must hold its scores", seen="no scores.parquet", fix=AGAIN)
    table = _read_table(folder / "scores.parquet")
    known = (*OF_RECORD, "variant", *OVER_ALL)
    attacks = [name for name in table.column_names if name not in known]
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
            raise not_whole(folder, f"not every record once for {name}")
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
    over_all = _over_all(table.filter(pc.equal(table["variant"], original)))
    ids, is_member = rows["record_id"].to_numpy().astype(np.str_), rows["is_member"].to_numpy()
    must_be_of(folder, result, records_sha256(ids, is_member))
    return Finished(
        folder=folder,
        result=result,
        ids=ids,
        is_member=is_member,
        n_tokens=rows["n_tokens"].to_numpy(),
        groups=rows["group"].to_numpy(),
        signals=signals,
        over_all=over_all,
        left_out=left_out,
    )


def _read_table(path: Path) -> pa.Table:
    """`scores.parquet` without the texts that may stand in it, and without a gap in its keys."""
    try:
        columns = pq.read_schema(path)
        keys = list(KEYS)
        if missing := [name for name in keys if name not in columns.names]:
            raise not_whole(path.parent, f"no column {missing[0]}")
        if twice := [name for name, n in Counter(columns.names).items() if n > 1]:
            raise not_whole(path.parent, f"the column {twice[0]} twice")
        kinds = {name: str(columns.field(name).type).removeprefix("large_") for name in keys}
        if odd := [name for name in keys if kinds[name] != KEYS[name]]:
            raise not_whole(path.parent, f"a column {odd[0]} of {columns.field(odd[0]).type}")
        attacks = [field.name for field in columns if pa.types.is_floating(field.type)]
        table = pq.read_table(path, columns=[*keys, *attacks], use_threads=False)
        table.validate(full=True)  # Arrow believes that a text of a file is UTF-8
    except (OSError, pa.ArrowException, ValueError) as error:
        raise not_whole(path.parent, complaint(error)) from error
    if gaps := [name for name in keys if table[name].null_count]:
        raise not_whole(path.parent, f"column {gaps[0]} has gaps")
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


def _over_all(rows: pa.Table) -> dict[str, Float64]:
    """What stands in the original's rows and is not about it alone."""
    found = {}
    for name in OVER_ALL:
        if name in rows.column_names:
            values = rows[name].to_numpy().astype(np.float64)
            # Only the blind baseline may leave records out.
            if np.isfinite(values).all() or (name == "blind" and np.isfinite(values).any()):
                found[name] = values
    return found


def must_be_of(folder: Path, result: AuditResult, seen: str) -> None:
    """The scores must be of the audit's records.

    Args:
        folder: The audit's output folder.
        result: Its `audit.json`.
        seen: Hash of the ids and sides that the scores are of.

    Raises:
        StoreError: They are not.
    """
    if seen != result.records.sha256:
        raise StoreError(
            f"the scores in {folder} must be those of the records in its audit.json",
            seen=f"records {seen[:16]} in the scores, {result.records.sha256[:16]} in audit.json",
            fix=AGAIN,
        )


def not_whole(folder: Path, seen: str) -> StoreError:
    """The error for a `scores.parquet` that is damaged."""
    must = f"{folder / 'scores.parquet'} must be as the audit wrote it"
    return StoreError(must, seen=seen, fix=AGAIN)


def complaint(error: Exception) -> str:
    """What is wrong, in one line; of a schema's many complaints the first."""
    if isinstance(error, ValidationError):
        first: Any = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return first_line(error)
