"""Lower bounds on epsilon, where a coin decided which records were trained on.

If training is (epsilon, delta)-differentially private, nobody who sees the model can guess the
coins well, so that good guesses refute every smaller epsilon. Two bounds are offered:

one-run          counts right guesses; holds whatever the records do to each other in training
split-threshold  true against false positive rate; also asks that the records' signals are
                 independent, which one training run does not ensure
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincinv, expit

from auditor.stats.sides import Float64, Ints, Seed, checked_signal, risk

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the records that are guessed; each is a test, and the best of them is paid for."""

TAIL_DEVIATIONS = 12
"""Standard deviations below its mean where a binomial is taken to end: less than 1e-30 is left."""

HALVINGS = 60
"""Steps of the bisection: the width of the first bracket falls below the last bit."""


class LowerBound(NamedTuple):
    """A lower bound on epsilon and the guesses that it rests on.

    Attributes:
        epsilon: The bound; 0 where nothing is shown.
        n_guesses: Records that were guessed, for split-threshold those flagged among the judged.
        n_correct: Guesses that were right.
        method: How it was found.
    """

    epsilon: float
    n_guesses: int
    n_correct: int
    method: Literal["one-run", "split-threshold"]


def one_run_epsilon(
    n_records: int, n_guesses: int, n_correct: int, *, delta: float, confidence: float
) -> float:
    """The largest epsilon that this many right guesses refute.

    Each record was trained on or not by its own fair coin; the guesses may hang on the model in
    any way. Under (epsilon, delta) at least v of r guesses out of m records are right with
    probability no more than

        f(v) + 2 m delta max_i (f(v - i) - f(v)) / i,   f(v) = P(Binomial(r, q) >= v),

    q = e^epsilon / (1 + e^epsilon). At delta 0 the bound is the log-odds of Clopper-Pearson's
    lower bound on the share that is right.

    Source: Steinke, Nasr & Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023,
    the theorem for approximate differential privacy.

    Args:
        n_records: m, records whose coin was thrown, guessed or not.
        n_guesses: r, at most m.
        n_correct: v, at most r.
        delta: In [0, 1).
        confidence: Level of the bound, one-sided.

    Returns:
        The bound, 0 or more.

    Raises:
        ValueError: An argument is out of range.
    """
    alpha = risk(confidence)
    _check_delta(delta)
    if not 0 <= n_correct <= n_guesses <= n_records:
        raise ValueError(
            "it must hold that 0 <= right guesses <= guesses <= records, "
            f"seen {n_correct}, {n_guesses} and {n_records}"
        )
    if n_correct == 0:
        return 0.0
    share = float(betaincinv(n_correct, n_guesses - n_correct + 1, alpha))
    # A greater delta only weakens the bound, so that this one is above all others.
    highest = max(0.0, math.log(share / (1 - share)))
    if delta == 0 or highest == 0:
        return highest

    def refuted(epsilon: float) -> bool:
        return _p_value(n_records, n_guesses, n_correct, epsilon, delta) <= alpha

    if not refuted(0.0):
        return 0.0
    # Privacy at a smaller epsilon is privacy at a larger one: whatever is refuted is a bound.
    lowest = 0.0
    for _ in range(HALVINGS):
        middle = (lowest + highest) / 2
        lowest, highest = (middle, highest) if refuted(middle) else (lowest, middle)
    return lowest


def one_run_bound(
    members: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    *,
    delta: float,
    confidence: float,
    seed: Seed = 0,
) -> LowerBound:
    """The one-run bound of a signal: the top is guessed to be members, the bottom nonmembers.

    As many are guessed on top as at the bottom, and the rest is left open. How many is chosen
    among `SHARES`, each tested at an equal part of the risk. Ties are broken by draw, which knows
    no label.

    With as many guesses each way the bound also holds, at delta 0, for a coin that is not fair:
    a coin that favours members helps the guesses on top by less than it hurts those at the
    bottom.

    Measured at 95 % under randomised response of epsilon 0 to 2 (1,500 runs each): too high in
    .002 to .016 of runs with 101 records and .017 to .029 with 1,000; mean bound with 1,000: .34
    for .5, .82 for 1, 1.74 for 2.

    Args:
        members: Signals of the members, shape (m,); no label may have gone into them.
        nonmembers: Signals of the nonmembers, shape (n,).
        delta: In [0, 1).
        confidence: Level of the bound, one-sided.
        seed: Seed or generator of the draw that breaks ties.

    Raises:
        ValueError: A side is empty or holds a NaN, or an argument is out of range.
    """
    x, y = checked_signal(members, "members"), checked_signal(nonmembers, "nonmembers")
    alpha = risk(confidence)
    n_records = len(x) + len(y)
    # Sorted first, so that the guesses hang on the seed and not on the order of the records.
    signal = np.concatenate([np.sort(x), np.sort(y)])
    drawn = np.random.default_rng(seed).permutation(n_records)
    is_member = np.lexsort((drawn, signal)) < len(x)
    n_each = sorted({max(1, math.floor(share * n_records / 2)) for share in SHARES})
    found = []
    for k in n_each:
        n_correct = int(is_member[-k:].sum() + (~is_member[:k]).sum())
        epsilon = one_run_epsilon(
            n_records, 2 * k, n_correct, delta=delta, confidence=1 - alpha / len(n_each)
        )
        found.append(LowerBound(epsilon, 2 * k, n_correct, "one-run"))
    return max(found, key=lambda bound: (bound.epsilon, bound.n_guesses))


def split_threshold_bound(
    members: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    *,
    delta: float,
    confidence: float,
    seed: Seed,
) -> LowerBound:
    """The bound of one threshold that was chosen on the other half of the records.

    At every threshold TPR <= e^epsilon FPR + delta, and the same for TNR and FNR. One half of
    each side, by draw, chooses the threshold and which of the two is judged; the other half gives
    Clopper-Pearson's lower bound of the first rate and upper bound of the second, each at half
    the risk.

    The records' signals must be independent given the coins. Signals of one model are not quite
    so; `one_run_bound` needs no such thing.

    Measured at 95 % under randomised response of epsilon 0 to 2 (1,500 runs each): too high in 0
    to .011 of runs, since two bounds are seldom both missed; mean bound with 1,000 records: .24
    for .5, .72 for 1, 1.63 for 2.

    Source: Jagielski, Ullman & Oprea, Auditing Differentially Private Machine Learning, NeurIPS
    2020, for the two Clopper-Pearson bounds.

    Args:
        members: Signals of the members, shape (m,); no label may have gone into them.
        nonmembers: Signals of the nonmembers, shape (n,).
        delta: In [0, 1).
        confidence: Level of the bound, one-sided.
        seed: Seed or generator of the halving.

    Raises:
        ValueError: A side is empty or holds a NaN, or an argument is out of range.
    """
    x, y = checked_signal(members, "members"), checked_signal(nonmembers, "nonmembers")
    alpha = risk(confidence)
    _check_delta(delta)
    if min(len(x), len(y)) < 2:
        return LowerBound(0.0, 0, 0, "split-threshold")
    rng = np.random.default_rng(seed)
    x_chooses, x_judged = np.array_split(rng.permutation(np.sort(x)), 2)
    y_chooses, y_judged = np.array_split(rng.permutation(np.sort(y)), 2)

    thresholds = np.unique(np.concatenate([x_chooses, y_chooses]))
    above = _bounds(x_chooses, y_chooses, thresholds, delta=delta, alpha=alpha)
    below = _bounds(-y_chooses, -x_chooses, -thresholds, delta=delta, alpha=alpha)
    if above.max() >= below.max():
        right, wrong, threshold = x_judged, y_judged, thresholds[above.argmax()]
    else:
        right, wrong, threshold = -y_judged, -x_judged, -thresholds[below.argmax()]
    judged = _bounds(right, wrong, np.array([threshold]), delta=delta, alpha=alpha)
    n_right, n_wrong = int((right >= threshold).sum()), int((wrong >= threshold).sum())
    return LowerBound(max(0.0, float(judged[0])), n_right + n_wrong, n_right, "split-threshold")


def _p_value(n_records: int, n_guesses: int, n_correct: int, epsilon: float, delta: float) -> float:
    """The theorem's probability of so many right guesses; delta's part can lift it above 1."""
    share = float(expit(epsilon))
    deviation = math.sqrt(n_guesses * share * (1 - share))
    # Windows that reach beyond the binomial's lower end hold nothing more and are only longer.
    end = math.floor(n_guesses * share - TAIL_DEVIATIONS * (deviation + 1))
    at_least = np.arange(n_correct, min(max(end, 0), n_correct - 1) - 1, -1)
    above = np.maximum(at_least, 1)
    tails = np.where(at_least > 0, betainc(above, n_guesses - above + 1, share), 1.0)
    windows = (tails[1:] - tails[0]) / np.arange(1, len(tails))
    return float(tails[0] + 2 * n_records * delta * windows.max())


def _bounds(
    right: Float64, wrong: Float64, thresholds: Float64, *, delta: float, alpha: float
) -> Float64:
    """Shape (t,): log((low - delta) / high) of the shares at or above each threshold.

    `low` bounds the share of `right` from below and `high` that of `wrong` from above; where the
    first is not above delta the bound is minus infinity.
    """
    low = 1 - _upper(len(right) - _n_at_or_above(right, thresholds), len(right), alpha / 2)
    high = _upper(_n_at_or_above(wrong, thresholds), len(wrong), alpha / 2)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(low - delta, 0.0)) - np.log(high), dtype=np.float64)


def _n_at_or_above(signal: Float64, thresholds: Float64) -> Ints:
    return np.asarray(len(signal) - np.searchsorted(np.sort(signal), thresholds), dtype=np.int64)


def _upper(n_seen: Ints, n: int, alpha: float) -> Float64:
    """Clopper-Pearson's upper bound at risk `alpha`, one-sided, shape as `n_seen`."""
    every = n_seen == n
    bound = betaincinv(n_seen + 1.0, np.where(every, 1, n - n_seen), 1 - alpha)
    return np.where(every, 1.0, bound)


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta must lie in [0, 1), seen {delta}")
