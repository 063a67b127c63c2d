"""Settings, questions and controls: who holds what, what must beat what, what must be nothing."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.attacks.combined import mean_rank
from auditor.leakage import controls as controls_module
from auditor.leakage.attackers import Attackers, Holding
from auditor.leakage.blocks import of_scores
from auditor.leakage.controls import judge_controls
from auditor.leakage.crossfit import Learned
from auditor.leakage.folds import Folds, draw_folds
from auditor.leakage.questions import (
    Answering,
    Asked,
    above_chance,
    answer,
    compare_learned,
    questions,
)
from auditor.leakage.settings import (
    Levels,
    auc_and_tprs,
    holdings,
    learned_attack,
    learned_by,
    result_of,
    training_free,
)
from tests.leakage_cases import make_attackers, make_case

LEVELS = Levels((0.05,), 0.95, 100, 0)
EVERY = ("NR", "SR", "MR")
Row = tuple[str, str, str, bool, bool]


@pytest.fixture(scope="module")
def leaky() -> Attackers:
    case = make_case(np.random.default_rng(1), 440, n_variants=2, variant_leak=0.15, noise=0.2)
    return make_attackers(case)


@pytest.fixture(scope="module")
def beside_reference() -> Attackers:
    case = make_case(np.random.default_rng(2), 300, n_variants=2, leak=0.1, reference=True)
    beside = case.versions["original"].reference
    assert beside is not None
    bare = {name: replace(own, reference=None) for name, own in case.versions.items()}
    pairs = [("original", "original"), *combinations(bare, 2)]
    blocks = of_scores(bare, pairs, original="original", beside=beside, same_tokens=True)
    usual = make_attackers(case)
    return Attackers(blocks, case.is_member, usual.folds, order=usual.order, trees=False)


def table(asked: list[Asked]) -> list[Row]:
    """Each question in short: o the original, a, b, c the variants."""
    return [
        (
            one.question,
            "".join(one.stronger.versions),
            " ".join("".join(held.versions) for held in one.weaker),
            one.stronger.with_reference,
            one.primary,
        )
        for one in asked
    ]


def expected(variants: str, *, beside: bool) -> list[Row]:
    """What the documentation says, by hand."""
    rows: list[Row] = []
    for ref in (False, True) if beside else (False,):
        rows += [("SR over NR", f"o{v}", f"o {v}", ref, not ref) for v in variants]
        if ref:
            rows += [("SR over original and reference", f"o{v}", "o", True, True) for v in variants]
        if len(variants) > 1:
            pairs = " ".join(f"o{v}" for v in variants)
            rows.append(("MR over SR", f"o{variants}", pairs, ref, not ref))
            if ref:
                rows.append(("MR over original and reference", f"o{variants}", "o", True, True))
        rows.append(("variants over original", variants, "o", ref, False))
    return rows


@pytest.mark.parametrize("variants", ["a", "ab", "abc"])
@pytest.mark.parametrize("beside", [False, True])
def test_the_questions_of_an_audit(variants: str, beside: bool) -> None:
    asked = questions(("o", *variants), settings=EVERY, with_reference=beside, noises={})
    assert sorted(table(asked)) == sorted(expected(variants, beside=beside))
    for one in asked:
        # Both sides hold the reference, or neither does.
        assert {held.with_reference for held in one.weaker} == {one.stronger.with_reference}


def test_questions_of_some_settings_and_of_noise() -> None:
    order = ("o", "a", "b")
    only_nr = questions(order, settings=("NR",), with_reference=True, noises={"a": "noise(a)"})
    assert only_nr == []
    sr = questions(order, settings=("NR", "SR"), with_reference=False, noises={"b": "noise(b)"})
    assert table(sr) == [
        ("SR over NR", "oa", "o a", False, True),
        ("SR over NR", "ob", "o b", False, True),
        ("compression over noise", "ob", "onoise(b)", False, True),
    ]
    mr = questions(order, settings=("MR",), with_reference=False, noises={"b": "noise(b)"})
    assert {one.question for one in mr} == {"MR over SR", "variants over original"}


def test_settings_by_what_is_held() -> None:
    for versions, found in (
        ("o", ("NR", "single")),
        ("a", ("NR", "single")),
        ("oa", ("SR", "paired")),
        ("ab", ("MR", "combined")),
        ("oab", ("MR", "combined")),
    ):
        assert learned_attack(Holding(tuple(versions)), "o") == found
    case = make_case(np.random.default_rng(0), 60, n_variants=3)
    for n_variants, wanted in (
        (1, "o a oa"),
        (2, "o a b oa ob oab ab"),
        (3, "o a b c oa ob oc oabc abc"),
    ):
        names = dict(zip(case.versions, "oabc", strict=True))
        some = Attackers(
            case.blocks(),
            case.is_member,
            Folds([], 0.0),
            order=list(case.versions)[: n_variants + 1],
        )
        held = holdings(some, settings=EVERY, with_reference=True)
        short = [("".join(names[v] for v in h.versions), h.with_reference) for h in held]
        assert short == [(v, beside) for beside in (False, True) for v in wanted.split()]
        for setting in EVERY:
            alone = holdings(some, settings=(setting,), with_reference=False)
            assert {learned_attack(h, "original")[0] for h in alone} <= {setting}


def test_training_free_attacks_on_several_versions(leaky: Attackers) -> None:
    rng = np.random.default_rng(3)
    primary = list(rng.normal(size=(3, 440)))
    found = list(training_free(leaky, primary, primary_holds_reference=True))
    original, first, second = leaky.order
    assert [(one.setting, one.attack, one.holding.versions) for one in found] == [
        ("SR", "gap", (original, first)),
        ("SR", "gap", (original, second)),
        ("SR", "ez-gap", (original, first)),
        ("SR", "ez-gap", (original, second)),
        ("MR", "mean-rank", (original, first, second)),
        ("MR", "mean-rank", (first, second)),
    ]
    for one in found[:4]:
        assert one.signal is leaky.blocks.gaps[one.attack][one.holding.versions[1]]
        assert (one.supervision, one.repeats, one.holding.with_reference) == ("none", None, False)
    for one, signals in zip(found[4:], (primary, primary[1:]), strict=True):
        np.testing.assert_array_equal(one.signal, mean_rank(signals))
        assert one.holding.with_reference


def test_figures_of_a_cross_fitted_attack_are_widened(leaky: Attackers) -> None:
    found = learned_by(leaky, Holding(leaky.order[:2]))
    overlap = leaky.folds.overlap
    result = result_of(found, leaky.is_member, overlap=overlap, levels=LEVELS)
    plain = result_of(found._replace(repeats=None), leaky.is_member, overlap=overlap, levels=LEVELS)
    share = result.noise_share
    assert share is not None
    assert 0 < share < 1
    assert plain.noise_share is None
    own, unwidened = result.figures.auc, plain.figures.auc
    assert own.value == unwidened.value
    assert own.low is not None
    assert unwidened.low is not None
    assert own.low < unwidened.low
    auc, tprs = auc_and_tprs(found, leaky.is_member, overlap=overlap, levels=LEVELS)
    assert (auc, tprs) == (own, result.figures.tpr_at_fpr)
    assert (result.setting, result.attack, result.supervision) == ("SR", "paired", "crossfit")
    assert result.learners == {"logistic on log-odds": 10}


def test_worse_than_chance_is_chance() -> None:
    """What was learned on these records may be wrong on them by construction, not in truth."""
    member = np.arange(200) < 100
    repeats = np.random.default_rng(4).normal(size=(2, 1, 200)).sum(axis=1) - 2 * member
    learned = Learned(repeats, {}, repeats[0])
    case = make_case(np.random.default_rng(0), 200)
    attackers = make_attackers(case)
    attackers._signals[Holding(("original",))] = learned
    found = learned_by(attackers, Holding(("original",)))
    for overlap in (0.5, 0.8):
        auc = result_of(found, member, overlap=overlap, levels=LEVELS).figures.auc
        assert auc.value is not None
        assert auc.value < 0.2
        assert auc.high == 0.5
        assert auc_and_tprs(found, member, overlap=overlap, levels=LEVELS)[0] == auc
    assert above_chance(learned, member, overlap=0.8) > 0.999


def test_a_signal_against_itself_is_exactly_nothing(leaky: Attackers) -> None:
    own = leaky.learned(Holding(leaky.order))
    tests = compare_learned(own, own, leaky.is_member, overlap=leaky.folds.overlap, levels=LEVELS)
    assert list(tests) == ["auc", "tpr@0.05"]
    for test in tests.values():
        assert (test.difference.value, test.difference.low, test.difference.high) == (0, 0, 0)
        assert test.p_value == 1.0


@given(
    seed=st.integers(0, 10**6),
    own=st.floats(-1, 1),
    other=st.floats(-1, 1),
    is_cross_fitted=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_beating_the_weaker_is_not_enough(
    seed: int, own: float, other: float, is_cross_fitted: bool
) -> None:
    """No p-value is below that of being above chance, and none is small for a loss."""
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(440) < 220)
    shared = rng.normal(size=(1, 440))

    def learned(gain: float) -> Learned:
        rows = 3 if is_cross_fitted else 1
        repeats = shared + 0.3 * rng.normal(size=(rows, 440)) + gain * member
        return Learned(repeats, {}, repeats[0], is_cross_fitted)

    stronger, weaker = learned(own), learned(other)
    least = above_chance(stronger, member, overlap=0.8)
    tests = compare_learned(stronger, weaker, member, overlap=0.8, levels=LEVELS)
    for test in tests.values():
        assert test.p_value is not None
        assert test.difference.value is not None
        assert test.p_value >= least
        if test.difference.value <= 0:
            assert test.p_value >= 0.5
    if own > 0.6 and own - other > 0.5:
        assert tests["auc"].p_value is not None
        assert tests["auc"].p_value < 0.01


def test_above_chance_of_a_signal_that_does_not_vary() -> None:
    member = np.arange(100) < 50
    for signal, p_value in (
        (np.zeros((2, 100)), 1.0),
        (np.tile(member.astype(float), (2, 1)), 0.0),
        (-np.tile(member.astype(float), (2, 1)), 1.0),
    ):
        assert above_chance(Learned(signal, {}, signal[0]), member, overlap=0.8) == p_value


def test_answers(leaky: Attackers) -> None:
    asked = questions(leaky.order, settings=EVERY, with_reference=False, noises={})
    found = answer(asked, Answering(leaky, LEVELS))
    assert len(found) == 2 * len(asked)
    for one, (auc, tpr) in zip(asked, zip(found[::2], found[1::2], strict=True), strict=True):
        assert (auc.metric, tpr.metric) == ("auc", "tpr@0.05")
        assert auc.question == tpr.question == one.question
        assert auc.versions == list(one.stronger.versions)
        assert set(auc.against_versions) == {name for held in one.weaker for name in held.versions}
        assert auc.family == ("primary" if one.primary else "secondary")
        assert tpr.family == "secondary"
        assert auc.supervision == "crossfit"
    gains = [item for item in found if item.question == "SR over NR" and item.metric == "auc"]
    assert all(item.p_adjusted is not None and item.p_adjusted < 0.01 for item in gains)
    assert [item.attack for item in gains] == ["paired", "paired"]
    assert [item.against for item in gains] == ["single", "single"]
    # Holm, family by family: the smallest times all, the next times one less, never falling.
    for family in ("primary", "secondary"):
        of_family = [item for item in found if item.family == family]
        ordered = sorted(of_family, key=lambda item: item.p_value or 0.0)
        least = 0.0
        for rank, item in enumerate(ordered):
            assert item.p_value is not None
            least = max(least, min(1.0, item.p_value * (len(ordered) - rank)))
            assert item.p_adjusted == pytest.approx(least)
    assert {item.question for item in found if item.family == "primary"} == {
        "SR over NR",
        "MR over SR",
    }


def controls_of(attackers: Attackers, *, with_reference: bool = False) -> list[tuple[str, str]]:
    """Name and attack of the controls that did not pass."""
    groups = np.arange(len(attackers.is_member))
    found = judge_controls(
        attackers,
        groups,
        levels=LEVELS,
        settings=EVERY,
        with_reference=with_reference,
        trees=False,
    )
    original, *variants = attackers.order
    tried = [[original], *([original, name] for name in variants), list(attackers.order)]
    names = [(one.name, one.attack, one.versions) for one in found]
    attacks = ["single", *["paired"] * len(variants), "combined"]
    assert names == [
        *(("permuted-labels", a, held) for a, held in zip(attacks, tried, strict=True)),
        ("permuted-labels", "single", [original]),
        ("original-as-variant", "gap", [original, original]),
        ("original-as-variant", "paired", [original, original]),
    ]
    assert [one.with_reference for one in found] == [*[with_reference] * 5, False, with_reference]
    assert [one.expected for one in found] == [*[0.5] * 6, 0.0]
    chosen = "chosen inside the folds"
    assert [one.learner for one in found] == [*[chosen] * 4, "logistic 0.001", None, chosen]
    return [(one.name, one.attack) for one in found if not one.passed]


def test_controls_pass_where_there_is_a_leak(leaky: Attackers, beside_reference: Attackers) -> None:
    assert controls_of(leaky) == []
    assert controls_of(beside_reference) == []
    assert controls_of(beside_reference, with_reference=True) == []


def test_the_original_twice_is_exactly_the_original(leaky: Attackers) -> None:
    (gap, paired) = judge_controls(
        leaky,
        np.arange(440),
        levels=LEVELS,
        settings=("NR", "SR"),
        with_reference=False,
        trees=True,
    )[-2:]
    assert (gap.figure.value, paired.figure.value) == (0.5, 0.0)
    assert (paired.figure.low, paired.figure.high) == (0.0, 0.0)


def test_learners_that_saw_the_held_out_records_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Test rows among the training rows; the learner that remembers most shows it."""

    def careless(is_member: np.ndarray, groups: np.ndarray, **options: int) -> Folds:
        folds = draw_folds(is_member, groups, **options)
        every = np.arange(len(is_member))
        return folds._replace(
            repeats=[[part._replace(train=every) for part in parts] for parts in folds.repeats]
        )

    found = make_attackers(make_case(np.random.default_rng(5), 200, n_variants=2))
    assert controls_of(found) == []
    monkeypatch.setattr(controls_module, "draw_folds", careless)
    assert controls_of(found) == [("permuted-labels", "single")]


def test_a_feature_that_knows_the_label_is_caught_by_the_pair_of_twins(leaky: Attackers) -> None:
    """Something in the pair that is no move between the two versions."""
    blocks, twice = leaky.blocks, ("original", "original")
    told = blocks.pairs[twice].copy()
    told[:, 0] += leaky.is_member
    gaps = {**blocks.gaps, "gap": {**blocks.gaps["gap"], "original": told[:, 0].astype(np.float64)}}
    cheating = Attackers(
        blocks._replace(pairs={**blocks.pairs, twice: told}, gaps=gaps),
        leaky.is_member,
        leaky.folds,
        order=leaky.order,
        trees=False,
    )
    assert controls_of(cheating) == [
        ("original-as-variant", "gap"),
        ("original-as-variant", "paired"),
    ]
