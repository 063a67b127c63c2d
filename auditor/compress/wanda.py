"""Wanda: pruning by the size of a weight times the norm of its input (Sun et al. 2023)."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from auditor.calibration import Calibration
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.matrices import Matrix, matrices
from auditor.compress.measure import CHUNK, Ledger, pruned_bits, write_receipt
from auditor.compress.observe import Statistic, holds_pattern, observe, squared_norms
from auditor.compress.options import PruneCalibratedOptions
from auditor.compress.prune import module_name
from auditor.compress.receipt import NOT_DIVISIBLE

EXPERTS = "the inputs of single experts cannot be observed"

# Is given a weight of shape (outputs, inputs) and the sum over what its layer saw, and prunes the
# weight in place. What it returns is written into the receipt's notes, after the matrix's name.
Prune = Callable[[Tensor, Tensor], str | None]


def smallest(scores: Tensor, n: int) -> Tensor:
    """Where the `n` smallest entries of every row are; of equal ones the first.

    Args:
        scores: Shape (..., columns), without NaN.
        n: Between 0 and the columns.

    Returns:
        bool, of the same shape.
    """
    if n <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(n, dim=-1, keepdim=True).values
    below, equal = scores < limit, scores == limit
    left = n - below.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) == left).all()):
        return below | equal
    return below | (equal & (equal.cumsum(-1, dtype=torch.int32) <= left))


def prune_by_norm(
    weight: Tensor, squared: Tensor, *, share: float, n_m: tuple[int, int] | None
) -> None:
    """Set the weights with the least |W_ij| ||X_j|| to zero, in place; each output on its own.

    Args:
        weight: Shape (outputs, inputs); may be a transposed view.
        squared: ||X_j||^2, shape (inputs,).
        share: Part of every row that goes, rounded to whole weights, where there is no pattern.
        n_m: N of every M weights of a row go instead. M divides the inputs.
    """
    norms = squared.sqrt().float()
    n_inputs = len(norms)
    n = round(share * n_inputs)
    for rows in weight.split(max(1, CHUNK // n_inputs)):
        scores = rows.float().abs() * norms
        if n_m is None:
            gone = smallest(scores, n)
        else:
            gone = smallest(scores.unflatten(1, (-1, n_m[1])), n_m[0]).flatten(1)
        rows.masked_fill_(gone, 0)


def prune_observed(
    checkpoint: Checkpoint,
    options: PruneCalibratedOptions,
    placement: Placement,
    *,
    variant: str,
    calibration: Calibration,
    statistic: Statistic,
    prune: Prune,
) -> CompressedModel:
    """Prune every linear layer of the decoder's blocks by what it sees of calibration texts.

    Args:
        checkpoint: The original.
        options: Pattern or sparsity.
        placement: Where the variant goes.
        variant: Its canonical spelling.
        calibration: The texts.
        statistic: What is summed up over the inputs of a layer.
        prune: Prunes one matrix by that sum.
    """
    model: Any = load_model(checkpoint, placement)
    ledger, reasons, notes = Ledger(), dict[str, str](), list[str]()
    found: dict[str, Matrix] = {}
    for matrix in matrices(model):
        if "[" in matrix.name:
            reasons[module_name(matrix)] = EXPERTS
        elif options.n_m and matrix.weight.shape[matrix.in_axis] % options.n_m[1]:
            reasons[matrix.name] = NOT_DIVISIBLE
        else:
            found[matrix.name] = matrix

    def visit(sums: dict[str, Tensor]) -> None:
        for name in list(sums):
            matrix = found[name]
            weight = matrix.weight if matrix.in_axis == 1 else matrix.weight.T
            before = matrix.weight.clone()
            if said := prune(weight, sums.pop(name)):
                notes.append(f"{name}: {said}")
            n_m = options.n_m
            holds = n_m is not None and holds_pattern(matrix.weight, matrix.in_axis, *n_m)
            pattern = options.pattern if holds else None
            ledger.add(name, matrix.kind, before=before, after=matrix.weight, pattern=pattern)

    observed = observe(
        model,
        calibration.windows,
        layers={name: matrix.module for name, matrix in found.items()},
        statistic=statistic,
        visit=visit,
    )
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"compleak-llm {version('compleak-llm')}",
        bits_per_weight=pruned_bits(checkpoint, ledger, dtype=placement.dtype, n_m=options.n_m),
        reasons={**reasons, **observed.unseen},
        notes=[*observed.notes, *notes],
    )
    return CompressedModel(model, receipt)


def make(
    checkpoint: Checkpoint,
    options: PruneCalibratedOptions,
    placement: Placement,
    *,
    variant: str,
    calibration: Calibration,
) -> CompressedModel:
    """Prune by Wanda's score; output head, embeddings and fused experts stay."""

    def prune(weight: Tensor, squared: Tensor) -> None:
        prune_by_norm(weight, squared, share=options.share, n_m=options.n_m)

    return prune_observed(
        checkpoint,
        options,
        placement,
        variant=variant,
        calibration=calibration,
        statistic=squared_norms,
        prune=prune,
    )
