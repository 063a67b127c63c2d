"""Releases: every set of versions with its figures, frontier, parts, gate and advice."""

from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import ConfigError
from auditor.leakage import releases as module
from auditor.leakage.attackers import Attackers
from auditor.leakage.blocks import Blocks, read_blocks
from auditor.leakage.bounds import parse_bound
from auditor.leakage.folds import draw_folds
from auditor.leakage.releases import frontier, gate_broken, judge_releases
from auditor.leakage.sets import beam, every_set
from auditor.leakage.settings import Levels, learned_by, result_of
from auditor.results import Releases
from auditor.store import VariantStore
from tests.test_attacks import random_scores

NAMES = ("original", "bnb-int8", "prune-magnitude", "gptq", "noise(gptq)")
REAL = NAMES[:-1]
PERPLEXITY = dict(zip(NAMES, (10.0, 10.5, 14.0, 12.0, 11.0), strict=True))
LEVELS = Levels((0.01, 0.05), 0.95, 200, 0)


def attackers(gain: dict[str, float], *, names: tuple[str, ...] = NAMES, n: int = 600) -> Attackers:
    """Versions with three features each, of which one is larger for members by its gain."""
    rng = np.random.default_rng(7)
    member = np.arange(n) % 2 == 0

    def block(width: int, shift: float = 0.0) -> np.ndarray:
        found = rng.normal(size=(n, width))
        found[:, 0] += shift * member
        return found.astype(np.float32)

    blocks = Blocks(
        lengths=block(1),
        versions={name: block(3, gain.get(name, 0.0)) for name in names},
        references={name: block(2, 0.5) for name in names},
        pairs={pair: block(2) for pair in combinations(names, 2)},
        gaps={},
    )
    folds = draw_folds(member, np.arange(n), n_folds=3, n_repeats=2, seed=0)
    return Attackers(blocks, member, folds, order=names, trees=False)


@pytest.fixture(scope="module")
def leaky() -> Attackers:
    return attackers({"original": 0.4, "bnb-int8": 0.1, "prune-magnitude": 1.5})


@pytest.fixture(scope="module")
def silent() -> Attackers:
    return attackers({})


def judge(found: Attackers, bound: str | None = None, **options: object) -> Releases:
    return judge_releases(
        found,
        PERPLEXITY,
        levels=LEVELS,
        with_reference=bool(options.pop("with_reference", False)),
        bound=parse_bound(bound) if bound else None,
        **options,  # type: ignore[arg-type]
    )


def test_every_set_without_the_controls_has_the_figures_of_its_attacker(leaky: Attackers) -> None:
    found = judge(leaky)
    subsets = chain.from_iterable(combinations(REAL, size) for size in range(1, 5))
    assert sorted(tuple(release.versions) for release in found.sets) == sorted(subsets)
    assert found.search == "every set"
    for release in found.sets:
        alone = learned_by(leaky, leaky.holding(release.versions))
        figures = result_of(
            alone, leaky.is_member, overlap=leaky.folds.overlap, levels=LEVELS
        ).figures
        assert (release.auc, release.tpr_at_fpr) == (figures.auc, figures.tpr_at_fpr)
        costs = [PERPLEXITY[name] for name in release.versions]
        assert release.perplexity_worst == max(costs)
        assert release.perplexity_mean == pytest.approx(sum(costs) / len(costs))
        assert release.verdict is None
    # 300 nonmembers support the TPR at 5% and not at 1%.
    assert found.metric == "tpr@0.05"
    keys = [
        (-len(release.versions), release.perplexity_mean, release.tpr_at_fpr["0.05"].value)
        for release in found.sets
    ]
    assert keys == sorted(keys)
    assert found.gate == found.sets[0]
    assert found.gate.versions == list(REAL)


def test_parts_are_those_of_the_sets_and_add_up(leaky: Attackers) -> None:
    found = judge(leaky)
    assert [part.version for part in found.parts] == list(REAL)
    whole = found.sets[0]
    assert whole.auc.value is not None
    assert sum(part.auc for part in found.parts) == pytest.approx(whole.auc.value - 0.5, abs=1e-12)
    assert {tuple(part.tpr_at_fpr) for part in found.parts} == {("0.05",)}
    tpr = sum(part.tpr_at_fpr["0.05"] for part in found.parts)
    assert tpr == pytest.approx((whole.tpr_at_fpr["0.05"].value or 0) - 0.05, abs=1e-12)
    most = max(found.parts, key=lambda part: part.auc)
    assert most.version == "prune-magnitude"


def test_the_reference_is_held_where_it_is_said(leaky: Attackers) -> None:
    with_it, without = judge(leaky, with_reference=True), judge(leaky)
    assert with_it.with_reference
    signal = leaky.learned(leaky.holding(["gptq"], with_reference=True)).signal
    alone = next(release for release in with_it.sets if release.versions == ["gptq"])
    member = leaky.is_member
    auc = (signal[member][:, None] > signal[~member]).mean()
    assert alone.auc.value == pytest.approx(auc)
    assert alone != next(release for release in without.sets if release.versions == ["gptq"])


def test_a_bound_at_a_rate_of_its_own(leaky: Attackers) -> None:
    found = judge(leaky, "tpr=0.2@fpr=0.1", gate=["gptq", "original"])
    assert found.metric == "tpr@0.1"
    assert list(found.sets[0].tpr_at_fpr) == ["0.01", "0.05", "0.1"]
    assert found.gate is not None
    assert found.gate.versions == ["original", "gptq"]
    alone = {}
    for release in found.sets:
        tpr = release.tpr_at_fpr["0.1"]
        assert tpr.low is not None
        assert tpr.high is not None
        verdict = "under" if tpr.high <= 0.2 else "over" if tpr.low > 0.2 else "undecided"
        alone[frozenset(release.versions)] = verdict
    # Whoever holds a set holds its subsets: the worst of them counts.
    for release in found.sets:
        held = {alone[versions] for versions in alone if versions <= set(release.versions)}
        worst = next(one for one in ("over", "undecided", "under") if one in held)
        assert release.verdict == worst
    assert {release.verdict for release in found.sets} >= {"over", "under"}


def test_what_cannot_be_judged_is_refused(leaky: Attackers) -> None:
    with pytest.raises(ConfigError, match="support") as refused:
        judge(leaky, "tpr=0.05@fpr=0.01")
    assert "needs 1000 nonmembers; there are 300" in refused.value.seen
    for gate, seen in ((["gtpq"], "'gtpq'"), (["noise(gptq)"], "noise"), ([], "none")):
        with pytest.raises(ConfigError) as refused:
            judge(leaky, "auc=0.6", gate=gate)
        assert seen in refused.value.seen
    with pytest.raises(ConfigError) as refused:
        judge(leaky, "auc=0.6", gate=["gtpq"])
    assert "'gptq'" in refused.value.fix


def test_the_gate(leaky: Attackers) -> None:
    over = judge(leaky, "auc=0.6")
    assert over.gate is not None
    assert over.gate.verdict == "over"
    reason = gate_broken(over, "over")
    assert reason == gate_broken(over, "undecided")
    assert reason is not None
    figure = f"{over.gate.auc.value:.3f} [{over.gate.auc.low:.3f}, {over.gate.auc.high:.3f}]"
    for part in ("all 4 versions", figure, "at most 0.6"):
        assert part in reason
    undecided = judge(leaky, "auc=0.55", gate=["bnb-int8"])
    assert undecided.gate is not None
    assert undecided.gate.verdict == "undecided"
    assert gate_broken(undecided, "over") is None
    assert "bnb-int8 is not shown to stay within" in (gate_broken(undecided, "undecided") or "")
    under = judge(leaky, "auc=0.99")
    assert gate_broken(under, "undecided") is None
    assert gate_broken(judge(leaky), "undecided") is None


def test_advice_with_a_bound(leaky: Attackers) -> None:
    assert judge(leaky, "auc=0.99").advice.startswith(
        "All 4 versions are shown to stay within the bound: AUC is "
    )
    some = judge(leaky, "auc=0.7")
    best = next(release for release in some.sets if release.verdict == "under")
    assert "prune-magnitude" not in best.versions
    missing = [name for name in REAL if name not in best.versions]
    assert some.advice.startswith(f"Leave out {' and '.join(missing)} and the others are shown")
    assert f"{best.auc.value:.3f} [" in some.advice
    assert "not widened for that choice" in some.advice
    none = judge(leaky, "auc=0.5")
    least = min(none.sets, key=lambda release: release.auc.value or 0)
    assert not any(release.verdict == "under" for release in none.sets)
    assert none.advice.startswith("No release is shown to keep AUC at most 0.5: the smallest is ")
    assert f"{least.auc.value:.3f} [" in none.advice


def test_advice_without_a_bound(leaky: Attackers, silent: Attackers) -> None:
    advice = judge(leaky).advice
    without = next(
        release
        for release in judge(leaky).sets
        if release.versions == ["original", "bnb-int8", "gptq"]
    )
    before, after = (
        f"{100 * (release.tpr_at_fpr['0.05'].value or 0):.1f}%"
        for release in (judge(leaky).sets[0], without)
    )
    start = f"Leave out prune-magnitude and TPR at 5% FPR falls from {before} to {after} (by "
    assert advice.startswith(start)
    assert "Holm's correction over 4 versions" in advice
    advice = judge(silent).advice
    assert advice.startswith(
        "No difference is shown between publishing all 4 versions and the original alone: TPR at "
        "5% FPR"
    )
    assert "can be excluded at 95% confidence" in advice
    alone = attackers({"original": 0.5}, names=("original", "noise(gptq)"), n=300)
    found = judge(alone)
    assert [release.versions for release in found.sets] == [["original"]]
    assert found.advice.startswith("There is only one version, original,")


def test_where_all_say_the_same_no_version_stands_out() -> None:
    """Each variant knows what the original does not, and all three know the same."""
    found = attackers({}, names=REAL)
    for name in REAL[1:]:
        found.blocks.versions[name][:] = found.blocks.versions["gptq"]
        found.blocks.versions[name][:, 1] += 1.5 * found.is_member
    for name in REAL[2:]:
        found.blocks.versions[name][:] = found.blocks.versions["bnb-int8"]
    advice = judge(found).advice
    assert advice.startswith("Publishing all 4 versions gives away more than the original alone")
    assert "no single version stands out" in advice


def test_advice_finds_nothing_in_noise() -> None:
    """Under the null a gain is claimed in no more than the share that the level allows."""
    found, trials, claims = attackers({}, names=REAL[:2], n=200), 24, 0
    for seed in range(trials):
        member = np.random.default_rng(seed).permutation(found.is_member)
        folds = draw_folds(member, np.arange(200), n_folds=2, n_repeats=2, seed=seed)
        drawn = Attackers(found.blocks, member, folds, order=REAL[:2], trees=False)
        levels = Levels((), 0.95, 200, seed)
        releases = judge_releases(drawn, PERPLEXITY, levels=levels, with_reference=False)
        assert releases.metric == "auc"
        claims += not releases.advice.startswith("No difference is shown")
    assert claims <= trials * 0.05 + 3 * np.sqrt(trials * 0.05 * 0.95)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=14
    )
)
def test_frontier(sets: list[tuple[int, int, int]]) -> None:
    expected = [
        not any(n >= size and p < cost and q < leak for n, p, q in sets)
        for size, cost, leak in sets
    ]
    assert frontier(*zip(*sets, strict=True)).tolist() == expected


def test_a_beam_holds_what_it_must() -> None:
    names = tuple("abcdefghij")
    own = dict(zip(names, np.random.default_rng(0).random(10), strict=True))
    asked: list[tuple[str, ...]] = []

    def leakage(held: tuple[str, ...]) -> float:
        asked.append(held)
        return sum(own[name] for name in held)

    gate = ("a", "b", "c", "d", "e")
    found = beam(names, leakage, width=4, always=(names, gate))
    assert len(found) == len(set(found))
    assert {*((name,) for name in names), names, gate} <= set(found)
    assert all(held == tuple(sorted(held)) for held in found)
    for size in range(2, 10):
        of_size = [held for held in found if len(held) == size]
        assert 4 <= len(of_size) <= 4 + (size == len(gate))
        # Without interplay the least of each size is the least of one less and one more.
        assert min(of_size, key=leakage) == tuple(sorted(sorted(names, key=own.get)[:size]))
    assert len(set(asked)) < len(every_set(names)) / 3


def test_above_the_most_variants_sets_are_searched(
    leaky: Attackers, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = judge(leaky, gate=["bnb-int8", "prune-magnitude"])
    monkeypatch.setattr(module, "MOST_VARIANTS", 2)
    found = judge(leaky, gate=["bnb-int8", "prune-magnitude"])
    assert found.search == "beam"
    # Four versions have fewer sets than the beam is wide.
    assert found.sets == exact.sets
    assert found.gate == exact.gate
    for part, wanted in zip(found.parts, exact.parts, strict=True):
        assert part.auc == pytest.approx(wanted.auc, abs=0.02)
    assert sum(p.auc for p in found.parts) == pytest.approx(sum(p.auc for p in exact.parts))


def test_from_stored_scores(tmp_path: Path) -> None:
    """The whole way: token statistics on disk, features, attackers, releases."""
    rng = np.random.default_rng(3)
    n, names = 260, ("original", "prune-magnitude", "bnb-int8")
    member = rng.permutation(np.arange(n) % 2 == 0)
    lengths = rng.integers(15, 40, n)
    ids = np.array([f"{i:016x}" for i in range(n)])
    halves = np.array_split(rng.permutation(n), 2)
    stores = {}
    for seed, name in enumerate(names):
        lift = np.where(member, 0.6 if name == "prune-magnitude" else 0.0, 0.0)
        scores = replace(random_scores(lengths, seed=seed, lift=lift), reference=None)
        stores[name] = VariantStore(
            tmp_path, name, fingerprint={"of": name}, shards=halves, record_ids=ids
        )
        for number, rows in enumerate(halves):
            stores[name].write_shard(number, scores.take(rows))
    blocks = read_blocks(stores, list(combinations(names, 2)), n_records=n)
    folds = draw_folds(member, np.arange(n), n_folds=3, n_repeats=2, seed=0)
    found = judge(Attackers(blocks, member, folds, order=names, trees=False), "auc=0.7")
    for release in found.sets:
        expected = "over" if "prune-magnitude" in release.versions else "under"
        assert release.verdict == expected
    assert found.advice.startswith("Leave out prune-magnitude and the others are shown to stay")
    assert max(found.parts, key=lambda part: part.auc).version == "prune-magnitude"
