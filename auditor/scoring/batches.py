"""Batches: which records go through the model together, and what to do when memory runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from auditor.compress.kept import give_up
from auditor.errors import ModelError, first_line
from auditor.memory import ran_out
from auditor.scoring.encode import Encoded
from auditor.scoring.threads import allowed_cores

# Padded tokens of a batch. On a CPU the widest activation of a batch should stay near the cache:
# measured on one and on two cores (1 MiB of cache each), a 5.5M model (704 wide inside) is fastest
# at 512 to 1,024 tokens and 20% slower at 4,096, a 124M model (3,072 wide) at 512 to 1,024 and 40%
# slower at 4,096, in float32; in bfloat16 the best sizes are the same.
CACHE_BYTES = 4 * 2**20
TOKENS_CPU = (512, 1024)
# With many cores, every one of them must still find rows enough for its part of a product. The
# machine's cores count and not this process's threads: one process must cut the same batches as
# eight, or their scores would differ in the last digit.
TOKENS_PER_CORE = 64
TOKENS_GPU = 16384
# A batch costs as much as this share of a full one, whatever it holds: measured on two cores, 128
# tokens took as long as 200 in a full batch of 1,024.
FIXED_COST = 1 / 16
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
    fitting = min(high, max(low, CACHE_BYTES // (4 * width)))
    return max(fitting, TOKENS_PER_CORE * allowed_cores())


def cut(lengths: Sequence[int], budget: Budget) -> list[range]:
    """Cut records, longest first, into batches of consecutive ones, so that least is computed.

    A batch costs its padded tokens and a fixed part; of all ways of cutting the cheapest is found
    from the end backwards. Where lengths lie close, batches are full; where they do not, a smaller
    batch is cheaper than padding.

    Args:
        lengths: Tokens of each record, in falling order.
        budget: A record longer than the budget gets a batch of its own.
    """
    n = len(lengths)
    fixed = max(1, int(min(budget.tokens, sum(lengths)) * FIXED_COST))
    cost = np.zeros(n + 1, dtype=np.int64)  # of the cheapest way from a record to the end
    end = np.zeros(n, dtype=np.int64)  # of the batch that begins with a record there
    for start in range(n - 1, -1, -1):
        length = max(1, lengths[start])
        most = min(n - start, max(1, budget.tokens // length), budget.records or n)
        sizes = np.arange(1, most + 1)
        # Of equally cheap ways the fullest batch: the last, as numpy would give the first.
        whole = (fixed + sizes * length + cost[start + 1 : start + most + 1])[::-1]
        size = most - int(whole.argmin())
        cost[start], end[start] = whole.min(), start + size
    batches = []
    start = 0
    while start < n:
        batches.append(range(start, int(end[start])))
        start = int(end[start])
    return batches


def pad(records: Sequence[Encoded], pad_id: int, device: torch.device) -> Tensor:
    """The tokens that a model must see, shape (records, longest), padded on the right.

    A record's last token predicts nothing that is scored, so that it is left out. Padding stands on
    the right, where no position of a record can see it through a causal mask: neither a mask nor
    position ids are needed and attention stays on its fastest path.
    """
    width = max(len(record.ids) for record in records) - 1
    grid = np.full((len(records), width), pad_id, dtype=np.int64)
    for row, record in enumerate(records):
        grid[row, : len(record.ids) - 1] = record.ids[:-1]
    return to_device(grid, device)


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; a GPU fetches it while the host goes on."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


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
    plan = cut([len(record.ids) - 1 for record in records], budget)[::-1]
    while plan:
        places = plan.pop()
        batch = records[places.start : places.stop]
        try:
            done.append(forward(batch))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            longest = len(batch[0].ids) - 1
            is_freed = give_up()
            if len(batch) == 1 and not is_freed:
                raise ModelError(
                    "one record at a time must fit into memory",
                    seen=f"a record of {longest + 1} tokens did not: {first_line(error)}",
                    fix="lower --max-length, choose --dtype bfloat16, or a device with more memory",
                ) from error
            if not is_freed:
                budget.halve(len(batch), longest)
        else:
            at = places.stop
            continue
        # Outside the except block, so that the traceback no longer holds the tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if is_freed:  # an original that later versions start from: the same batch may fit now
            plan.append(places)
            continue
        left = cut([len(record.ids) - 1 for record in records[at:]], budget)
        plan = [range(at + part.start, at + part.stop) for part in reversed(left)]
    return done
