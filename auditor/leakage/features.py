"""Features of a record for the learned attacks, from token statistics only.

A feature may depend on what a model says about a record's tokens and on how long the record is;
never on its side, nor on where it stands in a file.

    block     n   what they are
    version   27  the NR signals loss, zlib, min-k, min-k-plus-plus; of l_t and of the standardised
                  z_t = (l_t - mu_t) / sigma_t deviation, skewness, quantiles, and of z_t the mean;
                  share of hits; mean l_t over the missed tokens; means of mu_t and sigma_t
    pair      31  of the move l_t(second) - l_t(first), over all tokens and over those that the
                  first misses: mean, deviation, quantiles with the extremes, share of upward moves,
                  mean of the tenth that moves most up and most down; mean and deviation of the
                  moves of z_t and of mu_t; hits gained and lost; log of the EZ ratio with the
                  second as the reference
    distant   2   of a reference with another tokenizer: `ref`, and its loss per byte
    lengths   4   logarithms of tokens, bytes and zlib bytes; zlib bytes per byte

A reference adds to each version the pair (reference, version), or `distant`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.attacks import single
from auditor.attacks.ragged import rank_within, sorted_within
from auditor.scoring.scores import Float64, Int64, Scores

VERSION_QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
PAIR_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
TAIL = 0.1  # share of a record's tokens that count as its largest moves
N_VERSION = 27
N_PAIR = 31
N_LENGTHS = 4
N_DISTANT = 2


class Spread(NamedTuple):
    """Per-token values of every record, sorted within the record.

    Attributes:
        values: float64, shape (T',), record by record, ascending within each.
        starts: int64, shape (n,), where each record begins.
        counts: int64, shape (n,), values of each record; may be 0.
    """

    values: Float64
    starts: Int64
    counts: Int64

    def sums(self, values: npt.NDArray[np.floating]) -> Float64:
        """Sum over each record of values that lie as `self.values` do."""
        padded = np.append(values, 0.0)
        totals = np.add.reduceat(padded, self.starts, dtype=np.float64)
        return np.where(self.counts > 0, totals, 0.0).astype(np.float64)

    def mean(self) -> Float64:
        """Mean of each record, 0 where it is empty."""
        return np.asarray(self.sums(self.values) / np.maximum(self.counts, 1), dtype=np.float64)

    def moments(self) -> tuple[Float64, Float64]:
        """Mean and deviation of each record; 0 where it is empty."""
        mean = self.mean()
        square = self.sums((self.values - np.repeat(mean, self.counts)) ** 2)
        return mean, np.sqrt(square / np.maximum(self.counts, 1))

    def skewness(self, mean: Float64, deviation: Float64) -> Float64:
        """Skewness of each record with these moments; 0 where it is not defined."""
        centred = self.values - np.repeat(mean, self.counts)
        # Not `centred**3`: a power is a logarithm and takes ten times as long.
        third = self.sums(centred * centred * centred) / np.maximum(self.counts, 1)
        skewness = np.zeros_like(mean)
        np.divide(third, deviation**3, out=skewness, where=deviation > 1e-6)
        return skewness

    def quantiles(self, shares: tuple[float, ...]) -> list[Float64]:
        """Quantiles of each record, interpolated as by `numpy.quantile`; 0 where it is empty."""
        padded = np.append(self.values, 0.0)
        last = np.maximum(self.counts - 1, 0)
        found = []
        for share in shares:
            place = share * last
            low = np.floor(place).astype(np.int64)
            high = np.minimum(low + 1, last)
            below, above = padded[self.starts + low], padded[self.starts + high]
            value = below + (place - low) * (above - below)
            found.append(np.where(self.counts > 0, value, 0.0))
        return found

    def tails(self) -> tuple[Float64, Float64]:
        """Mean of the smallest and of the largest tenth of each record, at least one value."""
        count = np.maximum(1, (TAIL * self.counts).astype(np.int64))
        rank = rank_within(self.counts)
        low = rank < np.repeat(count, self.counts)
        high = rank >= np.repeat(self.counts - count, self.counts)
        return (
            self.sums(np.where(low, self.values, 0.0)) / count,
            self.sums(np.where(high, self.values, 0.0)) / count,
        )


def spread(
    scores: Scores, values: npt.NDArray[np.floating], keep: npt.NDArray[np.bool_] | None = None
) -> Spread:
    """Sort the kept values within each record.

    Args:
        scores: Says which value belongs to which record.
        values: Shape (T,).
        keep: Shape (T,): which of them count; all where it is left out.
    """
    lengths = scores.n_tokens
    if keep is None:
        found = sorted_within(values, lengths)
        return Spread(found.astype(np.float64), scores.offsets[:-1], lengths)
    # Sent to the end of its record, what does not count is cut off there.
    found = sorted_within(np.where(keep, values, np.inf), lengths)
    counts = scores.sums(keep).astype(np.int64)
    left = rank_within(lengths) < np.repeat(counts, lengths)
    return Spread(found[left].astype(np.float64), np.cumsum(counts) - counts, counts)


def standardised(scores: Scores) -> Float64:
    """z_t = (l_t - mu_t) / sigma_t, float64, shape (T,)."""
    centred = scores.logp.astype(np.float64) - scores.mu
    return np.asarray(centred / scores.sigma, dtype=np.float64)


def version_features(scores: Scores) -> Float64:
    """Features of one version.

    Args:
        scores: n records.

    Returns:
        float64, shape (n, 27).
    """
    n = scores.n_tokens
    columns = [
        single.loss(scores),
        single.zlib(scores),
        single.min_k(scores),
        single.min_k_plus_plus(scores),
    ]
    logp = spread(scores, scores.logp)
    mean, deviation = logp.moments()
    columns += [deviation, logp.skewness(mean, deviation), *logp.quantiles(VERSION_QUANTILES)]
    standard = spread(scores, standardised(scores))
    mean, deviation = standard.moments()
    columns += [mean, deviation, standard.skewness(mean, deviation)]
    columns += [
        *standard.quantiles(VERSION_QUANTILES),
        scores.sums(scores.hit) / n,
        spread(scores, scores.logp, ~scores.hit).mean(),
        scores.sums(scores.mu) / n,
        scores.sums(scores.sigma) / n,
    ]
    return np.stack(columns, axis=1)


def pair_features(first: Scores, second: Scores) -> Float64:
    """Features of what moves from one version to another on the same tokens.

    Args:
        first: n records under the one.
        second: The same tokens under the other.

    Returns:
        float64, shape (n, 31).
    """
    n = first.n_tokens
    move = second.logp.astype(np.float64) - first.logp
    columns: list[Float64] = []
    for keep in (None, ~first.hit):
        found = spread(first, move, keep)
        mean, deviation = found.moments()
        upward = found.sums((found.values > 0).astype(np.float64)) / np.maximum(found.counts, 1)
        columns += [mean, deviation, *found.quantiles(PAIR_QUANTILES), upward, *found.tails()]
    for change in (standardised(second) - standardised(first), second.mu - first.mu):
        mean = first.sums(change) / n
        square = first.sums(change.astype(np.float64) ** 2) / n
        columns += [mean, np.sqrt(np.maximum(square - mean**2, 0.0))]
    columns += [
        first.sums(second.hit & ~first.hit) / n,
        first.sums(first.hit & ~second.hit) / n,
        np.log1p(single.ez_ratio(first, second)),
    ]
    return np.stack(columns, axis=1)


def distant_features(scores: Scores) -> Float64:
    """What a reference with another tokenizer adds: float64, shape (n, 2)."""
    reference = single.needed(scores)
    return np.stack(
        [single.ref(scores), reference.sums(reference.logp) / reference.text_bytes], axis=1
    )


def length_features(scores: Scores) -> Float64:
    """What is known of a record without any model: float64, shape (n, 4)."""
    return np.stack(
        [
            np.log(scores.n_tokens),
            np.log(scores.text_bytes),
            np.log(scores.zlib_bytes),
            scores.zlib_bytes / scores.text_bytes,
        ],
        axis=1,
    )
