"""Rank, share and meetings over accelerate, for `accelerate launch -m auditor audit ...`.

A process owns every n-th of the shards that are missing and writes them itself, so that nothing is
gathered and nothing is padded to even counts. What is small (who has failed) is told to all.

accelerate starts the processes and says who they are. Its barrier is not used: it gives up after a
fixed time, however busy the others are, and cannot say whom it waited for. Here every process shows
signs of life (`auditor.signs`), a meeting lasts as long as all who are awaited show them, and who
does not is named.
"""

import atexit
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from auditor.errors import CompleakError, RankError, first_line

if TYPE_CHECKING:
    from auditor.signs import Signs

Item = TypeVar("Item")
# How long a process may show no sign of life before the others give it up.
TIMEOUT_S = 1800.0

_signs: "Signs | None" = None


@dataclass(frozen=True)
class Processes:
    """The processes of this run.

    Attributes:
        rank: Number of this one.
        world: How many there are.
        local_rank: Number of this one on its machine, which is the number of its device.
        signs: What they show each other; None where there is one process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    signs: "Signs | None" = None

    @property
    def is_main(self) -> bool:
        """Whether this process checks, judges and writes the results."""
        return self.rank == 0

    def share(self, items: list[Item]) -> list[Item]:
        """The part of `items` that this process owns."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Wait until every process is here; errors as in `tell_all`."""
        self.tell_all(None)

    def tell_all(self, item: Item) -> list[Item]:
        """What every process says (anything that JSON can hold), by rank.

        Raises:
            RankError: A process has stopped, or shows no sign of life.
        """
        return [item] if self.signs is None else self.signs.meet(item)

    def doing(self, what: str, *, counts: bool = False) -> None:
        """Say what this process does now.

        Args:
            what: Some words.
            counts: Whether it will report steps by `step`, and is given up where none follows.
        """
        if self.signs is not None:
            self.signs.doing(what, counts=counts)

    def step(self, n_records: int) -> None:
        """Report progress: so many more records are scored."""
        if self.signs is not None:
            self.signs.step(n_records)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is raised inside is told to the others, so that nobody waits for who has stopped.

        An error that the main process shows in the same words is marked as said.
        """
        try:
            yield
        except CompleakError as error:
            if self.signs is not None and not error.is_said:
                error.is_said = not self.signs.fail(str(error))
            raise
        except BaseException as error:
            if self.signs is not None:
                self.signs.fail(str(error) or type(error).__name__)
            raise


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or "1") > 1


def says_for_all() -> bool:
    """Whether this process says what all find out alike before they have met: one on a machine."""
    return _signs is not None or os.environ.get("LOCAL_RANK", "0") == "0"


def processes(timeout_s: float | None = None) -> Processes:
    """The processes that a launcher started, or this one alone.

    Args:
        timeout_s: Seconds without a sign of life after which a process is given up; what was said
            before, or `TIMEOUT_S`, when left out.

    Raises:
        RankError: Not all of them have come within that time.
    """
    if not is_launched():
        return Processes()
    state, signs = _started(timeout_s)
    return Processes(state.process_index, state.num_processes, state.local_process_index, signs)


def _started(timeout_s: float | None) -> "tuple[Any, Signs]":
    """Accelerate's state, and the signs that were made when it was first asked for."""
    global _signs  # noqa: PLW0603 - there is one group of processes
    # Without a GPU accelerate would look for one: the backend must be named before it starts.
    import torch
    from accelerate import PartialState

    from auditor.signs import Signs

    if _signs is None:
        wait = timedelta(seconds=timeout_s or TIMEOUT_S)
        try:
            state = PartialState(cpu=not torch.cuda.is_available(), timeout=wait)
            rank, world = state.process_index, state.num_processes
            _signs = Signs(rank, world, timeout_s=wait.total_seconds())
        except (RuntimeError, ValueError) as error:  # torch has no one class for what can go wrong
            raise _not_all_came(wait, error) from error
        atexit.register(_signs.leave)
    elif timeout_s is not None:
        _signs.timeout_s = timeout_s
    return PartialState(), _signs


def _not_all_came(wait: timedelta, error: Exception) -> RankError:
    world, rank = os.environ.get("WORLD_SIZE"), os.environ.get("RANK")
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    said = first_line(error)
    return RankError(
        f"all {world} processes must meet at {where} within {wait.total_seconds():g} s",
        seen=f"rank {rank} on {socket.gethostname()}: {said}",
        fix="see that every machine starts its processes with the same main process address, port "
        "and count, or raise --rank-timeout",
    )
