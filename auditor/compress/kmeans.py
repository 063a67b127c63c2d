"""k-means of the values of one matrix: one dimension, so that the optimum can be computed.

In one dimension the clusters of an optimum are intervals of the sorted values, and the cost of an
interval is a difference of prefix sums. The best k intervals follow by dynamic programming (Wang
and Song 2011); the cost fulfils the quadrangle inequality, so that the best last cut moves to the
right with the end of the range, and each of the k layers takes n log n steps instead of n^2
(Gronlund et al. 2017). Nothing here depends on a random start.

Weights in 16 bits have at most 65,536 distinct values, and for these the result is the optimum.
Beyond, sorted values are binned, the optimum over the bins is found, the bins are laid anew inside
the clusters that came out, and Lloyd's steps on all values end it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Sorted = NDArray[Any]

# Up to so many distinct values the optimum is computed exactly: all that 16 bits can hold.
MAX_DISTINCT = 2**16
SHORT = (torch.bfloat16, torch.float16)
# Entries that are looked at together.
CHUNK = 2**20
# Bins of the first round, of each kind; and of the later ones, over all clusters.
N_BINS = 4096
N_FINER_BINS = 8192
# Rounds of new bins, and Lloyd's steps after them, at most; and the share of the cost that the next
# one of each must gain for another to follow.
MAX_ROUNDS, ROUND_GAIN = 16, 1e-4
MAX_STEPS, STEP_GAIN = 50, 1e-6


class Weighted(NamedTuple):
    """Distinct values and how often each occurs.

    Attributes:
        values: Finite, ascending, no two equal; shape (n,).
        counts: Above 0; shape (n,).
    """

    values: Floats
    counts: Floats


def kmeans(weight: Tensor, k: int) -> Floats:
    """The centres of the k clusters with the least sum of squared distances.

    Args:
        weight: A contiguous floating-point tensor of any shape and on any device.
        k: At least 1.

    Returns:
        The centres, ascending; where the tensor has fewer than k distinct values, those.

    Raises:
        ValueError: An entry is not finite.
    """
    if (dtype := short_dtype(weight)) is not None:
        weighted = _counted(weight, dtype)
    else:
        ordered = weight.detach().to("cpu", copy=True).view(-1).numpy()
        ordered.sort()
        _check_finite(ordered)
        found = _runs(ordered)
        if found is None:
            return _clustered(ordered, k)
        weighted = found
    _check_finite(weighted.values)
    starts = optimal_starts(weighted, min(k, len(weighted.values)))
    return _means(weighted, starts)


def midpoints(centres: Floats) -> Floats:
    """The upper end of every cluster but the last: what lies on it belongs to the lower one."""
    # Halved first: the sum of two large ones is no number.
    found: Floats = centres[:-1] / 2 + centres[1:] / 2
    return found


def round_down(values: Floats, dtype: Any) -> Sorted:  # noqa: ANN401 - whatever NumPy takes
    """The largest numbers of a NumPy `dtype` that are not above `values`.

    A number of that dtype is above the one exactly where it is above the other, so that comparing
    in the narrower dtype makes no mistake.
    """
    rounded: Sorted = values.astype(dtype)
    lower = np.nextafter(rounded, np.array(-np.inf, dtype=dtype))
    found: Sorted = np.where(rounded > values, lower, rounded)
    return found


def count_distinct(weight: Tensor) -> int:
    """Distinct values in a tensor, 0 and -0 being one; fast where they are few or in 16 bits."""
    if (dtype := short_dtype(weight)) is not None:
        return len(_counted(weight, dtype).values)
    known = torch.unique(weight.view(-1)[:1])
    for chunk in flat_chunks(weight):
        at = torch.searchsorted(known, chunk).clamp_(max=len(known) - 1)
        new = chunk[known[at] != chunk]
        if len(new):
            known = torch.unique(torch.cat([known, new]))
    return len(known)


# -- the distribution of a matrix ----------------------------------------------------------------


def short_dtype(weight: Tensor) -> torch.dtype | None:
    """A type of 16 bits that holds every entry as it is, also after a cast to more; else None."""
    for dtype in SHORT:
        if weight.dtype == dtype or all(
            torch.equal(chunk.to(dtype).to(chunk.dtype), chunk) for chunk in flat_chunks(weight)
        ):
            return dtype
    return None


def flat_chunks(weight: Tensor) -> Iterator[Tensor]:
    """A contiguous tensor's entries as views of at most `CHUNK`."""
    flat = weight.view(-1)
    yield from (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))


def patterns(chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of a chunk's entries in a type of 16 bits, int32, 0 to 65,535."""
    return chunk.to(dtype).view(torch.int16).int() & 0xFFFF


def all_patterns(dtype: torch.dtype) -> Tensor:
    """What every pattern of 16 bits stands for, in order of the pattern; float64."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).double()


def _counted(weight: Tensor, dtype: torch.dtype) -> Weighted:
    """Values and counts of a tensor that a type of 16 bits holds, in one pass over it."""
    counts = torch.zeros(2**16, dtype=torch.int64, device=weight.device)
    for chunk in flat_chunks(weight):
        counts += torch.bincount(patterns(chunk, dtype), minlength=2**16)
    seen = counts.nonzero()[:, 0].cpu()
    # Sorted, and 0 and -0, which differ in a bit, as one.
    values, place = np.unique(all_patterns(dtype)[seen].numpy(), return_inverse=True)
    totals: Floats = np.bincount(place, weights=counts.cpu()[seen].numpy()).astype(np.float64)
    return Weighted(values, totals)


def _check_finite(ordered: Sorted) -> None:
    if len(ordered) and not np.isfinite(ordered[[0, -1]]).all():
        raise ValueError("k-means needs finite values")


def _runs(ordered: Sorted) -> Weighted | None:
    """Values and counts of sorted values, or None where more than `MAX_DISTINCT` differ."""
    begins: list[Indices] = [np.zeros(1, dtype=np.intp)]
    n_distinct = 0
    for start in range(0, len(ordered), CHUNK):
        piece = ordered[start : start + CHUNK + 1]
        begins.append(np.flatnonzero(piece[1:] != piece[:-1]) + start + 1)
        n_distinct += len(begins[-1])
        if n_distinct >= MAX_DISTINCT:
            return None
    found = np.concatenate(begins)
    counts = np.diff(found, append=len(ordered))
    return Weighted(ordered[found].astype(np.float64), counts.astype(np.float64))


# -- the optimum of weighted values --------------------------------------------------------------


class _Sums(NamedTuple):
    """Prefix sums: of the counts, of count times value, of count times value squared; (n + 1,)."""

    n: Floats
    first: Floats
    second: Floats

    def cost(self, start: Indices, end: Indices) -> Floats:
        """Sum of squared distances of the values `start:end` to their mean."""
        first = self.first[end] - self.first[start]
        first *= first
        first /= self.n[end] - self.n[start]
        second = self.second[end] - self.second[start]
        second -= first
        return np.maximum(second, 0.0, out=second)


def _prefix_sums(weighted: Weighted) -> _Sums:
    """Sums that run from the median outwards, of values about the median.

    So what lies far out, where the squares are large, leaves no rounding in the sums further in.
    """
    counts = weighted.counts
    middle = int(np.searchsorted(counts.cumsum(), counts.sum() / 2))
    values = weighted.values - weighted.values[middle]

    def outwards(terms: Floats) -> Floats:
        left = -terms[:middle][::-1].cumsum()[::-1]
        return np.concatenate([left, [0.0], terms[middle:].cumsum()])

    return _Sums(outwards(counts), outwards(counts * values), outwards(counts * values**2))


def optimal_starts(weighted: Weighted, k: int) -> Indices:
    """Where each of the k best clusters begins.

    Args:
        weighted: The values.
        k: Between 1 and their number.

    Returns:
        Ascending indices, shape (k,), the first of them 0.
    """
    n = len(weighted.values)
    if k == n:
        return np.arange(n)
    sums = _prefix_sums(weighted)
    ends = np.arange(n + 1)
    costs: Floats = np.full(n + 1, np.inf)
    costs[1:] = sums.cost(np.zeros(n, dtype=np.intp), ends[1:])
    cuts = np.zeros((k, n + 1), dtype=np.int32)
    for layer in range(1, k - 1):
        costs = _next_layer(sums, costs, cuts[layer - 1], cuts[layer], n_before=layer)
    if k > 1:  # of the last layer nothing but its end is needed
        whole = costs[k - 1 : n] + sums.cost(ends[k - 1 : n], np.full(n - k + 1, n))
        cuts[k - 1, n] = k - 1 + int(whole.argmin())
    starts = np.zeros(k, dtype=np.intp)
    end = n
    for layer in range(k - 1, 0, -1):
        end = starts[layer] = int(cuts[layer, end])
    return starts


def _next_layer(
    sums: _Sums,
    costs: Floats,
    cuts_before: NDArray[np.int32],
    cuts: NDArray[np.int32],
    *,
    n_before: int,
) -> Floats:
    """Least cost of the first `end` values in one cluster more, for every end.

    The ends are settled level by level, those in the middle first; the best cut of an end lies
    between those of the ends beside it, and not before its own with a cluster less.

    Args:
        sums: Prefix sums of the values.
        costs: Least cost in `n_before` clusters, by end.
        cuts_before: Where the last of these begins, by end.
        cuts: Filled with where the new last cluster begins, by end.
        n_before: Clusters so far.

    Returns:
        The least costs, infinite for ends with too few values.
    """
    n = len(costs) - 1
    n_ends = n - n_before  # the ends are n_before + 1 ... n
    best = np.full(n + 1, np.inf)
    stride = 1 << (n_ends.bit_length() - 1)
    while stride:
        end = n_before + np.arange(stride, n_ends + 1, 2 * stride)
        low = np.maximum(cuts[end - stride], cuts_before[end])
        low = np.maximum(low, n_before)
        after = end + stride
        high = np.where(after <= n, cuts[np.minimum(after, n)], n)
        high = np.maximum(np.minimum(high, end - 1), low)
        lengths = high - low + 1
        offsets = lengths.cumsum() - lengths
        start = np.arange(int(lengths.sum())) - np.repeat(offsets - low, lengths)
        ends = np.repeat(end, lengths)
        total = sums.cost(start, ends)
        total += costs[start]
        best[end] = np.minimum.reduceat(total, offsets)
        hits = np.flatnonzero(total == best[ends])[::-1]
        # Written from behind, so that of equal ones the first stays.
        cuts[ends[hits]] = start[hits]
        stride //= 2
    return best


def _means(weighted: Weighted, starts: Indices) -> Floats:
    sums = np.add.reduceat(weighted.counts * weighted.values, starts)
    means = sums / np.add.reduceat(weighted.counts, starts)
    ends = np.append(starts[1:], len(weighted.values))
    # A value alone in its cluster is its own mean, to the last bit.
    found: Floats = np.clip(means, weighted.values[starts], weighted.values[ends - 1])
    return found


# -- more distinct values than can be counted ----------------------------------------------------


def _clustered(ordered: Sorted, k: int) -> Floats:
    """Centres of sorted values with more than `MAX_DISTINCT` different ones."""
    starts, least = np.zeros(1, dtype=np.intp), np.inf
    edges = _first_edges(ordered)
    for _ in range(MAX_ROUNDS):
        begins = np.unique(np.append(starts, np.searchsorted(ordered, edges)))
        begins = begins[begins < len(ordered)]
        bins = _summed(ordered, begins)
        enough = len(begins) >= k
        found = begins[optimal_starts(bins, min(k, len(begins)))]
        cost = _cost(ordered, found)
        if cost < least:
            starts = found
        if enough and cost >= least * (1 - ROUND_GAIN):
            break
        least = min(cost, least)
        edges = _finer_edges(ordered, starts, max(32, N_FINER_BINS // len(starts)))
    return _lloyd(ordered, starts, _cost(ordered, starts))


def _first_edges(ordered: Sorted) -> Sorted:
    """Edges of bins with as many values each, as wide each, and as wide in proportion to zero."""
    places = np.linspace(0, len(ordered) - 1, N_BINS).astype(np.intp)
    largest = float(max(-ordered[0], ordered[-1]))
    scales = largest * 2.0 ** -np.linspace(0, 32, N_BINS // 8)
    even = np.linspace(float(ordered[0]), float(ordered[-1]), N_BINS)
    others = np.concatenate([even, scales, -scales]).astype(ordered.dtype)
    return np.concatenate([ordered[places], others])


def _finer_edges(ordered: Sorted, starts: Indices, n: int) -> Sorted:
    """Edges that part every cluster into `n` by width and into `n` by number."""
    ends = np.append(starts[1:], len(ordered)) - 1
    first, last = ordered[starts].astype(np.float64), ordered[ends].astype(np.float64)
    even = np.linspace(first, last, n + 1)[1:].ravel()
    places = np.linspace(starts, ends, n + 1)[1:].astype(np.intp).ravel()
    return np.concatenate([ordered[places], even.astype(ordered.dtype)])


def _summed(ordered: Sorted, begins: Indices) -> Weighted:
    """Means and counts of the intervals of sorted values that start at `begins`."""
    sums = np.zeros(len(begins))
    for start, block in _blocks(ordered):
        first = int(np.searchsorted(begins, start, side="right")) - 1
        last = int(np.searchsorted(begins, start + len(block)))
        inside = np.maximum(begins[first:last] - start, 0)
        sums[first:last] += np.add.reduceat(block, inside)
    counts = np.diff(begins, append=len(ordered)).astype(np.float64)
    ends = np.append(begins[1:], len(ordered)) - 1
    return Weighted(np.clip(sums / counts, ordered[begins], ordered[ends]), counts)


def _blocks(ordered: Sorted) -> Iterator[tuple[int, Floats]]:
    for start in range(0, len(ordered), CHUNK):
        yield start, ordered[start : start + CHUNK].astype(np.float64)


def _cost(ordered: Sorted, starts: Indices) -> float:
    """Sum of squared distances to the means of the clusters that begin at `starts`."""
    means = _summed(ordered, starts).values
    total = 0.0
    for start, block in _blocks(ordered):
        inside = np.clip(starts - start, 0, len(block))
        distances = block - np.repeat(means, np.diff(inside, append=len(block)))
        total += float(distances @ distances)
    return total


def _lloyd(ordered: Sorted, starts: Indices, cost: float) -> Floats:
    """Lloyd's steps on all values, until none changes its cluster or the gain has died down."""
    centres = _summed(ordered, starts).values
    for _ in range(MAX_STEPS):
        limits = round_down(midpoints(centres), ordered.dtype)
        found = np.append([0], np.searchsorted(ordered, limits, side="right"))
        if np.array_equal(found, starts) or len(np.unique(np.append(found, len(ordered)))) <= len(
            starts
        ):
            break
        new = _cost(ordered, found)
        if new >= cost:
            break
        starts, centres = found, _summed(ordered, found).values
        gain, cost = 1 - new / cost, new
        if gain < STEP_GAIN:
            break
    return centres
