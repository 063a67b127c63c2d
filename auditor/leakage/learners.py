"""Learners: regularised logistic regression, and gradient-boosted trees.

A learner is given features and sides, and gives back log-odds of membership at even odds, so that
those of learners that saw other records can be laid side by side.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Predict = Callable[[Float64], Float64]

# Penalty per record, from one that leaves little but the mean direction to one that hardly holds.
STRENGTHS = (1.0, 0.1, 0.01)
# Beyond this many deviations a feature says no more: tails of a few records must not rule a weight.
REACH = 4.0
# Trees with fewer records to learn from than this were never chosen in trials.
LEAST_FOR_TREES = 400


class Scaler(NamedTuple):
    """Standardisation learned on training records.

    Attributes:
        kept: Columns that vary and are no copy of an earlier one, shape (q,).
        mean: Shape (q,).
        deviation: Shape (q,).
    """

    kept: npt.NDArray[np.int64]
    mean: Float64
    deviation: Float64

    def apply(self, features: npt.NDArray[np.floating]) -> Float64:
        """The kept columns, standardised and cut at `REACH`: float64, shape (n, q)."""
        scaled = (features[:, self.kept] - self.mean) / self.deviation
        return np.clip(scaled, -REACH, REACH)


def fit_scaler(features: npt.NDArray[np.floating]) -> Scaler:
    """Learn the standardisation of a matrix of shape (n, p).

    Copies are left out, because two copies of a column are penalised half as much as one: a version
    held twice must be worth exactly as much as once.
    """
    values = features.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    seen: set[bytes] = set()
    kept = []
    for column in np.flatnonzero(deviation > 1e-9 * np.maximum(1.0, np.abs(mean))):
        content = values[:, column].tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(column)
    columns = np.array(kept, dtype=np.int64)
    return Scaler(columns, mean[columns], deviation[columns])


def fit_logistic(features: Float64, is_member: Bools, strength: float) -> Predict:
    """Logistic regression with an L2 penalty.

    Args:
        features: Standardised, shape (n, q).
        is_member: Shape (n,).
        strength: Penalty per record: strength / 2 * ||w||^2 beside the mean loss.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1.0 / (strength * len(is_member)),
        solver="newton-cholesky",
        class_weight="balanced",
        tol=1e-6,
    )
    model.fit(features, is_member)
    weights, intercept = model.coef_[0], float(model.intercept_[0])
    return lambda rows: np.asarray(rows @ weights + intercept, dtype=np.float64)


def fit_trees(features: Float64, is_member: Bools) -> Predict:
    """Gradient-boosted histogram trees on features of shape (n, q) and sides of shape (n,)."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=40,
        max_leaf_nodes=8,
        min_samples_leaf=20,
        l2_regularization=1.0,
        max_bins=63,
        early_stopping=False,
        class_weight="balanced",
        random_state=0,
    )
    model.fit(features, is_member)
    return lambda rows: np.asarray(model.decision_function(rows), dtype=np.float64)


class Learner(NamedTuple):
    """A candidate.

    Attributes:
        name: "logistic" or "trees", with its strength.
        fit: Trains it on (features, sides).
    """

    name: str
    fit: Callable[[Float64, Bools], Predict]


def candidates(n_choosing: int, *, trees: bool) -> list[Learner]:
    """The learners to choose from.

    Args:
        n_choosing: Records that the choice is made on.
        trees: Whether trees may be among them.
    """
    found = [Learner(f"logistic {s:g}", partial(fit_logistic, strength=s)) for s in STRENGTHS]
    if trees and n_choosing >= LEAST_FOR_TREES:
        found.append(Learner("trees", fit_trees))
    return found


def log_loss(log_odds: Float64, is_member: Bools) -> float:
    """Mean logistic loss with both sides weighing the same."""
    loss = np.logaddexp(0.0, np.where(is_member, -log_odds, log_odds))
    return float((loss[is_member].mean() + loss[~is_member].mean()) / 2)
