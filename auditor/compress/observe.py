"""What the linear layers of a model see of calibration texts, one block after the other.

Wanda (Sun et al. 2023) and SparseGPT (Frantar and Alistarh 2023) prune a model from its first
decoder block to its last, and what a block sees are the outputs of the blocks before it as they
are after pruning. So hidden states are kept, and every block is run twice over them: once as it
is, with its layers watched, and once pruned, for the hidden states that the next block sees.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from auditor.compress.replay import record
from auditor.errors import VariantError

# Tokens that go through a block at once; windows are never cut.
BATCH_TOKENS = 2048
# Rows that are squared in double precision at once.
ROWS = 256
OUTSIDE = "outside the decoder's blocks, and only what lies in them is pruned by what it sees"
UNSEEN = "no token of the calibration texts was seen to go through it"
WHOLE = (
    "the blocks of this model cannot be run one by one: the whole model, pruned up to there, was "
    "run once for every block"
)
ONE_PASS = (
    "no list of decoder blocks was found: every matrix was pruned by what it saw in one pass of "
    "the unpruned model"
)

# From the inputs of a layer, shape (tokens, inputs), to a sum over the tokens.
Statistic = Callable[[Tensor], Tensor]
# Is given the sums of one block's layers by name, and changes these layers.
Visit = Callable[[dict[str, Tensor]], None]


def squared_norms(rows: Tensor) -> Tensor:
    """Sum of squares of every column of (tokens, inputs): float64, shape (inputs,)."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(ROWS):
        total += part.double().square().sum(0)
    return total


def hessian(rows: Tensor) -> Tensor:
    """X^T X of X with shape (tokens, inputs): float32, shape (inputs, inputs)."""
    wide = rows.float()
    return wide.T @ wide


def holds_pattern(weight: Tensor, in_axis: int, n: int, m: int) -> bool:
    """Whether every group of M weights along the inputs holds at least N zeros.

    Args:
        weight: Shape (outputs, inputs) where `in_axis` is 1, (inputs, outputs) where it is 0.
        in_axis: The axis of the inputs; M divides its length.
        n: Zeros at least.
        m: Weights in a group.
    """
    zeros = (weight == 0).unflatten(in_axis, (-1, m)).sum(in_axis + 1)
    return bool((zeros >= n).all())


class Observed(NamedTuple):
    """What came of watching a model.

    Attributes:
        unseen: Layers that were never given to `visit`, with the reason.
        notes: What the receipt must say of how it was done.
    """

    unseen: dict[str, str]
    notes: list[str]


class Blocks(NamedTuple):
    """The decoder's blocks.

    Attributes:
        modules: The blocks, in order.
        layers: The layers that are watched in each, by name.
    """

    modules: list[nn.Module]
    layers: list[dict[str, nn.Module]]


@torch.no_grad()
def observe(
    model: Any,  # noqa: ANN401 - any causal LM
    windows: npt.NDArray[np.int64],
    *,
    layers: Mapping[str, nn.Module],
    statistic: Statistic,
    visit: Visit,
) -> Observed:
    """Run a model over calibration texts block by block, and let each block be changed in turn.

    Args:
        model: A causal language model in eval mode.
        windows: Token ids, shape (n_samples, n_tokens), without padding.
        layers: The linear layers to watch, by their names in the model.
        statistic: What is summed up over the inputs of each.
        visit: Called for each block in order, before the next one is run. The dict that it is
            given is its own: taking the sums out frees their memory.

    Raises:
        VariantError: Inputs of a layer are NaN or infinite.
    """
    batches = torch.from_numpy(windows).split(max(1, BATCH_TOKENS // windows.shape[1]))
    blocks = decoder_blocks(model, layers)
    if blocks is None:
        blocks, stage, notes = Blocks([], [dict(layers)]), None, [ONE_PASS]
    else:
        stage = record(model, blocks.modules, batches)
        notes = [WHOLE] if stage is None else []
    visited: set[str] = set()
    for number, group in enumerate(blocks.layers):
        if group:
            with _watched(group, statistic) as sums:
                if stage is not None:
                    stage.run(number)
                else:
                    for batch in batches:
                        model.base_model(input_ids=batch.to(model.device), use_cache=False)
            _must_be_finite(sums)
            visited.update(sums)
            visit({name: sums.pop(name) for name in group if name in sums})
        if stage is not None and number + 1 < len(blocks.modules):
            stage.advance(number)
    inside = {name for group in blocks.layers for name in group}
    unseen = {n: UNSEEN if n in inside else OUTSIDE for n in layers if n not in visited}
    return Observed(unseen, notes)


def decoder_blocks(model: Any, layers: Mapping[str, nn.Module]) -> Blocks | None:  # noqa: ANN401
    """The list of modules, as long as the configuration says, that holds most of the layers."""
    n_blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    best: tuple[str, nn.ModuleList] | None = None
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_blocks:
            held = sum(layer.startswith(f"{name}.") for layer in layers)
            if held > most:
                best, most = (name, module), held
    if best is None:
        return None
    prefixes = [f"{best[0]}.{number}." for number in range(len(best[1]))]
    groups = [
        {name: module for name, module in layers.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]
    return Blocks(list(best[1]), groups)


@contextmanager
def _watched(layers: Mapping[str, nn.Module], statistic: Statistic) -> Iterator[dict[str, Tensor]]:
    """The sums of what layers see from here on; one that saw no token is not among them."""
    sums: dict[str, Tensor] = {}
    # Queries, keys and values see the same tensor: it is summed up once.
    last: tuple[Tensor, int, Tensor] | None = None

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal last
            if not args or not args[0].numel():
                return
            seen: Tensor = args[0]
            if last is None or seen is not last[0] or seen._version != last[1]:
                last = (seen, seen._version, statistic(seen.flatten(0, -2)))
            if name in sums:
                sums[name] += last[2]
            else:
                sums[name] = last[2].clone()

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        last = None


def _must_be_finite(sums: Mapping[str, Tensor]) -> None:
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise VariantError(
                "what the layers of a model see must be finite to prune by it",
                seen=f"NaN or infinite inputs of {name} on the calibration texts",
                fix="try --dtype float32; if it stays, the model is broken",
            )
