"""Learners: regularised logistic regression, and gradient-boosted trees.

A learner is given features and sides, and gives back log-odds of membership at even odds, so that
those of learners that saw other records can be laid side by side.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dposv
from scipy.special import expit

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Predict = Callable[[Float64], Float64]

# Penalty per record, from one that leaves little but the mean direction to one that hardly holds.
STRENGTHS = (1.0, 0.1, 0.01, 0.001)
# Beyond this many deviations a feature says no more: tails of a few records must not rule a weight.
REACH = 4.0
# Trees with fewer records to learn from than this were never chosen in trials.
LEAST_FOR_TREES = 400
TREES = "trees"
MOST_STEPS = 100
ROWS = 4096
WORTH_ROUNDING = 20_000
TINY = 1e-12


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
        scaled = features[:, self.kept].astype(np.float64)
        scaled -= self.mean
        scaled /= self.deviation
        return np.clip(scaled, -REACH, REACH, out=scaled)


def fit_scaler(features: npt.NDArray[np.floating]) -> Scaler:
    """Learn the standardisation of a matrix of shape (n, p).

    Copies are left out, because two copies of a column are penalised half as much as one: a version
    held twice must be worth exactly as much as once.
    """
    values = features.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    # Copies have the same mean and deviation to the last bit: only such columns are compared.
    alike: dict[tuple[float, float], list[int]] = {}
    for column in np.flatnonzero(deviation > 1e-9 * np.maximum(1.0, np.abs(mean))).tolist():
        earlier = alike.setdefault((float(mean[column]), float(deviation[column])), [])
        if not any(np.array_equal(values[:, column], values[:, other]) for other in earlier):
            earlier.append(column)
    columns = np.array(sorted(chain.from_iterable(alike.values())), dtype=np.int64)
    return Scaler(columns, mean[columns], deviation[columns])


def fit_logistic(features: Float64, is_member: Bools, strengths: Sequence[float]) -> list[Predict]:
    """Logistic regressions with an L2 penalty, one for each strength.

    Newton's method, each strength from the solution of the one before. scikit-learn's solver finds
    the same weights (a test compares them); on a few hundred records it spends three quarters of
    its time on checks of its input, and an audit fits some ten thousand of these.

    Args:
        features: Standardised, shape (n, q).
        is_member: Shape (n,); both sides weigh the same.
        strengths: Penalties per record, descending: strength / 2 * ||w||^2 beside the mean loss.
    """
    n, q = features.shape
    weight = even_weights(is_member)
    design = np.empty((n, q + 1))
    design[:, :q], design[:, q] = features, 1.0
    solution: Float64 = np.zeros(q + 1)
    found: list[Predict] = []
    for strength in strengths:
        penalty = np.full(q + 1, strength)
        penalty[q] = 0.0  # the intercept is not penalised
        solution = _newton(design, is_member, weight, penalty, start=solution)
        found.append(partial(_log_odds, solution[:q], float(solution[q])))
    return found


def _log_odds(weights: Float64, intercept: float, rows: Float64) -> Float64:
    return np.asarray(rows @ weights + intercept, dtype=np.float64)


def _newton(
    design: Float64, is_member: Bools, weight: Float64, penalty: Float64, *, start: Float64
) -> Float64:
    """The minimum of a penalised, weighted logistic loss, to a step of 1e-8."""
    sign = np.where(is_member, -1.0, 1.0)
    # Of few numbers, rounding them takes longer than it saves.
    rough = design.astype(np.float32) if design.size >= WORTH_ROUNDING else design

    def objective(point: Float64, log_odds: Float64) -> float:
        loss = np.logaddexp(0.0, sign * log_odds)
        return float(weight @ loss + penalty @ point**2 / 2)

    point, log_odds = start, design @ start
    value = objective(point, log_odds)
    for _ in range(MOST_STEPS):
        probability = expit(log_odds)
        slope = design.T @ (weight * (probability - is_member)) + penalty * point
        curved = _curvature(rough, weight * probability * (1 - probability))
        curved.reshape(-1)[:: len(curved) + 1] += penalty + TINY  # its diagonal
        step = _solved(curved, slope)
        moved, length, gain = design @ step, 1.0, float(slope @ step)
        # Half a step is taken where a whole one would climb; with so smooth a loss that is rare.
        while (
            tried := objective(point - length * step, log_odds - length * moved)
        ) > value - 1e-4 * length * gain + TINY:
            length /= 2
            if length < 1e-6:
                return point
        point, log_odds, value = point - length * step, log_odds - length * moved, tried
        if np.abs(step).max() < 1e-8:
            break
    return point


def _solved(curved: Float64, slope: Float64) -> Float64:
    """curved^-1 slope by Cholesky's decomposition, for which it is positive definite.

    LAPACK is called directly: on matrices this small NumPy's checks take longer than the work.
    """
    _, step, info = dposv(curved, slope)
    # Rounded to nothing where the penalty is and the weights vanish: then the general way.
    return np.asarray(step if info == 0 else np.linalg.solve(curved, slope), dtype=np.float64)


def _curvature(design: npt.NDArray[np.floating], weight: Float64) -> Float64:
    """Second derivatives of the loss, design' diag(weight) design, in the precision of `design`.

    It only says how far to go, while the slope, in double precision, says where the minimum is: one
    that is right to six digits finds the same in as many steps, and takes half the time.
    """
    root: npt.NDArray[np.floating] = np.sqrt(weight).astype(design.dtype)[:, None]
    total = np.zeros((design.shape[1], design.shape[1]))
    # So many rows stay in the cache between the scaling and the product.
    for start in range(0, len(design), ROWS):
        block = design[start : start + ROWS] * root[start : start + ROWS]
        total += block.T @ block
    return total


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
        random_state=0,
    )
    # Weights for even odds would make the binning of the features take fifteen times as long, so
    # that the log-odds are moved to even odds instead.
    model.fit(features, is_member)
    share = float(is_member.mean())
    lean = math.log(share / (1 - share))
    return lambda rows: np.asarray(model.decision_function(rows) - lean, dtype=np.float64)


def no_evidence(rows: Float64) -> Float64:
    """Log-odds where no feature varies: even."""
    return np.zeros(len(rows))


def candidates(
    n_choosing: int, *, trees: bool, strengths: Sequence[float] = STRENGTHS
) -> list[str]:
    """The learners to choose from, by name.

    Args:
        n_choosing: Records that the choice is made on.
        trees: Whether trees may be among them.
        strengths: Penalties of the logistic regressions, descending.
    """
    names = [f"logistic {strength:g}" for strength in strengths]
    return [*names, TREES] if trees and n_choosing >= LEAST_FOR_TREES else names


def fit(features: Float64, is_member: Bools, names: Sequence[str]) -> list[Predict]:
    """Train some of the candidates, in their order.

    Args:
        features: Standardised, shape (n, q).
        is_member: Shape (n,).
        names: As given by `candidates`.
    """
    if not features.shape[1]:
        return [no_evidence for _ in names]
    strengths = [float(name.removeprefix("logistic ")) for name in names if name != TREES]
    found = fit_logistic(features, is_member, strengths)
    return [*found, fit_trees(features, is_member)] if TREES in names else found


def best_candidate(found: Float64, is_member: Bools, names: Sequence[str]) -> int:
    """Which candidate to take: the logistic one of least loss, or trees that are clearly better.

    Trees must have less loss by more than one standard error of the difference. Were the least loss
    alone to decide, folds would take now the one and now the other where both do as well, and the
    figure would hang on the draw of the folds.

    Args:
        found: Inner log-odds by candidate, shape (c, m).
        is_member: Shape (m,).
        names: Of the candidates.
    """
    race = _race(found, is_member, names)
    return race.trees if race.trees is not None and race.gain > race.error else race.best


def trees_are_hopeless(found: Float64, is_member: Bools, names: Sequence[str]) -> bool:
    """Whether trees have more loss than the best logistic by over a standard error.

    Asked on the first of the inner folds: trees that are so far behind there were not taken in the
    end in all that was tried, and are not trained on the others. On four audits, real and invented,
    of 1,600 to 20,000 records they were given up in 34 to 84 % of 385 choices, and in none of those
    would all three folds have spoken for them. Arguments as for `best_candidate`.
    """
    if is_member.all() or not is_member.any():
        return False
    race = _race(found, is_member, names)
    return race.trees is not None and race.gain < -race.error


class _Race(NamedTuple):
    """The best logistic candidate, trees if they run, and their gain in loss over it."""

    best: int
    trees: int | None
    gain: float
    error: float


def _race(found: Float64, is_member: Bools, names: Sequence[str]) -> _Race:
    losses = np.logaddexp(0.0, np.where(is_member, -found, found))
    weight = even_weights(is_member)
    total = losses @ weight
    plain = [number for number, name in enumerate(names) if name != TREES]
    best = min(plain, key=lambda number: float(total[number]))
    if TREES not in names:
        return _Race(best, None, 0.0, 0.0)
    trees = list(names).index(TREES)
    gain = losses[best] - losses[trees]
    mean = float(gain @ weight)
    return _Race(best, trees, mean, math.sqrt(float(weight**2 @ (gain - mean) ** 2)))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: the matrices of learners are small, more would only wait for each other."""
    # A limit reaches the libraries that are loaded: those of the trees too must be there before it.
    import sklearn.ensemble  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def even_weights(is_member: Bools) -> Float64:
    """Weights of shape (n,) that add up to 1, half of it on each side."""
    n_members = int(is_member.sum())
    return np.where(is_member, 0.5 / n_members, 0.5 / (len(is_member) - n_members))


def log_loss(log_odds: Float64, is_member: Bools) -> float:
    """Mean logistic loss with both sides weighing the same."""
    loss = np.logaddexp(0.0, np.where(is_member, -log_odds, log_odds))
    return float(even_weights(is_member) @ loss)
