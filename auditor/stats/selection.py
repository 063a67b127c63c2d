"""The best of many signals, with its selection paid for.

Twenty signals of pure noise at 500 a side have a best AUC of .533; its own interval calls that a
finding. Here the best is set against the best that the same signals reach under permuted labels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from auditor.stats.sides import Float64, Seed
from auditor.workers import in_order, one_ahead

Bools = npt.NDArray[np.bool_]

CHUNK_CELLS = 4_000_000
"""Labels held at a time, 9 bytes each, and as many that are drawn meanwhile: about 40 MB."""


class Selected(NamedTuple):
    """The best of several signals.

    Attributes:
        row: Which one it is; the first of several.
        auc: Its AUC: the largest of many, and so too high.
        p_value: One-sided, of no signal that knows membership.
    """

    row: int
    auc: float
    p_value: float


def best_of(
    signals: npt.ArrayLike, is_member: npt.ArrayLike, *, permutations: int, seed: Seed
) -> Selected:
    """The signal with the largest AUC, and a p-value that counts how many it was chosen from.

    The null is that no signal knows anything of membership; records are exchangeable under it.
    The labels are permuted and the largest AUC over the signals is taken anew each time, so that
    signals which say the same are not counted twice. The alternative is an AUC above that, not
    below: an attacker does not know that he should turn a signal round.

    Sums of mid-ranks are multiples of a half and exact in float64, so that a permutation which
    does as well as the observed labels counts as such, whatever the ties. The p-value is
    (1 + permutations that do as well) / (1 + permutations): never 0, and its size is exact.

    Source: Westfall & Young, Resampling-Based Multiple Testing, 1993, section 2.3.1, single step.

    Args:
        signals: Shape (a, n), larger = more likely a member.
        is_member: Shape (n,).
        permutations: How many, at least 1.
        seed: Seed or generator of the permutations.

    Raises:
        ValueError: The shapes do not fit, a signal holds a NaN, a side is empty, or there is no
            permutation.
    """
    values, labels = _checked(signals, is_member)
    if permutations < 1:
        raise ValueError(f"a p-value needs 1 permutation or more, seen {permutations}")
    n_members = int(labels.sum())
    # Row by row: ranking all at once holds four more arrays of that size.
    ranks = np.stack(list(in_order(rankdata, list(values))))
    observed = ranks @ labels.astype(np.float64)
    row = int(observed.argmax())
    n_as_good = 0
    for drawn in one_ahead(_permuted(labels, permutations, np.random.default_rng(seed))):
        sums = ranks @ drawn.astype(np.float64).T
        n_as_good += int((sums.max(axis=0) >= observed[row]).sum())
    n_below = observed[row] - n_members * (n_members + 1) / 2
    return Selected(
        row=row,
        auc=float(n_below / (n_members * (len(labels) - n_members))),
        p_value=(1 + n_as_good) / (1 + permutations),
    )


def _permuted(labels: Bools, permutations: int, rng: np.random.Generator) -> Iterator[Bools]:
    """The labels in so many random orders: some rows at a time, shape (r, n)."""
    rows = max(1, CHUNK_CELLS // len(labels))
    for start in range(0, permutations, rows):
        size = min(rows, permutations - start)
        yield rng.permuted(np.broadcast_to(labels, (size, len(labels))), axis=1)


def _checked(signals: npt.ArrayLike, is_member: npt.ArrayLike) -> tuple[Float64, Bools]:
    values = np.asarray(signals, dtype=np.float64)
    labels = np.asarray(is_member, dtype=np.bool_)
    if values.ndim != 2 or len(values) == 0 or labels.shape != values.shape[1:]:
        raise ValueError(
            "signals must have a row for each and a column for each label, "
            f"seen shape {values.shape} and labels of shape {labels.shape}"
        )
    if not 0 < labels.sum() < labels.size:
        raise ValueError(
            f"both sides must have a record, seen {int(labels.sum())} members in {labels.size}"
        )
    if n_nan := int(np.isnan(values).sum()):
        raise ValueError(f"signals must hold no NaN, seen {n_nan} in {values.size}")
    return values, labels
