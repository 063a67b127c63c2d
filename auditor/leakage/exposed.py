"""Members that are found only once the compressed versions are out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from auditor.leakage.bounds import reported_rate
from auditor.results import Exposed
from auditor.stats.sides import n_false_positives, threshold_at_fpr, too_few_nonmembers

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def find_exposed(
    ids: Sequence[str] | npt.NDArray[np.str_],
    is_member: Bools,
    original: Float64,
    together: Float64,
    *,
    fprs: Sequence[float],
) -> Exposed:
    """The members that all versions together give away and the original alone does not.

    A record at the edge changes places by accident. Were all versions worth no more than the
    original, as many members would be lost as are newly found: half of those that change places
    is what chance does. Nonmembers that are newly flagged tell less, because few of them lie near
    a threshold that lets 1% of them pass.

    Args:
        ids: Of the records, shape (n,).
        is_member: Shape (n,).
        original: Signal of the attack on the original alone, shape (n,).
        together: Signal of the same attack on all versions, shape (n,).
        fprs: The false positive rates of the audit: 1% is used, or the lowest that the nonmembers
            support.
    """
    n_nonmembers = int((~is_member).sum())
    fpr = reported_rate(fprs, n_nonmembers)
    if fpr is None:
        reason = too_few_nonmembers(max(fprs), n_nonmembers) if fprs else None
        return Exposed(fpr=None, absent=reason or "no false positive rate was asked for")
    members = [signal[is_member] for signal in (original, together)]
    nonmembers = [signal[~is_member] for signal in (original, together)]
    before, after = (
        found > threshold_at_fpr(others, fpr)
        for found, others in zip(members, nonmembers, strict=True)
    )
    newly = np.flatnonzero(after & ~before)
    # All share one threshold: the surest is the one with the largest signal.
    order = newly[np.argsort(-members[1][newly], kind="stable")]
    n_newly, n_lost = len(newly), int((before & ~after).sum())
    flagged_before, flagged_after = (_flagged_nonmembers(others, fpr) for others in nonmembers)
    return Exposed(
        fpr=fpr,
        n_found_original=int(before.sum()),
        n_found_together=int(after.sum()),
        n_newly=n_newly,
        n_no_longer=n_lost,
        expected_by_chance=(n_newly + n_lost) / 2,
        n_expected_of_nonmembers=float((flagged_after & ~flagged_before).mean() * len(members[0])),
        ids=[str(name) for name in np.asarray(ids)[is_member][order]],
    )


def _flagged_nonmembers(nonmembers: Float64, fpr: float) -> Bools:
    """Which nonmembers lie above the threshold that the others set, shape (n,).

    No member has a part in the threshold that he is held against, so no nonmember may have one
    either. Of the others, the (k + 1)-th largest is the (k + 2)-th of all for each of the k + 1
    largest, who therefore lie above it; the rest lie above neither.
    """
    beyond = n_false_positives(fpr, len(nonmembers)) + 1
    if beyond >= len(nonmembers):
        return np.ones(len(nonmembers), dtype=np.bool_)
    rank = len(nonmembers) - 1 - beyond
    return np.asarray(nonmembers > np.partition(nonmembers, rank)[rank], dtype=np.bool_)
