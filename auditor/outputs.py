"""The files that an audit leaves: a row per version and record, a row per record, the result."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from auditor.config import AuditConfig
from auditor.files import write_text, written_whole
from auditor.judge import ORIGINAL, Findings
from auditor.results import AuditResult

if TYPE_CHECKING:
    from auditor.leakage.judge import Judged
    from auditor.records import Records
    from auditor.scoring.scores import Float64


def write_signals(
    output: Path,
    config: AuditConfig,
    records: "Records",
    findings: Findings,
    *,
    blind: "Float64",
) -> None:
    """Write `scores.parquet` and, where versions were judged together, `exposure.parquet`.

    Args:
        output: The audit's folder.
        config: Whether texts may be written.
        records: The audited records.
        findings: The signals.
        blind: The blind baseline's signal, shape (n,), NaN for records that it left out.

    Raises:
        StoreError: The folder cannot be written.
    """
    _write_scores(output / "scores.parquet", config, records, findings, blind=blind)
    _write_exposure(output / "exposure.parquet", records, findings.judged)


def _write_scores(
    path: Path,
    config: AuditConfig,
    records: "Records",
    findings: Findings,
    *,
    blind: "Float64",
) -> None:
    """A row per version and record, versions one after another.

    A signal that says nothing about a version is null in its rows; what is about all versions, or
    about none as the blind baseline is, stands in the original's.
    """
    n = len(records)
    beside = {name: dict(found) for name, found in _beside(findings).items()}
    beside.setdefault(ORIGINAL, {})["blind"] = blind
    more = dict.fromkeys(name for found in beside.values() for name in found)
    schema = [
        ("record_id", pa.string()),
        ("variant", pa.string()),
        ("is_member", pa.bool_()),
        ("n_tokens", pa.int64()),
        ("group", pa.int64()),
        *((attack, pa.float64()) for attack in (*findings.attacks, *more)),
    ]
    if config.include_text:
        schema.append(("text", pa.string()))
    floats = [name for name, kind in schema if kind == pa.float64()]
    with (
        written_whole(path) as part,
        # Signals repeat nothing: split into bytes they take two thirds of the space.
        pq.ParquetWriter(
            part,
            pa.schema(schema),
            compression="zstd",
            use_dictionary=[name for name, _ in schema if name not in floats],
            use_byte_stream_split=floats,
        ) as writer,
    ):
        for name, found in findings.signals.items():
            columns: dict[str, Any] = {
                "record_id": records.ids.tolist(),
                "variant": [name] * n,
                "is_member": records.is_member,
                "n_tokens": records.n_tokens.astype(np.int64),
                "group": records.groups,
                **found.by_attack,
                **{column: _column(beside.get(name, {}).get(column), n) for column in more},
            }
            if config.include_text:
                texts = records.texts(np.arange(n))
                columns["text"] = [text.prompt + text.text for text in texts]
            writer.write_table(pa.table(columns, schema=pa.schema(schema)))


def _column(values: "Float64 | None", n: int) -> pa.Array:
    """A column of n numbers in which NaN is a gap."""
    return pa.nulls(n, pa.float64()) if values is None else pa.array(values, from_pandas=True)


def _beside(findings: Findings) -> Mapping[str, Mapping[str, "Float64"]]:
    return findings.judged.signals if findings.judged is not None else {}


def _write_exposure(path: Path, records: "Records", judged: "Judged | None") -> None:
    """A row per record: what it gives away under NR, SR and MR.

    `nr`, `sr` and `mr` are out-of-fold probabilities of membership at even odds, from the original
    alone, from the best pair and from all versions.
    """
    if judged is None:
        path.unlink(missing_ok=True)
        return
    columns: dict[str, Any] = {
        "record_id": records.ids.tolist(),
        "is_member": records.is_member,
        "group": records.groups,
        **judged.together,
    }
    with written_whole(path) as part:
        pq.write_table(pa.table(columns), part)


def write_result(path: Path, result: AuditResult) -> None:
    """Write `audit.json`; errors as in `written_whole`."""
    write_text(path, result.model_dump_json(indent=2) + "\n")
