"""Every attack in the registry, by what any attack must keep to; a new one joins by itself."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from auditor.attacks import ATTACKS, single
from auditor.attacks.signals import applicable
from auditor.scoring.scores import Scores


def random_scores(
    lengths: list[int] | np.ndarray, *, seed: int, lift: np.ndarray | float = 0.0
) -> Scores:
    """Scores of random records beside a reference; `lift` is what a member gains per token."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    gain = np.repeat(np.broadcast_to(lift, len(lengths)), lengths)

    def model(shift: np.ndarray | float) -> Scores:
        mu = rng.uniform(-4, -1, total).astype(np.float32)
        sigma = rng.uniform(0.5, 2.5, total).astype(np.float32)
        logp = np.minimum(mu + sigma * rng.normal(size=total) + shift, -1e-4).astype(np.float32)
        hit = rng.random(total) < 0.3
        size = np.asarray(lengths) * 4
        return Scores(offsets, logp, mu, sigma, hit, size, size // 2 + 9)

    return replace(model(gain), reference=model(0.0))


@pytest.fixture(params=sorted(ATTACKS))
def attack(request: pytest.FixtureRequest):
    found = ATTACKS[request.param]
    if found.setting != "NR" or found.learned:
        pytest.skip("learned attacks and those on several versions have tests of their own")
    return found.load()


def test_planted_members_stand_above(attack) -> None:
    """Orientation: larger = more likely a member."""
    rng = np.random.default_rng(1)
    member = rng.random(400) < 0.5
    lengths = rng.integers(20, 60, 400)
    scores = random_scores(lengths, seed=2, lift=np.where(member, 1.0, 0.0))
    assert roc_auc_score(member, attack(scores)) > 0.8


def test_shuffled_labels_are_not_found(attack) -> None:
    rng = np.random.default_rng(3)
    scores = random_scores(rng.integers(5, 60, 1000), seed=4)
    member = rng.random(1000) < 0.5
    assert abs(roc_auc_score(member, attack(scores)) - 0.5) < 4 * 0.0183


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_finite_one_signal_a_record_in_any_order(lengths: list[int], seed: int) -> None:
    scores = random_scores(lengths, seed=seed)
    order = np.random.default_rng(seed).permutation(len(lengths))
    for name, found in ATTACKS.items():
        if found.setting != "NR" or found.learned:
            continue
        function = found.load()
        before = function(scores)
        assert before.shape == (len(lengths),), name
        assert before.dtype == np.float64, name
        assert np.isfinite(before).all(), name
        np.testing.assert_allclose(function(scores.take(order)), before[order], rtol=1e-12)
        twice = function(scores.take(np.repeat(np.arange(len(lengths)), 2)))
        np.testing.assert_array_equal(twice[::2], twice[1::2])
        again = function(scores)
        np.testing.assert_array_equal(before, again, err_msg="an attack must not change scores")


def test_extreme_but_legal_scores(attack) -> None:
    """Certain tokens (log p = 0, no variance) and ties."""
    scores = random_scores([1, 2, 30], seed=5)
    certain = replace(
        scores,
        logp=np.zeros_like(scores.logp),
        mu=np.zeros_like(scores.mu),
        sigma=np.full_like(scores.sigma, 1e-6),
        hit=np.ones_like(scores.hit),
    )
    assert np.isfinite(attack(certain)).all()
    same = replace(scores, reference=replace(scores, reference=None))
    assert np.isfinite(attack(same)).all()


def naive_signals(scores: Scores, row: int) -> dict[str, float]:
    """The formulas, one record at a time, in plain Python."""
    span = slice(scores.offsets[row], scores.offsets[row + 1])
    other = scores.reference
    assert other is not None
    own = [float(x) for x in scores.logp[span]]
    base = [float(x) for x in other.logp[span]]
    n = max(1, int(0.2 * len(own)))
    moments = zip(scores.mu[span], scores.sigma[span], strict=True)
    standard = sorted((x - float(m)) / float(s) for x, (m, s) in zip(own, moments, strict=True))
    missed = [a - b for a, b, h in zip(own, base, scores.hit[span], strict=True) if not h]
    fall = -sum(d for d in missed if d < 0)
    return {
        "loss": sum(own) / len(own),
        "zlib": sum(own) / len(own) / int(scores.zlib_bytes[row]),
        "min-k": sum(sorted(own)[:n]) / n,
        "min-k-plus-plus": sum(standard[:n]) / n,
        "ref": sum(own) / len(own) - sum(base) / len(base),
        "ez": sum(d for d in missed if d > 0) / fall if fall else single.EZ_CAP,
    }


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_against_the_formulas(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 30, 12)
    scores = random_scores(lengths, seed=seed)
    expected = [naive_signals(scores, row) for row in range(12)]
    for name in expected[0]:
        np.testing.assert_allclose(
            ATTACKS[name].load()(scores), [row[name] for row in expected], rtol=2e-5, atol=1e-7
        )


def test_a_reference_with_another_tokenizer_counts_bytes() -> None:
    scores = random_scores([10, 20], seed=6)
    other = random_scores([7, 31], seed=7)
    mixed = replace(scores, reference=replace(other, reference=None), same_tokens=False)
    expected = scores.sums(scores.logp) / scores.text_bytes
    expected = expected - other.sums(other.logp) / other.text_bytes
    np.testing.assert_allclose(single.ref(mixed), expected)
    names, left_out = applicable((), has_reference=True, same_tokens=False)
    assert "ref" in names
    assert "ez" not in names
    assert "tokenizer" in left_out["ez"]


def test_without_a_reference_its_attacks_are_left_out_with_the_reason() -> None:
    names, left_out = applicable((), has_reference=False, same_tokens=False)
    assert names == ["loss", "zlib", "min-k", "min-k-plus-plus"]
    assert set(left_out) == {"ref", "ez"}
    assert all("--reference" in reason for reason in left_out.values())


def test_ez_is_capped_high_where_nothing_fell() -> None:
    scores = random_scores([5, 5], seed=8)
    assert scores.reference is not None
    better = replace(scores, logp=scores.reference.logp + 0.1, hit=np.zeros(10, bool))
    assert single.ez(better).tolist() == [single.EZ_CAP] * 2
