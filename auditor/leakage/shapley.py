"""What each version adds to what a release gives away: its Shapley part.

The part of a version is what it adds to the sets that it joins, on average over all orders in
which the versions could be published one after another. The parts of all add up to what the whole
gives away.

Source: Shapley, A Value for n-Person Games, 1953, equation 13; by sampled orders: Castro, Gomez &
Tejada, Computers & Operations Research 2009.
"""

from collections.abc import Callable
from math import factorial

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
# What the players of these places are worth together, shape (metrics,); nothing for none.
Worth = Callable[[tuple[int, ...]], Float64]


def shapley(n: int, worth: Worth) -> Float64:
    """The exact parts, from the worth of every set.

    Args:
        n: Players; `worth` is asked 2^n - 1 times.
        worth: Of a set that is not empty, in ascending order.

    Returns:
        Shape (n, metrics); the sum over the players is the worth of all.
    """
    held = [tuple(i for i in range(n) if mask >> i & 1) for mask in range(2**n)]
    values = np.stack([worth(players) for players in held[1:]])
    values = np.concatenate([np.zeros_like(values[:1]), values])
    sizes = np.array([len(players) for players in held])
    weights = np.array([factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)])
    masks = np.arange(2**n)
    parts = np.empty((n, values.shape[1]))
    for i in range(n):
        without = masks[masks >> i & 1 == 0]
        parts[i] = weights[sizes[without]] @ (values[without | 1 << i] - values[without])
    return parts


def sampled_shapley(n: int, worth: Worth, *, n_orders: int, seed: int) -> Float64:
    """The parts over drawn orders; they add up to the worth of all, too.

    Args:
        n: Players.
        worth: As for `shapley`; asked at most `n_orders` * n times, and so worth caching.
        n_orders: Orders that are drawn.
        seed: Of the draws.

    Returns:
        Shape (n, metrics).
    """
    rng = np.random.default_rng(seed)
    whole = worth(tuple(range(n)))
    parts = np.zeros((n, len(whole)))
    for _ in range(n_orders):
        before: Float64 = np.zeros_like(whole)
        order = rng.permutation(n)
        for place, player in enumerate(order, start=1):
            after = worth(tuple(sorted(int(i) for i in order[:place])))
            parts[player] += after - before
            before = after
    return parts / n_orders
