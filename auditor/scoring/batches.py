"""Batches: which records go through the model together, and what to do when memory runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from auditor.errors import ModelError
from auditor.scoring.encode import Encoded

# Padded tokens of a batch. On a CPU the widest activation of a batch should stay in the cache:
# measured on two cores, a 124M model (3,072 wide inside) is fastest at 512 to 1,024 tokens and 40%
# slower at 4,096, a 5.5M model (704 wide) is fastest at 2,048 to 4,096.
CACHE_BYTES = 8 * 2**20
TOKENS_CPU = (512, 4096)
TOKENS_GPU = 16384
# Logits of a batch that goes through a model whose head could not be taken apart: 256 MiB.
MAX_LOGITS = 2**26


@dataclass
class Budget:
    """What a batch may hold; halved for good whenever memory runs out.

    Attributes:
        tokens: Padded tokens at most.
        records: Records at most, or None.
    """

    tokens: int
    records: int | None = None

    def halve(self, batch: int, length: int) -> None:
        """Allow half of what has just failed: `batch` records of `length` tokens."""
        self.tokens = max(1, min(self.tokens, batch * length) // 2)


def default_tokens(device: torch.device, config: Any) -> int:  # noqa: ANN401
    """Padded tokens of a batch where the user named no size.

    Args:
        device: Where the model runs.
        config: The text configuration of a transformers model.
    """
    if device.type != "cpu":
        return TOKENS_GPU
    hidden = int(getattr(config, "hidden_size", 0) or 1024)
    widest = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None)
    width = int(widest) if isinstance(widest, int) else 4 * hidden
    low, high = TOKENS_CPU
    return min(high, max(low, CACHE_BYTES // (4 * width)))


def cut(lengths: Sequence[int], budget: Budget) -> list[range]:
    """Cut records, longest first, into batches of consecutive ones.

    Args:
        lengths: Tokens of each record, in falling order.
        budget: A record longer than the budget gets a batch of its own.
    """
    starts = [0]
    for position in range(1, len(lengths)):
        size = position - starts[-1] + 1
        full = budget.records is not None and size > budget.records
        if full or size * lengths[starts[-1]] > budget.tokens:
            starts.append(position)
    return [range(a, b) for a, b in pairwise([*starts, len(lengths)])] if lengths else []


def pad(records: Sequence[Encoded], pad_id: int, device: torch.device) -> Tensor:
    """Token ids of shape (records, longest), padded on the right.

    On the right, no position of a record can see the padding through a causal mask, so that
    neither a mask nor position ids are needed and attention stays on its fastest path.
    """
    width = max(len(record.ids) for record in records)
    grid = np.full((len(records), width), pad_id, dtype=np.int64)
    for row, record in enumerate(records):
        grid[row, : len(record.ids)] = record.ids
    return torch.from_numpy(grid).to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text
        for sign in (
            "out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_ALLOC_FAILED",
            "can't allocate memory",
            "not enough memory",
            "Cannot allocate memory",
        )
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def run_in_batches(
    records: Sequence[Encoded],
    budget: Budget,
    forward: Callable[[Sequence[Encoded]], Any],
) -> list[Any]:
    """Call `forward` on batches of `records` (longest first) and give back what it gave, in order.

    A batch that does not fit is cut in two and tried again, and later batches are as small.

    Raises:
        ModelError: A single record does not fit.
    """
    done: list[Any] = []
    at = 0
    while at < len(records):
        lengths = [len(record.ids) for record in records[at:]]
        batch = records[at : at + len(cut(lengths, budget)[0])]
        try:
            done.append(forward(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError(
                    "one record at a time must fit into memory",
                    seen=f"a record of {lengths[0]} tokens did not: {_first_line(error)}",
                    fix="lower --max-length, choose --dtype bfloat16, or a device with more memory",
                ) from error
            budget.halve(len(batch), lengths[0])
        else:
            at += len(batch)
            continue
        # Outside the except block, so that the traceback no longer holds the tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return done
