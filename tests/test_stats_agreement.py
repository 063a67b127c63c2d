"""AUC, DeLong and bootstrap beside SciPy's and scikit-learn's, to 1e-9 where they overlap.

Where both draw, the same draws are given to both; where that cannot be, the two distributions are
compared. Further checks of this kind stand in test_stats_roc.py and test_stats_paired.py.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, chi2_contingency, mannwhitneyu, norm, rankdata
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from auditor.stats.paired import paired_auc, paired_tpr
from auditor.stats.roc import auc, auc_estimate, best_threshold, tpr_at_fpr, tpr_draws, tpr_estimate
from auditor.stats.sides import placements
from tests.test_stats_paired import correlated

EXACT = 1e-9
TIES = pytest.mark.parametrize("digits", [0, 1, 12])


def sides(rng, m, n, digits):
    return np.round(rng.normal(0.7, 1, m), digits), np.round(rng.normal(size=n), digits)


def judged(members, nonmembers):
    """Truth and signal as scikit-learn takes them."""
    truth = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    return truth, np.r_[members, nonmembers]


@TIES
@pytest.mark.parametrize(("m", "n"), [(1, 3), (60, 45), (500, 2000)])
def test_auc_is_mann_whitneys_statistic_and_scikit_learns_area(m, n, digits):
    members, nonmembers = sides(np.random.default_rng(60), m, n, digits)
    ours = auc(members, nonmembers)
    statistic = mannwhitneyu(members, nonmembers, alternative="greater").statistic
    assert ours == pytest.approx(statistic / (m * n), abs=EXACT)
    assert ours == pytest.approx(roc_auc_score(*judged(members, nonmembers)), abs=EXACT)


@TIES
def test_delongs_variance_is_that_of_all_pairs(digits):
    """Every pair of a member and a nonmember is looked at, O(mn); no rank is taken."""
    members, nonmembers = sides(np.random.default_rng(61), 80, 130, digits)
    won = np.sign(members[:, None] - nonmembers[None, :]) / 2 + 0.5
    variance = won.mean(1).var(ddof=1) / 80 + won.mean(0).var(ddof=1) / 130
    place = placements(members, nonmembers)
    assert place.standard_error**2 == pytest.approx(variance, abs=EXACT)
    assert place.members == pytest.approx(won.mean(1), abs=EXACT)
    assert place.nonmembers == pytest.approx(won.mean(0), abs=EXACT)


@TIES
@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_the_paired_tests_variance_is_that_of_all_pairs(digits, rho):
    x_m, x_n, y_m, y_n = paired = correlated(
        70, 110, rho=rho, shift=(0.5, 0.8), digits=digits, rng=np.random.default_rng(62)
    )
    gained = (np.sign(y_m[:, None] - y_n) - np.sign(x_m[:, None] - x_n)) / 2
    se = np.sqrt(gained.mean(1).var(ddof=1) / 70 + gained.mean(0).var(ddof=1) / 110)
    test = paired_auc(*paired, confidence=0.95)
    assert test.difference.value == pytest.approx(gained.mean(), abs=EXACT)
    assert test.difference.high - test.difference.low == pytest.approx(
        2 * norm.ppf(0.975) * se, abs=EXACT
    )
    assert test.p_value == pytest.approx(2 * norm.sf(abs(gained.mean()) / se), abs=EXACT)


@TIES
@settings(deadline=None, max_examples=30)
@given(fpr=st.floats(0, 0.99))
def test_tpr_is_the_best_point_of_scikit_learns_curve(digits, fpr):
    members, nonmembers = sides(np.random.default_rng(63), 300, 700, digits)
    rates, tpr, _ = roc_curve(*judged(members, nonmembers), drop_intermediate=False)
    assert tpr_at_fpr(members, nonmembers, fpr=fpr) == pytest.approx(
        tpr[rates <= fpr].max(), abs=EXACT
    )


@TIES
def test_no_threshold_of_scikit_learns_curve_has_a_better_balanced_accuracy(digits):
    members, nonmembers = sides(np.random.default_rng(64), 90, 60, digits)
    truth, signal = judged(members, nonmembers)
    rates, tpr, _ = roc_curve(truth, signal, drop_intermediate=False)
    flagged = signal > best_threshold(members, nonmembers)
    found = balanced_accuracy_score(truth, flagged)
    assert found == pytest.approx(((tpr + 1 - rates) / 2).max(), abs=EXACT)


def scipy_tpr_bootstrap(members, nonmembers, *, k, draws, confidence):
    """SciPy's stratified bootstrap of the TPR with k false positives allowed."""

    def tpr(x, y, axis):
        assert axis == -1
        threshold = np.sort(y, axis=-1)[..., -k - 1, None]
        return (x > threshold).mean(axis=-1)

    return bootstrap(
        (members, nonmembers),
        tpr,
        n_resamples=draws,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        batch=1000,
        rng=np.random.default_rng(65),
    )


@pytest.mark.parametrize("digits", [1, 12])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_of_a_tpr_is_scipys_given_the_same_draws(monkeypatch, digits, confidence):
    members, nonmembers = sides(np.random.default_rng(66), 2000, 400, digits)
    theirs = scipy_tpr_bootstrap(members, nonmembers, k=20, draws=1999, confidence=confidence)
    monkeypatch.setattr(
        "auditor.stats.roc.tpr_draws", lambda *_, **__: theirs.bootstrap_distribution
    )
    arguments = {"fpr": 0.05, "confidence": confidence, "draws": 1999, "seed": 0}
    ours = tpr_estimate(members, nonmembers, **arguments)
    low, high = theirs.confidence_interval
    exact = binomtest(round(ours.value * 2000), 2000).proportion_ci(confidence)
    # The one departure: no narrower than Clopper-Pearson's.
    assert ours.low == pytest.approx(min(low, exact.low), abs=EXACT)
    assert ours.high == pytest.approx(max(high, exact.high), abs=EXACT)
    assert low < exact.low
    assert high > exact.high


@pytest.mark.parametrize("digits", [1, 12])
def test_draws_of_a_tpr_are_distributed_like_scipys(digits):
    m, n, k, draws = 40, 60, 6, 20_000
    members, nonmembers = sides(np.random.default_rng(67), m, n, digits)
    theirs = scipy_tpr_bootstrap(members, nonmembers, k=k, draws=draws, confidence=0.95)
    ours = tpr_draws(members, nonmembers, fpr=k / n, draws=draws, seed=1)
    counts = [
        np.bincount(np.rint(tprs * m).astype(int), minlength=m + 1)
        for tprs in (ours, theirs.bootstrap_distribution)
    ]
    table = np.array(counts)[:, sum(counts) >= 20]
    assert table.shape[1] > 8
    assert chi2_contingency(table).pvalue > 1e-3


def test_the_paired_bootstraps_error_is_scipys_given_the_same_draws(monkeypatch):
    """SciPy draws whole records: it is given their rows, and the statistic looks them up."""
    m, n, k = 200, 300, 15
    x_m, x_n, y_m, y_n = paired = correlated(
        m, n, rho=0.6, shift=(0.5, 1.2), rng=np.random.default_rng(68)
    )

    def gained(rows_m, rows_n, axis):
        assert axis == -1
        flagged = [
            (side_m[rows_m] > np.sort(side_n[rows_n], axis=-1)[..., -k - 1, None]).mean(-1)
            for side_m, side_n in ((x_m, x_n), (y_m, y_n))
        ]
        return flagged[1] - flagged[0]

    rows = (np.arange(m), np.arange(n))
    theirs = bootstrap(
        rows, gained, n_resamples=3000, vectorized=True, batch=500, rng=np.random.default_rng(69)
    )
    arguments = {"fpr": k / n, "confidence": 0.95, "draws": 3000, "seed": 0}
    drawn = paired_tpr(*paired, **arguments)
    monkeypatch.setattr(
        "auditor.stats.paired.paired_tpr_draws", lambda *_, **__: theirs.bootstrap_distribution
    )
    given_theirs = paired_tpr(*paired, **arguments)
    value = float(gained(*rows, axis=-1))
    reach = norm.ppf(0.975) * theirs.standard_error
    assert given_theirs.difference.value == pytest.approx(value, abs=EXACT)
    assert given_theirs.difference.low == pytest.approx(value - reach, abs=EXACT)
    assert given_theirs.difference.high == pytest.approx(value + reach, abs=EXACT)
    assert given_theirs.p_value == pytest.approx(
        2 * norm.sf(abs(value) / theirs.standard_error), abs=EXACT
    )
    # With draws of its own: the same error but for the chance of 3,000 draws.
    width = drawn.difference.high - drawn.difference.low
    assert width == pytest.approx(2 * reach, rel=0.06)


def test_delongs_error_is_that_of_scipys_bootstrap_of_the_auc():
    members, nonmembers = sides(np.random.default_rng(70), 150, 250, 12)

    def area(x, y, axis):
        assert axis == -1
        joint = rankdata(np.concatenate([x, y], axis=-1), axis=-1)
        m, n = x.shape[-1], y.shape[-1]
        return (joint[..., :m].sum(-1) - m * (m + 1) / 2) / (m * n)

    theirs = bootstrap(
        (members, nonmembers),
        area,
        n_resamples=4000,
        vectorized=True,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(71),
    )
    assert placements(members, nonmembers).standard_error == pytest.approx(
        theirs.standard_error, rel=0.05
    )
    ours = auc_estimate(members, nonmembers, confidence=0.95)
    low, high = theirs.confidence_interval
    assert ours.low == pytest.approx(low, abs=0.01)
    assert ours.high == pytest.approx(high, abs=0.01)
