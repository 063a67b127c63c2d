"""ROC curves to draw: points on a logarithmic grid of false positive rates, with a band.

What low false positive rates say is what matters for membership (Carlini et al. 2022), and a
straight axis hides it. Every point is one of the empirical curve, and nothing is said below one
nonmember; who draws a line from point to point interpolates between about 60 of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from auditor.stats.roc import drawn_from_sorted
from auditor.stats.sides import Float64, Seed, checked_signal, n_false_positives, risk

POINTS = 60
# Below so many false positives the bootstrap's band is too narrow: it cannot draw a threshold above
# the largest nonmember. Measured at 95%, 300 a side, TPR .2 at 1/n: .785; as here .96 to 1.
FEW = 10


class Curve(NamedTuple):
    """One ROC curve with a band that holds at each false positive rate by itself.

    Attributes:
        fpr: float64, shape (p,): false positive rates, ascending from 1/n to 1.
        tpr: float64, shape (p,): the largest TPR whose empirical FPR is at most `fpr`.
        low: float64, shape (p,): lower end of the band.
        high: float64, shape (p,): upper end of the band.
        n_members: Members behind it.
        n_nonmembers: Nonmembers behind it.
    """

    fpr: Float64
    tpr: Float64
    low: Float64
    high: Float64
    n_members: int
    n_nonmembers: int


def rate_grid(n_nonmembers: int, *, points: int = POINTS, rates: Sequence[float] = ()) -> Float64:
    """False positive rates k/n, k whole, about evenly spread on a logarithmic axis from 1/n to 1.

    Args:
        n_nonmembers: n.
        points: Rates at most, besides those that must be among them.
        rates: Rates that must be, as the largest k/n that is no larger; none below 1/n.
    """
    even = np.round(np.geomspace(1, n_nonmembers, points)).astype(np.int64)
    asked = [n_false_positives(rate, n_nonmembers) for rate in rates]
    counts = np.unique(np.concatenate([even, [k for k in asked if k > 0]]).astype(np.int64))
    return np.asarray(counts / n_nonmembers, dtype=np.float64)


def roc_curve(
    members: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    *,
    confidence: float,
    draws: int,
    seed: Seed,
    inflation: float = 1.0,
    points: int = POINTS,
    rates: Sequence[float] = (),
) -> Curve:
    """The ROC curve at the rates of `rate_grid`, with the band of `tpr_estimate` at each.

    Below 10 false positives, where `tpr_estimate` gives no figure, the band is widened: the
    population's threshold of the rate k / n lies above R of the n nonmembers' signals with
    R ~ Binomial(n, k / n), so that for R = 0 nothing is known but that it may flag nobody.

    Args:
        members: Signals of the members, shape (m,).
        nonmembers: Signals of the nonmembers, shape (n,).
        confidence: Level of the band at each rate, two-sided; not of the whole curve at once.
        draws: Bootstrap draws at each rate.
        seed: Seed or generator of the draws.
        inflation: Factor on the band's reach; above 1 for a cross-fitted signal, see
            `stats.crossfitted`.
        points: Rates at most, besides those that must be among them.
        rates: Rates that must be, see `rate_grid`.

    Raises:
        ValueError: A side is empty or holds a NaN.
    """
    x, y = checked_signal(members, "members"), checked_signal(nonmembers, "nonmembers")
    alpha = risk(confidence)
    rng = np.random.default_rng(seed)
    m, n = len(x), len(y)
    grid = rate_grid(n, points=points, rates=rates)
    # Sorted once: every rate asks for a threshold and what lies above it.
    x, y = np.sort(x), np.sort(y)
    inner = grid[grid < 1]
    places = np.array([n_false_positives(rate, n) for rate in inner], dtype=np.int64)
    flagged = m - np.searchsorted(x, y[n - 1 - places], side="right")
    tpr = flagged / m
    ends = np.empty((2, len(inner)))
    for at, k in enumerate(places.tolist()):
        drawn = drawn_from_sorted(x, y, k, draws=draws, rng=rng)
        ends[:, at] = np.quantile(drawn, [alpha / 2, 1 - alpha / 2])
        if k < FEW:
            few = _ends_at_few(x, y, k, draws=draws, rng=rng, alpha=alpha)
            ends[:, at] = min(ends[0, at], few[0]), max(ends[1, at], few[1])
    low, high = tpr + inflation * (ends - tpr)
    # As in `tpr_estimate`: the bootstrap cannot draw what was not seen.
    exact_low = np.where(flagged > 0, beta.ppf(alpha / 2, flagged, m - flagged + 1), 0.0)
    exact_high = np.where(flagged < m, beta.ppf(1 - alpha / 2, flagged + 1, m - flagged), 1.0)
    return Curve(
        fpr=grid,
        tpr=np.append(tpr, 1.0),
        low=np.append(np.maximum(0.0, np.minimum(low, exact_low)), 1.0),
        high=np.append(np.minimum(1.0, np.maximum(high, exact_high)), 1.0),
        n_members=m,
        n_nonmembers=n,
    )


def _ends_at_few(
    members: Float64,
    nonmembers: Float64,
    k: int,
    *,
    draws: int,
    rng: np.random.Generator,
    alpha: float,
) -> tuple[float, float]:
    """Ends of the band where k false positives are few; both sides sorted, ascending."""
    m, n = len(members), len(nonmembers)
    n_above = rng.binomial(n, k / n, size=draws)
    # The threshold lies between the R-th and the (R + 1)-th largest nonmember.
    upper = np.append(nonmembers, np.inf)[n - n_above]
    lower = np.insert(nonmembers, 0, -np.inf)[n - n_above]
    ends = []
    for thresholds, level in ((upper, alpha / 2), (lower, 1 - alpha / 2)):
        flagged = m - np.searchsorted(members, thresholds, side="right")
        ends.append(float(np.quantile(rng.binomial(m, flagged / m) / m, level)))
    return ends[0], ends[1]
