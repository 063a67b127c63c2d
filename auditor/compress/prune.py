"""Magnitude pruning, exact and the same on every run (Han et al. 2015)."""

from collections.abc import Iterator
from functools import reduce
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.matrices import Matrix, matrices
from auditor.compress.measure import CHUNK, Ledger, pruned_bits, write_receipt
from auditor.compress.observe import holds_pattern
from auditor.compress.options import PruneMagnitudeOptions
from auditor.compress.receipt import NOT_DIVISIBLE

DIGIT_BITS = 16
N_DIGITS = 2**DIGIT_BITS
# The integers that a floating-point number's bits are read as, by its bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    and without a copy of the tensors. Tensors in 16 bits take one pass.

    Args:
        tensors: Contiguous floating-point tensors of any shape, at least one.
        n: Between 0 and their entries in all.
    """
    if n <= 0:
        return Limit(0, 0)
    dtype = common_dtype(tensors)
    prefix = 0
    for shift in range(8 * dtype.itemsize - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = torch.zeros(N_DIGITS, dtype=torch.int64)
        for chunk in _chunks(tensors):
            digits = bits = _magnitudes(chunk, dtype)
            if shift + DIGIT_BITS < 8 * dtype.itemsize:  # the digits above this one are settled
                digits = bits[bits >> (shift + DIGIT_BITS) == prefix]
            digits = (digits >> shift).int() & (N_DIGITS - 1)
            counts += torch.bincount(digits, minlength=N_DIGITS).cpu()
        running = counts.cumsum(0)
        digit = int(torch.searchsorted(running, n))
        n -= int(running[digit] - counts[digit])
        prefix = prefix << DIGIT_BITS | digit
    return Limit(prefix, n)


@torch.no_grad()
def zero_below(tensor: Tensor, limit: Limit, *, dtype: torch.dtype) -> Limit:
    """Set a tensor's entries below the limit to zero, in place.

    Args:
        tensor: A contiguous floating-point tensor.
        limit: Where the cut is.
        dtype: The common dtype of the tensors that the limit was found among.

    Returns:
        The limit for the tensors that follow: fewer of the equal ones are left to go.
    """
    left = limit.n_equal
    for chunk in _chunks([tensor]):
        bits = _magnitudes(chunk, dtype)
        gone = bits < limit.magnitude
        if left:
            equal = (bits == limit.magnitude).nonzero()[:left, 0]
            left -= len(equal)
            gone[equal] = True
        chunk.masked_fill_(gone, 0)
    return limit._replace(n_equal=left)


def zero_smallest(tensors: list[Tensor], n: int) -> Iterator[Tensor]:
    """Set the `n` entries of least magnitude over all tensors to zero, in place, one by one.

    Among equal magnitudes the first in order of tensors and positions go first.

    Yields:
        Each tensor as it was before, once it is cut.
    """
    limit = find_limit(tensors, n)
    dtype = common_dtype(tensors)
    for tensor in tensors:
        before = tensor.clone()
        if n > 0:
            limit = zero_below(tensor, limit, dtype=dtype)
        yield before


@torch.no_grad()
def zero_in_groups(weight: Tensor, in_axis: int, n: int, m: int) -> None:
    """Set the `n` of least magnitude in every group of `m` weights along the inputs to zero.

    Among equal magnitudes the first in the group go first.

    Args:
        weight: Contiguous, shape (outputs, inputs) where `in_axis` is 1, (inputs, outputs) where it
            is 0; changed in place.
        in_axis: The axis of the inputs; m divides its length.
        n: Between 0 and m.
        m: Weights in a group.
    """
    groups = weight.view(-1, m, 1 if in_axis == 1 else weight.shape[1])
    for chunk in groups.split(max(1, CHUNK // (m * groups.shape[2]))):
        bits = _magnitudes(chunk, weight.dtype).transpose(0, 1).contiguous()
        # How many of its group go before a weight: of every pair, one does.
        ranks = torch.arange(m - 1, -1, -1, dtype=torch.uint8, device=bits.device)
        ranks = ranks[:, None, None].repeat(1, *bits.shape[1:])
        for later in range(1, m):
            for earlier in range(later):
                is_first = (bits[earlier] <= bits[later]).view(torch.uint8)
                ranks[later] += is_first
                ranks[earlier] -= is_first
        chunk.masked_fill_((ranks < n).transpose(0, 1), 0)


def common_dtype(tensors: list[Tensor]) -> torch.dtype:
    """The narrowest dtype that holds the entries of all tensors as they are."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _chunks(tensors: list[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        flat = tensor.view(-1)
        yield from (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))


def _magnitudes(chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """|w| as integers in the same order: the bits in `dtype` without the sign."""
    integers = INTEGERS[dtype.itemsize]
    return chunk.to(dtype).view(integers) & torch.iinfo(integers).max


def make_magnitude(
    checkpoint: Checkpoint,
    options: PruneMagnitudeOptions,
    placement: Placement,
    *,
    variant: str,
) -> CompressedModel:
    """Set the weights of least magnitude to zero; the output head and embeddings stay."""
    model = load_model(checkpoint, placement)
    ledger, reasons = Ledger(), dict[str, str]()
    found = list(matrices(model))
    if options.n_m is not None:
        reasons = _prune_groups(found, options.n_m, ledger)
    else:
        for group in [found] if options.scope == "global" else [[item] for item in found]:
            _prune_smallest(group, options.share, ledger)
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"compleak-llm {version('compleak-llm')}",
        bits_per_weight=pruned_bits(checkpoint, ledger, dtype=placement.dtype, n_m=options.n_m),
        reasons=reasons,
    )
    return CompressedModel(model, receipt)


def _prune_smallest(group: list[Matrix], share: float, ledger: Ledger) -> None:
    """Prune matrices that are ranked together, and enter them in the ledger."""
    weights = [matrix.weight for matrix in group]
    n = round(share * sum(weight.numel() for weight in weights))
    befores = zero_smallest(weights, n)
    for matrix, before in zip(group, befores, strict=True):
        ledger.add(matrix.name, matrix.kind, before=before, after=matrix.weight)


def _prune_groups(found: list[Matrix], n_m: tuple[int, int], ledger: Ledger) -> dict[str, str]:
    """Prune every matrix group by group, and enter it with the pattern that is then found in it.

    Returns:
        The reason for the matrices that were left alone, by module.
    """
    n, m = n_m
    reasons = {}
    for matrix in found:
        if matrix.weight.shape[matrix.in_axis] % m:
            reasons[module_name(matrix)] = NOT_DIVISIBLE
            continue
        before = matrix.weight.clone()
        zero_in_groups(matrix.weight, matrix.in_axis, n, m)
        holds = holds_pattern(matrix.weight, matrix.in_axis, n, m)
        ledger.add(
            matrix.name,
            matrix.kind,
            before=before,
            after=matrix.weight,
            pattern=f"{n}:{m}" if holds else None,
        )
    return reasons


def module_name(matrix: Matrix) -> str:
    """The module that a matrix lies in: of an expert, the one that holds them all."""
    plain, bracket, _ = matrix.name.partition("[")
    return plain.rpartition(".")[0] if bracket else plain
