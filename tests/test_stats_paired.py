"""Paired tests against the papers' formulas and plain resampling, and Holm's correction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, norm

from auditor.stats import paired_draws
from auditor.stats.paired import holm, paired_auc, paired_tpr
from auditor.stats.paired_draws import paired_tpr_draws
from auditor.stats.roc import auc, tpr_at_fpr
from tests.test_stats_roc import psi, ranked

RNG = np.random.default_rng(21)
BOOTSTRAP = {"fpr": 0.05, "confidence": 0.95, "draws": 300, "seed": 0}


def both(x_m, x_n, y_m, y_n, **changes):
    """Both tests of the same four arrays."""
    arguments = BOOTSTRAP | changes
    return (
        paired_auc(x_m, x_n, y_m, y_n, confidence=arguments["confidence"]),
        paired_tpr(x_m, x_n, y_m, y_n, **arguments),
    )


def correlated(m, n, *, rho=0.9, shift=(1.0, 1.0), digits=12, rng=RNG):
    """Signals of one attack under two models; the last two arrays are the variant's."""

    def pair(size):
        first = rng.normal(size=size)
        return first, rho * first + np.sqrt(1 - rho**2) * rng.normal(size=size)

    (x_m, y_m), (x_n, y_n) = pair(m), pair(n)
    sides = (x_m + shift[0], x_n, y_m + shift[1], y_n)
    return tuple(np.round(side, digits) for side in sides)


@pytest.mark.parametrize("digits", [0, 12])
def test_paired_delong_equals_the_papers_covariances(digits):
    sides = correlated(60, 90, rho=0.7, shift=(0.5, 0.9), digits=digits)
    kernels = [psi(*sides[:2]), psi(*sides[2:])]
    s10 = np.cov([kernel.mean(1) for kernel in kernels])
    s01 = np.cov([kernel.mean(0) for kernel in kernels])
    contrast = np.array([-1, 1])
    se = np.sqrt(contrast @ (s10 / 60 + s01 / 90) @ contrast)
    difference = kernels[1].mean() - kernels[0].mean()

    test = paired_auc(*sides, confidence=0.9)
    assert test.difference.value == pytest.approx(difference, abs=1e-12)
    assert test.difference.high - difference == pytest.approx(norm.ppf(0.95) * se, abs=1e-12)
    assert difference - test.difference.low == pytest.approx(norm.ppf(0.95) * se, abs=1e-12)
    assert test.p_value == pytest.approx(2 * norm.sf(abs(difference) / se), abs=1e-12)
    assert (test.difference.n_members, test.difference.n_nonmembers) == (60, 90)


def test_identical_signals_give_exactly_nothing():
    x_m, x_n, *_ = correlated(80, 300)
    for members, nonmembers in ((x_m, x_n), (np.zeros(80), np.zeros(300)), (x_m + 99, x_n)):
        for test in both(members, nonmembers, members.copy(), nonmembers.copy()):
            assert (test.difference.value, test.p_value) == (0.0, 1.0)
            assert (test.difference.low, test.difference.high) == (0.0, 0.0)


def test_signals_that_order_all_pairs_alike_have_an_interval_of_some_width():
    x_m, x_n, *_ = correlated(80, 300)
    by_auc, by_tpr = both(x_m, x_n, 2 * x_m, 2 * x_n)
    assert by_auc.difference.value == by_tpr.difference.value == 0
    assert by_auc.p_value == by_tpr.p_value == 1
    # 80 disjoint pairs keep their order with probability 5 % where this share does not.
    assert (1 - by_auc.difference.high) ** 80 == pytest.approx(0.05)
    assert by_auc.difference.low == -by_auc.difference.high
    assert by_tpr.difference.high > 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_without_variance_is_bounded_and_not_infinitely_sure(sign):
    below, above, flat = np.arange(400.0), np.arange(1000.0, 1200.0), np.zeros(400)
    sides = (flat[:200], flat, above, below)
    test = paired_auc(*(sides if sign > 0 else sides[2:] + sides[:2]), confidence=0.95)
    assert test.difference.value == sign * 0.5
    assert -1 <= test.difference.low < test.difference.value < test.difference.high <= 1
    assert 0 < test.p_value < 1e-9
    assert test.difference.low * test.difference.high > 0


def test_swapping_the_models_turns_the_sign():
    sides = correlated(100, 400, shift=(0.5, 1.0))
    for there, back in zip(both(*sides), both(*sides[2:], *sides[:2]), strict=True):
        assert back.difference.value == pytest.approx(-there.difference.value)
        assert back.difference.low == pytest.approx(-there.difference.high, abs=0.03)
    assert paired_auc(*sides, confidence=0.95).p_value == pytest.approx(
        paired_auc(*sides[2:], *sides[:2], confidence=0.95).p_value
    )


@settings(deadline=None)
@given(st.data())
def test_differences_are_those_of_the_single_figures_whatever_the_ties(data):
    def side(size):
        values = st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size)
        return np.array(data.draw(values))

    m, n = data.draw(st.integers(2, 15)), data.draw(st.integers(20, 30))
    sides = (side(m), side(n), side(m), side(n))
    by_auc, by_tpr = both(*sides, fpr=0.5, draws=20)
    assert by_auc.difference.value == pytest.approx(auc(*sides[2:]) - auc(*sides[:2]), abs=1e-12)
    expected = tpr_at_fpr(*sides[2:], fpr=0.5) - tpr_at_fpr(*sides[:2], fpr=0.5)
    assert by_tpr.difference.value == pytest.approx(expected, abs=1e-12)

    for test in (by_auc, by_tpr):
        assert -1 <= test.difference.low <= test.difference.value <= test.difference.high <= 1
        assert 0 <= test.p_value <= 1

    # Each signal may go through its own increasing map, and the records into any order.
    order_m, order_n = RNG.permutation(m), RNG.permutation(n)
    moved = [array[order_m if row % 2 == 0 else order_n] for row, array in enumerate(sides)]
    for other, ours in zip(both(*moved, fpr=0.5, draws=20), (by_auc, by_tpr), strict=True):
        assert other.difference.low == pytest.approx(ours.difference.low, abs=1e-12)
        assert other.p_value == pytest.approx(ours.p_value, abs=1e-12)
    mapped = (*ranked(*sides[:2]), *ranked(*sides[2:]))
    if not np.array_equal(np.r_[mapped[0], mapped[1]], np.r_[mapped[2], mapped[3]]):
        for other, ours in zip(both(*mapped, fpr=0.5, draws=20), (by_auc, by_tpr), strict=True):
            assert other.difference == ours.difference


@pytest.mark.parametrize("digits", [0, 12])
@pytest.mark.parametrize("rho", [0.0, 0.95])
@pytest.mark.parametrize("chunk_cells", [50_000, 2_000_000])
def test_drawn_differences_are_those_of_plain_resampling(monkeypatch, digits, rho, chunk_cells):
    monkeypatch.setattr(paired_draws, "CHUNK_CELLS", chunk_cells)
    m, n, k, draws = 30, 60, 3, 10_000
    x_m, x_n, y_m, y_n = sides = correlated(m, n, rho=rho, digits=digits)
    ours = paired_tpr_draws(*sides, fpr=k / n, draws=draws, seed=2)
    row_m, row_n = RNG.integers(0, m, (draws, m)), RNG.integers(0, n, (draws, n))
    flagged = [
        (side_m[row_m] > np.sort(side_n[row_n], axis=1)[:, n - k - 1, None]).sum(1)
        for side_m, side_n in ((x_m, x_n), (y_m, y_n))
    ]
    naive = flagged[1] - flagged[0]
    counts = [
        np.bincount(gained + m, minlength=2 * m + 1)
        for gained in (np.rint(ours * m).astype(int), naive)
    ]
    table = np.array(counts)[:, sum(counts) >= 20]
    assert table.shape[1] > 4
    assert chi2_contingency(table).pvalue > 1e-3


def test_draws_reach_only_into_the_tail_of_many_nonmembers():
    sides = correlated(500, 20_000)
    drawn = paired_tpr_draws(*sides, fpr=0.001, draws=4000, seed=0)
    row_m = RNG.integers(0, 500, (300, 500))
    naive = []
    for rows in row_m:
        row_n = RNG.integers(0, 20_000, 20_000)
        taken = [side[rows if place % 2 == 0 else row_n] for place, side in enumerate(sides)]
        naive.append(tpr_at_fpr(*taken[2:], fpr=0.001) - tpr_at_fpr(*taken[:2], fpr=0.001))
    assert drawn.mean() == pytest.approx(np.mean(naive), abs=4 * np.std(naive) / np.sqrt(300))
    assert drawn.std() == pytest.approx(np.std(naive), rel=0.2)


def test_a_lone_discordant_record_is_no_evidence():
    members = np.linspace(-4, 5, 200)
    nonmembers = norm.ppf((np.arange(1000) + 0.5) / 1000)
    changed = members.copy()
    threshold = np.sort(nonmembers)[-51]
    changed[np.flatnonzero(members < threshold)[-20]] = 9.0
    test = paired_tpr(members, nonmembers, changed, nonmembers, **BOOTSTRAP)
    assert test.difference.value == pytest.approx(1 / 200)
    assert test.p_value > 0.5
    assert test.difference.low < 0


def test_refusals_carry_the_reason_and_no_p_value():
    sides = correlated(50, 199)
    test = paired_tpr(*sides, **BOOTSTRAP)
    assert test.difference.value is test.p_value is None
    assert "needs 200 nonmembers; there are 199" in test.difference.absent
    assert paired_tpr(*correlated(50, 200), **BOOTSTRAP).p_value is not None
    lone = paired_auc(*correlated(1, 9), confidence=0.95)
    assert lone.difference.value is lone.p_value is None
    assert "there are 1 members" in lone.difference.absent


def test_arrays_that_are_not_the_same_records_are_an_error():
    x_m, x_n, y_m, y_n = correlated(50, 200)
    with pytest.raises(ValueError, match=r"members must be the same records .* seen 50 and 49"):
        paired_auc(x_m, x_n, y_m[1:], y_n, confidence=0.95)
    with pytest.raises(ValueError, match=r"nonmembers must be the same .* seen 200 and 198"):
        paired_tpr(x_m, x_n, y_m, y_n[2:], **BOOTSTRAP)
    y_n[0] = np.nan
    with pytest.raises(ValueError, match="nonmembers under the variant must hold no NaN"):
        paired_auc(x_m, x_n, y_m, y_n, confidence=0.95)
    with pytest.raises(ValueError, match="2 draws or more, seen 1"):
        paired_tpr(x_m, x_n, y_m, x_n, **(BOOTSTRAP | {"draws": 1}))


def test_the_same_seed_gives_the_same_test():
    sides = correlated(100, 400)
    assert both(*sides) == both(*sides)
    assert paired_tpr(*sides, **BOOTSTRAP) != paired_tpr(*sides, **(BOOTSTRAP | {"seed": 1}))


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_does_not_count_what_is_absent():
    assert holm([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]
    assert holm([None]) == [None]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            holm([0.5, wrong])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(adjusted) if value <= 0.05} == rejected
