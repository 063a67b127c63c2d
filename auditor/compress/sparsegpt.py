"""SparseGPT: pruning column by column, the columns to come moved to make up for it.

Frantar and Alistarh 2023, algorithm 1. For a layer with inputs X and H = X^T X, taking weight w_j
out of a row and moving the others best raises the squared error of the row's output by
w_j^2 / [H^-1]_jj (the Optimal Brain Surgeon). Columns are settled from left to right, so that H is
always that of the columns left, and one factor U with H^-1 = U^T U holds what all steps need.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from auditor.calibration import Calibration
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement
from auditor.compress.observe import hessian
from auditor.compress.options import SparseGptOptions
from auditor.compress.wanda import prune_observed, smallest

# Columns whose mask is chosen together, and whose updates of later columns are added up. A multiple
# of every M.
BLOCK = 128
# Columns of a triangular matrix that are inverted together.
COLUMNS = 512


class Factor(NamedTuple):
    """The inverse Hessian, factored.

    Attributes:
        upper: U with (H + damping)^-1 = U^T U, upper triangular, float32.
        is_dead: Inputs that were zero on every token, shape (inputs,).
        damp: Part of the mean diagonal that was added.
    """

    upper: Tensor
    is_dead: Tensor
    damp: float


def factor(gram: Tensor, damp: float) -> Factor:
    """Factor the inverse of a damped Hessian, in float64.

    With the columns in reverse, H = L L^T gives H = R R^T with R upper triangular, and U = R^-1:
    the inverse itself is never formed. Damping is raised tenfold until the factor exists, as it
    must once it outweighs rounding.

    Args:
        gram: X^T X, float32, shape (inputs, inputs).
        damp: Part of its mean diagonal that is added to the diagonal.
    """
    is_dead = gram.diagonal() == 0
    mean = float(gram.diagonal().double().mean()) or 1.0
    while True:
        reverse = gram.flip(0, 1).double()
        reverse.diagonal().add_(damp * mean)
        lower, info = torch.linalg.cholesky_ex(reverse)
        del reverse
        if not int(info):
            break
        damp *= 10
    return Factor(_inverse(lower).flip(0, 1), is_dead, damp)


def _inverse(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, rounded to float32.

    Some columns at a time, which have nothing above the diagonal: less memory, and less work.
    """
    n = len(lower)
    inverse = torch.zeros(n, n, device=lower.device)
    for start in range(0, n, COLUMNS):
        part = slice(start, min(start + COLUMNS, n))
        unit = torch.eye(n - start, part.stop - start, dtype=lower.dtype, device=lower.device)
        rest = lower[start:, start:]
        inverse[start:, part] = torch.linalg.solve_triangular(rest, unit, upper=False).float()
    return inverse


def prune_by_error(
    weight: Tensor, inverse: Factor, *, share: float, n_m: tuple[int, int] | None
) -> None:
    """Prune a matrix so that its outputs change little, in place.

    The mask of 128 columns is chosen when they are reached, over all rows together; that of N:M
    group by group. Inputs that were never anything but zero go first.

    Args:
        weight: Shape (outputs, inputs); may be a transposed view.
        inverse: Of the Hessian of its inputs.
        share: Part of all weights that goes, where there is no pattern.
        n_m: N of every M weights of a row go instead. M divides the inputs.
    """
    upper, is_dead = inverse.upper, inverse.is_dead
    scale = upper.diagonal().square()
    left = weight.float().contiguous().clone()
    n_outputs, n_inputs = left.shape
    for start in range(0, n_inputs, BLOCK):
        columns = slice(start, min(start + BLOCK, n_inputs))
        block = left[:, columns].T.contiguous()  # one row for each column, for speed
        corner = upper[columns, columns]
        errors = torch.empty_like(block)
        gone = torch.zeros_like(block, dtype=torch.bool)
        if n_m is None:
            # The whole number of weights is right after every block, and so at the end.
            n = round(share * n_outputs * columns.stop) - round(share * n_outputs * start)
            scores = _scores(block, scale[columns], is_dead[columns])
            gone = smallest(scores.T.flatten(), n).view(n_outputs, -1).T
        for i in range(len(block)):
            if n_m is not None and i % n_m[1] == 0:
                group = slice(i, i + n_m[1])
                scores = _scores(block[group], scale[columns][group], is_dead[columns][group])
                gone[group] = smallest(scores.T.contiguous(), n_m[0]).T
            errors[i] = torch.where(gone[i], block[i] / corner[i, i], 0)
            block[i:] -= corner[i, i:, None] * errors[i]
            block[i].masked_fill_(gone[i], 0)
        left[:, columns] = block.T
        left[:, columns.stop :].addmm_(errors.T, upper[columns, columns.stop :], alpha=-1)
    weight.copy_(left)


def _scores(block: Tensor, scale: Tensor, is_dead: Tensor) -> Tensor:
    """Error of taking out each weight; block of shape (columns, outputs)."""
    return (block.square() / scale[:, None]).masked_fill_(is_dead[:, None], 0)


def make(
    checkpoint: Checkpoint,
    options: SparseGptOptions,
    placement: Placement,
    *,
    variant: str,
    calibration: Calibration,
) -> CompressedModel:
    """Prune by SparseGPT; output head, embeddings and fused experts stay."""
    last: tuple[Tensor, Factor] | None = None

    def prune(weight: Tensor, gram: Tensor) -> str | None:
        nonlocal last
        # Queries, keys and values have one Hessian.
        if last is None or not torch.equal(last[0], gram):
            last = None
            last = (gram, factor(gram, options.damp))
        inverse = last[1]
        prune_by_error(weight, inverse, share=options.share, n_m=options.n_m)
        raised = inverse.damp > options.damp
        return f"damping raised to {inverse.damp:g} to factor its Hessian" if raised else None

    return prune_observed(
        checkpoint,
        options,
        placement,
        variant=variant,
        calibration=calibration,
        statistic=hessian,
        prune=prune,
    )
