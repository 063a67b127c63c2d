"""What plain weights were compressed with: pruning, clustering and casts, found in the weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from auditor.compress.checkpoint import Checkpoint
from auditor.compress.cluster import code_bits
from auditor.compress.kmeans import count_distinct
from auditor.compress.measure import Ledger, pruned_bits, stored_dtype
from auditor.compress.observe import holds_pattern
from auditor.compress.options import N_M

# Distinct values that a matrix has where they are the point of it, and weights that show more.
FEW_VALUES = 256
MANY = 2**16


class Method(NamedTuple):
    """How plain weights were compressed.

    Attributes:
        told: In words.
        bits_per_weight: Of the matrices.
    """

    told: str
    bits_per_weight: float


def findings(weight: Tensor, in_axis: int) -> dict[str, Any]:
    """The pattern that a matrix holds and its distinct values where they are few, for the ledger.

    Args:
        weight: Shape (outputs, inputs) where `in_axis` is 1, (inputs, outputs) where it is 0.
        in_axis: The axis of the inputs.
    """
    found: dict[str, Any] = {}
    width, weight = weight.shape[in_axis], weight.contiguous()
    for name, (n, m) in N_M.items():
        if width % m == 0 and holds_pattern(weight, in_axis, n, m):
            found["pattern"] = name
            break
    if count_distinct(weight.view(-1)[:MANY]) <= FEW_VALUES:
        n_values = count_distinct(weight)
        found["n_values"] = n_values if n_values <= FEW_VALUES else None
    return found


def plain_method(
    published: Checkpoint, ledger: Ledger, *, matrices: frozenset[str], dtype: torch.dtype
) -> Method:
    """What was found in plain weights, and the bits that they need.

    Clustered matrices need an index a weight, pruned ones the weights that are kept and their
    places. Distinct values are taken out of the ledger where they are few by chance, in some
    matrices and not in all.

    Args:
        published: The version.
        ledger: What was compared.
        matrices: Names of the weight matrices in it.
        dtype: Of the audit.
    """
    stored = stored_dtype(published.config, dtype)
    told, width = f"plain weights in {str(stored).removeprefix('torch.')}", 8 * stored.itemsize
    own = [item for item in ledger.compressed if item.module in matrices]
    zeros = round(sum(item.sparsity * item.n_parameters for item in own))
    counted = Ledger(compressed=own, n_zeros=zeros)
    values = [item.n_values for item in own if item.n_values is not None]
    if own and len(values) == len(own):
        bits = code_bits(counted, max(values), value_bits=width) / counted.n_compressed
        return Method(f"{told}, at most {max(values)} values a matrix", bits)
    ledger.compressed = [item.model_copy(update={"n_values": None}) for item in ledger.compressed]
    share = zeros / max(1, counted.n_compressed)
    # So few zeros are chance: to say where they are would take more than it saves.
    if share * width <= 1:
        return Method(told, float(width))
    patterns = {item.pattern for item in own}
    pattern = next(iter(patterns)) if len(patterns) == 1 else None
    bits = pruned_bits(published, counted, dtype=dtype, n_m=N_M.get(pattern or ""))
    return Method(f"{told}, pruned{f' {pattern}' if pattern else ''}, {share:.0%} zeros", bits)
