"""What cross-fitting does to the spread of a figure, and how much of it.

Let a learner's rule be s + e: what it would be with endless records, and the accident of those
that it was trained on. The part of the AUC that hangs on e is, for a rule that is linear in its
training records, a sum over pairs of a training and a held-out record, and every pair stands in
it twice, once each way round. DeLong's variance takes each fold's rule as given, so it counts
such a sum at half of its variance: for pure noise the intervals are too narrow by the root of 2,
for a rule without accident they are right. With nu the share of e in the spread, the variance is
1 + nu times DeLong's.

nu is seen in the repeats: two learners that were trained on other draws of folds share a known
part of their training records, and their rules agree on a held-out record in s and in that part
of e.
"""

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt

from auditor.stats.sides import Float64, placements

Bools = npt.NDArray[np.bool_]


def noise_share(
    repeats: Float64, is_member: Bools, *, overlap: float, against: Float64 | None = None
) -> float:
    """Share nu of the accident of training in the spread of a cross-fitted signal.

    Measured at 95 % on invented scores of three versions (400 runs of 200 records, 200 of 1,000),
    coverage with it / with DeLong's variance alone:
        nothing leaks, AUC of one, two and three versions: .97 to .99 / .79 to .85;
        the original leaks, AUC .66: .935 to .965 / .85 to .95;
        differences where nothing leaks: .91 to .96 / .76 to .90; where the original leaks and
        the variants are noise: .96 to .99 / .87 to .93;
        TPR at 10 % FPR: .97 to .99, its differences .99 to 1.
    One-sided tests of a gain at 5 % rejected .01 to .055 of true nulls.

    Args:
        repeats: Shape (R, n): the signal of each repeat of the folds.
        is_member: Shape (n,).
        overlap: Share of the training records that learners of two repeats have in common.
        against: Shape (R, n): another cross-fitted signal; the share is then that of the
            difference of the two.

    Returns:
        Between 0 and 1; 1 where there is only one repeat, from which nothing can be seen.
    """
    moved = [_placed(signal, is_member) for signal in repeats]
    if against is not None:
        moved = [own - _placed(other, is_member) for own, other in zip(moved, against, strict=True)]
    if len(moved) < 2:
        return 1.0
    spreads = [_shared_spread(own, own, is_member) for own in moved]
    if min(spreads) <= 0:
        return 0.0
    agreement = [
        _shared_spread(moved[a], moved[b], is_member) / math.sqrt(spreads[a] * spreads[b])
        for a, b in combinations(range(len(moved)), 2)
    ]
    return float(np.clip((1 - np.mean(agreement)) / (1 - overlap), 0.0, 1.0))


def _placed(signal: Float64, is_member: Bools) -> Float64:
    """DeLong's placement of every record, shape (n,)."""
    found = placements(signal[is_member], signal[~is_member])
    placed = np.empty(len(signal))
    placed[is_member], placed[~is_member] = found.members, found.nonmembers
    return placed


def _shared_spread(first: Float64, second: Float64, is_member: Bools) -> float:
    """Covariance of the two means of placements, DeLong's sum over both sides."""
    total = 0.0
    for side in (is_member, ~is_member):
        a, b = first[side], second[side]
        total += float(((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1) / len(a))
    return total
