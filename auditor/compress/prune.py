"""Magnitude pruning, exact and the same on every run (Han et al. 2015)."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.matrices import matrices
from auditor.compress.measure import CHUNK, Ledger, pruned_bits, write_receipt
from auditor.compress.options import PruneMagnitudeOptions

DIGIT_BITS = 16
N_DIGITS = 2**DIGIT_BITS


class Limit(NamedTuple):
    """Where the cut is: everything smaller goes, and of what is equal the first `n_equal`.

    Attributes:
        magnitude: |w| as the integer with the same bits.
        n_equal: How many of this very magnitude go.
    """

    magnitude: int
    n_equal: int


@torch.no_grad()
def find_limit(tensors: list[Tensor], n: int) -> Limit:
    """The limit below which the `n` entries of least magnitude lie, over all tensors together.

    The bits of nonnegative floating-point numbers are in the order of their values, so that the
    n-th smallest is found digit by digit, 16 bits at a time, by counting: exact, without sorting
    and without a copy of the tensors.

    Args:
        tensors: Contiguous floating-point tensors of any shape.
        n: Between 0 and their entries in all.
    """
    if n <= 0:
        return Limit(0, 0)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    prefix = 0
    for shift in range((64 if wide else 32) - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = torch.zeros(N_DIGITS, dtype=torch.int64)
        for chunk in _chunks(tensors):
            bits = _magnitudes(chunk, wide=wide)
            # The digits above this one are settled; on the first round both sides are 0.
            bits = bits[bits >> (shift + DIGIT_BITS - 1) >> 1 == prefix] >> shift & (N_DIGITS - 1)
            counts += torch.bincount(bits, minlength=N_DIGITS).cpu()
        running = counts.cumsum(0)
        digit = int(torch.searchsorted(running, n))
        n -= int(running[digit] - counts[digit])
        prefix = prefix << DIGIT_BITS | digit
    return Limit(prefix, n)


@torch.no_grad()
def zero_below(tensor: Tensor, limit: Limit, *, wide: bool) -> Limit:
    """Set a tensor's entries below the limit to zero, in place.

    Args:
        tensor: A contiguous floating-point tensor.
        limit: Where the cut is.
        wide: Whether the limit was found among tensors with a float64.

    Returns:
        The limit for the tensors that follow: fewer of the equal ones are left to go.
    """
    left = limit.n_equal
    for chunk in _chunks([tensor]):
        bits = _magnitudes(chunk, wide=wide)
        equal = (bits == limit.magnitude).nonzero()[:left, 0]
        left -= len(equal)
        chunk[bits < limit.magnitude] = 0
        chunk[equal] = 0
    return limit._replace(n_equal=left)


def zero_smallest(tensors: list[Tensor], n: int) -> Iterator[Tensor]:
    """Set the `n` entries of least magnitude over all tensors to zero, in place, one by one.

    Among equal magnitudes the first in order of tensors and positions go first.

    Yields:
        Each tensor as it was before, once it is cut.
    """
    limit = find_limit(tensors, n)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    for tensor in tensors:
        before = tensor.clone()
        if n > 0:
            limit = zero_below(tensor, limit, wide=wide)
        yield before


def _chunks(tensors: list[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        flat = tensor.view(-1)
        yield from (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))


def _magnitudes(chunk: Tensor, *, wide: bool) -> Tensor:
    """|w| as integers in the same order, int64: the bits without the sign."""
    if wide:
        return chunk.double().view(torch.int64) & 0x7FFF_FFFF_FFFF_FFFF
    return chunk.float().view(torch.int32).long() & 0x7FFF_FFFF


def make_magnitude(
    checkpoint: Checkpoint,
    options: PruneMagnitudeOptions,
    placement: Placement,
    *,
    variant: str,
) -> CompressedModel:
    """Set the weights of least magnitude to zero; the output head and embeddings stay."""
    model = load_model(checkpoint, placement)
    found = list(matrices(model))
    ledger = Ledger()
    for group in [found] if options.scope == "global" else [[item] for item in found]:
        weights = [matrix.weight for matrix in group]
        n = round(options.share * sum(weight.numel() for weight in weights))
        befores = zero_smallest(weights, n)
        for matrix, before in zip(group, befores, strict=True):
            ledger.add(matrix.name, matrix.kind, before=before, after=matrix.weight)
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"compleak-llm {version('compleak-llm')}",
        bits_per_weight=pruned_bits(checkpoint, ledger, dtype=placement.dtype),
    )
    return CompressedModel(model, receipt)
