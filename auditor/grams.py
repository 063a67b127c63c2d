"""Near-duplicates across the sides: records that share 13-grams of words.

Up to 8 million grams are all kept, as 64-bit hashes; beyond that, only the grams whose hash lies
under a bound that falls as more come in. A gram is kept in every record that holds it or in none,
so that the shared part of what is kept estimates the shared part of all.
"""

import hashlib

import numpy as np
import numpy.typing as npt

WORDS = 13
SHARE = 0.5
MOST = 2**23
BLOCK = 4096

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int32]
NOTHING = np.zeros(0, dtype=np.uint64)


def word_grams(text: str) -> Hashes:
    """Hashes of the distinct 13-grams of a text's words, sorted; one gram where it is shorter."""
    words = text.lower().split()
    count = max(1, len(words) - WORDS + 1) if words else 0
    grams = {" ".join(words[start : start + WORDS]) for start in range(count)}
    digests = (hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=8) for gram in grams)
    return np.sort(np.frombuffer(b"".join(d.digest() for d in digests), dtype=np.uint64))


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

    def add(self, text: str) -> None:
        """Add the next record."""
        grams = self._thinned(word_grams(text))
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

    def near_duplicates(
        self, is_member: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Records that share at least half of their grams with the other side.

        Args:
            is_member: Shape (n,).
            usable: Records that are audited, shape (n,); only they are compared.
        """
        self._close_block()
        flat = np.concatenate([grams for grams, _ in self._blocks])
        lengths = np.concatenate([lengths for _, lengths in self._blocks])
        owners = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        found = np.zeros(len(lengths), dtype=np.bool_)
        for side in (is_member & usable, ~is_member & usable):
            own = np.flatnonzero(side[owners])
            other = np.unique(flat[(usable & ~side)[owners]])
            shared = own[_stands_in(flat[own], other)]
            counts = np.bincount(owners[shared], minlength=len(lengths))
            found |= side & (lengths > 0) & (counts >= SHARE * lengths)
        return found


def _stands_in(values: Hashes, ordered: Hashes) -> npt.NDArray[np.bool_]:
    """Whether each value is among `ordered`, which is sorted; nothing is sorted again."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: npt.NDArray[np.bool_] = ordered[places] == values
    return found
