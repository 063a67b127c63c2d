"""A control: the original with random noise of the same norm as a variant's compression error.

    compleak-llm audit --controls noise --variants bnb-nf4,...    adds the version noise(bnb-nf4)

Beside the original, a compressed variant is also just a second, slightly different view of the same
weights. Noise that moves every matrix as far, in a direction that knows nothing of the weights,
shows how much of what is found that alone explains. It is no compressor that a user names: it is
made from the receipt of another version, once that one has been scored. What a variant does beside
its weights (the rounded activations of LLM.int8) is not imitated.
"""

import hashlib
import math
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from auditor.compress.checkpoint import (
    LOADED_S,
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
)
from auditor.environment import PeakMemory
from auditor.errors import BrokenVariantError

if TYPE_CHECKING:
    from torch import Tensor

    from auditor.compress.receipt import Receipt
    from auditor.store import VariantStore

# Where rounding to 16 bits adds to the noise or swallows it, its scale is corrected so often, until
# the norm is right to this share.
ROUNDS = 20
CLOSE = 1e-5
MAX_LISTED = 20


def noise_name(label: str) -> str:
    """What the control of a variant is called."""
    return f"noise({label})"


def is_noise(name: str) -> bool:
    """Whether a version is such a control."""
    return name.startswith("noise(")


def imitate(
    checkpoint: Checkpoint, imitated: "VariantStore", placement: Placement, *, seed: int
) -> CompressedModel:
    """Make the control of a variant that has been scored.

    Args:
        checkpoint: The original.
        imitated: Where the variant's scores are, with its receipt.
        placement: Where the control goes.
        seed: Of the noise.

    Raises:
        BrokenVariantError: The variant is broken, or its receipt knows of no error to imitate; the
            audit goes on without this control.
    """
    found = imitated.manifest()
    if found is None:
        raise ValueError(f"{imitated.name} must be scored before it can be imitated")
    if found.status == "broken" or found.receipt is None:
        raise _nothing_to_imitate(imitated.name, "it is broken")
    name = noise_name(imitated.name)
    return make_noise(checkpoint, found.receipt, placement, variant=name, seed=seed)


def make_noise(
    checkpoint: Checkpoint,
    receipt: "Receipt",
    placement: Placement,
    *,
    variant: str,
    seed: int,
) -> CompressedModel:
    """The original with Gaussian noise in every matrix that a variant compressed.

    ||noise|| / ||W|| is the relative error of that matrix in the receipt, as near as the precision
    of `placement` can hold it. Where a receipt counts the matrices of many experts as one, each of
    them gets the relative error of the whole.

    Args:
        checkpoint: The original.
        receipt: Of the variant that is imitated.
        placement: Where the model goes.
        variant: What the receipt calls this version; it is part of the seed, so that the noises of
            two variants have nothing in common.
        seed: Of the noise. Each matrix draws from a generator of its own.

    Raises:
        BrokenVariantError: The receipt names no matrix of this model with an error above 0.
        ModelError: The original cannot be loaded.
    """
    import torch

    from auditor.compress.matrices import matrices
    from auditor.compress.measure import Ledger, stored_dtype, write_receipt

    begin, loaded = time.perf_counter(), LOADED_S.get()
    errors = {item.module: item.relative_error for item in receipt.compressed}
    ledger, imitated = Ledger(), set[str]()
    with PeakMemory(*placement.computing) as memory, torch.no_grad():
        model = load_model(checkpoint, placement)
        for matrix in matrices(model):
            name = matrix.name if matrix.name in errors else matrix.name.partition("[")[0]
            if not math.isfinite(errors.get(name, math.nan)):
                continue
            imitated.add(name)
            before = matrix.weight.clone()
            _add_noise(matrix.weight, errors[name], seed=_seed_of(seed, variant, matrix.name))
            ledger.add(matrix.name, matrix.kind, before=before, after=matrix.weight)
        if not any(item.n_changed for item in ledger.compressed):
            raise _nothing_to_imitate(receipt.variant, "its receipt names no matrix that changed")
        written = write_receipt(
            checkpoint,
            model,
            ledger,
            variant=variant,
            library=f"compleak-llm {version('compleak-llm')}",
            bits_per_weight=8.0 * stored_dtype(checkpoint.config, placement.dtype).itemsize,
            left=f"{receipt.variant} names no error for it",
            notes=_notes(receipt.variant, [name for name in errors if name not in imitated]),
        )
    load_s = LOADED_S.get() - loaded
    cost = {
        "compress_s": time.perf_counter() - begin - load_s,
        "compress_peak_bytes": memory.peak_bytes,
    }
    return CompressedModel(model, written.model_copy(update=cost), load_s=load_s)


def _add_noise(weight: "Tensor", error: float, *, seed: int) -> None:
    """Add noise of `error` times the norm of a matrix, in place.

    Args:
        weight: Any shape, floating point.
        error: ||noise|| / ||weight||, finite.
        seed: Of the draws, which are made on the CPU and are the same for every device.
    """
    import torch

    def norm(tensor: "Tensor") -> float:
        return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))

    before = weight.float().clone()
    wanted = error * norm(before)
    if not wanted:
        return
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    scale = wanted / norm(noise)
    for _ in range(ROUNDS):
        weight.copy_(torch.add(before, noise, alpha=scale))
        found = norm(weight.float() - before)
        if abs(found - wanted) <= CLOSE * wanted:
            break
        # Noise far below the last digit moves nothing, until it is larger.
        scale *= wanted / found if found else 2.0


def _seed_of(seed: int, variant: str, module: str) -> int:
    """A seed for one matrix, in 63 bits: what is drawn does not depend on the order of matrices."""
    text = "\0".join((str(seed), variant, module))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _notes(imitated: str, left: list[str]) -> list[str]:
    notes = [
        f"Gaussian noise of the same norm per matrix as the compression error of {imitated}; "
        "made to be compared with it, and never published."
    ]
    if left:
        listed = ", ".join(left[:MAX_LISTED]) + (", ..." if len(left) > MAX_LISTED else "")
        notes.append(
            f"{len(left):,} entries of its receipt are no matrix of a linear layer or expert, or "
            f"have no error, and were not imitated: {listed}."
        )
    return notes


def _nothing_to_imitate(variant: str, seen: str) -> BrokenVariantError:
    return BrokenVariantError(
        f"noise needs a compression error of {variant} to imitate",
        seen=seen,
        fix="leave --controls noise out, or that variant",
    )
