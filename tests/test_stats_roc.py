"""Figures of one signal against scikit-learn, SciPy, and the papers' formulas written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2_contingency, norm
from sklearn.metrics import roc_auc_score, roc_curve

from auditor.stats.roc import (
    auc,
    auc_estimate,
    balanced_accuracy_estimate,
    best_threshold,
    tpr_at_fpr,
    tpr_draws,
    tpr_estimate,
)
from auditor.stats.sides import n_false_positives, placements, too_few_nonmembers

RNG = np.random.default_rng(20)
SIDE = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30).map(np.array)
RATE = st.floats(0, 0.99)


def sklearn_auc(members, nonmembers):
    truth = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    return roc_auc_score(truth, np.r_[members, nonmembers])


def sklearn_tpr(members, nonmembers, fpr):
    truth = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    rates, tpr, _ = roc_curve(truth, np.r_[members, nonmembers], drop_intermediate=False)
    return tpr[rates <= fpr].max()


def psi(members, nonmembers):
    """DeLong's kernel for all pairs, shape (m, n)."""
    difference = np.asarray(members)[:, None] - np.asarray(nonmembers)[None, :]
    return np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))


def ranked(members, nonmembers):
    """A strictly increasing map of both sides onto 0, 1, 2, ..."""
    _, rank = np.unique(np.r_[members, nonmembers], return_inverse=True)
    return rank[: len(members)].astype(float), rank[len(members) :].astype(float)


def rounded(n, shift=0.0, digits=1):
    return np.round(RNG.normal(shift, 1, n), digits)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 200), (401, 57), (1000, 1000)])
@pytest.mark.parametrize("digits", [0, 1, 12])
def test_auc_equals_scikit_learn(m, n, digits):
    members, nonmembers = rounded(m, 0.3, digits), rounded(n, 0.0, digits)
    assert auc(members, nonmembers) == pytest.approx(sklearn_auc(members, nonmembers), abs=1e-12)


def test_auc_of_a_constant_signal_is_a_half():
    assert auc(np.zeros(7), np.zeros(9)) == 0.5


def test_infinities_are_ordered_like_numbers():
    members = np.array([np.inf, np.inf, 2.0, -np.inf, 0.0])
    nonmembers = np.array([np.inf, 1.0, -np.inf, -np.inf, 0.0, -1.0])
    finite = [np.clip(side, -9, 9) for side in (members, nonmembers)]
    assert auc(members, nonmembers) == pytest.approx(sklearn_auc(*finite), abs=1e-12)
    for fpr in (0.0, 0.2, 0.4, 0.7, 0.9):
        assert tpr_at_fpr(members, nonmembers, fpr=fpr) == sklearn_tpr(*finite, fpr)
    assert auc_estimate(members, nonmembers, confidence=0.95) == auc_estimate(
        *finite, confidence=0.95
    )
    assert best_threshold(members, nonmembers) == 1.0
    estimate = balanced_accuracy_estimate(members, nonmembers, confidence=0.95, seed=0)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(
    "call",
    [
        auc,
        lambda x, y: tpr_at_fpr(x, y, fpr=0.1),
        lambda x, y: auc_estimate(x, y, confidence=0.95),
        lambda x, y: tpr_estimate(x, y, fpr=0.5, confidence=0.95, draws=10, seed=0),
        lambda x, y: balanced_accuracy_estimate(x, y, confidence=0.95, seed=0),
    ],
)
def test_what_is_no_signal_is_refused(call):
    good = np.arange(30.0)
    bad = good.copy()
    bad[3] = np.nan
    for members, nonmembers in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="NaN, seen 1 in 30"):
            call(members, nonmembers)
    with pytest.raises(ValueError, match=r"seen shape \(0,\)"):
        call(good, np.array([]))
    with pytest.raises(ValueError, match=r"seen shape \(5, 6\)"):
        call(good.reshape(5, 6), good)


@settings(deadline=None)
@given(SIDE, SIDE, RATE)
def test_a_monotone_map_changes_nothing(members, nonmembers, fpr):
    mapped = ranked(members, nonmembers)
    assert auc(members, nonmembers) == auc(*mapped)
    assert tpr_at_fpr(members, nonmembers, fpr=fpr) == tpr_at_fpr(*mapped, fpr=fpr)
    assert auc_estimate(members, nonmembers, confidence=0.9) == auc_estimate(
        *mapped, confidence=0.9
    )


@settings(deadline=None)
@given(SIDE, SIDE)
def test_swapped_sides_mirror_the_auc(members, nonmembers):
    assert auc(nonmembers, members) == pytest.approx(1 - auc(members, nonmembers), abs=1e-12)
    there = auc_estimate(members, nonmembers, confidence=0.95)
    back = auc_estimate(nonmembers, members, confidence=0.95)
    if there.value is not None:
        assert back.low == pytest.approx(1 - there.high, abs=1e-9)
        assert back.high == pytest.approx(1 - there.low, abs=1e-9)


@settings(deadline=None)
@given(SIDE, SIDE, st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(members, nonmembers, random):
    shuffled = [np.array(random.sample(list(side), len(side))) for side in (members, nonmembers)]
    arguments = {"confidence": 0.95, "seed": 3}
    for estimate in (
        lambda x, y: auc_estimate(x, y, confidence=0.95),
        lambda x, y: balanced_accuracy_estimate(x, y, **arguments),
        lambda x, y: tpr_estimate(x, y, fpr=0.9, draws=50, **arguments),
    ):
        # Sums in another order may differ in the last bit.
        ours, other = estimate(members, nonmembers), estimate(*shuffled)
        figures = [
            None if one.value is None else [one.low, one.value, one.high] for one in (ours, other)
        ]
        assert figures[0] == (figures[1] and pytest.approx(figures[1], abs=1e-12))
        assert ours.method == other.method


@settings(deadline=None)
@given(SIDE, SIDE, RATE)
def test_tpr_equals_the_best_point_of_scikit_learns_curve(members, nonmembers, fpr):
    assert tpr_at_fpr(members, nonmembers, fpr=fpr) == sklearn_tpr(members, nonmembers, fpr)


@pytest.mark.parametrize(("n", "fpr"), [(1000, 0.01), (10_000, 0.001), (200, 0.05), (997, 0.013)])
def test_tpr_at_the_rates_of_an_audit(n, fpr):
    for digits in (0, 2, 12):
        members, nonmembers = rounded(300, 1, digits), rounded(n, 0, digits)
        expected = sklearn_tpr(members, nonmembers, fpr)
        assert tpr_at_fpr(members, nonmembers, fpr=fpr) == expected
        assert (nonmembers > np.sort(nonmembers)[-n_false_positives(fpr, n) - 1]).mean() <= fpr


def test_false_positives_are_counted_as_fractions_and_not_by_the_last_bit():
    for n in (100, 1000, 2000, 10_000):
        for k in range(n):
            assert n_false_positives(k / n, n) == k
    assert n_false_positives(0.01, 1000) == 10
    assert n_false_positives(0.29, 100) == 29
    assert n_false_positives(0.01, 1999) == 19
    for fpr in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            n_false_positives(fpr, 100)


@pytest.mark.parametrize("digits", [0, 12])
@pytest.mark.parametrize(("m", "n"), [(40, 70), (2, 3)])
def test_delong_equals_the_papers_double_sum(m, n, digits):
    members, nonmembers = rounded(m, 0.5, digits), rounded(n, 0, digits)
    kernel = psi(members, nonmembers)
    theta = kernel.mean()
    s10 = ((kernel.mean(1) - theta) ** 2).sum() / (m - 1)
    s01 = ((kernel.mean(0) - theta) ** 2).sum() / (n - 1)
    place = placements(members, nonmembers)
    assert place.auc == pytest.approx(theta, abs=1e-12)
    assert place.standard_error == pytest.approx(np.sqrt(s10 / m + s01 / n), abs=1e-12)


def test_the_interval_of_the_auc_is_delongs_on_the_logit_scale():
    members, nonmembers = RNG.normal(0.5, 1, 150), RNG.normal(size=250)
    place = placements(members, nonmembers)
    estimate = auc_estimate(members, nonmembers, confidence=0.9)
    odds = np.log(place.auc / (1 - place.auc))
    reach = norm.ppf(0.95) * place.standard_error / (place.auc * (1 - place.auc))
    assert estimate.low == pytest.approx(1 / (1 + np.exp(-(odds - reach))))
    assert estimate.high == pytest.approx(1 / (1 + np.exp(-(odds + reach))))
    assert (estimate.n_members, estimate.n_nonmembers, estimate.absent) == (150, 250, None)
    assert estimate.method == "DeLong, logit scale"


def test_perfect_separation_has_an_exact_bound_and_not_an_interval_of_no_width():
    low_side, high_side = np.arange(300.0), np.arange(1000.0, 1100.0)
    best = auc_estimate(high_side, low_side, confidence=0.95)
    worst = auc_estimate(low_side, high_side, confidence=0.95)
    # 100 disjoint pairs are in order with probability 2.5 % where the AUC is at the bound.
    assert best.low**100 == pytest.approx(0.025)
    assert (best.value, best.high) == (1.0, 1.0)
    assert (worst.value, worst.low, worst.high) == (0.0, 0.0, pytest.approx(1 - best.low))
    assert "exact" in best.method


def test_no_other_outcome_claims_more_than_perfect_separation():
    nonmembers = np.arange(50.0)
    members = np.arange(100.0, 150.0)
    perfect = auc_estimate(members, nonmembers, confidence=0.95)
    members[0] = 48.5
    one_wrong = auc_estimate(members, nonmembers, confidence=0.95)
    assert one_wrong.low <= perfect.low
    mirrored = auc_estimate(nonmembers, members, confidence=0.95)
    assert mirrored.high >= 1 - perfect.low


def test_a_constant_signal_has_an_exact_bound():
    estimate = auc_estimate(np.zeros(50), np.zeros(80), confidence=0.95)
    # All 50 disjoint pairs are tied with probability 5 % where a share of 1 - 2r is.
    reach = estimate.high - 0.5
    assert (1 - 2 * reach) ** 50 == pytest.approx(0.05)
    assert estimate.low == pytest.approx(0.5 - reach)
    assert estimate.value == 0.5


def test_one_record_on_a_side_has_no_interval():
    for estimate in (
        auc_estimate(np.ones(1), np.arange(9.0), confidence=0.95),
        balanced_accuracy_estimate(np.ones(1), np.arange(9.0), confidence=0.95, seed=0),
    ):
        assert estimate.value is estimate.low is estimate.high is None
        assert "there are 1 members and 9 nonmembers" in estimate.absent


@pytest.mark.parametrize(("fpr", "needed"), [(0.001, 10_000), (0.01, 1000), (0.05, 200)])
def test_a_tpr_is_refused_where_the_nonmembers_are_too_few(fpr, needed):
    members = np.arange(50.0)
    arguments = {"fpr": fpr, "confidence": 0.95, "draws": 100, "seed": 0}
    refused = tpr_estimate(members, np.arange(needed - 1.0), **arguments)
    assert refused.value is refused.low is refused.high is None
    assert f"needs {needed} nonmembers; there are {needed - 1}" in refused.absent
    assert (refused.n_members, refused.n_nonmembers) == (50, needed - 1)
    given = tpr_estimate(members, np.arange(float(needed)), **arguments)
    assert given.absent is None
    assert given.value == 0.0


def test_the_refusal_does_not_hang_on_the_last_bit():
    for n in range(20, 2000):
        assert too_few_nonmembers(10 / n, n) is None
        assert too_few_nonmembers(10 / n, n - 1) is not None
    for fpr in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"\(0, 1\)"):
            too_few_nonmembers(fpr, 100)


@pytest.mark.parametrize("digits", [0, 12])
def test_drawn_tprs_are_those_of_plain_resampling(digits):
    m, n, k, draws = 30, 40, 4, 20_000
    members, nonmembers = rounded(m, 0.8, digits), rounded(n, 0, digits)
    ours = tpr_draws(members, nonmembers, fpr=k / n, draws=draws, seed=1)
    drawn_nonmembers = np.sort(nonmembers[RNG.integers(0, n, (draws, n))], axis=1)
    drawn_members = members[RNG.integers(0, m, (draws, m))]
    naive = (drawn_members > drawn_nonmembers[:, n - k - 1, None]).mean(1)
    counts = [np.bincount(np.rint(tprs * m).astype(int), minlength=m + 1) for tprs in (ours, naive)]
    table = np.array(counts)[:, sum(counts) >= 20]
    assert table.shape[1] > 8
    assert chi2_contingency(table).pvalue > 1e-3


def test_the_interval_of_a_tpr_takes_percentiles_of_the_draws():
    members, nonmembers = RNG.normal(1, 1, 500), RNG.normal(size=1000)
    estimate = tpr_estimate(members, nonmembers, fpr=0.05, confidence=0.9, draws=400, seed=7)
    drawn = tpr_draws(members, nonmembers, fpr=0.05, draws=400, seed=7)
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(drawn, [0.05, 0.95]))
    assert estimate.value == tpr_at_fpr(members, nonmembers, fpr=0.05)
    again = tpr_estimate(
        members, nonmembers, fpr=0.05, confidence=0.9, draws=400, seed=np.random.default_rng(7)
    )
    assert again == estimate
    assert "400 draws" in estimate.method


@pytest.mark.parametrize(("shift", "value"), [(-9.0, 0.0), (9.0, 1.0)])
def test_a_tpr_of_none_or_all_has_clopper_pearsons_bound(shift, value):
    nonmembers = norm.ppf((np.arange(1000) + 0.5) / 1000)
    arguments = {"fpr": 0.01, "confidence": 0.95, "draws": 200, "seed": 0}
    estimate = tpr_estimate(np.full(60, shift), nonmembers, **arguments)
    assert estimate.value == value
    unseen = estimate.high if value == 0 else 1 - estimate.low
    assert binom.pmf(0, 60, unseen) == pytest.approx(0.025)


def test_the_best_threshold_is_that_of_a_full_search():
    for _ in range(50):
        members, nonmembers = rounded(RNG.integers(1, 20), 0.7), rounded(RNG.integers(1, 20))

        def accuracy(threshold, members=members, nonmembers=nonmembers):
            return ((members > threshold).mean() + (nonmembers <= threshold).mean()) / 2

        every = np.r_[-np.inf, members, nonmembers]
        found = accuracy(best_threshold(members, nonmembers))
        assert found == pytest.approx(max(map(accuracy, every)), abs=1e-12)


def test_balanced_accuracy_of_a_perfect_and_of_a_constant_signal():
    perfect = balanced_accuracy_estimate(
        np.full(40, 2.0), np.full(60, 1.0), confidence=0.95, seed=0
    )
    assert perfect.value == perfect.high == 1.0
    assert 0.9 < perfect.low < 0.99
    constant = balanced_accuracy_estimate(np.ones(40), np.ones(60), confidence=0.95, seed=0)
    assert constant.value == 0.5
    assert constant.low < 0.49
    assert constant.high > 0.51
