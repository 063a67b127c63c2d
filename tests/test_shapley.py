"""Shapley parts against their definition: the mean over all orders of joining."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.leakage.shapley import Worth, sampled_shapley, shapley


def game(n: int, seed: int) -> Worth:
    """Every set has a worth of its own, in three metrics."""
    drawn = np.random.default_rng(seed).normal(size=(2**n, 3))
    return lambda held: drawn[sum(1 << i for i in held)]


def naive(n: int, worth: Worth) -> np.ndarray:
    orders = list(permutations(range(n)))
    parts = np.zeros((n, 3))
    for order in orders:
        for place, player in enumerate(order):
            with_it, without = sorted(order[: place + 1]), sorted(order[:place])
            before = worth(tuple(without)) if without else 0.0
            parts[player] += worth(tuple(with_it)) - before
    return parts / len(orders)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_exact_parts(n: int) -> None:
    worth = game(n, seed=n)
    np.testing.assert_allclose(shapley(n, worth), naive(n, worth), atol=1e-12)


@given(n=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_parts_add_up_to_the_whole(n: int, seed: int) -> None:
    worth = game(n, seed)
    whole = worth(tuple(range(n)))
    np.testing.assert_allclose(shapley(n, worth).sum(axis=0), whole, atol=1e-12)
    drawn = sampled_shapley(n, worth, n_orders=7, seed=seed)
    np.testing.assert_allclose(drawn.sum(axis=0), whole, atol=1e-12)


@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=6), apart=st.floats(0, 1), n=st.just(3)
)
def test_what_is_added_whoever_is_there_is_the_part(
    values: list[float], apart: float, n: int
) -> None:
    """Without interplay a part is what the player is worth alone, and 0 for one worth nothing."""
    own = [*values, 0.0]

    def worth(held: tuple[int, ...]) -> np.ndarray:
        return np.array([sum(own[i] for i in held)] * n)

    np.testing.assert_allclose(shapley(len(own), worth)[:, 0], own, atol=1e-12)
    drawn = sampled_shapley(len(own), worth, n_orders=2, seed=0)
    np.testing.assert_allclose(drawn[:, 0], own, atol=1e-12)


def test_two_that_are_alike_share() -> None:
    """Players 0 and 1 say the same; what they say together is said by either."""

    def worth(held: tuple[int, ...]) -> np.ndarray:
        return np.array([0.4 * (0 in held or 1 in held) + 0.1 * (2 in held)])

    np.testing.assert_allclose(shapley(3, worth)[:, 0], [0.2, 0.2, 0.1])


def test_drawn_orders_come_near_the_exact_parts() -> None:
    worth = game(5, seed=9)
    exact = shapley(5, worth)
    drawn = np.stack([sampled_shapley(5, worth, n_orders=50, seed=seed) for seed in range(60)])
    error = drawn.std(axis=0, ddof=1) / np.sqrt(60)
    assert (np.abs(drawn.mean(axis=0) - exact) < 4 * error).all()
    assert np.array_equal(drawn[3], sampled_shapley(5, worth, n_orders=50, seed=3))
