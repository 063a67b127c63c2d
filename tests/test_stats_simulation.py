"""Do 95 % intervals hold the truth, and do tests at 5 % err as seldom as they say?

Signals are normal, so that the truth is known. Seeds are fixed: a bound is the nominal level and
three binomial standard errors of the number of runs, unless a method is known to be conservative.
"""

import numpy as np
import pytest
from scipy.stats import norm

from auditor.stats.paired import holm, paired_auc, paired_tpr
from auditor.stats.roc import auc_estimate, balanced_accuracy_estimate, best_threshold, tpr_estimate
from tests.test_stats_paired import correlated

LEVEL = {"confidence": 0.95}


def margin(runs, rate=0.05):
    return 3 * np.sqrt(rate * (1 - rate) / runs)


def sides(rng, m, n, *, shift, scale=1.0):
    return rng.normal(shift, scale, m), rng.normal(size=n)


def true_auc(shift, scale=1.0):
    return norm.cdf(shift / np.hypot(1, scale))


def true_tpr(fpr, shift, scale=1.0):
    return norm.sf((norm.isf(fpr) - shift) / scale)


def covered(estimates, truths):
    inside = [
        estimate.low <= truth <= estimate.high
        for estimate, truth in zip(estimates, np.broadcast_to(truths, len(estimates)), strict=True)
    ]
    return np.mean(inside)


@pytest.mark.parametrize(
    ("m", "n", "shift", "scale"),
    [
        (50, 50, 0.0, 1.0),
        (50, 50, 1.8, 2.5),
        (200, 50, 1.8, 1.0),
        (200, 200, 0.3, 1.0),
        (200, 200, 2.9, 1.0),
        (500, 500, 0.5, 2.5),
    ],
)
def test_coverage_of_the_auc(m, n, shift, scale):
    rng, runs = np.random.default_rng(1), 1500
    shift = shift * np.hypot(1, scale) / np.sqrt(2)
    found = [
        auc_estimate(*sides(rng, m, n, shift=shift, scale=scale), **LEVEL) for _ in range(runs)
    ]
    assert 0.95 - margin(runs) <= covered(found, true_auc(shift, scale)) <= 0.95 + margin(runs)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("area", [0.98, 0.998])
def test_the_interval_of_the_auc_does_not_fail_near_perfect_separation(area, scale):
    """The plain interval covers .56 to .87 here."""
    rng, runs = np.random.default_rng(2), 800
    shift = norm.ppf(area) * np.hypot(1, scale)
    found = [
        auc_estimate(*sides(rng, 50, 200, shift=shift, scale=scale), **LEVEL) for _ in range(runs)
    ]
    assert covered(found, area) >= 0.95 - margin(runs)


@pytest.mark.parametrize(
    ("m", "n", "fpr", "shift", "scale"),
    [
        (1000, 1000, 0.01, 0.5, 1.0),
        (1000, 1000, 0.01, 1.5, 1.0),
        (1000, 1000, 0.01, 3.0, 1.0),
        (200, 1000, 0.01, 0.0, 2.0),
        (200, 200, 0.05, 1.5, 1.0),
        (1000, 10_000, 0.001, 1.5, 1.0),
    ],
)
def test_coverage_of_the_tpr(m, n, fpr, shift, scale):
    """Between .940 and .967 over 4,000 runs; see `tpr_estimate` for which side is missed."""
    rng, runs = np.random.default_rng(3), 600
    found = [
        tpr_estimate(
            *sides(rng, m, n, shift=shift, scale=scale), fpr=fpr, draws=1000, seed=rng, **LEVEL
        )
        for _ in range(runs)
    ]
    assert 0.93 <= covered(found, true_tpr(fpr, shift, scale)) <= 0.96 + margin(runs)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_interval_of_the_tpr_does_not_fail_near_none_and_all(shift):
    """The bootstrap alone covers .61 and .28 here."""
    rng, runs = np.random.default_rng(4), 500
    found = [
        tpr_estimate(*sides(rng, 50, 1000, shift=shift), fpr=0.01, draws=300, seed=rng, **LEVEL)
        for _ in range(runs)
    ]
    assert covered(found, true_tpr(0.01, shift)) >= 0.95


@pytest.mark.parametrize(("m", "n", "shift"), [(50, 50, 1.0), (200, 200, 0.0), (50, 500, 2.0)])
def test_coverage_of_balanced_accuracy(monkeypatch, m, n, shift):
    rng, runs, thresholds = np.random.default_rng(5), 1000, []

    def watched(*halves):
        thresholds.append(best_threshold(*halves))
        return thresholds[-1]

    monkeypatch.setattr("auditor.stats.roc.best_threshold", watched)
    found = [
        balanced_accuracy_estimate(*sides(rng, m, n, shift=shift), seed=rng, **LEVEL)
        for _ in range(runs)
    ]
    chosen = np.reshape(thresholds, (runs, 2))
    truths = ((norm.sf(chosen - shift) + norm.cdf(chosen)) / 2).mean(1)
    assert 0.95 - margin(runs) <= covered(found, truths) <= 0.95 + margin(runs)


@pytest.mark.parametrize(("m", "n"), [(40, 40), (41, 100)])
def test_balanced_accuracy_of_noise_is_a_half(m, n):
    rng, runs = np.random.default_rng(6), 1200
    values = [
        balanced_accuracy_estimate(*sides(rng, m, n, shift=0), seed=rng, **LEVEL).value
        for _ in range(runs)
    ]
    assert abs(np.mean(values) - 0.5) <= 3 * np.std(values) / np.sqrt(runs)
    # A threshold chosen on the records that it judges would stand at .58 or so.
    assert np.std(values) < 0.1


@pytest.mark.parametrize(
    ("m", "n", "rho", "shift"),
    [
        (200, 200, 0.0, (1.0, 1.0)),
        (200, 200, 0.9, (0.0, 0.0)),
        (50, 500, 0.9, (1.0, 1.0)),
        (500, 500, 0.99, (1.0, 1.0)),
    ],
)
def test_size_of_the_paired_test_of_the_auc(m, n, rho, shift):
    rng, runs = np.random.default_rng(7), 1200
    tests = [
        paired_auc(*correlated(m, n, rho=rho, shift=shift, rng=rng), **LEVEL) for _ in range(runs)
    ]
    size = np.mean([test.p_value <= 0.05 for test in tests])
    assert 0.05 - margin(runs) <= size <= 0.05 + margin(runs)
    assert covered([test.difference for test in tests], 0.0) == pytest.approx(1 - size)


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
def test_coverage_and_power_of_the_paired_test_of_the_auc(rho):
    rng, runs, shift = np.random.default_rng(8), 1000, (0.5, 0.8)
    tests = [
        paired_auc(*correlated(200, 200, rho=rho, shift=shift, rng=rng), **LEVEL)
        for _ in range(runs)
    ]
    truth = true_auc(shift[1]) - true_auc(shift[0])
    cover = covered([test.difference for test in tests], truth)
    assert 0.95 - margin(runs) <= cover <= 0.95 + margin(runs)
    power = np.mean([test.p_value <= 0.05 for test in tests])
    assert power >= {0.0: 0.4, 0.9: 0.99, 0.99: 0.99}[rho]


PAIRED_TPR = {"draws": 200, **LEVEL}


@pytest.mark.parametrize(
    ("m", "n", "fpr", "rho", "shift", "lowest"),
    [
        (1000, 1000, 0.01, 0.0, 1.0, 0.02),
        (1000, 1000, 0.01, 0.9, 2.5, 0.01),
        (200, 200, 0.05, 0.5, 1.0, 0.01),
        (200, 200, 0.05, 0.99, 1.0, 0.001),
    ],
)
def test_size_of_the_paired_test_of_the_tpr(m, n, fpr, rho, shift, lowest):
    """Conservative where few records are discordant, but not without any size."""
    rng, runs = np.random.default_rng(9), 600
    tests = [
        paired_tpr(
            *correlated(m, n, rho=rho, shift=(shift, shift), rng=rng),
            fpr=fpr,
            seed=rng,
            **PAIRED_TPR,
        )
        for _ in range(runs)
    ]
    size = np.mean([test.p_value <= 0.05 for test in tests])
    assert lowest <= size <= 0.05 + margin(runs)
    assert covered([test.difference for test in tests], 0.0) == pytest.approx(1 - size)


def test_size_of_the_paired_test_of_the_tpr_where_the_curves_differ():
    """Equal TPR at this FPR and nowhere else: the null is of the TPR, not of the signal."""
    rng, runs, fpr, scale = np.random.default_rng(10), 500, 0.01, 2.0
    threshold = norm.isf(fpr)
    rejected = []
    for _ in range(runs):
        x_m, x_n, y_m, y_n = correlated(1000, 1000, rho=0.9, shift=(1.0, 0.0), rng=rng)
        y_m = scale * y_m + threshold - scale * (threshold - 1)
        test = paired_tpr(x_m, x_n, y_m, y_n, fpr=fpr, seed=rng, **PAIRED_TPR)
        rejected.append(test.p_value <= 0.05)
    assert 0.05 - margin(runs) <= np.mean(rejected) <= 0.05 + margin(runs)


@pytest.mark.parametrize(
    ("m", "n", "fpr", "rho", "shift", "power"),
    [
        (1000, 1000, 0.01, 0.9, (0.5, 2.0), 0.99),
        (1000, 1000, 0.01, 0.99, (1.0, 1.3), 0.8),
        (200, 200, 0.05, 0.0, (0.5, 2.0), 0.99),
    ],
)
def test_coverage_and_power_of_the_paired_test_of_the_tpr(m, n, fpr, rho, shift, power):
    rng, runs = np.random.default_rng(11), 400
    tests = [
        paired_tpr(
            *correlated(m, n, rho=rho, shift=shift, rng=rng), fpr=fpr, seed=rng, **PAIRED_TPR
        )
        for _ in range(runs)
    ]
    truth = true_tpr(fpr, shift[1]) - true_tpr(fpr, shift[0])
    assert covered([test.difference for test in tests], truth) >= 0.95 - margin(runs)
    assert np.mean([test.p_value <= 0.05 for test in tests]) >= power


def test_holm_controls_the_family_wise_error():
    """Three tests under the null beside two real differences and one absent test."""
    rng, runs, false_findings, plain = np.random.default_rng(12), 4000, 0, 0
    for _ in range(runs):
        nulls = list(rng.uniform(size=3))
        adjusted = holm([1e-9, nulls[0], None, nulls[1], 1e-8, nulls[2]])
        false_findings += min(adjusted[1], adjusted[3], adjusted[5]) <= 0.05
        plain += min(nulls) <= 0.05
        assert max(adjusted[0], adjusted[4]) < 1e-7
    expected = 1 - (1 - 0.05 / 3) ** 3
    assert false_findings / runs == pytest.approx(expected, abs=margin(runs))
    assert plain / runs > 0.12
