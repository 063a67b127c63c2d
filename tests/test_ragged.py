"""Sorting within records: beside one sort of all tokens by record and value, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.attacks.ragged import rank_within, sorted_within
from auditor.attacks.single import mean_of_smallest
from auditor.leakage.features import spread
from auditor.store import plan_shards
from tests.test_attacks import random_scores

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=25)


def by_lexsort(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    owner = np.repeat(np.arange(len(counts)), counts)
    return values[np.lexsort((values, owner))]


@given(counts=COUNTS, digits=st.integers(0, 6), dtype=st.sampled_from([np.float32, np.float64]))
@settings(deadline=None)
def test_values_are_sorted_within_records(counts: list[int], digits: int, dtype: type) -> None:
    sizes = np.array(counts, dtype=np.int64)
    values = np.round(np.random.default_rng(sum(counts)).normal(size=sizes.sum()), digits)
    given_ = values.astype(dtype)
    kept = given_.copy()
    found = sorted_within(given_, sizes)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, by_lexsort(given_, sizes))
    np.testing.assert_array_equal(given_, kept, err_msg="what is given must stay as it is")
    expected = [place for size in counts for place in range(size)]
    assert rank_within(sizes).tolist() == expected


@pytest.mark.parametrize("order", ["as in a shard", "any"])
def test_records_side_by_side_and_apart(order: str) -> None:
    """Equal lengths next to each other are taken as they lie, others are gathered."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 60, 700)
    if order == "as in a shard":
        sizes = sizes[plan_shards(sizes)[0]]
    values = rng.normal(size=sizes.sum())
    np.testing.assert_array_equal(sorted_within(values, sizes), by_lexsort(values, sizes))


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_the_smallest_share_is_that_of_one_sort_over_all_tokens(seed: int) -> None:
    scores = random_scores(np.random.default_rng(seed).integers(1, 50, 30), seed=seed)
    values = (scores.logp - scores.mu) / scores.sigma
    rank = np.arange(len(values)) - np.repeat(scores.offsets[:-1], scores.n_tokens)
    count = np.maximum(1, (0.2 * scores.n_tokens).astype(np.int64))
    kept = rank < np.repeat(count, scores.n_tokens)
    ordered = by_lexsort(values, scores.n_tokens)
    naive = scores.sums(np.where(kept, ordered, 0.0)) / count
    np.testing.assert_array_equal(mean_of_smallest(scores, values), naive)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_values_that_do_not_count_are_left_out(seed: int) -> None:
    scores = random_scores(np.random.default_rng(seed).integers(1, 20, 25), seed=seed)
    keep = ~scores.hit
    found = spread(scores, scores.logp, keep)
    owner = scores.record_of_token[keep]
    counts = np.bincount(owner, minlength=len(scores))
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.starts, np.cumsum(counts) - counts)
    np.testing.assert_array_equal(
        found.values, by_lexsort(scores.logp[keep].astype(np.float64), counts)
    )
