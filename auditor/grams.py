"""Near-duplicates across the sides: records that share 13-grams of words.

Up to 16 million grams are all kept, as 64-bit hashes; beyond that, only the grams whose hash lies
under a bound that falls as more come in. A gram is kept in every record that holds it or in none,
so that the shared part of what is kept estimates the shared part of all.
"""

import hashlib

import numpy as np
import numpy.typing as npt

WORDS = 13
SHARE = 0.5
MOST = 2**24

Hashes = npt.NDArray[np.uint64]


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
        self._records: list[Hashes] = []

    def add(self, text: str) -> None:
        """Add the next record."""
        grams = self._thinned(word_grams(text))
        self._records.append(grams)
        self._total += len(grams)
        while self._total > self._most:
            self._bound //= 2
            self._records = [self._thinned(record) for record in self._records]
            self._total = sum(len(record) for record in self._records)

    def _thinned(self, grams: Hashes) -> Hashes:
        if self._bound == 2**64:
            return grams
        return grams[: int(np.searchsorted(grams, np.uint64(self._bound)))].copy()

    def near_duplicates(
        self, is_member: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Records that share at least half of their grams with the other side.

        Args:
            is_member: Shape (n,).
            usable: Records that are audited, shape (n,); only they are compared.
        """
        lengths = np.array([len(record) for record in self._records], dtype=np.int64)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        flat = np.concatenate([np.zeros(0, np.uint64), *self._records])
        found = np.zeros(len(lengths), dtype=np.bool_)
        for side in (is_member & usable, ~is_member & usable):
            other = np.unique(flat[(usable & ~side)[owners]])
            shared = side[owners] & np.isin(flat, other)
            counts = np.bincount(owners[shared], minlength=len(lengths))
            found |= side & (lengths > 0) & (counts >= SHARE * lengths)
        return found
