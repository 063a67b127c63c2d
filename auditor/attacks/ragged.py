"""Sorting within records, all of a shard at once and without a loop over records.

Records of the same number of tokens are rows of one matrix, and a shard has few such numbers: it
holds records of about one length, and never more than the root of twice its tokens. Sorting short
rows is some ten times as fast as one sort of all tokens by record and value.
"""

import numpy as np
import numpy.typing as npt

from auditor.scoring.scores import Int64

Values = npt.NDArray[np.floating]


def sorted_within(values: Values, counts: Int64) -> Values:
    """The values of each record in ascending order.

    Args:
        values: Shape (T,), record by record.
        counts: Shape (n,), values of each record, T in all; may be 0.

    Returns:
        Of the dtype of `values`, shape (T,), records where they were.
    """
    found = np.empty_like(values)
    starts = np.cumsum(counts) - counts
    order = np.argsort(counts, kind="stable")
    cuts = np.flatnonzero(np.diff(counts[order])) + 1
    for rows in np.split(order, cuts):
        size = int(counts[rows[0]]) if len(rows) else 0
        if size == 0:
            continue
        first, last = int(starts[rows[0]]), int(starts[rows[-1]]) + size
        if last - first == len(rows) * size:
            # They lie side by side, as in a shard, whose records stand in the order of length.
            block = values[first:last].reshape(len(rows), size)
            found[first:last] = np.sort(block, axis=1).reshape(-1)
        else:
            cells = starts[rows, None] + np.arange(size)
            found[cells] = np.sort(values[cells], axis=1)
    return found


def rank_within(counts: Int64) -> Int64:
    """Place of each value in its record, from 0: int64, shape (T,).

    Args:
        counts: Shape (n,), values of each record.
    """
    starts = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) - np.repeat(starts, counts), dtype=np.int64)
