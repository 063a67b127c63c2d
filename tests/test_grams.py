"""Near-duplicates by shared 13-grams: across the sides, and in groups; against plain sets."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor import grams as module
from auditor.grams import GramSample, word_grams


def grams_of(text: str) -> frozenset[tuple[str, ...]]:
    words = text.lower().split()
    if not words:
        return frozenset()
    return frozenset(tuple(words[i : i + 13]) for i in range(max(1, len(words) - 12)))


def sampled(texts: list[str], *, most: int = module.MOST) -> GramSample:
    sample = GramSample(most=most)
    for text in texts:
        sample.add(text)
    return sample


def naive_near(texts: list[str], member: list[bool]) -> list[bool]:
    found = []
    for text, side in zip(texts, member, strict=True):
        others = [grams_of(t) for t, s in zip(texts, member, strict=True) if s != side]
        other: set[tuple[str, ...]] = set().union(*others)
        own = grams_of(text)
        found.append(bool(own) and 2 * len(own & other) >= len(own))
    return found


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_near_duplicates_against_plain_sets(data: st.DataObject) -> None:
    base = [f"w{i}" for i in range(40)]
    texts, member = [], []
    for _ in range(data.draw(st.integers(1, 8))):
        start, size = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 40))
        texts.append(" ".join(base[start : start + size]))
        member.append(data.draw(st.booleans()))
    usable = np.ones(len(texts), bool)
    assert sampled(texts).near_duplicates(np.array(member), usable).tolist() == naive_near(
        texts, member
    )


def test_thinned_grams_still_find_copies() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**6, 200))) for _ in range(60)]
    changed = [" ".join(text.split()[:180]) for text in texts[:30]]
    sample = sampled(texts + changed, most=4000)
    member = np.arange(90) < 60
    found = sample.near_duplicates(member, np.ones(90, bool))
    assert found.tolist() == [True] * 30 + [False] * 30 + [True] * 30
    assert sum(len(word_grams(text)) for text in texts + changed) > 2 * 4000


# -- groups --------------------------------------------------------------------------------------


def naive_groups(texts: list[str], usable: list[bool], holders: int) -> list[int]:
    """Every pair compared as sets; groups grown one by one."""
    sets = {i: grams_of(text) for i, text in enumerate(texts) if usable[i]}
    distinct = set(sets.values())
    common = {g for one in distinct for g in one if sum(g in o for o in distinct) > holders}

    def alike(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> bool:
        shorter = min(len(a - common), len(b - common))
        return a == b or (shorter > 0 and 2 * len((a & b) - common) >= shorter)

    found, n_groups = [-1] * len(texts), 0
    for i in sets:
        if found[i] >= 0:
            continue
        waiting = [i]
        while waiting:
            one = waiting.pop()
            found[one] = n_groups
            waiting += [j for j in sets if found[j] < 0 and alike(sets[one], sets[j])]
        n_groups += 1
    return found


@st.composite
def texts_of_pieces(draw: st.DrawFn) -> list[str]:
    """Texts of runs of words from a few sources, so that they share much, little and nothing."""
    size = st.integers(0, 25)
    piece = st.tuples(st.sampled_from("abc"), st.integers(0, 12), size)
    texts = []
    for pieces in draw(st.lists(st.lists(piece, max_size=3), min_size=1, max_size=14)):
        words = [f"{name}{start + i}" for name, start, length in pieces for i in range(length)]
        texts.append(" ".join(words))
    again = draw(st.lists(st.sampled_from(texts), max_size=3))
    return draw(st.permutations(texts + [text.upper() for text in again]))


@given(texts=texts_of_pieces(), holders=st.integers(1, 6), data=st.data())
@settings(deadline=None, max_examples=400)
def test_groups_against_plain_sets(texts: list[str], holders: int, data: st.DataObject) -> None:
    usable = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    block, products = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 20, 2**22]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "PRODUCTS", products)
        patch.setattr(module, "PAIRS", data.draw(st.sampled_from([0, 3, 2**22])))
        sample = sampled(texts)
        found = sample.groups(np.array(usable), holders=holders)
    assert found.dtype == np.int64
    assert found.tolist() == naive_groups(texts, usable, holders)
    # Asked once more, and after the other question, it says the same.
    sample.near_duplicates(np.arange(len(texts)) % 2 == 0, np.array(usable))
    assert sample.groups(np.array(usable), holders=holders).tolist() == found.tolist()


@given(texts=texts_of_pieces(), most=st.sampled_from([8, 40, module.MOST]), data=st.data())
@settings(deadline=None, max_examples=100)
def test_who_belongs_together_does_not_depend_on_the_order(
    texts: list[str], most: int, data: st.DataObject
) -> None:
    def together(found: list[int]) -> npt.NDArray[np.bool_]:
        return np.equal.outer(found, found)

    usable = np.ones(len(texts), bool)
    order = data.draw(st.permutations(range(len(texts))))
    first = sampled(texts, most=most).groups(usable, holders=4).tolist()
    again = sampled([texts[i] for i in order], most=most).groups(usable, holders=4).tolist()
    assert (together(again) == together(first)[np.ix_(order, order)]).all()
    # Numbered in the order of each group's first record.
    assert list(dict.fromkeys(again)) == list(range(max(again) + 1))


def own_words(number: int, count: int) -> list[str]:
    return [f"r{number}w{i}" for i in range(count)]


def test_boilerplate_neither_glues_nor_hides() -> None:
    boilerplate = [f"b{i}" for i in range(200)]
    texts = [" ".join(boilerplate + own_words(i, 30)) for i in range(120)]
    texts += [" ".join(boilerplate + own_words(i, 25)) for i in range(10)]  # twins of the first
    texts += [" ".join(boilerplate)] * 2  # nothing but boilerplate, twice
    found = sampled(texts).groups(np.ones(len(texts), bool)).tolist()
    assert found == [*range(120), *range(10), 120, 120]
    # Held by no more than 50, the same words are what records share.
    few = sampled(texts[:50]).groups(np.ones(50, bool))
    assert few.tolist() == [0] * 50
    assert sampled(texts[:51]).groups(np.ones(51, bool)).tolist() == list(range(51))


def test_copies_count_as_one_record() -> None:
    """A text that stands there a hundred times is no boilerplate, and its near-copy joins it."""
    text = [f"w{i}" for i in range(40)]
    texts = [" ".join(text)] * 100 + [" ".join(text[:35])]
    assert sampled(texts).groups(np.ones(101, bool)).tolist() == [0] * 101


def test_half_of_the_shorter_one_is_enough() -> None:
    words = [f"w{i}" for i in range(400)]
    long = " ".join(words)
    # 20 grams each: 10 of the long text, and 9.
    half = " ".join(words[:22] + own_words(1, 10))
    less = " ".join(words[100:121] + own_words(2, 11))
    assert [len(word_grams(text)) for text in (half, less)] == [20, 20]
    assert sampled([less, long, half]).groups(np.ones(3, bool)).tolist() == [0, 1, 1]


def test_a_chain_is_one_group() -> None:
    words = [f"w{i}" for i in range(400)]
    links = [" ".join(words[i : i + 40]) for i in range(0, 100, 10)]
    assert sampled(links[::3]).groups(np.ones(4, bool)).tolist() == [0, 1, 2, 3]
    assert sampled(links).groups(np.ones(10, bool)).tolist() == [0] * 10


def test_groups_of_thinned_grams() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**6, 200))) for _ in range(60)]
    near = [" ".join(text.split()[:180]) for text in texts[:30]]
    short = [f"only {i}" for i in range(40)]
    everything = [*texts, *near, *short, *(text.upper() for text in short)]
    sample = sampled(everything, most=3000)
    assert sum(len(word_grams(text)) for text in everything) > 4 * 3000
    found = sample.groups(np.ones(len(everything), bool)).tolist()
    # Of many a short one nothing is left: it is a group of its own, with its copies alone.
    copies = list(range(60, 100))
    assert found == [*range(60), *range(30), *copies, *copies]


def test_nothing_usable() -> None:
    assert GramSample().groups(np.zeros(0, bool)).tolist() == []
    assert sampled(["a b", "c"]).groups(np.zeros(2, bool)).tolist() == [-1, -1]
    assert sampled(["", "a b", " "]).groups(np.ones(3, bool)).tolist() == [0, 1, 0]
