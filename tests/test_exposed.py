"""Exposed records: who is found only with the compressed versions, and how many by chance."""

import math

import numpy as np
import pytest

from auditor.leakage.exposed import find_exposed


def test_a_case_that_can_be_counted_by_hand() -> None:
    # 1,000 nonmembers at 0.001 .. 1.000: at 1% ten may be flagged, the threshold is 0.990.
    nonmembers = np.arange(1, 1001) / 1000
    #                    both   original  together  neither  together  at the edge
    original = np.array([0.995, 0.991, 0.5, 0.2, 0.990, 0.5])
    together = np.array([0.999, 0.3, 0.992, 0.2, 0.998, 0.990])
    swapped = nonmembers.copy()
    # Three of the ten that the original flags change places with three that it does not.
    swapped[[997, 998, 999, 0, 1, 2]] = swapped[[0, 1, 2, 997, 998, 999]]
    found = find_exposed(
        [*"abcdef", *map(str, range(1000))],
        np.arange(1006) < 6,
        np.concatenate([original, nonmembers]),
        np.concatenate([together, swapped]),
        fprs=(0.001, 0.01, 0.05),
    )
    assert found.fpr == 0.01
    assert (found.n_found_original, found.n_found_together) == (2, 3)
    assert (found.n_newly, found.n_no_longer) == (2, 1)
    assert found.ids == ["e", "c"]
    assert found.expected_by_chance == 1.5
    assert found.n_expected_of_nonmembers == pytest.approx(6 * 3 / 1000)
    assert found.absent is None


def test_members_may_stand_anywhere_in_the_list() -> None:
    rng = np.random.default_rng(0)
    member = rng.random(2600) < 0.5
    original, together = rng.normal(size=(2, 2600))
    ids = np.array([f"id{i}" for i in range(2600)])
    found = find_exposed(ids, member, original, together, fprs=(0.01,))
    after = together > np.sort(together[~member])[-math.floor(0.01 * (~member).sum()) - 1]
    before = original > np.sort(original[~member])[-math.floor(0.01 * (~member).sum()) - 1]
    expected = [i for i in np.argsort(-together) if member[i] and after[i] and not before[i]]
    assert found.ids == [f"id{i}" for i in expected]
    assert found.n_newly == len(expected) > 5


@pytest.mark.parametrize(
    ("n", "fprs", "fpr"),
    [
        (1000, (0.001, 0.01, 0.05), 0.01),
        (999, (0.001, 0.01, 0.05), 0.05),
        (10_000, (0.001, 0.05), 0.001),
        (199, (0.001, 0.01, 0.05), None),
        (11, (0.95,), 0.95),
    ],
)
def test_the_rate_is_one_that_the_counts_support(
    n: int, fprs: tuple[float, ...], fpr: float | None
) -> None:
    signal = np.random.default_rng(1).normal(size=(2, n + 50))
    member = np.arange(n + 50) < 50
    found = find_exposed([str(i) for i in range(n + 50)], member, *signal, fprs=fprs)
    assert found.fpr == fpr
    assert (found.absent is None) == (fpr is not None)
    if fpr is None:
        assert found.absent == "TPR at FPR 0.05 needs 200 nonmembers; there are 199"
        assert found.n_newly is None
        assert found.ids == []


def test_the_same_signal_exposes_nobody() -> None:
    signal = np.random.default_rng(2).normal(size=2000)
    member = np.arange(2000) < 1000
    found = find_exposed(list(map(str, range(2000))), member, signal, signal, fprs=(0.01,))
    assert (found.n_newly, found.n_no_longer, found.expected_by_chance) == (0, 0, 0.0)


@pytest.mark.parametrize("n_nonmembers", [1000, 3000])
@pytest.mark.parametrize("leak", [0.0, 1.5])
def test_chance_is_what_chance_gives(n_nonmembers: int, leak: float) -> None:
    """Two views of one signal that are equally noisy, whether it leaks or not.

    As many are newly found as are expected, on average. As large a share of the members as of the
    nonmembers is newly found only where nothing leaks.
    """
    rng = np.random.default_rng(3)
    n, trials = 1000 + n_nonmembers, 2000
    member = np.arange(n) < 1000
    ids = [""] * n
    newly, expected, alike = np.empty((3, trials))
    for trial in range(trials):
        shared, *own = rng.normal(size=(3, n))
        shared += leak * member
        found = find_exposed(ids, member, shared + own[0], shared + own[1], fprs=(0.01,))
        newly[trial], expected[trial] = found.n_newly, found.expected_by_chance
        alike[trial] = found.n_expected_of_nonmembers
    gap = newly - expected
    assert abs(gap.mean()) < 3 * gap.std() / math.sqrt(trials)
    assert newly.mean() > 5
    gap = newly - alike
    assert (abs(gap.mean()) < 3 * gap.std() / math.sqrt(trials)) == (leak == 0)


def test_planted_members_are_exposed_beyond_chance() -> None:
    rng = np.random.default_rng(4)
    member = np.arange(4000) < 2000
    shared, *own = rng.normal(size=(3, 4000))
    planted = np.arange(4000) < 100
    together = shared + own[1] + 8.0 * planted
    found = find_exposed(
        [str(i) for i in range(4000)], member, shared + own[0], together, fprs=(0.01,)
    )
    assert found.n_newly is not None
    assert found.expected_by_chance is not None
    assert found.n_newly > 80 + (found.n_expected_of_nonmembers or 0.0)
    assert {int(name) for name in found.ids[:50]} <= set(range(100))
