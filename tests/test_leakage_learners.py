"""Learners: the same weights as scikit-learn's, and what a scaler keeps, drops and cuts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from auditor.leakage.learners import (
    LEAST_FOR_TREES,
    REACH,
    STRENGTHS,
    TREES,
    best_candidate,
    candidates,
    fit,
    fit_logistic,
    fit_scaler,
    fit_trees,
    log_loss,
    no_evidence,
)


def invented(
    n: int, q: int, *, share: float = 0.5, gain: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal features, correlated; members gain in the first."""
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(n) < round(share * n))
    features = rng.normal(size=(n, q)) @ (np.eye(q) + 0.4 * rng.normal(size=(q, q)))
    features[:, 0] += gain * member
    return features, member


def theirs(features: np.ndarray, member: np.ndarray, strength: float) -> LogisticRegression:
    """scikit-learn's optimum of the same loss, to its last digits."""
    model = LogisticRegression(
        C=1 / (strength * len(member)),
        class_weight="balanced",
        solver="newton-cholesky",
        tol=1e-12,
        max_iter=1000,
    )
    return model.fit(features, member)


SEPARABLE = {"n": 80, "q": 4, "gain": 60.0}


@pytest.mark.parametrize(
    "options",
    [
        {"n": 60, "q": 1},
        {"n": 200, "q": 31},
        {"n": 40, "q": 60},  # more features than records
        {"n": 300, "q": 8, "share": 0.05},
        {"n": 300, "q": 8, "share": 0.97},
        {"n": 250, "q": 12, "gain": 3.0},
        SEPARABLE,
    ],
)
def test_as_scikit_learn_has_it(options: dict[str, float]) -> None:
    """Down to the log-odds of records that it was not trained on."""
    features, member = invented(**options)  # type: ignore[arg-type]
    features = fit_scaler(features).apply(features)
    rows = np.random.default_rng(1).normal(size=(50, features.shape[1]))
    for predict, strength in zip(fit_logistic(features, member, STRENGTHS), STRENGTHS, strict=True):
        expected = theirs(features, member, strength).decision_function(rows)
        np.testing.assert_allclose(predict(rows), expected, rtol=1e-6, atol=1e-6)


def test_constant_and_doubled_columns_as_without_them() -> None:
    features, member = invented(200, 5)
    odd = np.column_stack(
        [features, features[:, 1], np.full(200, 7.0), features[:, 3], features[:, 1]]
    )
    few, many = fit_scaler(features), fit_scaler(odd)
    assert many.kept.tolist() == few.kept.tolist() == list(range(5))
    for strength in STRENGTHS:
        (one,) = fit_logistic(few.apply(features), member, [strength])
        (other,) = fit_logistic(many.apply(odd), member, [strength])
        np.testing.assert_array_equal(one(few.apply(features)), other(many.apply(odd)))


@given(
    n=st.integers(6, 80),
    q=st.integers(1, 12),
    n_members=st.integers(1, 5),
    scale=st.sampled_from([0.01, 1.0, 4.0]),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_the_slope_vanishes_where_it_stops(
    n: int, q: int, n_members: int, scale: float, seed: int
) -> None:
    """At the optimum of the penalised loss, by its own derivative; few on one side, ties, cuts."""
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(n) < n_members)
    features = np.clip(scale * np.round(rng.normal(size=(n, q)), 1), -REACH, REACH)
    weight = compute_sample_weight("balanced", member) / n
    for predict, strength in zip(fit_logistic(features, member, STRENGTHS), STRENGTHS, strict=True):
        intercept = predict(np.zeros((1, q)))[0]
        weights = predict(np.eye(q)) - intercept
        rest = weight * (1 / (1 + np.exp(-predict(features))) - member)
        assert abs(rest.sum()) < 1e-7
        np.testing.assert_allclose(features.T @ rest + strength * weights, 0.0, atol=1e-7)


def test_a_strength_does_not_depend_on_those_before_it() -> None:
    features, member = invented(120, 9, gain=1.0)
    together = fit_logistic(features, member, STRENGTHS)
    for predict, strength in zip(together, STRENGTHS, strict=True):
        (alone,) = fit_logistic(features, member, [strength])
        np.testing.assert_allclose(predict(features), alone(features), atol=1e-6)


def test_log_odds_are_those_at_even_odds() -> None:
    """A side with nine in ten of the records is not nine times as likely."""
    features, member = invented(4000, 3, share=0.9, gain=0.0)
    names = candidates(4000, trees=True)
    assert names[-1] == TREES
    for name, predict in zip(names, fit(features, member, names), strict=True):
        fresh = np.random.default_rng(5).normal(size=(4000, 3))
        assert abs(predict(fresh).mean()) < 0.1, name


def test_larger_is_more_likely_a_member() -> None:
    features, member = invented(500, 4, gain=2.0)
    for predict in fit(features, member, candidates(500, trees=True)):
        assert metrics.roc_auc_score(member, predict(features)) > 0.8


def test_trees_see_what_a_line_cannot() -> None:
    rng = np.random.default_rng(2)
    train, fresh = rng.normal(size=(600, 3)), rng.normal(size=(600, 3))

    def either(rows: np.ndarray) -> np.ndarray:
        return (rows[:, 0] > 0) ^ (rows[:, 1] > 0)

    names = candidates(600, trees=True)
    losses = {
        name: log_loss(predict(fresh), either(fresh))
        for name, predict in zip(names, fit(train, either(train), names), strict=True)
    }
    assert min(losses, key=losses.__getitem__) == TREES
    assert losses[TREES] < 0.4
    assert min(loss for name, loss in losses.items() if name != TREES) > 0.65
    np.testing.assert_array_equal(
        fit_trees(train, either(train))(fresh), fit_trees(train, either(train))(fresh)
    )


def test_candidates() -> None:
    plain = ["logistic 1", "logistic 0.1", "logistic 0.01", "logistic 0.001"]
    assert candidates(10**6, trees=False) == plain
    assert candidates(LEAST_FOR_TREES - 1, trees=True) == plain
    assert candidates(LEAST_FOR_TREES, trees=True) == [*plain, TREES]


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(4, 40),
    own=st.floats(-1, 2),
    trees=st.sampled_from([None, 0, 2]),
)
@settings(deadline=None)
def test_trees_must_be_clearly_better(seed: int, n: int, own: float, trees: int | None) -> None:
    """By more than a standard error of the mean of two means, written out side by side."""
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(n) < rng.integers(2, n - 1))
    sign = np.where(member, 1.0, -1.0)
    names = ["logistic 1", "logistic 0.1"]
    found = rng.normal(size=(2, n)) + 0.5 * sign
    if trees is not None:
        names.insert(trees, TREES)
        found = np.insert(found, trees, rng.normal(size=n) + own * sign, axis=0)
    losses = {name: np.log1p(np.exp(-sign * row)) for name, row in zip(names, found, strict=True)}
    best = min(
        (name for name in names if name != TREES),
        key=lambda name: losses[name][member].mean() + losses[name][~member].mean(),
    )
    if trees is not None:
        gain = losses[best] - losses[TREES]
        sides = gain[member], gain[~member]
        mean = np.mean([side.mean() for side in sides])
        error = np.sqrt(sum(((side - mean) ** 2).sum() / (2 * len(side)) ** 2 for side in sides))
        best = TREES if mean > error else best
    assert names[best_candidate(found, member, names)] == best


def test_any_candidate_alone_is_what_it_is_among_others() -> None:
    features, member = invented(450, 6, gain=1.0)
    names = candidates(450, trees=True)
    for name, predict in zip(names, fit(features, member, names), strict=True):
        (alone,) = fit(features, member, [name])
        np.testing.assert_allclose(alone(features), predict(features), atol=1e-6, err_msg=name)


def test_where_nothing_varies_there_is_no_evidence() -> None:
    features = np.full((30, 4), 2.5)
    scaler = fit_scaler(features)
    assert scaler.apply(features).shape == (30, 0)
    member = np.arange(30) < 15
    for predict in fit(scaler.apply(features), member, candidates(30, trees=True)):
        assert predict is no_evidence
        assert predict(np.empty((7, 0))).tolist() == [0.0] * 7


@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), q=st.integers(1, 8))
@settings(deadline=None)
def test_a_scaler_keeps_what_varies_once(seed: int, n: int, q: int) -> None:
    """Against a comparison of every two columns."""
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 2, (n, q)).astype(np.float32) * rng.choice([1.0, 1e-3, 1e6], q)
    scaler = fit_scaler(features)
    expected = [
        column
        for column in range(q)
        if len(set(features[:, column])) > 1
        and not any((features[:, column] == features[:, early]).all() for early in range(column))
    ]
    assert scaler.kept.tolist() == expected
    scaled = scaler.apply(features)
    for place, column in enumerate(expected):
        values = features[:, column].astype(np.float64)
        wanted = np.clip((values - np.mean(values)) / np.std(values), -REACH, REACH)
        np.testing.assert_allclose(scaled[:, place], wanted, atol=1e-9)


def test_a_scaler_is_what_it_learned() -> None:
    """Other rows are moved by the training rows' mean and deviation, and cut."""
    train = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0], [2.0, 5.0]])
    scaler = fit_scaler(train)
    assert scaler.kept.tolist() == [0]
    assert scaler.mean.tolist() == [2.0]
    np.testing.assert_allclose(scaler.deviation, np.sqrt(2))
    found = scaler.apply(np.array([[2.0, 9.0], [2 + 3 * np.sqrt(2), 9.0], [1e9, 9.0], [-1e9, 9.0]]))
    np.testing.assert_allclose(found[:, 0], [0.0, 3.0, REACH, -REACH])


@pytest.mark.parametrize("value", [0.3, 1e-4, 123456.7])
def test_rounding_is_no_variation(value: float) -> None:
    """A column of one value that float64 cannot average exactly."""
    features = np.full((999, 1), value)
    assert features.std() > 0
    assert not len(fit_scaler(features).kept)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 60))
@settings(deadline=None)
def test_log_loss_as_scikit_learn_has_it(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(n) < rng.integers(1, n))
    log_odds = 4 * rng.normal(size=n)
    expected = metrics.log_loss(
        member,
        1 / (1 + np.exp(-log_odds)),
        sample_weight=compute_sample_weight("balanced", member),
    )
    assert log_loss(log_odds, member) == pytest.approx(expected, rel=1e-9)


def test_log_loss_of_sure_and_of_no_evidence() -> None:
    member = np.array([True, False, False])
    assert log_loss(np.zeros(3), member) == pytest.approx(np.log(2))
    assert log_loss(np.array([1e4, -1e4, -1e4]), member) == 0.0
    assert log_loss(np.array([-1e4, 1e4, 1e4]), member) == 1e4
