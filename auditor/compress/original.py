"""The original: loaded as it is, so that every variant is compared with the same thing."""

from importlib.metadata import version

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.measure import Ledger, count_parameters, stored_dtype, write_receipt
from auditor.compress.options import Options


def make(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Load the model without compressing anything."""
    del options
    model = load_model(checkpoint, placement)
    stored = stored_dtype(checkpoint.config, placement.dtype)
    receipt = write_receipt(
        model,
        Ledger(),
        variant=variant,
        library=f"transformers {version('transformers')}",
        n_parameters=count_parameters(model),
        bits_per_weight=8.0 * stored.itemsize,
        stored_dtype=stored,
    )
    return CompressedModel(model, receipt)
