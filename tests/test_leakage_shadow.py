"""Shadow supervision: learned elsewhere, applied here, without a label of this audit."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from auditor.leakage import shadow as module
from auditor.leakage.attackers import Holding
from auditor.leakage.blocks import Blocks, of_scores
from auditor.leakage.crossfit import choose, train_and_judge
from auditor.leakage.folds import N_INNER
from auditor.leakage.settings import Levels, learned_by, result_of
from auditor.leakage.shadow import Shadow, Shadowed, joined
from tests.leakage_cases import Case, make_case

ORDER = ("original", "variant 0", "variant 1")
HELD = [
    Holding(ORDER[:1]),
    Holding(ORDER[:2]),
    Holding(ORDER[1:]),
    Holding(ORDER),
]
LEAK = {"n_variants": 2, "leak": 0.05, "variant_leak": 0.25}


def case_of(seed: int, n: int = 200, **options: float) -> Case:
    return make_case(np.random.default_rng(seed), n, **{**LEAK, **options})  # type: ignore[arg-type]


def shadow_of(case: Case) -> Shadow:
    return Shadow(case.blocks(), case.is_member, np.arange(len(case.is_member)))


@pytest.fixture(scope="module")
def target() -> Case:
    return case_of(0)


@pytest.fixture(scope="module")
def shadow() -> Shadow:
    return shadow_of(case_of(1, 260))


def attackers(
    target: Case, shadow: Shadow, *, blocks: Blocks | None = None, seed: int = 0
) -> Shadowed:
    made = target.blocks() if blocks is None else blocks
    return Shadowed(made, target.is_member, shadow, order=ORDER, seed=seed, trees=False)


def signals_of(found: Shadowed) -> list[np.ndarray]:
    return [*(found.learned(held).signal for held in HELD), found.best_inside(HELD).signal]


def only(blocks: Blocks, rows: np.ndarray) -> Blocks:
    """The blocks of some of the records."""
    return Blocks(
        lengths=blocks.lengths[rows],
        versions={key: block[rows] for key, block in blocks.versions.items()},
        references={key: block[rows] for key, block in blocks.references.items()},
        pairs={key: block[rows] for key, block in blocks.pairs.items()},
        gaps={},
    )


def test_what_leaks_in_both_is_found(target: Case, shadow: Shadow) -> None:
    found = attackers(target, shadow)
    alone, pair, variants, everything = (found.learned(held) for held in HELD)
    assert roc_auc_score(target.is_member, pair.signal) > 0.85
    assert roc_auc_score(target.is_member, everything.signal) > 0.85
    assert roc_auc_score(target.is_member, variants.signal) > 0.6
    assert roc_auc_score(target.is_member, alone.signal) < 0.75
    for one in (alone, pair, variants, everything, found.best_inside(HELD)):
        assert not one.is_cross_fitted
        assert one.repeats.shape == (1, 200)
    assert pair.chosen == {"logistic on log-odds": 1}
    (name,) = alone.chosen
    assert name.startswith("logistic ")


def test_what_leaks_in_the_shadow_alone_is_not_found(shadow: Shadow) -> None:
    """And an attack that was learned where nothing leaks finds nothing."""
    silent = case_of(2, 400, leak=0.0, variant_leak=0.0)
    for signal in signals_of(attackers(silent, shadow)):
        assert abs(roc_auc_score(silent.is_member, signal) - 0.5) < 4 * 0.029
    leaky, taught_nothing = case_of(3, 400), shadow_of(case_of(4, leak=0.0, variant_leak=0.0))
    of_noise = attackers(leaky, taught_nothing).learned(HELD[1]).signal
    of_leak = attackers(leaky, shadow).learned(HELD[1]).signal
    assert roc_auc_score(leaky.is_member, of_leak) > 0.85
    assert roc_auc_score(leaky.is_member, of_noise) < roc_auc_score(leaky.is_member, of_leak) - 0.1


def test_labels_of_the_target_are_never_used(target: Case, shadow: Shadow) -> None:
    other = np.random.default_rng(5).permutation(target.is_member)
    drawn = attackers(target._replace(is_member=other), shadow)
    one_sided = attackers(target._replace(is_member=np.ones(200, dtype=bool)), shadow)
    for own, found, alone in zip(
        signals_of(attackers(target, shadow)),
        signals_of(drawn),
        signals_of(one_sided),
        strict=True,
    ):
        np.testing.assert_array_equal(own, found)
        np.testing.assert_array_equal(own, alone)


def test_a_record_is_judged_as_if_it_were_alone(target: Case, shadow: Shadow) -> None:
    """Nothing is standardised anew on the target."""
    blocks = target.blocks()
    whole = signals_of(attackers(target, shadow))
    for rows in (np.arange(0, 200, 7), np.array([11])):
        part = target._replace(is_member=target.is_member[rows])
        found = signals_of(attackers(part, shadow, blocks=only(blocks, rows)))
        for own, all_of_them in zip(found, whole, strict=True):
            np.testing.assert_allclose(own, all_of_them[rows], rtol=1e-9, atol=1e-9)


def test_a_shift_of_the_target_is_a_shift_of_the_signal(target: Case, shadow: Shadow) -> None:
    """A model that is surer of everything is not brought back to the shadow's mean."""
    blocks, held = target.blocks(), Holding(("variant 0",))
    reach = np.zeros(27, dtype=np.float32)
    reach[0] = 0.5 * shadow.blocks.versions["variant 0"][:, 0].std()  # `loss`
    shifted = {**blocks.versions, "variant 0": blocks.versions["variant 0"] + reach}
    before = attackers(target, shadow).learned(held).signal
    after = attackers(target, shadow, blocks=blocks._replace(versions=shifted)).learned(held).signal
    change = after - before
    assert np.median(change) > 0.005
    # One and the same for every record, but for those that are cut.
    assert np.mean(np.abs(change - np.median(change)) < 1e-5) > 0.9


def test_one_version_is_the_learner_of_the_shadow(target: Case, shadow: Shadow) -> None:
    """Spelled out: chosen on inner folds, trained on all of the shadow, applied."""
    found = attackers(target, shadow)
    held = Holding(("variant 0",))
    part = found._part
    assert part.train.tolist() == part.choosing.tolist() == list(range(260))
    assert np.ptp(np.bincount(part.inner, minlength=N_INNER)) <= 2
    features = shadow.blocks.version("variant 0", with_reference=False)
    name, _ = choose(features, shadow.is_member, part, trees=False)
    expected = train_and_judge(
        features,
        shadow.is_member,
        target.blocks().version("variant 0", with_reference=False),
        name,
    )
    np.testing.assert_array_equal(found.learned(held).signal, expected)
    assert found.learned(held).chosen == {name: 1}


def test_the_best_is_the_best_on_the_shadow(shadow: Shadow) -> None:
    """Where the target tells otherwise, the shadow's choice stands."""
    # In the target only the second variant leaks, in the shadow both, the first far more.
    rng = np.random.default_rng(6)
    strong, weak = case_of(7, variant_leak=0.5), case_of(8, 240)
    mixed = Case(strong.is_member, {**strong.versions, "variant 1": strong.versions["original"]})
    taught = Shadow(mixed.blocks(), mixed.is_member, np.arange(200))
    found = attackers(weak, taught)
    pairs = [Holding((ORDER[0], ORDER[2])), Holding((ORDER[0], ORDER[1]))]
    best = found.best_inside(pairs)
    assert best.chosen == {"1": 1}
    np.testing.assert_array_equal(best.repeats, found.learned(pairs[1]).repeats)
    turned = weak._replace(is_member=rng.permutation(weak.is_member))
    assert attackers(turned, taught).best_inside(pairs).chosen == {"1": 1}


def test_several_shadows_are_one() -> None:
    first, second = case_of(9, 120), case_of(10, 160)
    groups = [np.arange(120) // 2, np.arange(160) // 4]
    parts = [
        Shadow(case.blocks(), case.is_member, own)
        for case, own in zip((first, second), groups, strict=True)
    ]
    found = joined(parts)
    assert found.is_member.tolist() == [*first.is_member, *second.is_member]
    assert found.groups.tolist() == [*groups[0], *(60 + groups[1])]
    for name in ("versions", "pairs"):
        blocks = getattr(found.blocks, name)
        assert list(blocks) == list(getattr(parts[0].blocks, name))
        for key, block in blocks.items():
            own, other = (getattr(part.blocks, name)[key] for part in parts)
            np.testing.assert_array_equal(block, np.concatenate([own, other]))
            assert block.dtype == np.float32
    assert len(found.blocks.lengths) == 280
    three = joined([*parts, parts[0]])
    assert three.groups[-120:].tolist() == [*(100 + groups[0])]
    alone = joined(parts[:1])
    assert alone.groups.tolist() == groups[0].tolist()


def test_learned_from_several_shadows(target: Case) -> None:
    """Each shadow alone is too small to learn from; a feature's mean may differ between them."""
    parts = [shadow_of(case_of(20 + seed, 30)) for seed in range(8)]
    held = HELD[1]
    one = attackers(target, parts[0]).learned(held).signal
    many = attackers(target, joined(parts)).learned(held).signal
    own = roc_auc_score(target.is_member, one)
    assert roc_auc_score(target.is_member, many) > max(0.85, own)


def test_near_duplicates_of_a_shadow_share_an_inner_fold(target: Case) -> None:
    case = case_of(11, 200)
    groups = np.random.default_rng(0).integers(0, 70, 200)
    part = attackers(target, Shadow(case.blocks(), case.is_member, groups))._part
    for group in set(groups):
        assert len(set(part.inner[groups[part.choosing] == group])) == 1


def test_caps_hold_for_shadows(target: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TRAINED", 150)
    monkeypatch.setattr(module, "MOST_CHOOSING", 90)
    found = attackers(target, shadow_of(case_of(12)))
    assert (len(found._part.train), len(found._part.choosing)) == (150, 90)
    assert set(found._part.choosing) <= set(found._part.train)
    assert np.isfinite(found.learned(Holding(ORDER)).signal).all()


def test_the_seed_draws_the_inner_folds_alone(target: Case, shadow: Shadow) -> None:
    one, same, other = (attackers(target, shadow, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one._part.inner, same._part.inner)
    assert (one._part.inner != other._part.inner).any()
    for own, twin in zip(signals_of(one), signals_of(same), strict=True):
        np.testing.assert_array_equal(own, twin)


def test_beside_the_reference(shadow: Shadow) -> None:
    """The shadow's reference teaches about the target's."""

    def with_reference(seed: int) -> tuple[Case, Blocks]:
        case = case_of(seed, reference=True)
        bare = {name: replace(own, reference=None) for name, own in case.versions.items()}
        beside = case.versions["original"].reference
        assert beside is not None
        pairs = [("original", "original"), *combinations(ORDER, 2)]
        blocks = of_scores(bare, pairs, original="original", beside=beside, same_tokens=True)
        return case, blocks

    (own, mine), (theirs, taught) = with_reference(13), with_reference(14)
    groups = np.arange(200)
    found = attackers(own, Shadow(taught, theirs.is_member, groups), blocks=mine)
    held = Holding(ORDER, True)
    assert roc_auc_score(own.is_member, found.learned(held).signal) > 0.85
    several = joined([Shadow(taught, theirs.is_member, groups)] * 2)
    assert several.blocks.references["variant 0"].shape == (400, 31)


def test_figures_of_a_shadowed_attack_are_not_widened(target: Case, shadow: Shadow) -> None:
    """No accident of training is tied to these records."""
    found = learned_by(attackers(target, shadow), HELD[1])
    assert (found.setting, found.attack, found.supervision) == ("SR", "paired", "shadow")
    assert found.repeats is None
    levels = Levels((0.05,), 0.95, 100, 0)
    result = result_of(found, target.is_member, overlap=0.0, levels=levels)
    assert result.noise_share is None
    assert result.figures.auc.value == pytest.approx(
        roc_auc_score(target.is_member, found.signal), abs=1e-12
    )
