"""Weight clustering: every matrix shares k values, found by exact k-means (Han et al. 2016)."""

import math
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.kmeans import (
    all_patterns,
    count_distinct,
    flat_chunks,
    kmeans,
    midpoints,
    patterns,
    round_down,
    short_dtype,
)
from auditor.compress.matrices import Matrix, matrices
from auditor.compress.measure import Ledger, stored_dtype, write_receipt
from auditor.compress.options import ClusterOptions
from auditor.compress.receipt import Receipt
from auditor.errors import VariantError


def make(
    checkpoint: Checkpoint, options: ClusterOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """Replace every weight by the nearest of its matrix's k values; head and embeddings stay.

    Raises:
        VariantError: A matrix has fewer than k distinct values, or some that are not finite.
    """
    model = load_model(checkpoint, placement)
    ledger = Ledger()
    stored = stored_dtype(checkpoint.config, placement.dtype)
    value_bytes = min(stored.itemsize, placement.dtype.itemsize)
    for matrix in matrices(model):
        codebook = find_codebook(matrix, options.k, stored=stored)
        before = matrix.weight.clone()
        set_nearest(matrix.weight, codebook)
        ledger.add(
            matrix.name,
            matrix.kind,
            before=before,
            after=matrix.weight,
            n_values=count_distinct(matrix.weight),
        )
        del before  # or it would be held while the next matrix is sorted
    bits = code_bits(ledger, options.k, value_bits=8 * value_bytes)
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"compleak-llm {version('compleak-llm')}",
        bits_per_weight=bits / max(1, ledger.n_compressed),
    )
    note = coding_note(receipt, value_bytes)
    return CompressedModel(model, receipt.model_copy(update={"notes": [note]}))


def find_codebook(matrix: Matrix, k: int, *, stored: torch.dtype) -> Tensor:
    """The k values of a matrix, ascending, in the precision that they are published in.

    They are the centres of k-means rounded to `stored`, or to the matrix's own precision where that
    holds less; every rounded centre stays within its cluster where the weights were stored so.

    Returns:
        In the matrix's own precision, on its device, shape (k,).

    Raises:
        VariantError: The matrix has fewer than k distinct values, or some that are not finite.
    """
    try:
        centres = kmeans(matrix.weight, k)
    except ValueError as error:
        raise VariantError(
            "cluster needs weights that are numbers",
            seen=f"{matrix.name} holds NaN or infinity",
            fix="check the checkpoint: a model with such weights gives no scores either",
        ) from error
    if (n := len(centres)) < k:
        raise VariantError(
            "cluster: k must be at most the number of distinct values of every matrix",
            seen=f"{matrix.name} has {n} distinct value{'s' * (n > 1)}, and k={k}",
            fix=f"give k={n} or less" if n > 1 else "leave this variant out",
        )
    own = matrix.weight.dtype
    narrower = stored if stored.itemsize < own.itemsize else own
    return torch.from_numpy(centres).to(narrower).to(matrix.weight)


@torch.no_grad()
def set_nearest(weight: Tensor, codebook: Tensor) -> None:
    """Set every entry to the nearest value, in place; halfway between two, to the lower.

    Args:
        weight: A contiguous floating-point tensor of any shape.
        codebook: Ascending, of the same dtype and on the same device.
    """
    ends = midpoints(codebook.double().cpu().numpy())
    if (dtype := short_dtype(weight)) is not None:  # every value is looked up by its bits
        places = np.searchsorted(ends, all_patterns(dtype).numpy())
        table = codebook[torch.from_numpy(places).to(weight.device)]
        for chunk in flat_chunks(weight):
            chunk.copy_(table.index_select(0, patterns(chunk, dtype)))
        return
    own = "float64" if weight.dtype == torch.float64 else "float32"
    limits = torch.from_numpy(round_down(ends, own)).to(weight.device)
    for chunk in flat_chunks(weight):
        chunk.copy_(codebook.index_select(0, torch.bucketize(chunk, limits, out_int32=True)))


def code_bits(ledger: Ledger, k: int, *, value_bits: int) -> int:
    """Bits of all clustered matrices: an index for every weight, and each matrix's k values."""
    index_bits = math.ceil(math.log2(k))
    return index_bits * ledger.n_compressed + k * value_bits * len(ledger.compressed)


def coding_note(receipt: Receipt, value_bytes: int) -> str:
    """What the variant's file would take if it held indices and codebooks."""
    dense = receipt.n_compressed * value_bytes
    coded = math.ceil(receipt.bits_per_weight * receipt.n_compressed / 8)
    return (
        f"bytes_disk counts the matrices as they are written, dense; as indices and codebooks the "
        f"file would take {receipt.bytes_disk - dense + coded:,} bytes"
    )
