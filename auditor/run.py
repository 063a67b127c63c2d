"""A finished audit with its token statistics: no model is opened and no record is read.

    audit.json        the result
    scores.parquet    a row per version and record: ids, sides, lengths, groups, signals
    tokens/           token statistics, a folder per version

What is judged later (releases, shadows, two audits beside each other) starts from here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from auditor.errors import StoreError
from auditor.finished import (
    AGAIN,
    Finished,
    must_be_of,
    must_hold_result,
    read_finished,
    read_result,
)
from auditor.results import AuditResult
from auditor.store import REFERENCE, VariantStore, plan_shards

# A version's folder, as `VariantStore` names it: nothing that leads out of the audit's own.
FOLDER = re.compile(r"[A-Za-z0-9.=,_-]+-[0-9a-f]{12}")

__all__ = ["Run", "open_run", "read_result"]


@dataclass(frozen=True)
class Run(Finished):
    """One finished audit of n records, with what it stored.

    Attributes:
        stores: Token statistics of the versions in `signals`, and of the reference where there is
            one; no shard is read before it is asked for.
    """

    stores: dict[str, VariantStore]


def open_run(folder: Path) -> Run:
    """Read a finished audit; nothing is written.

    Args:
        folder: The audit's output folder.

    Raises:
        StoreError: It holds no audit, one of another version, or one whose scores are missing,
            damaged, or those of other records.
    """
    must_hold_result(folder)
    if not (folder / "tokens").exists():
        raise StoreError(f"{folder} must hold its scores", seen="no tokens", fix=AGAIN)
    found = read_finished(folder)
    if not found.result.stored:
        raise StoreError(
            f"{folder / 'audit.json'} must say where the scores of each version lie",
            seen="the result of an earlier version, which did not",
            fix=AGAIN,
        )
    stores = _stores(
        folder, found.result, list(found.signals), ids=found.ids, n_tokens=found.n_tokens
    )
    return Run(**vars(found), stores=stores)


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
        if not FOLDER.fullmatch(result.stored[name]):
            raise StoreError(
                f"{folder / 'audit.json'} must say where the scores of each version lie",
                seen=f"{result.stored[name]!r} for {name}, which is no folder of the audit's",
                fix=AGAIN,
            )
        place = folder / "tokens" / result.stored[name]
        stores[name] = VariantStore.opened(place, name, shards=shards, record_ids=ids)
        must_be_of(folder, result, str(stores[name].fingerprint.get("records")))
    return stores
