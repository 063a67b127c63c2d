"""The weight that a packed layer computes with, read through its own forward pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Rows of the identity that go through a layer at once.
ROWS = 1024


@torch.inference_mode()
def computed_weight(
    layer: Any,  # noqa: ANN401
    n_inputs: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The matrix that a layer multiplies with, found by asking it for the image of every unit row.

    Works for any packed format without knowing it: a row of the identity picks one column of the
    weight, and the sum has no other term that is not zero. Exact for layers that quantize weights
    only; a layer that quantizes its inputs too rounds the one that it is given.

    Args:
        layer: A module that maps (rows, n_inputs) to (rows, outputs), in eval mode.
        n_inputs: Width of its inputs.
        device: Where its inputs go.
        dtype: Of its inputs.

    Returns:
        float32, shape (outputs, n_inputs), on the CPU, without the bias.
    """
    zero = layer(torch.zeros(1, n_inputs, device=device, dtype=dtype)).float()
    parts = [(layer(rows).float() - zero).cpu() for rows in _identity(n_inputs, device, dtype)]
    return torch.cat(parts).T.contiguous()


def _identity(n: int, device: str | torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    for start in range(0, n, ROWS):
        rows = torch.zeros(min(ROWS, n - start), n, device=device, dtype=dtype)
        rows[torch.arange(len(rows)), start + torch.arange(len(rows))] = 1
        yield rows
