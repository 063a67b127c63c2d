"""Near-duplicates: records that share 13-grams of words, with the other side or with each other.

Up to 8 million grams are all kept, as 64-bit hashes; beyond that, only the grams whose hash lies
under a bound that falls as more come in. A gram is kept in every record that holds it or in none,
so that the shared part of what is kept estimates the shared part of all.
"""

import hashlib
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WORDS = 13
SHARE = 0.5
MOST = 2**23
BLOCK = 4096
# A gram that more records hold than this is boilerplate: it says of no two that they are alike.
HOLDERS = 50
# Products that are held at once while shared grams are counted.
PRODUCTS = 2**22
# Pairs of near-duplicates that are held at once: a heap of 50 makes 2,450 of them.
PAIRS = 2**22

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NOTHING = np.zeros(0, dtype=np.uint64)


def word_grams(text: str) -> Hashes:
    """Hashes of the distinct 13-grams of a text's words, sorted; one gram where it is shorter."""
    words = text.lower().split()
    count = max(1, len(words) - WORDS + 1) if words else 0
    grams = {" ".join(words[start : start + WORDS]) for start in range(count)}
    digests = (hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=8) for gram in grams)
    return np.sort(np.frombuffer(b"".join(d.digest() for d in digests), dtype=np.uint64))


class _Flat(NamedTuple):
    """What is kept of all records, one after another.

    Attributes:
        grams: Shape (g,), sorted within each record.
        lengths: Grams of each record, shape (n,).
        owners: The record of each gram, shape (g,).
    """

    grams: Hashes
    lengths: Counts
    owners: Counts


class GramSample:
    """Grams of many records, thinned alike in all of them when they become too many.

    Args:
        most: Grams that are kept at most.
    """

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        self._bound = 2**64
        self._total = 0
        # Records by the thousand, as their grams one after another and how many each has: an array
        # for every record would take as much again for itself.
        self._blocks: list[tuple[Hashes, Counts]] = []
        self._latest: list[Hashes] = []
        # A hash over all grams of each record, thinned or not: alike where they are the same.
        self._wholes = array("Q")

    def add(self, text: str) -> None:
        """Add the next record."""
        whole = word_grams(text)
        self._wholes.frombytes(hashlib.blake2b(whole.tobytes(), digest_size=8).digest())
        grams = self._thinned(whole)
        self._latest.append(grams)
        self._total += len(grams)
        if len(self._latest) >= BLOCK:
            self._close_block()
        while self._total > self._most:
            self._close_block()
            self._bound //= 2
            self._blocks = [self._thinned_block(*block) for block in self._blocks]
            self._total = sum(len(grams) for grams, _ in self._blocks)

    def _close_block(self) -> None:
        lengths = np.array([len(grams) for grams in self._latest], dtype=np.int32)
        self._blocks.append((np.concatenate([NOTHING, *self._latest]), lengths))
        self._latest = []

    def _thinned(self, grams: Hashes) -> Hashes:
        if self._bound == 2**64:
            return grams
        return grams[: int(np.searchsorted(grams, np.uint64(self._bound)))]

    def _thinned_block(self, grams: Hashes, lengths: Counts) -> tuple[Hashes, Counts]:
        kept = grams < np.uint64(self._bound)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        counts = np.bincount(owners[kept], minlength=len(lengths))
        return grams[kept], counts.astype(np.int32)

    def _flat(self) -> _Flat:
        self._close_block()
        lengths = np.concatenate([lengths for _, lengths in self._blocks])
        return _Flat(
            grams=np.concatenate([grams for grams, _ in self._blocks]),
            lengths=lengths,
            owners=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        )

    def near_duplicates(self, is_member: Bools, usable: Bools) -> Bools:
        """Records that share at least half of their grams with the other side.

        Args:
            is_member: Shape (n,).
            usable: Records that are audited, shape (n,); only they are compared.
        """
        flat, lengths, owners = self._flat()
        found = np.zeros(len(lengths), dtype=np.bool_)
        for side in (is_member & usable, ~is_member & usable):
            own = np.flatnonzero(side[owners])
            other = np.unique(flat[(usable & ~side)[owners]])
            shared = own[_stands_in(flat[own], other)]
            counts = np.bincount(owners[shared], minlength=len(lengths))
            found |= side & (lengths > 0) & (counts >= SHARE * lengths)
        return found

    def groups(self, usable: Bools, *, holders: int = HOLDERS) -> Rows:
        """Groups of records that are near-duplicates of each other, on either side.

        Two records are near-duplicates when they share at least half of the grams of the shorter
        one, and a group is all that hang together by such pairs. Grams of more than `holders`
        records are counted neither as shared nor in the lengths; copies count as one record there.
        Records with the very same grams are one group, whatever else was left out or thinned.

        Args:
            usable: Records that are audited, shape (n,).
            holders: Records that may hold a gram before it is boilerplate.

        Returns:
            int64, shape (n,): 0, 1, ... in the order of each group's first record, -1 for records
            that are not usable.
        """
        flat = self._flat()
        n = len(flat.lengths)
        found = np.full(n, -1, dtype=np.int64)
        rows = np.flatnonzero(usable)
        if not len(rows):
            return found
        wholes = np.frombuffer(self._wholes, dtype=np.uint64)[rows]
        # What follows is about one record of each set of copies.
        _, first, copy_of = np.unique(wholes, return_index=True, return_inverse=True)
        number = np.full(n, -1, dtype=np.int64)
        number[rows[first]] = np.arange(len(first))
        own = number[flat.owners] >= 0
        parts = _connected(flat.grams[own], number[flat.owners[own]], len(first), holders)
        found[rows] = _in_order(parts[copy_of])
        return found


def _connected(grams: Hashes, owners: Rows, n: int, holders: int) -> Rows:
    """Which records hang together by pairs that share at least half of the shorter one's grams.

    Args:
        grams: Shape (g,), each at most once in a record.
        owners: The record of each gram, shape (g,).
        n: Records.
        holders: Grams of more records than this are left out.

    Returns:
        A number for each record, shape (n,).
    """
    from scipy.sparse import coo_array, csr_array

    order = np.argsort(grams, kind="stable")
    starts = np.flatnonzero(np.diff(grams[order], prepend=~grams[order[:1]]))
    sizes = np.diff(starts, append=len(grams))
    counted = np.repeat(sizes <= holders, sizes)
    lengths = np.bincount(owners[order[counted]], minlength=n)
    # Only grams that several records hold make pairs.
    several = (sizes > 1) & (sizes <= holders)
    held = order[np.repeat(several, sizes)]
    columns = np.repeat(np.arange(several.sum()), sizes[several])
    ones = np.ones(len(held), dtype=np.int32)
    holds = csr_array((ones, (owners[held], columns)), shape=(n, int(several.sum())))
    parts: Rows = np.arange(n, dtype=np.int64)
    left: list[Rows] = []
    right: list[Rows] = []
    for some, shared in _products(holds, lengths, sizes[several]):
        pairs = coo_array(shared)
        rows = some[pairs.row]
        # The longer of a pair need not see it: the shorter one does.
        alike = pairs.data >= SHARE * lengths[rows]
        left.append(rows[alike])
        right.append(pairs.col[alike].astype(np.int64))
        if sum(map(len, left)) > PAIRS:
            parts = _joined(parts, left, right)
            left, right = [], []
    return _joined(parts, left, right)


def _joined(parts: Rows, left: list[Rows], right: list[Rows]) -> Rows:
    """The parts of shape (n,), once the records of each pair are in one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not left:
        return parts
    edges = (parts[np.concatenate(left)], parts[np.concatenate(right)])
    size = int(parts.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(size, size))
    _, found = connected_components(graph.tocsr(), directed=False)
    return np.asarray(found[parts], dtype=np.int64)


def _products(holds: Any, lengths: Rows, sizes: Rows) -> Iterator[tuple[Rows, Any]]:  # noqa: ANN401
    """How many grams records share with every other record, some rows at a time.

    Of a record of which more than half is its own, nobody shares half: its row is left out.

    Args:
        holds: Sparse, shape (n, g): 1 where a record holds a gram.
        lengths: Grams of each record, shape (n,), those included that nobody shares.
        sizes: Records that hold each gram, shape (g,).

    Yields:
        Numbers of some records, and their rows of the sparse (n, n) matrix of counts.
    """
    shared = np.diff(holds.indptr)
    rows = np.flatnonzero((shared > 0) & (shared >= SHARE * lengths))
    work = np.cumsum((holds @ sizes)[rows])
    turned = holds.T.tocsr()
    for some in np.split(rows, np.flatnonzero(np.diff(work // PRODUCTS)) + 1):
        if len(some):
            yield some, holds[some] @ turned


def _in_order(labels: Rows) -> Rows:
    """The same partition, numbered in the order of each part's first place."""
    _, first, part = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[part]


def _stands_in(values: Hashes, ordered: Hashes) -> Bools:
    """Whether each value is among `ordered`, which is sorted; nothing is sorted again."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: npt.NDArray[np.bool_] = ordered[places] == values
    return found
