"""An adapter over its base compressed, unmerged: QLoRA as it is served, and the like.

Merged and then compressed, what an adapter has learned is rounded away with the rest. Here the base
alone is compressed, by any variant, and the adapter lies over it in full precision.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from auditor.compress import VariantSpec
from auditor.compress.adapter import Adapter, put_over
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement
from auditor.compress.options import UnmergedOptions
from auditor.compress.receipt import Receipt, Skipped
from auditor.errors import CompleakError, VariantError, first_line
from auditor.memory import ran_out

if TYPE_CHECKING:
    from auditor.calibration import Calibration

CANNOT_SAVE = (
    "an adapter lies over it unmerged: base and adapter are published apart, and the base alone is "
    "what `compleak-llm compress` writes without --adapter"
)
# Makes a variant of a checkpoint: `make.compress`, or that of a cache.
Making = Callable[..., CompressedModel]


def make(
    checkpoint: Checkpoint,
    options: UnmergedOptions,
    placement: Placement,
    *,
    variant: str,
    calibration: "Calibration | None" = None,
) -> CompressedModel:
    """Compress the base, and put the adapter over it.

    Raises:
        VariantError: The base cannot be compressed so, or the adapter cannot lie over what it is
            compressed to.
    """
    from auditor.compress.make import compress

    return lay_over(checkpoint, options.spec, placement, compress, variant, calibration=calibration)


def lay_over(
    checkpoint: Checkpoint,
    over: VariantSpec,
    placement: Placement,
    making: Making,
    variant: str,
    *,
    calibration: "Calibration | None" = None,
) -> CompressedModel:
    """The same, with the base as `making` gives it.

    Args:
        checkpoint: The base with the adapter.
        over: The variant of the base.
        placement: Where it goes.
        making: Makes a variant of a checkpoint; takes what `compress` takes.
        variant: What the receipt calls it.
        calibration: Texts for compressors that look at some.
    """
    adapter = must_be_possible(checkpoint, variant, over)
    made: CompressedModel = making(adapter.base, over, placement, calibration=calibration)
    model: Any = made.model
    before = {id(parameter) for parameter in model.parameters()}
    try:
        wrapped = put_over(model, adapter)
    except CompleakError:
        raise
    except Exception as error:  # peft raises whatever layers of others provoke
        if ran_out(error):
            raise
        raise VariantError(
            f"{adapter.name} must be something that can lie over {over.label}",
            seen=f"peft raised {type(error).__name__}: {first_line(error)}",
            fix="leave this variant out: not every format takes an adapter",
        ) from error
    inner = wrapped.base_model.model
    added = [p for p in inner.parameters() if id(p) not in before]
    if placement.spread is None:
        for parameter in added:  # peft does so for the formats that it knows
            parameter.data = parameter.data.to(placement.device)
    return replace(
        made,
        model=inner,
        receipt=_receipt(made.receipt, adapter, variant, sum(p.nbytes for p in added)),
        dense=None,
        cannot_save=CANNOT_SAVE,
    )


def must_be_possible(checkpoint: Checkpoint, variant: str, over: VariantSpec) -> Adapter:
    """The checkpoint's adapter.

    Raises:
        VariantError: It has none, or one that reads weights that are packed.
    """
    if checkpoint.adapter is None:
        raise VariantError(
            "unmerged:VARIANT needs an adapter",
            seen=f"{variant} without --adapter",
            fix="give --adapter DIR, or leave this variant out",
        )
    if checkpoint.adapter.settings.get("use_dora") and over.requires:
        raise VariantError(
            "a DoRA adapter needs a base whose weights can be read, because it scales them by "
            "their norms",
            seen=f"{checkpoint.adapter.name} (use_dora) over {over.label}, which packs them",
            fix="leave this variant out: --variants original,bnb-nf4 has the adapter merged",
        )
    return checkpoint.adapter


def _receipt(receipt: Receipt, adapter: Adapter, variant: str, n_bytes: int) -> Receipt:
    """The base's receipt, with the adapter in what it counts."""
    n = adapter.n_parameters
    over = Skipped(
        module="(adapter)", n_parameters=n, reason="the adapter, in float32 over the base"
    )
    note = (
        f"all figures of compression are the base's, {receipt.variant}; an adapter of {n:,} "
        f"parameters lies over it unmerged, in float32"
    )
    return receipt.model_copy(
        update={
            "variant": variant,
            "n_parameters": receipt.n_parameters + n,
            "skipped": [*receipt.skipped, over],
            "bytes_memory": receipt.bytes_memory + n_bytes,
            "bytes_disk": receipt.bytes_disk + adapter.file.stat().st_size,
            "notes": [*receipt.notes, note],
        }
    )
