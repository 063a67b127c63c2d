"""Rank, share and barrier over accelerate, for `accelerate launch -m auditor audit ...`.

A process owns every n-th of the shards that are missing and writes them itself, so that nothing is
gathered and nothing is padded to even counts. What is small (who has failed) is told to all.
"""

import os
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes of this run.

    Attributes:
        rank: Number of this one.
        world: How many there are.
        local_rank: Number of this one on its machine, which is the number of its device.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process checks, judges and writes the results."""
        return self.rank == 0

    def share(self, items: list[Item]) -> list[Item]:
        """The part of `items` that this process owns."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            _state().wait_for_everyone()

    def tell_all(self, item: Item) -> list[Item]:
        """What every process says, by rank."""
        if self.world == 1:
            return [item]
        from accelerate.utils import gather_object

        _state()
        told: list[Item] = gather_object([item])
        return told


def processes() -> Processes:
    """The processes that a launcher started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    state = _state()
    return Processes(state.process_index, state.num_processes, state.local_process_index)


def _state() -> Any:  # noqa: ANN401 - accelerate is untyped
    # Without a GPU accelerate would look for one: the backend must be named before it starts.
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
