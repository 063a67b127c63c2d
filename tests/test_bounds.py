"""Bounds on what a release may give away: spelling, support, verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import ConfigError
from auditor.leakage.bounds import (
    bound_in_words,
    check_supported,
    estimate_in_words,
    metric_in_words,
    parse_bound,
    reported_rate,
    spell_bound,
    verdict_of,
)
from auditor.results import Bound, Estimate


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(
        value=value, low=low, high=high, n_members=9, n_nonmembers=9, method="", absent=None
    )


@pytest.mark.parametrize(
    ("text", "metric", "at_most"),
    [
        ("tpr=0.05@fpr=0.01", "tpr@0.01", 0.05),
        ("tpr=5e-2@fpr=1e-2", "tpr@0.01", 0.05),
        ("tpr=1@fpr=0.001", "tpr@0.001", 1.0),
        (" auc=0.6 ", "auc", 0.6),
        ("auc=0.5", "auc", 0.5),
        ("auc=1", "auc", 1.0),
    ],
)
def test_spelled(text: str, metric: str, at_most: float) -> None:
    bound = parse_bound(text)
    assert bound == Bound(metric=metric, at_most=at_most)
    assert parse_bound(spell_bound(bound)) == bound


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "neither"),
        ("0.05", "neither"),
        ("tpr=0.05", "neither"),
        ("auc=0.6@fpr=0.01", "neither"),
        ("tpr=0.05@fpr=0.01@fpr=0.1", "neither"),
        ("tpr=5%@fpr=0.01", "'5%', which is no number"),
        ("auc=0.49", "an AUC of 0.49"),
        ("auc=1.01", "an AUC of 1.01"),
        ("auc=nan", "an AUC of nan"),
        ("tpr=0@fpr=0.01", "a TPR of 0,"),
        ("tpr=1.5@fpr=0.01", "a TPR of 1.5"),
        ("tpr=nan@fpr=0.01", "a TPR of nan"),
        ("tpr=0.05@fpr=0", "an FPR of 0,"),
        ("tpr=0.05@fpr=1", "an FPR of 1,"),
        ("tpr=0.05@fpr=-inf", "an FPR of -inf"),
    ],
)
def test_refused(text: str, seen: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_bound(text)
    assert "tpr=VALUE@fpr=RATE or auc=VALUE" in refused.value.must
    assert seen in refused.value.seen
    assert "tpr=0.05@fpr=0.01" in refused.value.fix


@given(
    st.tuples(
        st.integers(1, 10**6).map(lambda i: i / 10**6), st.integers(1, 999).map(lambda i: i / 1000)
    )
)
def test_spelling_loses_nothing(values: tuple[float, float]) -> None:
    tpr, fpr = values
    bound = parse_bound(f"tpr={tpr}@fpr={fpr}")
    assert bound.at_most == tpr
    assert parse_bound(spell_bound(bound)) == bound


def test_a_rate_that_the_counts_cannot_support_is_refused_with_the_count() -> None:
    check_supported(parse_bound("auc=0.6"), 50)
    check_supported(parse_bound("tpr=0.05@fpr=0.01"), 1000)
    with pytest.raises(ConfigError) as refused:
        check_supported(parse_bound("tpr=0.05@fpr=0.001"), 9_999)
    assert "needs 10000 nonmembers; there are 9999" in refused.value.seen
    assert "tpr=0.05@fpr=0.001" in refused.value.seen
    assert refused.value.fix


def test_verdicts() -> None:
    bound = parse_bound("tpr=0.05@fpr=0.01")
    assert verdict_of(estimate(0.03, 0.02, 0.04), bound) == "under"
    assert verdict_of(estimate(0.03, 0.02, 0.05), bound) == "under"
    assert verdict_of(estimate(0.03, 0.02, 0.0501), bound) == "undecided"
    assert verdict_of(estimate(0.06, 0.05, 0.07), bound) == "undecided"
    assert verdict_of(estimate(0.06, 0.0501, 0.07), bound) == "over"
    assert verdict_of(estimate(None), bound) == "undecided"


def test_the_rate_that_is_spoken_about() -> None:
    rates = (0.05, 0.001, 0.01)
    assert reported_rate(rates, 100_000) == 0.01
    assert reported_rate(rates, 999) == 0.05
    assert reported_rate((0.05, 0.001), 10_000) == 0.001
    assert reported_rate(rates, 199) is None
    assert reported_rate((), 10**6) is None


def test_words() -> None:
    assert metric_in_words("tpr@0.001") == "TPR at 0.1% FPR"
    assert metric_in_words("auc") == "AUC"
    assert estimate_in_words(estimate(0.081, 0.064, 0.099), "tpr@0.01") == "8.1% [6.4%, 9.9%]"
    assert estimate_in_words(estimate(0.7, 0.65, 0.75), "auc") == "0.700 [0.650, 0.750]"
    assert bound_in_words(parse_bound("tpr=0.0125@fpr=0.01")) == "at most 1.25%"
    assert bound_in_words(parse_bound("auc=0.6")) == "at most 0.6"
