"""Which signal stands in which row of `scores.parquet`, and under which name."""

from collections.abc import Sequence

from auditor.leakage.learners import Float64
from auditor.leakage.settings import Found
from auditor.results.leakage import Supervision

WITH_REFERENCE = "-ref"
# Attacks that hold every version: their signal belongs to no single one.
OVER_ALL = ("mean-rank", "combined")


def columns_of(
    found: Sequence[Found], order: Sequence[str], *, main: Supervision
) -> dict[str, dict[str, Float64]]:
    """Signals that belong to a row of `scores.parquet`.

    Those of one version, or of the original and it, to that version's row; those of all versions
    to the original's.

    Args:
        found: Every attacker's signal.
        order: The versions, the original first.
        main: Of several supervisions the one whose signals are stored.

    Returns:
        By version, by column.
    """
    columns: dict[str, dict[str, Float64]] = {}
    for one in found:
        held = one.holding
        if one.supervision not in ("none", main):
            continue
        is_over_all = one.attack in OVER_ALL and list(held.versions) == list(order)
        is_pair = len(held.versions) == 2 and held.versions[0] == order[0]
        if not is_over_all and (
            one.attack in OVER_ALL or (len(held.versions) != 1 and not is_pair)
        ):
            continue
        is_beside = held.with_reference and one.attack != "mean-rank"
        name = one.attack + (WITH_REFERENCE if is_beside else "")
        columns.setdefault(order[0] if is_over_all else held.versions[-1], {})[name] = one.signal
    return columns
