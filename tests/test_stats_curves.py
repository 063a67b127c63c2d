"""ROC curves to draw agree with scikit-learn and with the tabled figures, and bands cover."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from auditor.stats.curves import rate_grid, roc_curve
from auditor.stats.roc import tpr_estimate


@settings(deadline=None, max_examples=60)
@given(
    members=st.lists(st.integers(-3, 4), min_size=1, max_size=60),
    nonmembers=st.lists(st.integers(-4, 3), min_size=1, max_size=60),
)
def test_points_are_scikit_learns_and_are_never_interpolated(
    members: list[int], nonmembers: list[int]
) -> None:
    curve = roc_curve(members, nonmembers, confidence=0.9, draws=50, seed=0)
    label = np.repeat([True, False], [len(members), len(nonmembers)])
    fpr, tpr, _ = sklearn.metrics.roc_curve(
        label, np.concatenate([members, nonmembers]), drop_intermediate=False
    )
    for rate, found in zip(curve.fpr, curve.tpr, strict=True):
        assert found == max(tpr[fpr <= rate + 1e-12])
    assert curve.fpr[0] == 1 / len(nonmembers)
    assert curve.fpr[-1] == curve.tpr[-1] == 1
    assert (np.diff(curve.fpr) > 0).all()
    assert (np.diff(curve.tpr) >= 0).all()
    assert (curve.low <= curve.tpr).all()
    assert (curve.tpr <= curve.high).all()


def test_the_grid_is_even_on_a_logarithmic_axis() -> None:
    grid = rate_grid(100_000)
    assert len(grid) <= 60
    assert np.diff(np.log(grid[20:])).max() < 0.25
    assert np.allclose(grid * 100_000, np.round(grid * 100_000))


def test_rates_that_are_asked_for_are_on_the_grid() -> None:
    for n in (37, 1000, 2000):
        grid = rate_grid(n, rates=(0.0001, 0.01, 0.05))
        for rate in (0.01, 0.05):
            k = int(np.floor(rate * n + 1e-9))
            assert k == 0 or np.isclose(grid, k / n).any()
        assert grid[0] == 1 / n
        assert (np.diff(grid) > 0).all()


def test_the_band_is_that_of_the_table() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.7, 1, 1000), rng.normal(0, 1, 1000)
    curve = roc_curve(x, y, confidence=0.95, draws=4000, seed=1)
    at = int(np.argmin(np.abs(curve.fpr - 0.05)))
    rate = float(curve.fpr[at])
    tabled = tpr_estimate(x, y, fpr=rate, confidence=0.95, draws=4000, seed=2)
    assert curve.tpr[at] == tabled.value
    assert curve.low[at] == pytest.approx(tabled.low, abs=0.006)
    assert curve.high[at] == pytest.approx(tabled.high, abs=0.006)
    wide = roc_curve(x, y, confidence=0.95, draws=4000, seed=1, inflation=1.4)
    assert wide.high[at] - wide.low[at] > 1.3 * (curve.high[at] - curve.low[at])


def test_the_band_covers_at_each_rate() -> None:
    rng = np.random.default_rng(5)
    trials, n = 400, 300
    covered = []
    for _ in range(trials):
        x, y = rng.normal(1.0, 1, n), rng.normal(0, 1, n)
        curve = roc_curve(x, y, confidence=0.95, draws=300, seed=rng)
        inner = curve.fpr < 1
        # As few false positives as the grid has make a threshold of chance: there it must hold too.
        truth = norm.sf(norm.isf(curve.fpr[inner]) - 1.0)
        covered.append((curve.low[inner] <= truth) & (truth <= curve.high[inner]))
    share = np.mean(covered, axis=0)
    assert share.min() > 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials) - 0.01
