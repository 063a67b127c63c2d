"""The closed form for power against the paired test itself, and against integrals."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from auditor.stats.paired import paired_auc
from auditor.stats.power import (
    detectable_difference,
    placement_correlation,
    power_of_difference,
    refused_rates,
)
from auditor.stats.sides import placements
from tests.test_stats_paired import correlated

FAMILY = {"auc": 0.6, "n_comparisons": 4}
MARGIN = 0.01
CONSERVATIVE = 0.05
"""By how much the test finds less than it could, signals correlated by .99 with 200 a side."""


def shifts(auc, difference):
    return tuple(math.sqrt(2) * norm.ppf([auc, auc + difference]))


@pytest.mark.parametrize("n", [(200, 200), (1000, 1000), (200, 1000)])
@pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
def test_the_paired_test_finds_a_planted_difference_as_often_as_predicted(n, rho):
    rng, runs = np.random.default_rng(30), 800
    case = FAMILY | {"correlation": placement_correlation(rho, auc=FAMILY["auc"])}
    difference = detectable_difference(*n, **case, power=0.8)
    shift = shifts(FAMILY["auc"], difference)
    p_values = [
        paired_auc(*correlated(*n, rho=rho, shift=shift, rng=rng), confidence=0.95).p_value
        for _ in range(runs)
    ]
    found = np.mean(np.array(p_values) <= 0.05 / 4)
    chance = 3 * math.sqrt(0.8 * 0.2 / runs)
    below = CONSERVATIVE if (rho, min(n)) == (0.99, 200) else 0.0
    assert 0.8 - below - MARGIN - chance <= found <= 0.8 + MARGIN + chance


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("auc", "difference"), [(0.5, 0.0), (0.5, 0.015), (0.75, 0.02)])
def test_the_power_of_a_given_difference_is_met(auc, difference, one_sided):
    rng, runs, rho = np.random.default_rng(31), 1000, 0.9
    expected = power_of_difference(
        difference,
        400,
        400,
        auc=auc,
        correlation=placement_correlation(rho, auc=auc),
        n_comparisons=1,
        one_sided=one_sided,
    )
    n_found = 0
    for _ in range(runs):
        sides = correlated(400, 400, rho=rho, shift=shifts(auc, difference), rng=rng)
        test = paired_auc(*sides, confidence=0.95)
        if one_sided:
            n_found += test.difference.value > 0 and test.p_value / 2 <= 0.05
        else:
            n_found += test.p_value <= 0.05
    chance = 3 * math.sqrt(expected * (1 - expected) / runs)
    assert n_found / runs == pytest.approx(expected, abs=chance + MARGIN)


@pytest.mark.parametrize("auc", [0.5, 0.7, 0.95])
def test_the_standard_error_is_that_of_an_integral_over_normal_signals(auc):
    m, n, shift = 30, 70, math.sqrt(2) * norm.ppf(auc)
    both, _ = quad(lambda y: norm.pdf(y) * norm.cdf(shift - y) ** 2, -12, 12, epsabs=1e-12)
    variance = (auc * (1 - auc) + (m + n - 2) * (both - auc**2)) / (m * n)
    # The power of next to nothing rises from the risk with the normal density over the error.
    twin = {"correlation": 0.0, "n_comparisons": 1, "one_sided": True}
    slope = (power_of_difference(1e-6, m, n, auc=auc, **twin) - 0.05) / 1e-6
    assert slope == pytest.approx(norm.pdf(norm.isf(0.05)) / math.sqrt(2 * variance), rel=1e-3)


def test_at_auc_one_half_the_variance_is_hanley_and_mcneils():
    m, n = 40, 60
    hanley_mcneil = (0.25 + (m + n - 2) * (1 / 3 - 1 / 4)) / (m * n)
    twin = {"auc": 0.5, "correlation": 0.0, "n_comparisons": 1, "one_sided": True}
    slope = (power_of_difference(1e-6, m, n, **twin) - 0.05) / 1e-6
    expected = norm.pdf(norm.isf(0.05)) / math.sqrt(2 * hanley_mcneil)
    assert slope == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("auc", [0.5, 0.8])
@pytest.mark.parametrize("rho", [-0.5, 0.5, 0.99])
def test_the_correlation_of_placements_is_that_of_normal_signals(auc, rho):
    x_m, x_n, y_m, y_n = correlated(
        200_000, 200_000, rho=rho, shift=shifts(auc, 0.0), rng=np.random.default_rng(32)
    )
    first, second = placements(x_m, x_n), placements(y_m, y_n)
    found = placement_correlation(rho, auc=auc)
    assert found == pytest.approx(np.corrcoef(first.members, second.members)[0, 1], abs=0.01)
    assert found == pytest.approx(np.corrcoef(first.nonmembers, second.nonmembers)[0, 1], abs=0.01)
    if auc == 0.5:
        assert found == pytest.approx(6 / math.pi * math.asin(rho / 2), abs=1e-12)


def test_the_two_forms_undo_each_other():
    for power in (0.3, 0.8, 0.99):
        for one_sided in (False, True):
            case = FAMILY | {"correlation": 0.9, "one_sided": one_sided}
            found = detectable_difference(300, 500, **case, power=power)
            assert power_of_difference(found, 300, 500, **case) == pytest.approx(power, abs=1e-6)


def test_what_makes_a_difference_easier_to_find():
    def found(n=500, correlation=0.9, n_comparisons=4, **changes):
        return detectable_difference(
            n, n, auc=0.6, correlation=correlation, n_comparisons=n_comparisons, **changes
        )

    assert found(n=2000) == pytest.approx(found() / 2, rel=0.01)
    assert found(correlation=0.99) < found() / 2
    assert found(n_comparisons=1) < found()
    assert found(one_sided=True) < found()
    assert found(power=0.5) < found()
    assert found(confidence=0.9) < found()


def test_counts_that_cannot_find_even_a_perfect_attack_say_so():
    assert detectable_difference(3, 3, auc=0.6, correlation=0.0, n_comparisons=20) == math.inf
    perfect = power_of_difference(0.5, 50, 50, auc=0.5, correlation=0.5, n_comparisons=1)
    assert perfect == pytest.approx(1.0)


def test_signals_that_are_the_same_hold_no_difference():
    twin = {"auc": 0.6, "correlation": 1.0, "n_comparisons": 1}
    assert power_of_difference(0.0, 100, 100, **twin) == 0.0
    assert detectable_difference(100, 100, **twin) < 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"auc": 1.0},
        {"correlation": 1.1},
        {"n_comparisons": 0},
        {"confidence": 1.0},
        {"power": 1.0},
    ],
)
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="seen"):
        detectable_difference(100, 100, **(FAMILY | {"correlation": 0.9} | wrong))


def test_impossible_counts_and_differences_are_refused():
    with pytest.raises(ValueError, match="seen 0, 9 and 4"):
        detectable_difference(0, 9, **FAMILY, correlation=0.9)
    for difference in (-0.1, 0.41):
        with pytest.raises(ValueError, match=f"seen {difference}"):
            power_of_difference(difference, 9, 9, **FAMILY, correlation=0.9)


def test_rates_that_the_nonmembers_cannot_support_are_named_with_the_count_needed():
    assert refused_rates([0.001, 0.01, 0.05], 1000) == {
        0.001: "TPR at FPR 0.001 needs 10000 nonmembers; there are 1000"
    }
    assert list(refused_rates([0.05, 0.01], 199)) == [0.05, 0.01]
    assert refused_rates([0.01], 10_000) == {}
