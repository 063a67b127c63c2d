"""The original: loaded as it is, so that every variant is compared with the same thing."""

from importlib.metadata import version

from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
    quantization_of,
)
from auditor.compress.measure import Ledger, stored_dtype, write_receipt
from auditor.compress.options import Options


def make(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Load the model without compressing anything.

    A checkpoint that comes quantized by bitsandbytes computes with that library's layers, and so
    is probed and mended like a variant.
    """
    del options
    stored = stored_dtype(checkpoint.config, placement.dtype)
    bits, batch_dependent, repairs = 8.0 * stored.itemsize, False, list[str]()
    if quantization_of(checkpoint.config) == "bitsandbytes":
        from auditor.compress.bitsandbytes import load_quantized

        model, bits, batch_dependent, repairs = load_quantized(checkpoint, placement)
    else:
        model = load_model(checkpoint, placement, offload=True)
    receipt = write_receipt(
        checkpoint,
        model,
        Ledger(),
        variant=variant,
        library=f"transformers {version('transformers')}",
        bits_per_weight=bits,
        batch_dependent=batch_dependent,
        repairs=repairs,
        left="the original is not compressed",
        notes=[checkpoint.adapter.merged_note] if checkpoint.adapter is not None else [],
    )
    return CompressedModel(model, receipt)
