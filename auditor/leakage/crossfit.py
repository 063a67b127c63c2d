"""Cross-fitting: every record's log-odds by learners that never saw it.

For each outer fold the learner and its strength are chosen on inner folds of the rest, the scaler
and everything else is learned inside as well, and the held-out records are judged once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from auditor.leakage.folds import N_INNER, Folds, Part, Rows
from auditor.leakage.learners import (
    STRENGTHS,
    TREES,
    Bools,
    Float32,
    Float64,
    best_candidate,
    candidates,
    fit,
    fit_logistic,
    fit_scaler,
    log_loss,
    trees_are_hopeless,
)

# Of the second level: strong where all parts say much the same and little, weak where one of them
# says nearly all.
WEIGHING = (0.1, 0.01, 0.001)


class Fitted(NamedTuple):
    """What cross-fitting makes of one matrix of features.

    Attributes:
        test: By repeat, shape (R, n): log-odds of the held-out records.
        inner: `inner[r][k]`, the log-odds of the records `choosing` by learners of the inner folds.
        chosen: How many outer folds chose each learner.
    """

    test: Float64
    inner: list[list[Float64]]
    chosen: dict[str, int]


class Learned(NamedTuple):
    """A cross-fitted signal.

    Attributes:
        repeats: Shape (R, n): in each repeat the log-odds, centred within each outer fold.
        chosen: How many outer folds chose each learner.
        log_odds: Shape (n,): of membership at even odds, not centred, mean over the repeats.
        is_cross_fitted: Whether it was learned on this audit's own records; else it comes from a
            shadow, `repeats` has one row, and no accident of training is tied to these records.
    """

    repeats: Float64
    chosen: dict[str, int]
    log_odds: Float64
    is_cross_fitted: bool = True

    @property
    def signal(self) -> Float64:
        """Mean over the repeats, shape (n,)."""
        return np.asarray(self.repeats.mean(axis=0), dtype=np.float64)


def cross_fit(
    features: Float32,
    is_member: Bools,
    folds: Folds,
    *,
    trees: bool,
    strengths: Sequence[float] = STRENGTHS,
) -> Fitted:
    """Cross-fit one matrix of features.

    Args:
        features: Shape (n, p).
        is_member: Shape (n,).
        folds: Outer and inner folds.
        trees: Whether gradient-boosted trees are among the candidates.
        strengths: Penalties of the logistic regressions, descending.
    """
    test = np.empty((len(folds.repeats), len(is_member)))
    inner: list[list[Float64]] = []
    chosen: dict[str, int] = {}
    for r, parts in enumerate(folds.repeats):
        inner.append([])
        for part in parts:
            name, found = choose(features, is_member, part, trees=trees, strengths=strengths)
            inner[r].append(found)
            chosen[name] = chosen.get(name, 0) + 1
            test[r, part.test] = train_and_judge(
                features[part.train], is_member[part.train], features[part.test], name
            )
    return Fitted(test, inner, chosen)


def train_and_judge(rows: Float32, is_member: Bools, judged: Float32, name: str) -> Float64:
    """Log-odds of the rows `judged` by a learner, scaler included, that was trained on `rows`."""
    scaler = fit_scaler(rows)
    (predict,) = fit(scaler.apply(rows), is_member, [name])
    return predict(scaler.apply(judged))


def choose(
    features: Float32,
    is_member: Bools,
    part: Part,
    *,
    trees: bool,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[str, Float64]:
    """The candidate that inner folds speak for, and its inner log-odds.

    Trees cost three quarters of the time and are seldom taken: see `trees_are_hopeless`.

    Args:
        features: Shape (n, p).
        is_member: Shape (n,).
        part: The outer fold; its held-out records are not looked at.
        trees: As for `cross_fit`.
        strengths: As for `cross_fit`.
    """
    side, rows = is_member[part.choosing], features[part.choosing]
    names = candidates(len(side), trees=trees, strengths=strengths)
    found: Float64 = np.empty((len(names), len(side)))
    for fold in range(N_INNER):
        held = part.inner == fold
        scaler = fit_scaler(rows[~held])
        test = scaler.apply(rows[held])
        for number, predict in enumerate(fit(scaler.apply(rows[~held]), side[~held], names)):
            found[number, held] = predict(test)
        if fold == 0 and trees_are_hopeless(found[:, held], side[held], names):
            names = [name for name in names if name != TREES]
            found = found[: len(names)]
    best = best_candidate(found, side, names)
    return names[best], found[best]


def centred(test: Float64, folds: Folds) -> Float64:
    """Log-odds less their mean within each outer fold, shape (R, n).

    A training fold that lacks a few records of one side leans to the other, and that lean, pooled
    over the folds, would push the AUC of pure noise below 0.5.
    """
    found = test.copy()
    for r, parts in enumerate(folds.repeats):
        for part in parts:
            found[r, part.test] -= found[r, part.test].mean()
    return found


def learned(fitted: Fitted, folds: Folds) -> Learned:
    """The signal of what was cross-fitted."""
    return Learned(centred(fitted.test, folds), fitted.chosen, fitted.test.mean(axis=0))


def stacked(bases: list[Fitted], is_member: Bools, folds: Folds) -> Fitted:
    """One attack of several cross-fitted matrices: a logistic regression on their log-odds.

    It is trained on the inner log-odds, which come from learners that had not seen the record, and
    judges the held-out records on those of the outer learners. Were it trained on log-odds of
    records that the learners below had seen, it would trust the one that remembers best.

    Args:
        bases: At least one, cross-fitted on the same folds.
        is_member: Shape (n,).
        folds: The folds.
    """
    if len(bases) == 1:
        return bases[0]
    test = np.empty_like(bases[0].test)
    inner: list[list[Float64]] = []
    for r, parts in enumerate(folds.repeats):
        inner.append([])
        for k, part in enumerate(parts):
            below = np.stack([base.inner[r][k] for base in bases], axis=1)
            outer = np.stack([base.test[r, part.test] for base in bases], axis=1)
            side = is_member[part.choosing]
            test[r, part.test], found = weigh(below, side, outer, part.inner)
            inner[r].append(found)
    return Fitted(test, inner, {"logistic on log-odds": sum(map(len, folds.repeats))})


def weigh(below: Float64, is_member: Bools, above: Float64, inner: Rows) -> tuple[Float64, Float64]:
    """Log-odds of rows `above` by a logistic regression that was trained on rows `below`.

    Args:
        below: Log-odds by each learner, shape (m, b).
        is_member: Shape (m,).
        above: The same of other records, shape (n, b).
        inner: The inner fold of each row below, shape (m,), on which the penalty is chosen.

    Returns:
        Shape (n,), and those of the rows below on the inner folds, shape (m,). Where all learners
        say the same, that is what both are.
    """
    scaler = fit_scaler(below)
    if not len(scaler.kept):
        return np.zeros(len(above)), np.zeros(len(below))
    if len(scaler.kept) == 1:
        return above[:, scaler.kept[0]], below[:, scaler.kept[0]]
    rows = scaler.apply(below)
    found = np.empty((len(WEIGHING), len(rows)))
    for fold in range(N_INNER):
        held = inner == fold
        for number, predict in enumerate(fit_logistic(rows[~held], is_member[~held], WEIGHING)):
            found[number, held] = predict(rows[held])
    best = int(np.argmin([log_loss(log_odds, is_member) for log_odds in found]))
    *_, predict = fit_logistic(rows, is_member, WEIGHING[: best + 1])
    return predict(scaler.apply(above)), found[best]


def best_inside(candidates: list[Fitted], is_member: Bools, folds: Folds) -> Learned:
    """The best of several, chosen in each outer fold by the inner log-odds' loss.

    So that its selection is paid for: no held-out record has a say in who judges it.

    Args:
        candidates: At least one, cross-fitted on the same folds, with inner log-odds.
        is_member: Shape (n,).
        folds: The folds.
    """
    test = np.empty_like(candidates[0].test)
    chosen: dict[str, int] = {}
    for r, parts in enumerate(folds.repeats):
        for k, part in enumerate(parts):
            side = is_member[part.choosing]
            best = int(np.argmin([log_loss(one.inner[r][k], side) for one in candidates]))
            test[r, part.test] = candidates[best].test[r, part.test]
            chosen[str(best)] = chosen.get(str(best), 0) + 1
    return Learned(centred(test, folds), chosen, test.mean(axis=0))
