"""What the figures of one signal and of two share: checks, placements, false positives, bounds.

A signal comes as two arrays, the members' and the nonmembers'; larger = more likely a member.
Infinite signals are ordered like any other; NaN is an error.
"""

import math
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from auditor.results import Estimate

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Seed = int | np.random.Generator

NEEDED_FALSE_POSITIVES = 10
"""False positives that the nonmembers must allow before a TPR at that rate is reported."""


class Counts(TypedDict):
    """The records behind a figure, under the names that `Estimate` has for them."""

    n_members: int
    n_nonmembers: int


def absent_estimate(reason: str, *, method: str, counts: Counts) -> Estimate:
    """An estimate without a figure, with the reason."""
    return Estimate(value=None, low=None, high=None, method=method, absent=reason, **counts)


def checked_signal(signal: npt.ArrayLike, name: str) -> Float64:
    """The signal as a float64 array.

    Args:
        signal: Shape (n,).
        name: What it is called in an error.

    Raises:
        ValueError: It is empty, has not one dimension, or holds a NaN.
    """
    values = np.asarray(signal, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} must have one dimension and a value, seen shape {values.shape}")
    if n_nan := int(np.isnan(values).sum()):
        raise ValueError(f"{name} must hold no NaN, seen {n_nan} in {values.size}")
    return values


def ascending(values: Float64) -> Float64:
    """The values in ascending order; those that are so already are not sorted again."""
    return values if (values[1:] >= values[:-1]).all() else np.sort(values)


class Placements(NamedTuple):
    """The place of each record among those of the other side.

    Attributes:
        members: Shape (m,), the share of nonmembers below each member, ties counting half.
        nonmembers: Shape (n,), the share of members above each nonmember, ties counting half.
        auc: The mean of either.
    """

    members: Float64
    nonmembers: Float64
    auc: float

    @property
    def varies(self) -> bool:
        """Whether DeLong's variance is above zero, judged without rounding."""
        return bool(np.ptp(self.members) > 0 or np.ptp(self.nonmembers) > 0)

    @property
    def standard_error(self) -> float:
        """DeLong's, from two records a side: sqrt(S10 / m + S01 / n) of their equation 2."""
        return standard_error(self.members, self.nonmembers)


def placements(members: Float64, nonmembers: Float64) -> Placements:
    """DeLong's components in O((m + n) log(m + n)): each side is sorted once.

    Where a record would stand among the other side is looked up from below and from above, the mean
    of which is its mid-rank there.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988, equations 3 and 4; that mid-ranks
    give them is Sun & Xu, IEEE Signal Processing Letters 2014, equations 8 to 10.

    Args:
        members: Shape (m,).
        nonmembers: Shape (n,).
    """
    m, n = len(members), len(nonmembers)
    by_member, by_nonmember = np.argsort(members), np.argsort(nonmembers)
    x, y = members[by_member], nonmembers[by_nonmember]
    # Multiples of a half, and so exact.
    below, above = np.empty(m), np.empty(n)
    below[by_member] = _mid_ranks(y, x)
    above[by_nonmember] = m - _mid_ranks(x, y)
    return Placements(below / n, above / m, float(below.sum() / (m * n)))


def _mid_ranks(others: Float64, values: Float64) -> Float64:
    """How many of the others lie below each value, ties counting half; both ascending."""
    sides = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
    return np.asarray(sum(sides) / 2, dtype=np.float64)


def standard_error(members: Float64, nonmembers: Float64) -> float:
    """Of the mean of independent placements, or of differences of placements, of both sides."""
    variance = members.var(ddof=1) / len(members) + nonmembers.var(ddof=1) / len(nonmembers)
    return math.sqrt(float(variance))


def unseen_share(n_members: int, n_nonmembers: int, *, alpha: float) -> float:
    """The most that a kind of pair can weigh of which not one was seen, at risk `alpha`.

    The signals hold k = min(m, n) disjoint pairs of a member and a nonmember, and those are
    independent: were the share of the unseen kind p, all k would lack it with probability
    (1 - p)^k. So p is at most 1 - alpha^(1/k), whatever the distributions; that is
    Clopper-Pearson's bound for 0 of k.
    """
    return float(-np.expm1(math.log(alpha) / min(n_members, n_nonmembers)))


class Ends(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


def clopper_pearson(n_hits: int, n: int, *, alpha: float) -> Ends:
    """The exact two-sided interval of a share.

    In closed form: SciPy's `binomtest` looks for the same ends by trial, to 2e-12 and in a
    hundred times the time, and an audit of many versions asks for thousands.

    Args:
        n_hits: At most n.
        n: Trials, at least 1.
        alpha: Risk of both ends together.
    """
    low = float(betaincinv(n_hits, n - n_hits + 1, alpha / 2)) if n_hits > 0 else 0.0
    high = float(betaincinv(n_hits + 1, n - n_hits, 1 - alpha / 2)) if n_hits < n else 1.0
    return Ends(low, high)


def n_false_positives(fpr: float, n_nonmembers: int) -> int:
    """The largest k with k / n <= fpr as floating point has it, so that 0.29 of 100 is 29.

    Raises:
        ValueError: The rate is not in [0, 1).
    """
    if not 0 <= fpr < 1:
        raise ValueError(f"the false positive rate must lie in [0, 1), seen {fpr}")
    k = math.floor(fpr * n_nonmembers) + 1
    while k / n_nonmembers > fpr:
        k -= 1
    return k


def too_few_nonmembers(fpr: float, n_nonmembers: int) -> str | None:
    """Why a TPR at this rate is not reported, or None: 10 / fpr nonmembers are needed.

    With fewer than ten false positives allowed the threshold hangs on a handful of records: 1,000
    nonmembers for 1 %, 10,000 for 0.1 %, 200 for 5 %.

    Raises:
        ValueError: The rate is not in (0, 1).
    """
    if not 0 < fpr < 1:
        raise ValueError(f"the false positive rate must lie in (0, 1), seen {fpr}")
    # The quotient is rounded first: 10 / 0.07 and the like must not gain a record from a last bit.
    needed = math.ceil(round(NEEDED_FALSE_POSITIVES / fpr, 6))
    if n_nonmembers >= needed:
        return None
    return f"TPR at FPR {fpr:g} needs {needed} nonmembers; there are {n_nonmembers}"


def too_few_records(n_members: int, n_nonmembers: int) -> str | None:
    """Why there is no interval, or None: a variance needs two records on each side."""
    if min(n_members, n_nonmembers) >= 2:
        return None
    return (
        "an interval needs 2 members and 2 nonmembers; "
        f"there are {n_members} members and {n_nonmembers} nonmembers"
    )


def threshold_at_fpr(nonmembers: Float64, fpr: float) -> float:
    """The (k + 1)-th largest nonmember, k = floor(fpr * n): what lies strictly above is flagged."""
    rank = len(nonmembers) - 1 - n_false_positives(fpr, len(nonmembers))
    return float(np.partition(nonmembers, rank)[rank])


def risk(confidence: float) -> float:
    """The probability with which an interval may miss: 1 - confidence.

    Raises:
        ValueError: The confidence is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence must lie in (0, 1), seen {confidence}")
    return 1 - confidence
