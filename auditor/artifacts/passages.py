"""Passages: which of many texts stand word for word in some files.

The files are read into an index of runs of words; the texts, however many, go past it once and none
is kept. Only words count, not what stands between them (see `words_of`). A text of 13 words or more
is found by the runs of 13 that it shares with a file, a shorter one only where all of it stands in
a row, and one of fewer than 5 words is not looked for: such a one stands in any prose by chance.

What many texts share, such as a prompt template or a licence, tells nothing about any of them: a
run that occurs in more than a few of the texts does not count. That is known only at the end, so
what a text shares with a file is kept until then, and dropped as soon as too many share it.
"""

from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from auditor.artifacts.words import words_of

Key = TypeVar("Key")
Numbers = npt.NDArray[np.int64]

WORDS = 13
FEWEST = 5
# A text is found where this many of its words stand in runs that count, or this share of them, or
# the whole of it: one sentence of a long text, or one run of a text of up to 39 words.
ENOUGH_WORDS = 20
ENOUGH_SHARE = 1 / 3
# A run counts with this many different words that are not numbers: "1 2 3 4 ..." is nobody's.
TELLING = 3
# A run that is in more texts than this does not count: 1 in 100 of them, but at least 2 and at most
# 20, since what so many records share is no one's own however many there are.
COMMON_SHARE = 0.01
COMMON_LEAST, COMMON_MOST = 2, 20
BLOCK = 2**16  # words that are looked up at once
STEPS = (1, 2, 4, 5)  # runs of 1, 2, 4 and 8 words, laid side by side, give runs of 2, 4, 8 and 13


class Hit(NamedTuple, Generic[Key]):
    """A text that was found in a file.

    Attributes:
        file: The number of the file.
        key: Which text, in the caller's words.
        share: Of its words, how many stand there in runs that count; 1.0 where all of it does.
    """

    file: int
    key: Key
    share: float


class Passages:
    """The runs of words of many strings, each in a file."""

    def __init__(self) -> None:
        self._vocabulary: dict[str, int] = {}
        self._words = array("i")  # numbers of words, strings one after another, a 0 after each
        self._owners: list[tuple[int, int]] = []  # file, and where its string ends in `_words`
        self._tiny = ""  # the last string, as long as it is too short for 5 words
        self._held: list[str] = []  # its words, as long as they are fewer
        self._begun = False  # whether the last string has words in `_words`
        self._file = 0

    @property
    def n_words(self) -> int:
        """Words that the index holds."""
        return len(self._words)

    def add(self, file: int, text: str, *, goes_on: bool = False) -> None:
        """Add a string; those of fewer than 5 words hold nothing that is looked for.

        Args:
            file: The file that it stands in, by a number of the caller's.
            text: The string.
            goes_on: Whether it goes on where the last one ended: a long text, in pieces.
        """
        if goes_on:
            text = f"{self._tiny} {text}"
        else:
            self._close()
            self._file = file
        self._tiny = ""
        if len(text) < 2 * FEWEST - 1 and text.isascii() and not (self._begun or self._held):
            self._tiny = text  # most of a vocabulary, at no cost
            return
        self._held += words_of(text)
        if self._begun or len(self._held) >= FEWEST:
            known = self._vocabulary
            self._words.extend([known.setdefault(word, len(known) + 1) for word in self._held])
            self._held, self._begun = [], True

    def _close(self) -> None:
        if self._begun:
            self._words.append(0)
            self._owners.append((self._file, len(self._words)))
        self._held, self._tiny, self._begun = [], "", False

    def search(self, *sets: Iterable[tuple[Key, str]]) -> list[list[Hit[Key]]]:
        """Look for texts in everything that was added.

        Args:
            sets: Keys and texts. What is common in one of the sets counts in none.

        Returns:
            The hits of each set: file by file, texts in their order.
        """
        self._close()
        index = _Index(self._vocabulary, self._words, self._owners)
        looked_up = [_looked_up(index, texts) for texts in sets]
        counts = index.telling.copy()
        for found in looked_up:
            allowed = min(max(COMMON_LEAST, COMMON_SHARE * found.n_texts), COMMON_MOST)
            counts &= found.n_with <= allowed
        return [
            [
                Hit(file, found.keys[text][0], share)
                for (file, text), share in sorted(_shares(index, found, counts).items())
            ]
            for found in looked_up
        ]


class _Runs(NamedTuple):
    """All runs of one length in the files: sorted keys, and the files that each stands in."""

    keys: Numbers
    starts: Numbers
    files: Numbers

    def spread(self, ranks: Numbers) -> tuple[Numbers, Numbers]:
        """Every pair of a run and a file that it stands in: places in `ranks`, and files."""
        counts = self.starts[ranks] - self.starts[ranks - 1]
        places = np.repeat(np.arange(len(ranks)), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self.files[self.starts[ranks - 1][places] + within]


class _Index:
    """The runs of words in the files, each with a number from 1; exact, nothing is hashed.

    A run of 13 words is known by its two runs of 8, five words apart, those by two runs of 4, and
    so on: a run's key is the numbers of its two parts, its number the place of that key among all.
    """

    def __init__(
        self, vocabulary: dict[str, int], words: "array[int]", owners: list[tuple[int, int]]
    ) -> None:
        self.vocabulary = vocabulary
        self._flat = np.array(words, dtype=np.int32)
        lengths = np.diff([0, *(end for _, end in owners)])
        self._owner = np.repeat(np.array([f for f, _ in owners], dtype=np.int64), lengths)
        self._is_word = np.array([False, *(not w.isnumeric() for w in vocabulary)])
        self._tables: list[Numbers] = []
        self._short: dict[int, tuple[_Runs, npt.NDArray[np.bool_]]] = {}
        levels = [self._flat]
        for step in STEPS:
            keys = _paired(levels[-1], step)
            self._tables.append(np.unique(keys[keys > 0]))
            levels.append(_ranks(self._tables[-1], keys))
        self._fours, self._eights = levels[2], levels[3]
        self.runs = self._runs(self._tables[-1], levels[-1])
        self.telling = self._telling(levels[-1], WORDS, len(self.runs.keys))

    def climb(self, words: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
        """The runs of 4, 8 and 13 words that begin at each word; 0 where the files lack it."""
        levels = [words]
        for step, table in zip(STEPS, self._tables, strict=True):
            levels.append(_ranks(table, _paired(levels[-1], step)))
        return levels[2:]

    def short(self, length: int) -> tuple[_Runs, npt.NDArray[np.bool_]]:
        """The runs of 5 to 12 words, and which of them (by number) are worth finding."""
        if length not in self._short:
            ranks, part = (self._fours, 4) if length <= 8 else (self._eights, 8)
            pairs = _paired(ranks, length - part)
            keys: Numbers = np.unique(pairs[pairs > 0])
            numbers = _ranks(keys, pairs)
            telling = self._telling(numbers, length, len(keys))
            self._short[length] = self._runs(keys, numbers), telling
        return self._short[length]

    def _runs(self, keys: Numbers, ranks: npt.NDArray[np.int32]) -> _Runs:
        places = np.flatnonzero(ranks)
        n_files = int(self._owner.max(initial=0)) + 1
        pairs = np.unique(ranks[places].astype(np.int64) * n_files + self._owner[places])
        starts = np.searchsorted(pairs // n_files, np.arange(1, len(keys) + 2))
        return _Runs(keys, starts, pairs % n_files)

    def _telling(
        self, ranks: npt.NDArray[np.int32], length: int, n_runs: int
    ) -> npt.NDArray[np.bool_]:
        """Which runs hold enough different words that are not numbers; shape (n_runs + 1,)."""
        telling = np.zeros(n_runs + 1, dtype=np.bool_)
        if not n_runs:
            return telling
        places = np.flatnonzero(ranks)
        where = np.zeros(n_runs + 1, dtype=np.int64)
        where[ranks[places]] = places
        windows = np.lib.stride_tricks.sliding_window_view(
            np.where(self._is_word[self._flat], self._flat, 0), length
        )
        for begin in range(1, n_runs + 1, BLOCK):
            some = np.sort(windows[where[begin : begin + BLOCK]], axis=1)
            new = np.diff(some, axis=1, prepend=0) != 0
            telling[begin : begin + BLOCK] = new.sum(axis=1) >= TELLING
        return telling


def _paired(ranks: npt.NDArray[np.int32], step: int) -> Numbers:
    """Keys of two runs `step` words apart, 0 where one of them is unknown."""
    keys = np.zeros(len(ranks), dtype=np.int64)
    if len(ranks) > step:
        left, right = ranks[: len(ranks) - step], ranks[step:]
        known = (left > 0) & (right > 0)
        keys[: len(left)][known] = (left[known].astype(np.int64) << 32) | right[known]
    return keys


def _ranks(table: Numbers, keys: Numbers) -> npt.NDArray[np.int32]:
    """The place of each key among the sorted ones, from 1; 0 where it is not there."""
    ranks = np.zeros(len(keys), dtype=np.int32)
    places = np.flatnonzero(keys)
    if len(table) and len(places):
        places = places[np.argsort(keys[places])]  # in order, the search stays within the cache
        wanted = keys[places]
        near = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
        ranks[places] = np.where(table[near] == wanted, near + 1, 0)
    return ranks


class _Found(Generic[Key]):
    """What one set of texts shares with the files."""

    def __init__(self, n_runs: int) -> None:
        self.n_texts = 0
        self.n_with = np.zeros(n_runs + 1, dtype=np.int32)  # texts that hold each run
        self.keys: dict[int, tuple[Key, int]] = {}  # and words, of the texts that share something
        self.shared: list[Numbers] = []  # rows of text, place of the run in it, run
        self.whole: set[tuple[int, int]] = set()  # file and text


def _looked_up(index: _Index, texts: Iterable[tuple[Key, str]]) -> _Found[Key]:
    found: _Found[Key] = _Found(len(index.runs.keys))
    for keys, lengths, words in _blocks(index, texts, found):
        starts = np.cumsum(lengths + 1) - lengths - 1
        fours, eights, runs = index.climb(words)
        first = found.n_texts - len(keys)
        touched = {
            *_long(index, found, runs, starts=starts, lengths=lengths, first=first),
            *_short(index, found, (fours, eights), starts=starts, lengths=lengths, first=first),
        }
        for text in touched:
            found.keys[text] = keys[text - first], int(lengths[text - first])
    return found


def _blocks(
    index: _Index, texts: Iterable[tuple[Key, str]], found: _Found[Key]
) -> Iterator[tuple[list[Key], Numbers, npt.NDArray[np.int32]]]:
    """Texts by the block: keys, words of each, and all words by number with a 0 after each text."""
    number = index.vocabulary.get
    keys: list[Key] = []
    lengths: list[int] = []
    flat = array("i")
    for key, text in texts:
        words = words_of(text)
        if len(words) < FEWEST:
            continue
        found.n_texts += 1
        keys.append(key)
        lengths.append(len(words))
        flat.extend(map(number, words, repeat(0)))
        flat.append(0)
        if len(flat) >= BLOCK:
            yield keys, np.array(lengths, dtype=np.int64), np.array(flat, dtype=np.int32)
            keys, lengths, flat = [], [], array("i")
    if keys:
        yield keys, np.array(lengths, dtype=np.int64), np.array(flat, dtype=np.int32)


def _long(
    index: _Index,
    found: _Found[Key],
    runs: npt.NDArray[np.int32],
    *,
    starts: Numbers,
    lengths: Numbers,
    first: int,
) -> set[int]:
    """Keep what the texts of a block share with the files; the texts that share something."""
    places = np.flatnonzero(runs)
    if not len(places):
        return set()
    shared = runs[places].astype(np.int64)
    texts = np.searchsorted(starts, places, side="right") - 1
    n_runs = len(found.n_with)
    distinct = np.unique(texts * n_runs + shared)
    once, counts = np.unique(distinct % n_runs, return_counts=True)
    found.n_with[once] += counts.astype(np.int32)

    rows, files = index.runs.spread(shared)
    n_files = int(files.max()) + 1
    pairs, counts = np.unique(texts[rows] * n_files + files, return_counts=True)
    whole = pairs[counts == lengths[pairs // n_files] - WORDS + 1]
    found.whole |= {(int(p % n_files), first + int(p // n_files)) for p in whole}

    kept = index.telling[shared] & (found.n_with[shared] <= COMMON_MOST)
    row = np.stack([texts + first, places - starts[texts], shared], axis=1)[kept]
    found.shared.append(row)
    return {*row[:, 0].tolist(), *(first + int(p // n_files) for p in whole)}


def _short(
    index: _Index,
    found: _Found[Key],
    levels: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
    *,
    starts: Numbers,
    lengths: Numbers,
    first: int,
) -> set[int]:
    """Find the texts of 5 to 12 words that stand in a row; returns which."""
    touched: set[int] = set()
    for length in range(FEWEST, WORDS):
        # A text's run of 4 or 8 words is nearly always unknown: then there is nothing to do.
        ranks, part = (levels[0], 4) if length <= 8 else (levels[1], 8)
        texts = np.flatnonzero((lengths == length) & (ranks[starts] > 0))
        if not len(texts):
            continue
        left, right = ranks[starts[texts]], ranks[starts[texts] + length - part]
        runs, telling = index.short(length)
        numbers = _ranks(runs.keys, np.where(right > 0, (left.astype(np.int64) << 32) | right, 0))
        texts, numbers = texts[telling[numbers]], numbers[telling[numbers]]
        rows, files = runs.spread(numbers.astype(np.int64))
        for text, file in zip((texts[rows] + first).tolist(), files.tolist(), strict=True):
            found.whole.add((file, text))
            touched.add(text)
    return touched


def _shares(
    index: _Index, found: _Found[Key], counts: npt.NDArray[np.bool_]
) -> dict[tuple[int, int], float]:
    """By file and text: the share of the text's words that were found, where that is enough."""
    shares = dict.fromkeys(found.whole, 1.0)
    if not found.shared:
        return shares
    text, place, run = np.concatenate(found.shared).T
    counted = counts[run]
    text, place, run = text[counted], place[counted], run[counted]
    rows, file = index.runs.spread(run)
    order = np.lexsort((place[rows], text[rows], file))
    file, text, place = file[order], text[rows][order], place[rows][order]
    # Runs overlap: each adds the words from its start to the next one's, the last all of its own.
    same = (file[1:] == file[:-1]) & (text[1:] == text[:-1])
    added = np.full(len(file), WORDS)
    added[:-1][same] = np.minimum(np.diff(place)[same], WORDS)
    first = np.flatnonzero(np.concatenate(([True], ~same))[: len(file)])
    for start, total in zip(
        first, np.add.reduceat(added, first) if len(first) else [], strict=True
    ):
        n_words = found.keys[int(text[start])][1]
        if total >= min(ENOUGH_WORDS, ENOUGH_SHARE * n_words):
            shares.setdefault((int(file[start]), int(text[start])), int(total) / n_words)
    return shares
