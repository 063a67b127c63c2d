"""Folds: stratified, near-duplicates together, every record held out once, nothing beyond a cap."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import ConfigError, RecordsError
from auditor.leakage import folds as module
from auditor.leakage.folds import N_INNER, Folds, at_most, draw_folds, must_fill, stratified
from auditor.leakage.shadow import Shadow, Shadowed
from tests.leakage_cases import make_case


def singles(n: int) -> np.ndarray:
    return np.arange(n)


def side_counts(number: np.ndarray, member: np.ndarray, n_folds: int) -> np.ndarray:
    """Records by fold and side, shape (n_folds, 2)."""
    return np.stack([np.bincount(number[member == side], minlength=n_folds) for side in (0, 1)], 1)


def alike(member: np.ndarray, groups: np.ndarray, *, n_folds: int = 5, seed: int = 0) -> Folds:
    return draw_folds(member, groups, n_folds=n_folds, n_repeats=2, seed=seed)


@given(
    n_members=st.integers(0, 60),
    n_nonmembers=st.integers(0, 60),
    n_folds=st.integers(2, 10),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_each_side_is_shared_out_evenly(
    n_members: int, n_nonmembers: int, n_folds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(n_members + n_nonmembers) < n_members)
    number = stratified(member, singles(len(member)), n_folds, rng)
    counts = side_counts(number, member, n_folds)
    assert counts.sum() == len(member)
    assert (np.ptp(counts, axis=0) <= 1).all()


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=25),
    n_folds=st.integers(2, 6),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=200)
def test_groups_are_whole_and_even_out(sizes: list[int], n_folds: int, seed: int) -> None:
    """Groups of one side each: no fold is ahead of another by more than the largest group."""
    rng = np.random.default_rng(seed)
    side = rng.random(len(sizes)) < 0.5
    order = rng.permutation(sum(sizes))
    groups = np.repeat(rng.permutation(len(sizes)) * 7, sizes)[order]
    member = np.repeat(side, sizes)[order]
    number = stratified(member, groups, n_folds, rng)
    assert ((number >= 0) & (number < n_folds)).all()
    for group in set(groups):
        assert len(set(number[groups == group])) == 1
    counts = side_counts(number, member, n_folds)
    for which in (0, 1):
        largest = max((size for size, s in zip(sizes, side, strict=True) if s == which), default=0)
        assert np.ptp(counts[:, which]) <= largest


def test_single_records_fill_up_what_a_large_group_leaves() -> None:
    """The others end as equal as they can, whichever fold it fell into."""
    groups = np.concatenate([np.zeros(100, np.int64), np.arange(1, 51), np.arange(51, 201)])
    member = np.arange(300) < 150
    for seed in range(10):
        number = stratified(member, groups, 5, np.random.default_rng(seed))
        counts = side_counts(number, member, 5)
        assert sorted(counts[:, 1]) == [12, 12, 13, 13, 100]
        assert sorted(counts[:, 0]) == [30] * 5


def test_groups_of_both_sides_are_weighed_by_both() -> None:
    """Pairs of a member and a nonmember, as near-duplicates across the sides are."""
    member = np.tile([True, False], 53)
    number = stratified(member, np.repeat(np.arange(53), 2), 5, np.random.default_rng(0))
    assert (np.ptp(side_counts(number, member, 5), axis=0) <= 1).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_every_record_is_held_out_once_in_a_repeat(grouped: bool) -> None:
    rng = np.random.default_rng(1)
    member = rng.random(203) < 0.5
    groups = rng.integers(0, 90, 203) if grouped else singles(203)
    folds = draw_folds(member, groups, n_folds=4, n_repeats=3, seed=7)
    assert [len(parts) for parts in folds.repeats] == [4, 4, 4]
    for parts in folds.repeats:
        assert sorted(np.concatenate([part.test for part in parts])) == list(range(203))
        for part in parts:
            assert sorted([*part.train, *part.test]) == list(range(203))
            assert set(part.choosing) <= set(part.train)
            assert not set(groups[part.test]) & set(groups[part.train])
            assert part.inner.shape == part.choosing.shape
            assert set(part.inner) == set(range(N_INNER))
            for group in set(groups[part.choosing]):
                assert len(set(part.inner[groups[part.choosing] == group])) == 1
            if not grouped:
                assert (np.ptp(side_counts(_numbers(parts), member, 4), axis=0) <= 1).all()
                inner = side_counts(part.inner, member[part.choosing], N_INNER)
                assert (np.ptp(inner, axis=0) <= 1).all()
    assert folds.overlap == pytest.approx(3 / 4)


def _numbers(parts: list[module.Part]) -> np.ndarray:
    number = np.empty(sum(len(part.test) for part in parts), dtype=np.int64)
    for k, part in enumerate(parts):
        number[part.test] = k
    return number


def test_the_seed_decides_and_repeats_differ() -> None:
    member, groups = np.arange(120) < 60, np.arange(120) // 2
    first, again, other = (alike(member, groups, seed=seed) for seed in (3, 3, 4))
    for parts, same in zip(first.repeats, again.repeats, strict=True):
        for part, twin in zip(parts, same, strict=True):
            for one, two in zip(part, twin, strict=True):
                np.testing.assert_array_equal(one, two)
    numbers = [_numbers(parts) for parts in (*first.repeats, *other.repeats)]
    for a in range(4):
        for b in range(a):
            assert (numbers[a] != numbers[b]).any()


def test_folds_do_not_follow_the_order_of_the_file() -> None:
    """Every record is as likely in every fold: positions give nothing away."""
    member, draws = np.arange(20) < 10, 600
    held = np.zeros((5, 20))
    for seed in range(draws):
        number = stratified(member, singles(20), 5, np.random.default_rng(seed))
        held[number, np.arange(20)] += 1
    # 100 cells: four and a half binomial standard errors.
    assert np.abs(held / draws - 0.2).max() < 4.5 * np.sqrt(0.2 * 0.8 / draws)


def test_what_is_learned_from_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TRAINED", 90)
    monkeypatch.setattr(module, "MOST_CHOOSING", 40)
    rng = np.random.default_rng(2)
    member, groups = rng.random(240) < 0.5, rng.integers(0, 150, 240)
    folds = draw_folds(member, groups, n_folds=3, n_repeats=20, seed=1)
    for parts in folds.repeats:
        assert sorted(np.concatenate([part.test for part in parts])) == list(range(240))
        for part in parts:
            assert len(part.train) == len(set(part.train)) == 90
            assert len(part.choosing) == len(set(part.choosing)) == len(part.inner) == 40
            assert (np.diff(part.train) > 0).all()
            assert set(part.choosing) <= set(part.train)
            assert not set(groups[part.test]) & set(groups[part.train])
            for group in set(groups[part.choosing]):
                assert len(set(part.inner[groups[part.choosing] == group])) == 1
    assert folds.overlap == pytest.approx(90 / 240)


@pytest.mark.parametrize("capped", [False, True])
def test_overlap_is_what_two_learners_share(monkeypatch: pytest.MonkeyPatch, capped: bool) -> None:
    """Counted: of two repeats, the learners that judge the same record."""
    if capped:
        monkeypatch.setattr(module, "MOST_TRAINED", 50)
    member = np.arange(150) < 75
    folds = draw_folds(member, singles(150), n_folds=3, n_repeats=12, seed=5)
    shared = []
    for a in range(0, 12, 2):
        for own in folds.repeats[a]:
            for other in folds.repeats[a + 1]:
                judged = len(np.intersect1d(own.test, other.test))
                common = len(np.intersect1d(own.train, other.train)) / len(own.train)
                shared += [common] * judged
    # The record that both hold out is one that both lack: 1 / n at most.
    assert np.mean(shared) == pytest.approx(folds.overlap, abs=0.02)


def test_at_most() -> None:
    rng = np.random.default_rng(0)
    rows = np.array([3, 5, 9, 11])
    assert at_most(rows, 4, rng) is rows
    drawn = at_most(rows, 2, rng)
    assert len(drawn) == 2
    assert drawn[0] < drawn[1]
    assert set(drawn) <= set(rows)


def test_too_few_records_for_the_folds() -> None:
    must_fill(5, 15, 15)
    for n_members, n_nonmembers in ((14, 200), (200, 14)):
        with pytest.raises(ConfigError, match="5 folds need at least 15 members") as refused:
            must_fill(5, n_members, n_nonmembers)
        assert refused.value.seen == f"{n_members} members and {n_nonmembers} nonmembers"
        assert "--folds" in str(refused.value.fix)
    with pytest.raises(ConfigError, match="need at least 30 members"):
        draw_folds(np.arange(50) < 25, singles(50), n_folds=10, n_repeats=1, seed=0)


def test_one_large_group_is_held_out_at_once() -> None:
    """Three of five records alike: no crash, whole, and every learner still sees both sides."""
    n = 300
    groups = np.where(np.arange(n) % 5 < 3, 0, np.arange(n) + 1)
    member = np.arange(n) % 2 == 0
    folds = alike(member, groups)
    for parts in folds.repeats:
        assert sorted(np.concatenate([part.test for part in parts])) == list(range(n))
        for part in parts:
            assert not set(groups[part.test]) & set(groups[part.train])
            for rows in (part.train, *(part.choosing[part.inner != k] for k in range(N_INNER))):
                assert 0 < member[rows].sum() < len(rows)


@pytest.mark.parametrize("which", ["members", "nonmembers", "everything", "two heaps"])
def test_near_duplicates_that_leave_nothing_to_learn_from_are_refused(which: str) -> None:
    """A side that is one heap of near-duplicates cannot be both learned from and held out."""
    n = 200
    member = np.arange(n) < 100
    heap = {
        "members": member,
        "nonmembers": ~member,
        "everything": np.ones(n, dtype=bool),
        "two heaps": member,
    }[which]
    groups = np.where(heap, 0, np.arange(n) + 1)
    if which == "two heaps":  # enough for the outer folds, not for the inner ones
        groups[50:100] = 1
    with pytest.raises(RecordsError, match="near-duplicates") as refused:
        alike(member, groups)
    assert re.match(r"200 records in \d+ groups .* \d+ in the largest", refused.value.seen)
    assert "near-duplicates" in refused.value.fix


def test_a_shadow_of_near_duplicates_is_refused_too() -> None:
    case = make_case(np.random.default_rng(0), 120)
    groups = np.where(case.is_member, 0, np.arange(120))
    with pytest.raises(RecordsError, match="near-duplicates"):
        Shadowed(
            case.blocks(),
            case.is_member,
            Shadow(case.blocks(), case.is_member, groups),
            order=tuple(case.versions),
            seed=0,
        )
