"""Cross-fitting: no record has a say in what it is judged by, at any level; and attackers on it."""

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from auditor.leakage import attackers as attackers_module
from auditor.leakage import crossfit as module
from auditor.leakage import learners
from auditor.leakage.attackers import (
    Attackers,
    Holding,
    bases_of,
    combined,
    paired,
    single,
)
from auditor.leakage.crossfit import (
    Fitted,
    Learned,
    best_inside,
    centred,
    choose,
    cross_fit,
    learned,
    stacked,
    train_and_judge,
    weigh,
)
from auditor.leakage.folds import N_INNER, Folds, draw_folds
from tests.leakage_cases import Case, make_attackers, make_case

N = 180
HALVES = (slice(0, 20), slice(20, 40))
Signals = list[np.ndarray]


def subject(
    n: int = N, p: int = 40, *, gain: float = 0.6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, Folds]:
    """Many random columns, by which records can be remembered, and one that tells something."""
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(n) < n // 2)
    features = rng.normal(size=(n, p)).astype(np.float32)
    features[:, 0] += gain * member
    folds = draw_folds(member, np.arange(n) // 2, n_folds=3, n_repeats=2, seed=seed)
    return features, member, folds


def base(features: np.ndarray, member: np.ndarray, folds: Folds) -> Fitted:
    return cross_fit(features, member, folds, trees=True)


def one_matrix(features: np.ndarray, member: np.ndarray, folds: Folds) -> Fitted:
    return base(features, member, folds)


def two_stacked(features: np.ndarray, member: np.ndarray, folds: Folds) -> Fitted:
    parts = [base(features[:, columns], member, folds) for columns in HALVES]
    return stacked(parts, member, folds)


def best_of_three(features: np.ndarray, member: np.ndarray, folds: Folds) -> Fitted:
    parts = [base(features[:, columns], member, folds) for columns in HALVES]
    both = stacked(parts, member, folds)
    return Fitted(best_inside([*parts, both], member, folds).repeats, both.inner, {})


Pipeline = Callable[[np.ndarray, np.ndarray, Folds], Fitted]


@pytest.mark.parametrize(
    ("pipeline", "trees"),
    [(one_matrix, False), (two_stacked, False), (best_of_three, False), (one_matrix, True)],
)
def test_labels_of_held_out_records_are_not_seen(
    pipeline: Pipeline, trees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turn them round in one fold: nothing that is said of that fold may move, all else may."""
    features, member, folds = subject()
    if trees:
        monkeypatch.setattr(learners, "LEAST_FOR_TREES", 50)
        features = features[:, :3]
        features[:, 1] = (2 * member - 1) * np.sign(features[:, 2])  # either-or
    before = pipeline(features, member, folds)
    assert ("trees" in before.chosen) == trees
    for r, k in ((0, 2), (1, 1)):
        held = folds.repeats[r][k].test
        turned = member.copy()
        turned[held] = ~turned[held]
        after = pipeline(features, turned, folds)
        np.testing.assert_array_equal(after.test[r, held], before.test[r, held])
        np.testing.assert_array_equal(after.inner[r][k], before.inner[r][k])
        others = np.setdiff1d(np.arange(N), held)
        assert (after.test[r, others] != before.test[r, others]).mean() > 0.9
        assert (after.test[1 - r] != before.test[1 - r]).any()


def test_features_of_a_held_out_record_move_its_own_log_odds_alone() -> None:
    """The scaler has not seen it either."""
    features, member, folds = subject()
    before = base(features, member, folds)
    for r, k in ((0, 0), (1, 2)):
        held = folds.repeats[r][k].test
        moved = features.copy()
        moved[held[0]] += np.float32(2.5)
        after = base(moved, member, folds)
        assert after.test[r, held[0]] != before.test[r, held[0]]
        np.testing.assert_array_equal(after.test[r, held[1:]], before.test[r, held[1:]])
        np.testing.assert_array_equal(after.inner[r][k], before.inner[r][k])


def test_inner_log_odds_come_from_the_other_inner_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """And from none of the records that nothing is chosen on."""
    monkeypatch.setattr("auditor.leakage.folds.MOST_CHOOSING", 90)
    monkeypatch.setattr(module, "candidates", lambda n, *, trees, strengths: ["logistic 0.01"])
    features, member, folds = subject()
    part = folds.repeats[0][1]
    assert len(part.choosing) == 90 < len(part.train)
    _, before = choose(features, member, part, trees=False)
    for fold in range(N_INNER):
        held = part.inner == fold
        turned = member.copy()
        turned[part.choosing[held]] ^= True
        _, after = choose(features, turned, part, trees=False)
        np.testing.assert_array_equal(after[held], before[held])
        assert (after[~held] != before[~held]).all()
        # Nor from a scaler that has seen them.
        first, *rest = np.flatnonzero(held)
        moved = features.copy()
        moved[part.choosing[first]] += 2
        _, after = choose(moved, member, part, trees=False)
        np.testing.assert_array_equal(after[rest], before[rest])
        assert after[first] != before[first]
    outside = np.setdiff1d(np.arange(N), part.choosing)
    turned, moved = member.copy(), features.copy()
    turned[outside] ^= True
    moved[outside] += 1
    np.testing.assert_array_equal(choose(moved, turned, part, trees=False)[1], before)


def test_against_one_fold_after_another() -> None:
    """What a record is told is what a learner says that was trained on exactly `train`."""
    features, member, folds = subject()
    found = base(features, member, folds)
    chosen: dict[str, int] = {}
    for r, parts in enumerate(folds.repeats):
        for k, part in enumerate(parts):
            name, inner = choose(features, member, part, trees=True)
            chosen[name] = chosen.get(name, 0) + 1
            np.testing.assert_array_equal(found.inner[r][k], inner)
            again = train_and_judge(
                features[part.train], member[part.train], features[part.test], name
            )
            np.testing.assert_array_equal(found.test[r, part.test], again)
    assert found.chosen == chosen
    assert sum(chosen.values()) == 6


def test_the_candidate_with_the_least_inner_loss_is_chosen() -> None:
    """Either-or on two columns among many records: trees; one straight column: a line."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(900, 3)).astype(np.float32)
    for straight in (False, True):
        member = (features[:, 0] > 0) if straight else (features[:, 0] > 0) ^ (features[:, 1] > 0)
        member = member ^ (rng.random(900) < 0.2)
        folds = draw_folds(member, np.arange(900), n_folds=3, n_repeats=1, seed=0)
        with_trees, without = (cross_fit(features, member, folds, trees=t) for t in (True, False))
        assert set(without.chosen) <= {f"logistic {s:g}" for s in learners.STRENGTHS}
        if not straight:
            assert with_trees.chosen == {"trees": 3}
            assert roc_auc_score(member, learned(with_trees, folds).signal) > 0.7
            assert roc_auc_score(member, learned(without, folds).signal) < 0.6


def test_centred_within_each_fold() -> None:
    features, member, folds = subject()
    fitted = base(features, member, folds)
    found = learned(fitted, folds)
    assert found.is_cross_fitted
    np.testing.assert_allclose(found.signal, found.repeats.mean(axis=0))
    for r, parts in enumerate(folds.repeats):
        for part in parts:
            given, now = fitted.test[r, part.test], found.repeats[r, part.test]
            assert abs(now.mean()) < 1e-12
            np.testing.assert_allclose(now - now[0], given - given[0], atol=1e-12)
    assert (centred(np.ones((2, N)), folds) == 0).all()


def test_several_times_the_same_is_as_much_as_once() -> None:
    features, member, folds = subject()
    one = base(features, member, folds)
    silent = base(np.zeros_like(features), member, folds)
    assert silent.test.any() is np.False_
    assert stacked([one], member, folds) is one
    for parts in ([one, one], [one, one, one], [one, silent], [silent, one, one]):
        found = stacked(parts, member, folds)
        np.testing.assert_array_equal(found.test, one.test)
        for r, k in product(range(2), range(3)):
            np.testing.assert_array_equal(found.inner[r][k], one.inner[r][k])
    nothing = stacked([silent, silent], member, folds)
    assert not nothing.test.any()
    assert nothing.chosen == {"logistic on log-odds": 6}


def test_who_remembers_best_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that knows its training records by heart says nothing of others.

    A stacker that is trained on what it says of the records it knows, written out below, falls for
    it.
    """
    monkeypatch.setattr(module, "candidates", lambda n, *, trees, strengths: ["logistic 0.001"])
    rng = np.random.default_rng(4)
    member = rng.permutation(np.arange(300) < 150)
    folds = draw_folds(member, np.arange(300), n_folds=3, n_repeats=2, seed=1)
    by_heart = rng.normal(size=(300, 400)).astype(np.float32)
    honest = (rng.normal(size=(300, 1)) + 1.2 * member[:, None]).astype(np.float32)
    parts = [base(by_heart, member, folds), base(honest, member, folds)]
    memory, good = (roc_auc_score(member, learned(part, folds).signal) for part in parts)
    assert memory < 0.6
    assert good > 0.75
    found = roc_auc_score(member, learned(stacked(parts, member, folds), folds).signal)
    assert found > good - 0.02

    def naive(r: int, k: int) -> np.ndarray:
        part = folds.repeats[r][k]
        side = member[part.train]
        below = [
            train_and_judge(block[part.train], side, block[part.train], "logistic 0.001")
            for block in (by_heart, honest)
        ]
        assert roc_auc_score(side, below[0]) == 1.0
        outer = np.stack([one.test[r, part.test] for one in parts], axis=1)
        return weigh(np.stack(below, axis=1), side, outer, part.inner)[0]

    fooled = np.empty((2, 300))
    for r, parts_of_r in enumerate(folds.repeats):
        for k, part in enumerate(parts_of_r):
            fooled[r, part.test] = naive(r, k)
    assert roc_auc_score(member, centred(fooled, folds).mean(axis=0)) < good - 0.05


def made_up(member: np.ndarray, folds: Folds, *, inside: float, outside: float) -> Fitted:
    """Log-odds that know the sides so well inside, and so well on held-out records."""
    rng = np.random.default_rng(round(10 * inside + 100 * outside))
    sign = np.where(member, 1.0, -1.0)
    inner = [
        [inside * sign[part.choosing] + 0.1 * rng.normal(size=len(part.choosing)) for part in parts]
        for parts in folds.repeats
    ]
    return Fitted(outside * sign + rng.normal(size=(2, N)), inner, {})


def test_a_stacker_is_chosen_by_what_it_says_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inner log-odds of an inner fold hang on no label in that fold, the penalty apart."""
    monkeypatch.setattr(module, "WEIGHING", (0.1,))
    _, member, folds = subject()
    parts = [made_up(member, folds, inside=i, outside=1.0) for i in (0.1, 0.2)]
    before = stacked(parts, member, folds)
    for r, k, fold in ((0, 0, 0), (1, 2, 1), (0, 1, 2)):
        part = folds.repeats[r][k]
        held = part.inner == fold
        turned = member.copy()
        turned[part.choosing[held]] ^= True
        after = stacked(parts, turned, folds)
        np.testing.assert_array_equal(after.inner[r][k][held], before.inner[r][k][held])
        assert (after.inner[r][k][~held] != before.inner[r][k][~held]).all()


def test_the_best_is_chosen_inside_the_folds() -> None:
    """Held-out records have no say: who is perfect on them alone is not chosen."""
    _, member, folds = subject()
    lucky = made_up(member, folds, inside=0.0, outside=50.0)
    better = made_up(member, folds, inside=1.0, outside=0.5)
    fair = made_up(member, folds, inside=0.3, outside=0.7)
    found = best_inside([lucky, fair, better], member, folds)
    assert found.chosen == {"2": 6}
    np.testing.assert_array_equal(found.repeats, centred(better.test, folds))
    assert best_inside([better, lucky], member, folds).chosen == {"0": 6}
    assert best_inside([fair, fair], member, folds).chosen == {"0": 6}
    alone = best_inside([fair], member, folds)
    np.testing.assert_array_equal(alone.repeats, learned(fair, folds).repeats)


def test_each_fold_chooses_for_itself() -> None:
    _, member, folds = subject()
    one, other = (made_up(member, folds, inside=i, outside=i) for i in (0.2, 0.4))
    other.inner[0][1][:] *= -1
    found = best_inside([one, other], member, folds)
    assert found.chosen == {"1": 5, "0": 1}
    held = folds.repeats[0][1].test
    np.testing.assert_array_equal(found.repeats[0, held], centred(one.test, folds)[0, held])
    rest = np.setdiff1d(np.arange(N), held)
    np.testing.assert_array_equal(found.repeats[0, rest], centred(other.test, folds)[0, rest])


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(np.random.default_rng(5), 150, n_variants=2, leak=0.1, variant_leak=0.3)


def signals_of(found: Attackers) -> Signals:
    names = found.order
    held = [subset for size in (1, 2, 3) for subset in combinations(names, size)]
    signals = [found.learned(Holding(subset)).signal for subset in held]
    pairs = [Holding((names[0], name)) for name in names[1:]]
    return [*signals, found.best_inside(pairs).signal]


def test_in_several_processes_as_in_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = signals_of(make_attackers(case, trees=True))
    monkeypatch.setattr(attackers_module, "WORTH_PROCESSES", 0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    monkeypatch.setattr(Attackers, "_fit", None)  # the way in one process is shut
    found = make_attackers(case, trees=True)
    found.prepare([Holding(found.order)])
    for own, other in zip(alone, signals_of(found), strict=True):
        np.testing.assert_array_equal(own, other)


def test_every_part_is_fitted_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sets of versions from the same parts: every version, every pair."""
    fits: list[tuple[int, bool]] = []

    def counted(features: np.ndarray, *rest: object, trees: bool, strengths: object) -> Fitted:
        fits.append((features.shape[1], trees))
        return cross_fit(features, *rest, trees=trees)  # type: ignore[arg-type]

    monkeypatch.setattr(attackers_module, "cross_fit", counted)
    found = make_attackers(case, trees=True)
    # Trees are not among the candidates of a pair without the original.
    parts = [(31, True)] * 5 + [(31, False)]
    found.prepare([Holding(found.order)])
    assert fits == parts
    signals_of(found)
    assert fits == parts
    original, first, second = found.order
    np.testing.assert_array_equal(single(found, first), found.learned(Holding((first,))).signal)
    np.testing.assert_array_equal(
        paired(found, second), found.learned(Holding((original, second))).signal
    )
    np.testing.assert_array_equal(
        combined(found, [second, original, first]), found.learned(Holding(found.order)).signal
    )
    assert fits == parts


def test_a_version_is_fitted_anew_beside_the_reference_and_a_pair_is_not(case: Case) -> None:
    with_it, without = Holding(("original", "variant 0"), True), Holding(("original", "variant 0"))
    assert set(bases_of(with_it)) & set(bases_of(without)) == {Holding(("original", "variant 0"))}
    blocks = case.blocks()
    told = np.where(case.is_member, 3.0, -3.0)[:, None].astype(np.float32)
    blocks = blocks._replace(references=dict.fromkeys(case.versions, told))
    usual = make_attackers(case)
    found = Attackers(blocks, case.is_member, usual.folds, order=usual.order, trees=False)
    assert found.matrix(Holding(("original",), True)).shape == (150, 32)
    assert found.matrix(Holding(("original",))).shape == (150, 31)
    assert roc_auc_score(case.is_member, found.learned(with_it).signal) == 1.0
    np.testing.assert_array_equal(found.learned(without).signal, usual.learned(without).signal)


def test_a_planted_move_is_found_by_who_holds_both() -> None:
    case = make_case(np.random.default_rng(6), 400, variant_leak=0.25, noise=0.2)
    found = make_attackers(case)
    alone = roc_auc_score(case.is_member, single(found, "original"))
    both = roc_auc_score(case.is_member, paired(found, "variant 0"))
    assert abs(alone - 0.5) < 0.1
    assert both > 0.9
    best: Learned = found.best_inside([Holding(("original",)), Holding(found.order)])
    assert best.chosen == {"1": 10}
