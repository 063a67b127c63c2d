"""Magnitude pruning, exact and the same on every run (Han et al. 2015)."""

from importlib.metadata import version

import torch
from torch import Tensor

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.measure import (
    CHUNK,
    Ledger,
    count_parameters,
    matrices,
    stored_dtype,
    write_receipt,
)
from auditor.compress.options import PruneMagnitudeOptions


@torch.no_grad()
def zero_smallest(tensors: list[Tensor], n: int) -> None:
    """Set the `n` entries of least magnitude over all `tensors` to zero, in place.

    Exact under ties: among equal magnitudes the first in order of tensors and positions go first.
    The bits of a nonnegative float32 are in the order of its values, so that the n-th smallest is
    found by two counts of 16 bits each, without sorting and without a copy of the tensors.

    Args:
        tensors: Contiguous floating-point tensors of any shape.
        n: Between 0 and their entries in all.
    """
    if n <= 0:
        return
    high = torch.zeros(2**16, dtype=torch.int64)
    for bits in _bits(tensors):
        high += torch.bincount(bits >> 16, minlength=2**16).cpu()
    bucket, before = _reach(high, n)
    low = torch.zeros(2**16, dtype=torch.int64)
    for bits in _bits(tensors):
        low += torch.bincount(bits[bits >> 16 == bucket] & 0xFFFF, minlength=2**16).cpu()
    place, smaller = _reach(low, n - before)
    threshold = (bucket << 16) | place
    ties = n - before - smaller
    for chunk in _chunks(tensors):
        bits = _magnitude_bits(chunk)
        equal = (bits == threshold).nonzero()[:ties, 0]
        ties -= len(equal)
        chunk[bits < threshold] = 0
        chunk[equal] = 0


def _reach(counts: Tensor, n: int) -> tuple[int, int]:
    """The first place where the running count reaches `n`, and the count before that place."""
    running = counts.cumsum(0)
    place = int(torch.searchsorted(running, n))
    return place, int(running[place] - counts[place])


def _chunks(tensors: list[Tensor]) -> list[Tensor]:
    return [part for tensor in tensors for part in tensor.view(-1).split(CHUNK)]


def _magnitude_bits(chunk: Tensor) -> Tensor:
    return chunk.abs().float().view(torch.int32).long()


def _bits(tensors: list[Tensor]) -> "list[Tensor] | map[Tensor]":
    return map(_magnitude_bits, _chunks(tensors))


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
    weights = [module.weight.data for _, module in found]
    if options.scope == "global":
        # Every matrix must be seen before any is cut, so the originals are read a second time.
        original = {
            name: module.weight for name, module in matrices(load_model(checkpoint, placement))
        }
        total = sum(weight.numel() for weight in weights)
        zero_smallest(weights, round(options.sparsity * total))
        for (name, module), weight in zip(found, weights, strict=True):
            ledger.add(name, type(module).__name__, original.pop(name), weight)
    else:
        for (name, module), weight in zip(found, weights, strict=True):
            before = weight.clone()
            zero_smallest([weight], round(options.sparsity * weight.numel()))
            ledger.add(name, type(module).__name__, before, weight)
    stored = stored_dtype(checkpoint.config, placement.dtype)
    kept = 1 - ledger.n_zeros / max(1, ledger.n_compressed)
    receipt = write_receipt(
        model,
        ledger,
        variant=variant,
        library=f"compleak-llm {version('compleak-llm')}",
        n_parameters=count_parameters(model),
        bits_per_weight=8.0 * stored.itemsize * kept + 1.0,
        stored_dtype=stored,
    )
    return CompressedModel(model, receipt)
