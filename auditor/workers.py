"""Work on several threads at once, with results in order.

NumPy and pyarrow let other threads run while they sort, add up and read, so that shards and signals
are worked on side by side in one process, and nothing is copied from one to another.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

from auditor.scoring.threads import SET_BY_USER, allowed_cores, n_threads

Item = TypeVar("Item")
Done = TypeVar("Done")
# Between the long steps threads take turns: more than this many mostly wait.
MOST = 8


def n_workers() -> int:
    """Threads that are worth starting: the cores that are given, or what the user has set."""
    wanted = n_threads(allowed_cores(), os.environ)
    if wanted is None:
        # OpenMP's form for nested teams is a list, of which the first is meant.
        given = next(os.environ[name] for name in SET_BY_USER if os.environ.get(name))
        first = given.partition(",")[0].strip()
        wanted = int(first) if first.isdecimal() else 1
    return max(1, min(MOST, wanted))


def in_order(work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[Done]:
    """What `work` makes of each item, in the order of the items.

    Args:
        work: Called from several threads at once.
        items: What is to be done; on an error what was not begun is left.
    """
    n = min(n_workers(), len(items))
    if n < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(n) as pool:
        yield from pool.map(work, items)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made on another thread while the one before it is worked on.

    They are made one after another, so that draws from one generator stay what they were.
    """
    if n_workers() < 2:
        yield from items
        return
    source, over = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, over)
        while (item := coming.result()) is not over:
            coming = pool.submit(next, source, over)
            yield cast(Item, item)
