"""Before an audit: what difference in AUC these counts can find, and which TPRs will be refused.

A null result says something only beside the difference that would have been found. The closed
form is that of the paired DeLong test on two binormal signals; tests/test_stats_power.py measures
the test against it.
"""

import math
from collections.abc import Iterable

from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, owens_t

from auditor.stats.sides import risk, too_few_nonmembers


def detectable_difference(
    n_members: int,
    n_nonmembers: int,
    *,
    auc: float,
    correlation: float,
    n_comparisons: int,
    confidence: float = 0.95,
    power: float = 0.80,
    one_sided: bool = False,
) -> float:
    """The smallest gain in AUC that the paired test finds with this power.

    Args:
        n_members: Records that were trained on.
        n_nonmembers: Records that were not.
        auc: AUC of the weaker of the two signals, in (0, 1).
        correlation: See `power_of_difference`.
        n_comparisons: Tests in the family that is corrected together.
        confidence: Of the family, as for an interval.
        power: Probability with which the difference is to be found.
        one_sided: Whether only a gain is tested for.

    Returns:
        The difference; infinite where not even a perfect attack would be found.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < power < 1:
        raise ValueError(f"the power must lie in (0, 1), seen {power}")

    def missing(difference: float) -> float:
        """The power that this difference lacks, rising to the AUC of 1."""
        return power - power_of_difference(
            difference,
            n_members,
            n_nonmembers,
            auc=auc,
            correlation=correlation,
            n_comparisons=n_comparisons,
            confidence=confidence,
            one_sided=one_sided,
        )

    # At no difference at all the power is the risk of the test.
    if missing(0.0) <= 0:
        return 0.0
    if missing(1 - auc) > 0:
        return math.inf
    return float(brentq(missing, 0.0, 1 - auc, xtol=1e-9))


def power_of_difference(
    difference: float,
    n_members: int,
    n_nonmembers: int,
    *,
    auc: float,
    correlation: float,
    n_comparisons: int,
    confidence: float = 0.95,
    one_sided: bool = False,
) -> float:
    """Probability that the paired DeLong test finds this difference in AUC.

    The difference of two AUCs on the same records has variance s1^2 + s2^2 - 2 r s1 s2. Its
    family is corrected by Holm, whose first step, the hardest to pass, is Bonferroni's.

    r is the correlation of the two signals' placements: a record's placement is the share of the
    other side that it outranks, and AUC is the mean placement. It lies a little under the
    correlation of the signals: `placement_correlation` has it for normal ones.

    Measured on normal signals where this says .80, AUC .5 to .8, four comparisons, 2,000 runs:
    `stats.paired.paired_auc` found the difference in .782 to .808 of runs with 200 or 1,000 a side
    and signals correlated by 0 or .9, and with 1,000 a side by .99; in .751 to .758 with 200 a
    side by .99, where that test is conservative.

    Source: Hanley & McNeil, Radiology 1983, for the correlated difference; the variance of one
    AUC is that of the Mann-Whitney statistic of two normal signals. Hanley & McNeil 1982 take
    exponential ones, the same at AUC .5; on normal signals their standard error is 2 % too large
    at AUC .8, 6 % at .9 and 15 % at .95.

    Args:
        difference: AUC of the stronger signal minus that of the weaker, 0 or more.
        n_members: Records that were trained on.
        n_nonmembers: Records that were not.
        auc: AUC of the weaker signal, in (0, 1).
        correlation: Of the two signals' placements, in [-1, 1].
        n_comparisons: Tests in the family that is corrected together.
        confidence: Of the family, as for an interval.
        one_sided: Whether only a gain is tested for.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(n_members, n_nonmembers, auc, correlation, n_comparisons)
    if not 0 <= difference <= 1 - auc:
        raise ValueError(f"the difference must lie in [0, 1 - AUC], seen {difference}")
    alpha = risk(confidence) / n_comparisons
    critical = -float(ndtri(alpha if one_sided else alpha / 2))
    weaker = _standard_error(auc, n_members, n_nonmembers)
    stronger = _standard_error(min(1.0, auc + difference), n_members, n_nonmembers)
    variance = (weaker - stronger) ** 2 + 2 * (1 - correlation) * weaker * stronger
    if variance == 0:
        return 1.0 if difference > 0 else 0.0
    found = float(ndtr(difference / math.sqrt(variance) - critical))
    # A real gain can, once in a while, be found as a loss.
    turned = 0.0 if one_sided else float(ndtr(-difference / math.sqrt(variance) - critical))
    return found + turned


def placement_correlation(signal_correlation: float, *, auc: float) -> float:
    """Correlation of the placements of two normal signals of the same AUC.

    At AUC .5 it is Spearman's, 6 / pi * asin(r / 2): .891 for .9 and .989 for .99. The power hangs
    on what is not shared, and that is a tenth more than 1 - r at AUC .5, a fifth at AUC .8.

    Args:
        signal_correlation: Pearson's within a side, in [-1, 1].
        auc: Of both signals, in (0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    _check(1, 1, auc, signal_correlation, 1)
    # Two records of one signal, set against the same record, are correlated by a half.
    return _joint_covariance(auc, signal_correlation / 2) / _joint_covariance(auc, 0.5)


def refused_rates(fprs: Iterable[float], n_nonmembers: int) -> dict[float, str]:
    """The false positive rates at which no TPR will be reported, each with the reason.

    Args:
        fprs: Each in (0, 1).
        n_nonmembers: Records that were not trained on.

    Raises:
        ValueError: A rate is not in (0, 1).
    """
    reasons = {fpr: too_few_nonmembers(fpr, n_nonmembers) for fpr in fprs}
    return {fpr: reason for fpr, reason in reasons.items() if reason is not None}


def _standard_error(auc: float, n_members: int, n_nonmembers: int) -> float:
    """Of one AUC: the root of the Mann-Whitney variance of two normal signals."""
    shared = (n_members + n_nonmembers - 2) * _joint_covariance(auc, 0.5)
    return math.sqrt((auc * (1 - auc) + shared) / (n_members * n_nonmembers))


def _joint_covariance(auc: float, correlation: float) -> float:
    """Of two events of probability `auc`, a standard normal below ndtri(auc), correlated so.

    Source: Owen, Annals of Mathematical Statistics 1956: both happen with probability
    p - 2 T(h, sqrt((1 - r) / (1 + r))).
    """
    slope = math.sqrt((1 - correlation) / (1 + correlation))
    return auc - 2 * float(owens_t(float(ndtri(auc)), slope)) - auc**2


def _check(
    n_members: int, n_nonmembers: int, auc: float, correlation: float, n_comparisons: int
) -> None:
    if min(n_members, n_nonmembers, n_comparisons) < 1:
        raise ValueError(
            "members, nonmembers and comparisons must be 1 or more, "
            f"seen {n_members}, {n_nonmembers} and {n_comparisons}"
        )
    if not 0 < auc < 1:
        raise ValueError(f"the AUC must lie in (0, 1), seen {auc}")
    if not -1 <= correlation <= 1:
        raise ValueError(f"the correlation must lie in [-1, 1], seen {correlation}")
