"""Bootstrap on ranks: exactly what sorting a drawn sample gives, and its distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, chi2_contingency, rankdata

from auditor.stats import paired_draws
from auditor.stats.paired_draws import count_above_both, paired_tpr_draws, threshold_draws
from auditor.stats.sides import ascending, clopper_pearson, placements
from tests.test_stats_paired import correlated


class Recorded:
    """A generator whose draws can be looked at afterwards."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.groups: np.ndarray | None = None
        self.cells: list[np.ndarray] = []

    def multinomial(self, n, shares, size):
        self.groups = self._rng.multinomial(n, shares, size=size)
        return self.groups

    def integers(self, low, high, size):
        self.cells.append(self._rng.integers(low, high, size=size))
        return self.cells[-1]


def descending(signal, other):
    """Place of each record from the largest, 0 first, the other signal breaking ties."""
    place = np.empty(len(signal), dtype=np.int64)
    place[np.lexsort((other, signal))[::-1]] = np.arange(len(signal))
    return place


@pytest.mark.parametrize("digits", [0, 1, 12])
@pytest.mark.parametrize(("n", "k"), [(60, 3), (3000, 300), (3000, 2900), (500, 0)])
def test_thresholds_are_those_of_a_sorted_sample(digits, n, k, monkeypatch):
    """Every draw is made whole again from what was counted, and sorted."""
    monkeypatch.setattr(paired_draws, "CHUNK_CELLS", 4000)
    x, y = correlated(2, n, rho=0.8, digits=digits, rng=np.random.default_rng(n + k))[1::2]
    rng = Recorded(5)
    found = threshold_draws(x, y, k, draws=40, rng=rng)

    sure = np.floor(n * beta.ppf(1e-12, k + 1, n - k))
    depth = min(n, np.ceil(n * beta.isf(1e-12, k + 1, n - k)))
    places = np.stack([descending(x, y), descending(y, x)])
    above, below = places < sure, places >= depth
    groups = [above[0] & above[1], above[0] & below[1], below[0] & above[1]]
    rest = below[0] & below[1]
    band = np.flatnonzero(~(groups[0] | groups[1] | groups[2] | rest))
    band = band[np.lexsort((places[1, band], np.minimum(places[0, band], depth)))]
    if n == 3000:
        assert groups[0].any()
        assert len(band) < n
    cells = np.concatenate(rng.cells)
    assert len(cells) == rng.groups[:, 3].sum()
    for counts, thresholds in zip(rng.groups, found, strict=True):
        single, cells = cells[: counts[3]], cells[counts[3] :]
        # Which record of a group was drawn is never asked: any of them will do.
        drawn = zip([*groups, rest], counts[[0, 1, 2, 4]], strict=True)
        some = [np.flatnonzero(group)[:1].repeat(times) for group, times in drawn]
        rows = np.concatenate([*some, band[single]])
        assert len(rows) == n
        naive = [np.sort(signal[rows])[n - k - 1] for signal in (x, y)]
        assert thresholds.tolist() == naive


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_members_above_both_are_counted_one_by_one(data):
    values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)
    x = np.array(data.draw(values))
    y = np.array(data.draw(st.lists(st.integers(-4, 4), min_size=len(x), max_size=len(x))), float)
    given_ = data.draw(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1))
    pairs = np.array(given_, dtype=float)
    expected = [sum(a > s and b > t for a, b in zip(x, y, strict=True)) for s, t in given_]
    assert count_above_both(x, y, pairs).tolist() == expected


@pytest.mark.parametrize("rho", [0.0, 0.98])
def test_differences_of_many_false_positives_are_those_of_plain_resampling(rho):
    """Here most of the drawn nonmembers are counted in groups and never drawn one by one."""
    m, n, k, draws = 40, 900, 300, 4000
    rng = np.random.default_rng(9)
    x_m, x_n, y_m, y_n = sides = correlated(m, n, rho=rho, rng=rng)
    ours = paired_tpr_draws(*sides, fpr=k / n, draws=draws, seed=3)
    row_m, row_n = rng.integers(0, m, (draws, m)), rng.integers(0, n, (draws, n))
    flagged = [
        (side_m[row_m] > np.partition(side_n[row_n], n - k - 1, axis=1)[:, n - k - 1, None]).sum(1)
        for side_m, side_n in ((x_m, x_n), (y_m, y_n))
    ]
    counts = [
        np.bincount(gained + m, minlength=2 * m + 1)
        for gained in (np.rint(ours * m).astype(int), flagged[1] - flagged[0])
    ]
    table = np.array(counts)[:, sum(counts) >= 20]
    assert table.shape[1] > 4
    assert chi2_contingency(table).pvalue > 1e-3


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_placements_are_differences_of_mid_ranks(data):
    side = st.lists(st.integers(-3, 3).map(float) | st.just(np.inf), min_size=1, max_size=20)
    x, y = np.array(data.draw(side)), np.array(data.draw(side))
    ranks = rankdata(np.concatenate([x, y]))
    found = placements(x, y)
    np.testing.assert_array_equal(found.members, (ranks[: len(x)] - rankdata(x)) / len(y))
    above = len(x) - (ranks[len(x) :] - rankdata(y))
    np.testing.assert_array_equal(found.nonmembers, above / len(x))


@pytest.mark.parametrize(("hits", "n"), [(0, 50), (50, 50), (1, 3), (17, 50), (600, 50_000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_closed_form_is_clopper_pearsons(hits, n, alpha):
    exact = binomtest(hits, n).proportion_ci(1 - alpha, method="exact")
    found = clopper_pearson(hits, n, alpha=alpha)
    assert found.low == pytest.approx(exact.low, abs=1e-10)
    assert found.high == pytest.approx(exact.high, abs=1e-10)


def test_what_is_sorted_is_not_sorted_again():
    values = np.array([1.0, 1.0, 2.0])
    assert ascending(values) is values
    assert ascending(values[::-1]).tolist() == [1.0, 1.0, 2.0]
    assert ascending(values[:0]).tolist() == []
