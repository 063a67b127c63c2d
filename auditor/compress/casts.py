"""The plain casts to 16 bits: the mildest compression, and the one that everybody publishes."""

from importlib.metadata import version
from typing import Any

import torch

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.measure import Ledger, write_receipt
from auditor.compress.options import Options


def make_float16(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Cast every parameter to float16."""
    del options
    return _cast(checkpoint, placement, torch.float16, variant=variant)


def make_bfloat16(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Cast every parameter to bfloat16."""
    del options
    return _cast(checkpoint, placement, torch.bfloat16, variant=variant)


@torch.no_grad()
def _cast(
    checkpoint: Checkpoint, placement: Placement, dtype: torch.dtype, *, variant: str
) -> CompressedModel:
    """Round every parameter through `dtype`; it is computed with in the audit's own precision.

    So the weights are what was published, and arithmetic in 16 bits, which differs from device to
    device and is slow on processors without it, is not mistaken for them.
    """
    model = load_model(checkpoint, placement)
    ledger = Ledger()
    for name, parameter in model.named_parameters():
        before = parameter.data.clone()
        parameter.data.copy_(before.to(dtype))
        module = name.removesuffix(".weight")
        ledger.add(module, type(parameter).__name__, before=before, after=parameter.data)
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"transformers {version('transformers')}",
        bits_per_weight=8.0 * dtype.itemsize,
        disk=sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize,
    )
    # What is published is in 16 bits, whatever precision it was scored in.
    whole: Any = model
    return CompressedModel(model, receipt, dense=lambda: whole.to(dtype))
