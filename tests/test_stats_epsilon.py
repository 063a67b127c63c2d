"""Lower bounds on epsilon against published figures, the theorem written out, and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom, binomtest

from auditor.stats.epsilon import (
    SHARES,
    one_run_bound,
    one_run_epsilon,
    split_threshold_bound,
)

LEVEL = {"delta": 0.0, "confidence": 0.95}
RUNS = 600
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)
BOUNDS = pytest.mark.parametrize("bound", [one_run_bound, split_threshold_bound])


def responses(rng, n, epsilon, *, delta=0.0, coin=0.5):
    """Randomised response: the signal is the coin, turned over with probability 1 - q."""
    thrown = rng.random(n) < coin
    told = np.where(rng.random(n) < expit(epsilon), thrown, ~thrown).astype(float)
    # With probability delta the coin lies open.
    signal = np.where(rng.random(n) < delta, 3.0 * thrown - 1.0, told)
    return signal[thrown], signal[~thrown]


def theorem(n_records, n_guesses, n_correct, epsilon, delta):
    """The probability of the theorem, term by term."""
    share = expit(epsilon)
    tails = [binom.sf(v - 1, n_guesses, share) for v in range(n_correct + 1)]
    part = max(
        (tails[n_correct - i] - tails[n_correct]) / i if i <= n_correct else 0.0
        for i in range(1, n_records + 1)
    )
    return tails[n_correct] + 2 * n_records * delta * part


@pytest.mark.parametrize(
    ("n_guesses", "n_correct", "epsilon"), [(1000, 700, 0.73), (1000, 900, 2.02), (100, 100, 3.49)]
)
def test_published_figures(n_guesses, n_correct, epsilon):
    found = one_run_epsilon(n_guesses, n_guesses, n_correct, **LEVEL)
    assert round(found, 2) == epsilon
    share = binomtest(n_correct, n_guesses, alternative="greater").proportion_ci(0.95).low
    assert found == pytest.approx(math.log(share / (1 - share)), abs=1e-6)
    assert binom.sf(n_correct - 1, n_guesses, expit(found)) == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize("delta", [1e-6, 1e-4, 1e-3])
@pytest.mark.parametrize(
    ("n_records", "n_guesses", "n_correct"), [(60, 40, 36), (200, 200, 150), (500, 20, 20)]
)
def test_with_delta_the_bound_is_where_the_theorem_meets_the_risk(
    n_records, n_guesses, n_correct, delta
):
    counts = (n_records, n_guesses, n_correct)
    found = one_run_epsilon(*counts, delta=delta, confidence=0.95)
    if (n_guesses, delta) == (20, 1e-3):
        # Half the records may lie open at this delta, so that twenty right guesses are no news.
        assert found == 0
        assert theorem(*counts, 0.0, delta) > 0.05
        return
    assert found > 0
    assert theorem(*counts, found, delta) == pytest.approx(0.05, abs=1e-9)
    assert theorem(*counts, found + 1e-6, delta) > 0.05


def test_a_delta_that_explains_the_guesses_leaves_no_bound():
    counts = (1000, 1000, 900)
    assert theorem(*counts, 0.0, 0.01) <= 0.05 < theorem(*counts, 0.0, 0.5)
    assert one_run_epsilon(*counts, delta=0.01, confidence=0.95) > 0
    assert one_run_epsilon(*counts, delta=0.5, confidence=0.95) == 0.0


def test_the_tail_that_is_left_out_of_a_large_audit_changes_nothing():
    counts, delta = (20_000, 4000, 2600), 1e-5
    found = one_run_epsilon(*counts, delta=delta, confidence=0.95)
    share = expit(found)
    tails = binom.sf(np.arange(-1, 2600), 4000, share)
    part = ((tails[:-1] - tails[-1])[::-1] / np.arange(1, 2601)).max()
    assert tails[-1] + 2 * 20_000 * delta * part == pytest.approx(0.05, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 150), st.integers(0, 100), st.sampled_from([0.0, 1e-6, 1e-4, 1e-3, 0.02, 0.3])
)
def test_the_bound_rises_with_right_guesses_and_falls_with_delta(n_guesses, n_open, delta):
    n_records = n_guesses + n_open
    found = [
        one_run_epsilon(n_records, n_guesses, v, delta=delta, confidence=0.95)
        for v in range(n_guesses + 1)
    ]
    assert found[0] == 0
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(found))
    for v in range(0, n_guesses + 1, 7):
        more = one_run_epsilon(n_records, n_guesses, v, delta=delta + 1e-3, confidence=0.95)
        assert 0 <= more <= found[v] + 1e-12


def test_the_level_of_the_one_run_bound_is_met_and_not_only_kept():
    """Every coin is guessed: then the theorem is exact, and the bound fails as often as it may."""
    rng, n, epsilon, runs = np.random.default_rng(40), 500, 1.0, 4000
    n_correct = rng.binomial(n, expit(epsilon), runs)
    bounds = {v: one_run_epsilon(n, n, v, **LEVEL) for v in set(n_correct.tolist())}
    missed = np.mean([bounds[v] > epsilon for v in n_correct.tolist()])
    chance = 3 * math.sqrt(0.05 * 0.95 / runs)
    n_refuting = next(v for v in range(n + 1) if binom.sf(v - 1, n, expit(epsilon)) <= 0.05)
    exact = binom.sf(n_refuting - 1, n, expit(epsilon))
    assert 0.03 < exact <= 0.05
    assert missed == pytest.approx(exact, abs=chance)


@BOUNDS
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("n", [101, 1000])
def test_bounds_of_randomised_response_seldom_exceed_its_epsilon(bound, epsilon, n):
    rng = np.random.default_rng(41)
    found = np.array(
        [bound(*responses(rng, n, epsilon), **LEVEL, seed=rng).epsilon for _ in range(RUNS)]
    )
    assert np.mean(found > epsilon) <= ALLOWED
    assert found.min() >= 0


@BOUNDS
def test_the_choice_among_many_thresholds_is_paid_for(bound):
    """Pure noise at a low confidence: without the payment, .69 and .73 of runs show something."""
    rng, runs, confidence = np.random.default_rng(49), 400, 0.6
    found = [
        bound(
            rng.normal(size=400), rng.normal(size=400), delta=0.0, confidence=confidence, seed=rng
        ).epsilon
        for _ in range(runs)
    ]
    assert np.mean(np.array(found) > 0) <= 0.4 + 3 * math.sqrt(0.4 * 0.6 / runs)


@BOUNDS
def test_bounds_with_delta_seldom_exceed_the_epsilon(bound):
    rng, n, epsilon, delta, runs = np.random.default_rng(42), 400, 1.0, 1e-4, 400
    found = np.array(
        [
            bound(
                *responses(rng, n, epsilon, delta=delta), delta=delta, confidence=0.95, seed=rng
            ).epsilon
            for _ in range(runs)
        ]
    )
    assert np.mean(found > epsilon) <= ALLOWED
    assert found.mean() > 0.3


@BOUNDS
@pytest.mark.parametrize("coin", [0.1, 0.35])
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_a_coin_that_is_not_fair_does_not_raise_the_bounds(bound, coin, epsilon):
    rng = np.random.default_rng(43)
    found = [
        bound(*responses(rng, 600, epsilon, coin=coin), **LEVEL, seed=rng).epsilon
        for _ in range(RUNS)
    ]
    assert np.mean(np.array(found) > epsilon) <= ALLOWED


@BOUNDS
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_many_records_bring_the_bound_near(bound, epsilon):
    rng = np.random.default_rng(44)
    found = bound(*responses(rng, 60_000, epsilon), **LEVEL, seed=rng)
    assert epsilon - 0.1 < found.epsilon <= epsilon
    assert found.n_correct / found.n_guesses == pytest.approx(expit(epsilon), abs=0.02)


def test_normal_signals_are_guessed_at_their_ends():
    """The loss of a middle guess is that of a coin; only the ends are told apart."""
    rng = np.random.default_rng(45)
    found = one_run_bound(rng.normal(0.7, 1, 3000), rng.normal(size=3000), **LEVEL)
    everything = round(SHARES[-1] * 6000)
    assert found.n_guesses < everything / 2
    assert found.n_correct / found.n_guesses > 0.75


def test_the_counts_are_those_of_the_guesses():
    members, nonmembers = np.arange(50.0) + 100, np.arange(50.0)
    found = one_run_bound(members, nonmembers, **LEVEL)
    assert found[1:] == (100, 100, "one-run")
    assert found.epsilon == one_run_epsilon(100, 100, 100, delta=0, confidence=1 - 0.05 / 6)
    turned = one_run_bound(nonmembers, members, **LEVEL)
    assert (turned.epsilon, turned.n_correct) == (0.0, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_side_that_is_flagged_is_found(sign):
    """Only one end tells: a few signals that nonmembers, or members, never have."""
    rng = np.random.default_rng(46)
    members, nonmembers = rng.normal(size=2000), rng.normal(size=2000)
    (members if sign > 0 else nonmembers)[:400] += sign * 20
    found = split_threshold_bound(members, nonmembers, **LEVEL, seed=0)
    # 200 of 1,000 against 0 of 1,000, each by Clopper-Pearson at 2.5 %.
    low = binomtest(200, 1000).proportion_ci(0.95).low
    high = 1 - 0.025 ** (1 / 1000)
    assert found.epsilon == pytest.approx(math.log(low / high), abs=0.2)
    assert found.n_correct == found.n_guesses == pytest.approx(200, abs=45)
    with_delta = split_threshold_bound(members, nonmembers, delta=0.05, confidence=0.95, seed=0)
    assert 0 < with_delta.epsilon < found.epsilon


def test_more_delta_never_raises_the_bound_of_a_signal():
    rng = np.random.default_rng(47)
    sides = rng.normal(1.5, 1, 300), rng.normal(size=300)
    found = [
        one_run_bound(*sides, delta=delta, confidence=0.95).epsilon
        for delta in (0.0, 1e-6, 1e-4, 1e-3, 0.1)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 1
    assert found[-1] == 0
    judged = split_threshold_bound(*sides, delta=0.9, confidence=0.95, seed=0)
    assert judged.epsilon == 0


@BOUNDS
def test_a_constant_signal_shows_nothing_and_ties_favour_no_side(bound):
    for m, n in ((300, 300), (30, 600), (600, 30)):
        found = [bound(np.zeros(m), np.zeros(n), **LEVEL, seed=seed) for seed in range(200)]
        assert np.mean([one.epsilon > 0 for one in found]) <= 0.05 + 3 * math.sqrt(0.0475 / 200)
    guessed = [one_run_bound(np.zeros(300), np.zeros(300), **LEVEL, seed=s) for s in range(200)]
    share = np.mean([one.n_correct / one.n_guesses for one in guessed if one.n_guesses == 600])
    assert share == pytest.approx(0.5, abs=0.01)


@BOUNDS
def test_the_order_of_records_does_not_matter_and_a_seed_repeats(bound):
    rng = np.random.default_rng(48)
    members, nonmembers = (np.round(rng.normal(shift, 1, 200), 1) for shift in (1.0, 0.0))
    found = bound(members, nonmembers, **LEVEL, seed=3)
    assert bound(members[::-1], rng.permutation(nonmembers), **LEVEL, seed=3) == found


@BOUNDS
def test_odd_counts_lone_records_and_infinities_are_judged(bound):
    for m, n in ((1, 1), (1, 5), (2, 3), (51, 50)):
        found = bound(np.full(m, np.inf), np.full(n, -np.inf), **LEVEL, seed=0)
        assert 0 <= found.n_correct <= found.n_guesses <= m + n
        assert 0 <= found.epsilon < math.inf
    assert found.epsilon > 1


@BOUNDS
@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"delta": 1.0}, r"\[0, 1\), seen 1.0"),
        ({"delta": -0.1}, r"\[0, 1\), seen -0.1"),
        ({"confidence": 0.0}, r"\(0, 1\), seen 0.0"),
    ],
)
def test_what_is_out_of_range_is_refused(bound, wrong, match):
    with pytest.raises(ValueError, match=match):
        bound(np.arange(5.0), np.arange(5.0), **(LEVEL | wrong), seed=0)
    with pytest.raises(ValueError, match="nonmembers must hold no NaN"):
        bound(np.arange(5.0), np.full(5, np.nan), **LEVEL, seed=0)


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match=r"0 <= right guesses <= guesses <= records, seen"):
        one_run_epsilon(*counts, **LEVEL)
