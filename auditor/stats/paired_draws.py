"""Paired stratified bootstrap of a TPR at a fixed FPR, on ranks: no array is resampled or sorted.

A draw takes n nonmembers with replacement; under either model its threshold is the (k + 1)-th
largest signal that was drawn. Which ranks can be that threshold is known beforehand but for a
probability of 1e-12: a band around rank k, of some fourteen roots of k in width. Whatever outranks
the band is above the threshold for certain and need only be counted, whatever lies below it need
not be drawn. Given both thresholds, the drawn members are multinomial.
"""

import math

import numpy as np
from scipy.stats import beta

from auditor.stats.sides import Float64, Ints, Seed, n_false_positives

CHUNK_CELLS = 2_000_000
"""Cells of the largest array held at a time; a draw too large for that is done alone."""
BEYOND = 1e-12
"""Probability with which a threshold lies on one side of the band."""


def paired_tpr_draws(
    original_members: Float64,
    original_nonmembers: Float64,
    variant_members: Float64,
    variant_nonmembers: Float64,
    *,
    fpr: float,
    draws: int,
    seed: Seed,
) -> Float64:
    """Differences of TPR of paired stratified bootstrap samples, without resampling the members.

    Given the two thresholds of a draw, a drawn member is flagged by the variant alone, by the
    original alone, or by both or neither: the counts are multinomial.

    Args:
        original_members: Shape (m,).
        original_nonmembers: Shape (n,).
        variant_members: Shape (m,).
        variant_nonmembers: Shape (n,).
        fpr: In [0, 1).
        draws: Bootstrap draws.
        seed: Seed or generator of the draws.

    Returns:
        Shape (draws,), variant minus original, distributed as with plain resampling.
    """
    rng = np.random.default_rng(seed)
    m = len(original_members)
    k = n_false_positives(fpr, len(original_nonmembers))
    thresholds = threshold_draws(original_nonmembers, variant_nonmembers, k, draws=draws, rng=rng)
    # A few hundred pairs of thresholds recur over thousands of draws.
    pairs, inverse = np.unique(thresholds, axis=0, return_inverse=True)
    n_original = _count_above(original_members, pairs[:, 0])
    n_variant = _count_above(variant_members, pairs[:, 1])
    n_both = count_above_both(original_members, variant_members, pairs)
    row = inverse.ravel()
    n_gained, n_lost = (n_variant - n_both)[row], (n_original - n_both)[row]
    gained = rng.binomial(m, n_gained / m)
    lost = rng.binomial(m - gained, n_lost / np.maximum(m - n_gained, 1))
    return np.asarray((gained - lost) / m, dtype=np.float64)


def threshold_draws(
    original: Float64, variant: Float64, k: int, *, draws: int, rng: np.random.Generator
) -> Float64:
    """The (k + 1)-th largest signal of n drawn nonmembers under each model.

    Args:
        original: Shape (n,).
        variant: Shape (n,), the same nonmembers.
        k: False positives that are allowed, below n.
        draws: Bootstrap draws.
        rng: Draws.

    Returns:
        Shape (draws, 2).
    """
    n = len(original)
    # The J-th largest is the threshold with P(J <= j) = P(Beta(k + 1, n - k) <= j / n).
    sure = math.floor(n * float(beta.ppf(BEYOND, k + 1, n - k)))
    depth = min(n, math.ceil(n * float(beta.isf(BEYOND, k + 1, n - k))))
    places = np.full((2, n), depth)
    places[0, _largest(original, variant, depth)] = np.arange(depth)
    places[1, _largest(variant, original, depth)] = np.arange(depth)
    above, below = places < sure, places >= depth
    band = np.flatnonzero(~(above | below).all(axis=0))
    # What outranks the band under both models, under the original alone, under the variant alone.
    groups = [above.all(axis=0), above[0] & below[1], above[1] & below[0]]
    shares = np.array([*(int(group.sum()) for group in groups), len(band)]) / n
    counted = rng.multinomial(n, [*shares, max(0.0, 1 - shares.sum())], size=draws)
    left = k - counted[:, [0]] - counted[:, 1:3]

    # By rank under the original, those below its band by rank under the variant: where a record
    # stands in a file does not matter.
    band = band[np.lexsort((places[1, band], places[0, band]))]
    by_variant = np.argsort(places[1, band])
    size = len(band)
    found = np.empty((draws, 2))
    rows = max(1, CHUNK_CELLS // size)
    for start in range(0, draws, rows):
        part = slice(start, start + rows)
        n_drawn = counted[part, 3]
        cells = np.repeat(np.arange(len(n_drawn)) * size, n_drawn)
        cells += rng.integers(0, size, size=len(cells))
        times = np.bincount(cells, minlength=len(n_drawn) * size).reshape(-1, size)
        found[part, 0] = original[band][_first_beyond(times, left[part, 0])]
        found[part, 1] = variant[band[by_variant]][
            _first_beyond(times[:, by_variant], left[part, 1])
        ]
    return found


def _largest(signal: Float64, other: Float64, depth: int) -> Ints:
    """Positions of the `depth` largest, descending.

    The other signal breaks ties, so that the order of the records does not matter.
    """
    least = np.partition(signal, len(signal) - depth)[len(signal) - depth]
    near = np.flatnonzero(signal >= least)
    found: Ints = near[np.lexsort((other[near], signal[near]))[::-1][:depth]]
    return found


def _first_beyond(times: Ints, k: Ints) -> Ints:
    """Column at which each row's running sum first exceeds that row's k; shape (len(times),)."""
    size = times.shape[1]
    # One running sum over all rows, in which a row begins where the one before it ended.
    running = np.cumsum(times.ravel())
    before = np.concatenate([np.zeros(1, np.int64), running[size - 1 : -1 : size]])
    cell = np.searchsorted(running, before + np.maximum(k, 0), side="right")
    column: Ints = np.minimum(cell - np.arange(len(times)) * size, size - 1)
    return column


def _count_above(signal: Float64, thresholds: Float64) -> Ints:
    """Signals strictly above each threshold, shape (len(thresholds),)."""
    found = np.searchsorted(np.sort(signal), thresholds, side="right")
    return np.asarray(len(signal) - found, dtype=np.int64)


def count_above_both(original: Float64, variant: Float64, pairs: Float64) -> Ints:
    """Members strictly above both thresholds of each pair.

    Only a member between the lowest and the highest threshold of both models is compared with every
    pair; of the others one model's threshold says it all.

    Args:
        original: Shape (m,).
        variant: Shape (m,), the same members.
        pairs: Thresholds under the two, shape (p, 2).

    Returns:
        Shape (p,).
    """
    lowest, highest = pairs.min(axis=0), pairs.max(axis=0)
    near = (original > lowest[0]) & (variant > lowest[1])
    x, y = original[near], variant[near]
    over_x, over_y = x > highest[0], y > highest[1]
    counts = _count_above(y[over_x], pairs[:, 1]) + _count_above(x[over_y & ~over_x], pairs[:, 0])
    x, y = x[~(over_x | over_y)], y[~(over_x | over_y)]
    rows = max(1, CHUNK_CELLS // max(1, len(x)))
    for start in range(0, len(pairs), rows):
        block = pairs[start : start + rows, :, None]
        counts[start : start + rows] += ((x > block[:, 0]) & (y > block[:, 1])).sum(axis=1)
    return counts
