"""Features: every column against one record at a time, and independent of order and of shards."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from auditor import store
from auditor.attacks.combined import mean_rank
from auditor.attacks.paired import ez_gap, gap
from auditor.attacks.single import EZ_CAP
from auditor.leakage import blocks as blocks_module
from auditor.leakage.blocks import Blocks, of_scores, read_blocks
from auditor.leakage.features import (
    N_DISTANT,
    N_LENGTHS,
    distant_features,
    length_features,
    pair_features,
    version_features,
)
from auditor.scoring.scores import Scores
from auditor.store import VariantStore, plan_shards
from tests.leakage_cases import make_case
from tests.test_attacks import random_scores

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
# The two columns that are computed in float32 on the way.
SINGLE = {"rtol": 2e-5, "atol": 2e-6}


def invented(lengths: list[int], seed: int, *, tied: bool = False) -> Scores:
    """Random scores; some records without a missed token, some without a hit, ties on request."""
    scores = replace(random_scores(lengths, seed=seed), reference=None)
    kind = np.random.default_rng(seed).integers(0, 4, len(lengths))[scores.record_of_token]
    hit = np.where(kind == 0, True, np.where(kind == 1, False, scores.hit))
    logp = np.round(scores.logp) if tied else scores.logp
    return replace(scores, hit=hit, logp=logp.astype(np.float32))


def tokens(scores: Scores, row: int) -> tuple[np.ndarray, ...]:
    """l_t, z_t, mu_t, sigma_t in float64 and the hits of one record."""
    span = slice(scores.offsets[row], scores.offsets[row + 1])
    logp, mu, sigma = (x[span].astype(np.float64) for x in (scores.logp, scores.mu, scores.sigma))
    return logp, (logp - mu) / sigma, mu, sigma, scores.hit[span]


def skewness(values: np.ndarray) -> float:
    return float(stats.skew(values, bias=True)) if np.std(values) > 1e-6 else 0.0


def naive_version(scores: Scores, row: int) -> dict[str, float]:
    logp, z, mu, sigma, hit = tokens(scores, row)
    shares = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
    fewest = max(1, int(0.2 * len(logp)))
    return {
        "loss": np.mean(logp),
        "zlib": np.mean(logp) / scores.zlib_bytes[row],
        "min-k": np.mean(sorted(logp)[:fewest]),
        "min-k-plus-plus": np.mean(sorted(z)[:fewest]),
        "deviation of l": np.std(logp),
        "skewness of l": skewness(logp),
        **{f"quantile {share} of l": np.quantile(logp, share) for share in shares},
        "mean of z": np.mean(z),
        "deviation of z": np.std(z),
        "skewness of z": skewness(z),
        **{f"quantile {share} of z": np.quantile(z, share) for share in shares},
        "hits": np.mean(hit),
        "mean l over the missed": np.mean(logp[~hit]) if (~hit).any() else 0.0,
        "mean of mu": np.mean(mu),
        "mean of sigma": np.mean(sigma),
    }


def naive_pair(first: Scores, second: Scores, row: int) -> dict[str, float]:
    (logp, z, mu, _, hit), (logp2, z2, mu2, _, hit2) = tokens(first, row), tokens(second, row)
    found: dict[str, float] = {}
    for where, move in (("all", logp2 - logp), ("missed", (logp2 - logp)[~hit])):
        ordered = sorted(move)
        tail = max(1, int(0.1 * len(move)))
        values = {
            "mean": np.mean(move) if len(move) else 0.0,
            "deviation": np.std(move) if len(move) else 0.0,
            **{
                f"quantile {share}": np.quantile(move, share) if len(move) else 0.0
                for share in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
            },
            "upward": np.mean(move > 0) if len(move) else 0.0,
            "most down": np.mean(ordered[:tail]) if len(move) else 0.0,
            "most up": np.mean(ordered[-tail:]) if len(move) else 0.0,
        }
        found |= {f"{name} of {where}": float(value) for name, value in values.items()}
    found |= {"mean of z": np.mean(z2 - z), "deviation of z": np.std(z2 - z)}
    found |= {"mean of mu": np.mean(mu2 - mu), "deviation of mu": np.std(mu2 - mu)}
    found |= {"gained": np.mean(hit2 & ~hit), "lost": np.mean(hit & ~hit2)}
    # EZ as an attack on the first model, the second being its reference.
    change = (logp - logp2)[~hit]
    fall = -change[change < 0].sum()
    ratio = min(change[change > 0].sum() / fall, EZ_CAP) if fall else EZ_CAP
    return found | {"log EZ": np.log(1 + ratio)}


def naive_lengths(scores: Scores, row: int) -> dict[str, float]:
    size, squeezed = int(scores.text_bytes[row]), int(scores.zlib_bytes[row])
    n_tokens = int(scores.offsets[row + 1] - scores.offsets[row])
    return {
        "tokens": np.log(n_tokens),
        "bytes": np.log(size),
        "zlib": np.log(squeezed),
        "zlib per byte": squeezed / size,
    }


def assert_columns(found: np.ndarray, naive: Callable[[int], dict[str, float]], width: int) -> None:
    rows = [naive(row) for row in range(len(found))]
    assert found.dtype == np.float64
    assert found.shape == (len(rows), width)
    assert len(rows[0]) == width
    for column, name in enumerate(rows[0]):
        expected = [row[name] for row in rows]
        np.testing.assert_allclose(found[:, column], expected, err_msg=name, **SINGLE)


@given(lengths=LENGTHS, seed=st.integers(0, 10**6), tied=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_version_against_the_formulas(lengths: list[int], seed: int, tied: bool) -> None:
    scores = invented(lengths, seed, tied=tied)
    assert_columns(version_features(scores), lambda row: naive_version(scores, row), 27)
    assert_columns(length_features(scores), lambda row: naive_lengths(scores, row), N_LENGTHS)
    assert N_LENGTHS == 4


@given(lengths=LENGTHS, seed=st.integers(0, 10**6), tied=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_pair_against_the_formulas(lengths: list[int], seed: int, tied: bool) -> None:
    first, second = invented(lengths, seed, tied=tied), invented(lengths, seed + 1, tied=tied)
    assert_columns(pair_features(first, second), lambda row: naive_pair(first, second, row), 31)


@given(data=st.data(), lengths=LENGTHS, seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_a_reference_with_another_tokenizer(
    data: st.DataObject, lengths: list[int], seed: int
) -> None:
    """It may see no token at all to predict."""
    n = len(lengths)
    theirs = data.draw(st.lists(st.integers(0, 30), min_size=n, max_size=n))
    own, other = invented(lengths, seed), invented([*theirs, 1], seed + 1).take(range(n))
    other = replace(other, text_bytes=own.text_bytes)
    mixed = replace(own, reference=other, same_tokens=False)

    def naive(row: int) -> dict[str, float]:
        size = own.text_bytes[row]
        beside = tokens(other, row)[0].sum() / size
        return {"ref": tokens(own, row)[0].sum() / size - beside, "per byte": beside}

    assert_columns(distant_features(mixed), naive, N_DISTANT)
    assert N_DISTANT == 2


def test_one_model_against_itself_moves_nothing() -> None:
    scores = invented([1, 2, 7, 30, 40, 11], 3)
    moved = pair_features(scores, scores)
    assert (np.ptp(moved, axis=0) == 0).all()
    assert (moved[:, :-1] == 0).all()
    assert moved[0, -1] == np.log1p(EZ_CAP)


def test_a_shift_of_every_token_is_a_shift_of_the_moves() -> None:
    """The deviation of a constant move is nothing, however large the move is."""
    scores = replace(invented([1, 5, 40], 4), hit=np.zeros(46, dtype=bool))
    second = replace(scores, mu=scores.mu - 1000, logp=scores.logp - np.float32(1000))
    moved = pair_features(scores, second)
    np.testing.assert_allclose(moved[:, [1, 13, 25, 27]], 0.0, atol=1e-3)
    np.testing.assert_allclose(moved[0, [1, 13, 25, 27]], 0.0, atol=1e-12)
    np.testing.assert_allclose(moved[:, [0, 12, 26]], -1000, rtol=1e-6)


def test_extreme_but_legal_scores_stay_finite() -> None:
    """Certain tokens, hopeless ones beside no variance at all, ties; in float32 as well."""
    scores = invented([1, 2, 30, 5], 5)
    certain = replace(
        scores,
        logp=np.zeros_like(scores.logp),
        mu=np.zeros_like(scores.mu),
        sigma=np.full_like(scores.sigma, 1e-6),
        hit=np.ones_like(scores.hit),
    )
    hopeless = replace(certain, logp=np.full_like(scores.logp, -1e4), hit=~certain.hit)
    one_of_all = replace(certain, logp=np.where(np.arange(38) % 9, 0.0, -1e4).astype(np.float32))
    named = {"certain": certain, "hopeless": hopeless, "one": one_of_all, "usual": scores}
    pairs = [(a, b) for a in named for b in named]
    found = of_scores(named, pairs, original="usual", beside=hopeless, same_tokens=True)
    for block in arrays_of(found).values():
        assert np.isfinite(block).all()
        assert block.dtype in (np.float32, np.float64)


def arrays_of(blocks: Blocks) -> dict[str, np.ndarray]:
    """Every array of the blocks, by where it stands."""
    found = {"lengths": blocks.lengths}
    for name in ("versions", "references", "pairs"):
        found |= {f"{name} {key}": value for key, value in getattr(blocks, name).items()}
    for attack, by_version in blocks.gaps.items():
        found |= {f"{attack} {name}": value for name, value in by_version.items()}
    return found


def several(lengths: list[int], seed: int) -> tuple[dict[str, Scores], list[tuple[str, str]]]:
    scores = {name: invented(lengths, seed + k) for k, name in enumerate(("original", "a", "b"))}
    return scores, [("original", "original"), *combinations(scores, 2)]


@given(lengths=LENGTHS, seed=st.integers(0, 10**6), same_tokens=st.booleans())
@settings(deadline=None, max_examples=25)
def test_order_and_company_do_not_matter(lengths: list[int], seed: int, same_tokens: bool) -> None:
    """Neither where a record stands nor which others there are; so no feature is a position."""
    scores, pairs = several(lengths, seed)
    beside = invented(lengths, seed + 9)
    options = {"original": "original", "same_tokens": same_tokens}
    whole = arrays_of(of_scores(scores, pairs, beside=beside, **options))
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(lengths))[: rng.integers(1, len(lengths) + 1)]
    taken = {name: own.take(picked) for name, own in scores.items()}
    found = arrays_of(of_scores(taken, pairs, beside=beside.take(picked), **options))
    assert found.keys() == whole.keys()
    for name, block in found.items():
        np.testing.assert_allclose(block, whole[name][picked], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("reference", ["none", "same tokenizer", "another"])
def test_from_shards_as_from_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setattr(store, "SHARD_TOKENS", 64)
    lengths = np.random.default_rng(0).integers(1, 40, 50)
    scores, pairs = several(list(lengths), 11)
    shards = plan_shards(lengths)
    assert len(shards) > 10
    theirs = np.random.default_rng(1).integers(1, 40, 50) if reference == "another" else lengths
    beside = replace(invented(list(theirs), 20), text_bytes=scores["original"].text_bytes)
    ids = np.array([f"{number:016x}" for number in range(50)])
    stores = {}
    for name, own in {**scores, "reference": beside}.items():
        stores[name] = VariantStore(
            tmp_path, name, fingerprint={"of": name}, shards=shards, record_ids=ids
        )
        for number, rows in enumerate(shards):
            stores[name].write_shard(number, own.take(rows))
    last = stores.pop("reference")
    given_one, same = reference != "none", reference != "another"
    found = read_blocks(
        stores,
        pairs,
        n_records=50,
        reference=last if given_one else None,
        same_tokens=same,
    )
    wanted = of_scores(
        scores,
        pairs,
        original="original",
        beside=beside if given_one else None,
        same_tokens=same,
    )
    expected = arrays_of(wanted)
    assert len(expected) == 1 + 3 + 3 * given_one + 4 + 2 * 3
    for name, block in arrays_of(found).items():
        assert block.dtype == expected[name].dtype
        np.testing.assert_allclose(block, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    width = 27 + 4 + (0 if not given_one else 31 if same else 2)
    assert found.version("a", with_reference=given_one).shape == (50, width)
    assert found.version("a", with_reference=False).shape == (50, 31)


def test_gaps_are_the_original_beside_a_variant() -> None:
    scores, pairs = several([3, 9, 20, 1], 6)
    found = of_scores(scores, pairs, original="original", beside=None, same_tokens=True)
    for name in ("a", "b"):
        both = replace(scores["original"], reference=scores[name])
        np.testing.assert_array_equal(found.gaps["gap"][name], gap(both))
        np.testing.assert_array_equal(found.gaps["ez-gap"][name], ez_gap(both))
        expected = [
            tokens(scores["original"], row)[0].mean() - tokens(scores[name], row)[0].mean()
            for row in range(4)
        ]
        np.testing.assert_allclose(found.gaps["gap"][name], expected, rtol=1e-9, atol=1e-9)
    assert (found.gaps["gap"]["original"] == 0).all()


def test_no_feature_is_given_a_label_or_a_position() -> None:
    """By construction: what makes features takes token statistics and names, nothing else."""
    allowed = {
        "scores", "first", "second", "stores", "pairs", "n_records", "reference",
        "same_tokens", "original", "beside", "learned",
    }  # fmt: skip
    for function in (
        version_features, pair_features, distant_features, length_features,
        blocks_module.of_scores, blocks_module.read_blocks,
    ):  # fmt: skip
        assert set(inspect.signature(function).parameters) <= allowed, function.__name__
    assert not any("member" in name for name in Scores.__dataclass_fields__)


def test_the_labels_of_a_planted_case_do_not_stand_in_its_features() -> None:
    """Without a leak, no single column tells the sides apart beyond chance over all columns."""
    case = make_case(np.random.default_rng(8), 600, n_variants=2, reference=False)
    for name, block in arrays_of(case.blocks()).items():
        columns = block.reshape(len(block), -1).astype(np.float64)
        varying = columns[:, np.ptp(columns, axis=0) > 0]
        if varying.shape[1]:
            members, others = varying[case.is_member], varying[~case.is_member]
            p_values = stats.mannwhitneyu(members, others).pvalue
            assert p_values.min() * varying.shape[1] > 1e-3, name


@given(n=st.integers(1, 9), n_versions=st.integers(1, 4), data=st.data())
def test_mean_rank_against_counting(n: int, n_versions: int, data: st.DataObject) -> None:
    row = st.lists(st.integers(-5, 5), min_size=n, max_size=n)
    rows = data.draw(st.lists(row, min_size=n_versions, max_size=n_versions))
    expected = [
        sum(
            sum(other < row[record] for other in row)
            + (sum(other == row[record] for other in row) + 1) / 2
            for row in rows
        )
        / len(rows)
        / (n + 1)
        for record in range(n)
    ]
    found = mean_rank(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ((found > 0) & (found < 1)).all()


@given(seed=st.integers(0, 10**6))
def test_mean_rank_only_sees_order(seed: int) -> None:
    """Each version's signal may be stretched in its own way."""
    signals = np.random.default_rng(seed).normal(size=(3, 25))
    stretched = np.stack([np.exp(signals[0]), signals[1] ** 3, 5 * signals[2] - 1e3])
    np.testing.assert_array_equal(mean_rank(stretched), mean_rank(signals))
    np.testing.assert_array_equal(mean_rank(signals[::-1]), mean_rank(signals))
