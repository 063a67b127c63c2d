"""The best of many: against a loop over permutations, under the null, and with a planted signal."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import norm, permutation_test

from auditor.stats import selection
from auditor.stats.roc import auc
from auditor.stats.selection import best_of

LABELS = np.arange(120) < 50


def naive(signals, is_member, permutations, seed):
    """One permutation and one signal at a time; AUCs as fractions of integers."""

    def twice_won(signal, labels):
        difference = signal[labels][:, None] - signal[~labels][None, :]
        return int((difference > 0).sum() * 2 + (difference == 0).sum())

    observed = [twice_won(signal, is_member) for signal in signals]
    rng = np.random.default_rng(seed)
    n_as_good = 0
    for _ in range(permutations):
        drawn = rng.permutation(is_member)
        n_as_good += max(twice_won(signal, drawn) for signal in signals) >= max(observed)
    row = observed.index(max(observed))
    return row, max(observed) / 2 / is_member.sum() / (~is_member).sum(), n_as_good


def noise(rng, a, n, digits=12):
    return np.round(rng.normal(size=(a, n)), digits)


def test_every_relabelling_is_counted_exactly_whatever_the_ties(monkeypatch):
    """All 70 ways to label 8 records in the place of draws: no chance is left in the p-value."""
    ways = np.zeros((70, 8), dtype=bool)
    for way, chosen in zip(ways, itertools.combinations(range(8), 4), strict=True):
        way[list(chosen)] = True

    class EveryWay:
        def permuted(self, labels, axis):
            assert labels.shape == (70, 8)
            return ways

    monkeypatch.setattr(selection.np.random, "default_rng", lambda seed: EveryWay())
    rng = np.random.Generator(np.random.PCG64(50))
    for digits in (0, 12):
        for _ in range(20):
            signals, labels = noise(rng, 3, 8, digits), ways[rng.integers(70)]
            found = best_of(signals, labels, permutations=70, seed=0)
            areas = [max(auc(s[way], s[~way]) for s in signals) for way in ways]
            observed = [auc(s[labels], s[~labels]) for s in signals]
            n_as_good = sum(area >= max(observed) - 1e-9 for area in areas)
            assert found == (int(np.argmax(observed)), max(observed), (1 + n_as_good) / 71)


@pytest.mark.parametrize("digits", [0, 1, 12])
def test_the_p_value_is_that_of_a_loop_over_permutations(digits):
    rng, draws = np.random.default_rng(51), 2000
    signals = noise(rng, 4, 120)
    signals[2, LABELS] += 0.25
    signals = np.round(signals, digits)
    found = best_of(signals, LABELS, permutations=draws, seed=1)
    row, area, n_as_good = naive(signals, LABELS, draws, seed=2)
    assert (found.row, found.auc) == (row, pytest.approx(area, abs=1e-12))
    spread = math.sqrt(2 * found.p_value * (1 - found.p_value) / draws)
    assert 0.001 < found.p_value < 0.9
    assert found.p_value == pytest.approx((1 + n_as_good) / (1 + draws), abs=4 * spread)


def test_of_one_signal_it_is_scipys_permutation_test():
    rng = np.random.default_rng(52)
    signal = np.round(rng.normal(size=(1, 40)), 1)
    labels = np.arange(40) < 15
    signal[0, labels] += 0.4
    ours = best_of(signal, labels, permutations=20_000, seed=0)
    theirs = permutation_test(
        (signal[0, labels], signal[0, ~labels]),
        auc,
        n_resamples=4000,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    assert ours.auc == pytest.approx(theirs.statistic, abs=1e-12)
    spread = math.sqrt(theirs.pvalue * (1 - theirs.pvalue) / 4000)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=4 * spread)


@pytest.mark.parametrize("cells", [1, 1000, 4_000_000])
def test_the_chunks_do_not_matter(monkeypatch, cells):
    signals = noise(np.random.default_rng(53), 5, 120)
    expected = best_of(signals, LABELS, permutations=300, seed=4)
    monkeypatch.setattr(selection, "CHUNK_CELLS", cells)
    assert best_of(signals, LABELS, permutations=300, seed=4) == expected


def test_labels_that_could_not_be_better_have_the_smallest_p_value():
    signals = np.stack([LABELS[::-1] * 1.0, LABELS * 1.0, LABELS * 2.0])
    found = best_of(signals, LABELS, permutations=99, seed=0)
    assert found == (1, 1.0, 1 / 100)


def test_a_constant_signal_is_no_finding():
    found = best_of(np.zeros((3, 120)), LABELS, permutations=99, seed=0)
    assert found == (0, 0.5, 1.0)


def test_a_signal_that_is_wrong_throughout_is_no_finding():
    assert best_of(-1.0 * LABELS[None], LABELS, permutations=99, seed=0).p_value == 1.0


def test_infinite_signals_are_ordered_like_any_other():
    signals = noise(np.random.default_rng(54), 2, 120)
    signals[:, :10] = np.inf
    finite = np.clip(signals, -99, 99)
    arguments = {"permutations": 200, "seed": 0}
    assert best_of(signals, LABELS, **arguments) == best_of(finite, LABELS, **arguments)


def test_twenty_signals_of_noise_are_no_finding_though_the_best_looks_like_one():
    rng, runs, n = np.random.default_rng(55), 400, 1000
    labels = np.arange(n) < n // 2
    found = [best_of(noise(rng, 20, n), labels, permutations=199, seed=rng) for _ in range(runs)]
    areas = np.array([one.auc for one in found])
    assert areas.mean() == pytest.approx(0.5338, abs=0.002)
    p_values = np.array([one.p_value for one in found])
    assert np.mean(p_values <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean(p_values <= 0.5) == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / runs))
    # Judged as if it had not been chosen, the best would be a finding in most runs.
    alone = norm.sf((areas - 0.5) / math.sqrt((n + 1) / 12 / (n / 2) ** 2))
    assert np.mean(alone <= 0.05) > 0.5


@pytest.mark.parametrize("copies", [1, 20])
def test_a_planted_signal_is_found_and_twins_cost_nothing(copies):
    rng, runs, n_found, n_named = np.random.default_rng(56), 60, 0, 0
    labels = np.arange(1000) < 500
    for _ in range(runs):
        signals = np.repeat(noise(rng, 20 // copies, 1000), copies, axis=0)
        signals[:copies, labels] += 0.3
        found = best_of(signals, labels, permutations=199, seed=rng)
        n_found += found.p_value <= 0.05
        n_named += found.row == 0
    assert n_found >= 0.95 * runs
    assert n_named >= 0.95 * runs


def test_twenty_times_the_same_signal_is_tested_once():
    rng = np.random.default_rng(57)
    signal = noise(rng, 1, 120)
    signal[0, LABELS] += 0.35
    arguments = {"permutations": 500, "seed": 0}
    alone = best_of(signal, LABELS, **arguments)
    assert best_of(np.repeat(signal, 20, axis=0), LABELS, **arguments) == alone
    assert best_of(np.r_[signal, noise(rng, 19, 120)], LABELS, **arguments).p_value > alone.p_value


def test_the_memory_is_bounded_by_the_chunk_and_not_by_the_permutations():
    signals = noise(np.random.default_rng(58), 10, 4000)
    labels = np.arange(4000) < 2000
    tracemalloc.start()
    best_of(signals, labels, permutations=2000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All labels at once would be 64 MB as numbers alone.
    assert peak < 50e6


@pytest.mark.parametrize(
    ("signals", "labels", "permutations", "match"),
    [
        (np.zeros((2, 5)), np.ones(4, bool), 9, r"seen shape \(2, 5\) and labels of shape \(4,\)"),
        (np.zeros(5), np.ones(5, bool), 9, r"seen shape \(5,\)"),
        (np.zeros((0, 5)), np.arange(5) < 2, 9, r"seen shape \(0, 5\)"),
        (np.zeros((2, 5)), np.ones(5, bool), 9, "seen 5 members in 5"),
        (np.zeros((2, 5)), np.zeros(5, bool), 9, "seen 0 members in 5"),
        (np.full((2, 5), np.nan), np.arange(5) < 2, 9, "no NaN, seen 10 in 10"),
        (np.zeros((2, 5)), np.arange(5) < 2, 0, "1 permutation or more, seen 0"),
    ],
)
def test_what_is_no_set_of_signals_is_refused(signals, labels, permutations, match):
    with pytest.raises(ValueError, match=match):
        best_of(signals, labels, permutations=permutations, seed=0)
