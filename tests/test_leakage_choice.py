"""What is not trained because it could not be taken: the choice stays what it was."""

import numpy as np
import pytest

from auditor.leakage import controls, learners
from auditor.leakage.attackers import Attackers, Holding
from auditor.leakage.controls import TWICE, original_as_variant
from auditor.leakage.crossfit import choose
from auditor.leakage.folds import N_INNER, draw_folds
from auditor.leakage.learners import (
    TREES,
    best_candidate,
    candidates,
    fit,
    fit_scaler,
    trees_are_hopeless,
)
from auditor.leakage.settings import Levels
from tests.leakage_cases import make_attackers, make_case

NAMES = ["logistic 1", "logistic 0.1", TREES]


def chosen_from_all(features, is_member, part):
    """Every candidate on every inner fold."""
    side, rows = is_member[part.choosing], features[part.choosing]
    names = candidates(len(side), trees=True)
    found = np.empty((len(names), len(side)))
    for fold in range(N_INNER):
        held = part.inner == fold
        scaler = fit_scaler(rows[~held])
        for number, predict in enumerate(fit(scaler.apply(rows[~held]), side[~held], names)):
            found[number, held] = predict(scaler.apply(rows[held]))
    best = best_candidate(found, side, names)
    return names[best], found[best]


@pytest.mark.parametrize(("shape", "n_trees"), [("straight", 1), ("bent", 3), ("nothing", 1)])
def test_trees_are_given_up_after_one_fold_and_nothing_else_changes(monkeypatch, shape, n_trees):
    rng = np.random.default_rng(3)
    member = rng.permutation(np.arange(1200) < 600)
    features = rng.normal(size=(1200, 8)).astype(np.float32)
    if shape == "straight":
        features[:, :4] += 0.5 * member[:, None]
    if shape == "bent":
        features[:, 0] *= np.where(member, 3.0, 1.0)
    part = draw_folds(member, np.arange(1200), n_folds=5, n_repeats=1, seed=0).repeats[0][0]
    expected = chosen_from_all(features, member, part)
    trained = []
    fit_trees = learners.fit_trees
    monkeypatch.setattr(
        learners, "fit_trees", lambda rows, side: trained.append(0) or fit_trees(rows, side)
    )
    name, inner = choose(features, member, part, trees=True)
    assert len(trained) == n_trees
    assert name == expected[0]
    np.testing.assert_array_equal(inner, expected[1])
    assert (name == TREES) == (shape == "bent")


def test_how_far_behind_trees_must_be():
    rng = np.random.default_rng(0)
    member = np.arange(400) % 2 == 0
    good = np.where(member, 1.0, -1.0) + rng.normal(size=400)
    found = np.stack([0.1 * good, good, np.zeros(400)])
    for scale, hopeless in ((0.0, True), (1.0, False), (1.2, False)):
        found[2] = scale * good
        assert trees_are_hopeless(found, member, NAMES) == hopeless, scale
        if hopeless:
            assert NAMES[best_candidate(found, member, NAMES)] != TREES
    # Without trees, or with one side alone, there is nothing to give up.
    assert not trees_are_hopeless(found[:2], member, NAMES[:2])
    assert not trees_are_hopeless(np.zeros((3, 5)), np.ones(5, dtype=bool), NAMES)


@pytest.mark.parametrize("n", [1, 700, learners.ROWS, 2 * learners.ROWS + 3])
def test_the_curvature_is_right_to_six_digits(n):
    rng = np.random.default_rng(n)
    design, weight = rng.normal(size=(n, 9)), rng.random(n) / n
    exact = (design * weight[:, None]).T @ design
    found = learners._curvature(design.astype(np.float32), weight)
    np.testing.assert_allclose(found, exact, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("leak", [0.0, 0.6])
def test_the_twin_is_the_one_that_is_trained_anew(leak):
    """The control takes the original's learner twice: fitted on the doubled features, the same."""
    attackers = make_attackers(make_case(np.random.default_rng(2), 300, leak=leak))
    levels = Levels(fprs=(), confidence=0.95, draws=100, seed=0)
    found = original_as_variant(attackers, levels=levels, with_reference=False, trees=False)
    assert all(control.passed for control in found)
    anew = Attackers(
        controls._doubled(attackers.blocks, "original"),
        attackers.is_member,
        attackers.folds,
        order=("original", TWICE),
        trees=False,
    )
    alone = attackers.learned(Holding(("original",)))
    for name in ("original", TWICE):
        np.testing.assert_array_equal(anew.learned(Holding((name,))).repeats, alone.repeats)
    pair = anew.learned(Holding(("original", TWICE)))
    np.testing.assert_array_equal(pair.repeats, alone.repeats)
