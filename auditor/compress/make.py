"""Making a variant: the one door through which every compressor is called and checked."""

import time
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from auditor.compress import COMPRESSORS, VariantSpec
from auditor.compress.checkpoint import (
    LOADED_S,
    Checkpoint,
    CompressedModel,
    Placement,
    quantization_of,
)
from auditor.compress.receipt import UNTOUCHED, Receipt
from auditor.environment import PeakMemory, installed
from auditor.errors import VariantError, first_line
from auditor.memory import ran_out

if TYPE_CHECKING:
    from auditor.calibration import Calibration
    from auditor.lessons import Lessons

# A variant that changed less than this share of what it should have changed did nothing.
LEAST_CHANGED = 0.01


def check_possible(checkpoint: Checkpoint, spec: VariantSpec) -> None:
    """Refuse, before anything is run, what could only fail later.

    Raises:
        VariantError: The checkpoint is quantized already, a library is missing, or the options do
            not fit the model's matrices.
    """
    if spec.id == "original":
        return
    if quantized := quantization_of(checkpoint.config):
        raise already_quantized(checkpoint.name, quantized, spec.label)
    if spec.over is not None:
        from auditor.compress.unmerged import must_be_possible

        must_be_possible(checkpoint, spec.label, spec.over)
    if missing := tuple(name for name in spec.requires if installed(name) is None):
        raise library_missing(spec.id, missing, f"{', '.join(missing)} is not installed")
    from auditor.compress.matrices import shapes

    spec.options.check(spec.label, shapes(checkpoint))


def compress(
    checkpoint: Checkpoint,
    spec: VariantSpec,
    placement: Placement,
    *,
    calibration: "Calibration | None" = None,
    lessons: "Lessons | None" = None,
) -> CompressedModel:
    """Make a variant of a checkpoint, with its receipt.

    Args:
        checkpoint: The original.
        spec: The variant.
        placement: Where it goes.
        calibration: Texts for compressors that look at some.
        lessons: The members, for versions that are trained on them.

    Raises:
        VariantError: The checkpoint is quantized already, the library is missing or fails, the
            variant changed nothing, or training came to no number.
        ModelError: The weights cannot be loaded.
    """
    check_possible(checkpoint, spec)
    begin, loaded = time.perf_counter(), LOADED_S.get()
    with PeakMemory(*placement.computing) as memory:
        made = _call(checkpoint, spec, placement, calibration)
        if spec.recovery is not None:
            made = _trained(checkpoint, spec, placement, made, lessons)
    load_s = LOADED_S.get() - loaded
    seconds = time.perf_counter() - begin - load_s
    receipt = made.receipt.model_copy(
        update={
            "compress_s": seconds,
            "compress_peak_bytes": memory.peak_bytes,
            "calibration": calibration.use if calibration is not None else None,
        }
    )
    if spec.id != "original" and spec.over is None:  # what is under it has been checked by itself
        check_receipt(receipt, changed_share=spec.options.changed_share)
    return replace(made, receipt=receipt, load_s=load_s)


def _call(
    checkpoint: Checkpoint,
    spec: VariantSpec,
    placement: Placement,
    calibration: "Calibration | None",
) -> CompressedModel:
    compressor = COMPRESSORS[spec.id]
    module, _, name = compressor.make.partition(":")
    looks = compressor.is_calibrated or spec.over is not None
    more = {"calibration": calibration} if looks else {}
    if compressor.is_calibrated and calibration is None:
        raise ValueError(f"{spec.id} needs calibration texts")
    try:
        function = getattr(import_module(module), name)
        made: CompressedModel = function(
            checkpoint, spec.options, placement, variant=spec.canonical, **more
        )
    except ImportError as error:
        raise library_missing(spec.id, compressor.requires, first_line(error)) from error
    except (RuntimeError, ValueError, AssertionError, TypeError, NotImplementedError) as error:
        # Where no other library is at work, such an error is a defect of this program.
        if not compressor.requires or ran_out(error):
            raise
        raise VariantError(
            f"{spec.label} must be possible for this model on this machine",
            seen=f"{', '.join(compressor.requires)} raised {type(error).__name__}: "
            f"{first_line(error)}",
            fix="leave this variant out, or try another version of the library",
        ) from error
    return made


def _trained(
    checkpoint: Checkpoint,
    spec: VariantSpec,
    placement: Placement,
    made: CompressedModel,
    lessons: "Lessons | None",
) -> CompressedModel:
    """What was made, trained on the members; errors of `compress`."""
    from auditor.compress.recover import recovered

    if lessons is None:
        raise ValueError(f"{spec.label} needs members to be trained on")
    if not spec.is_control:
        # Once it is trained every weight differs, whether it was compressed or not.
        check_receipt(made.receipt, changed_share=spec.options.changed_share)
    return recovered(checkpoint, made, spec.options, placement, lessons)


def check_receipt(receipt: Receipt, *, changed_share: float = 1.0) -> None:
    """Refuse a variant that silently skipped its work.

    Args:
        receipt: What was counted.
        changed_share: Share of the weights that the compressor is meant to change.

    Raises:
        VariantError: Under 1% of the weights that it should have changed were changed.
    """
    left = sum(item.n_parameters for item in receipt.skipped if item.reason in UNTOUCHED)
    wanted = round(changed_share * (receipt.n_compressed + left))
    if not wanted:
        raise VariantError(
            f"{receipt.variant} needs a model with linear layers that it can change",
            seen=f"{receipt.n_compressed + left:,} weights beside embeddings and output head",
            fix="leave this variant out",
        )
    if receipt.n_changed < LEAST_CHANGED * wanted:
        raise VariantError(
            f"{receipt.variant} must change the weights that it is for",
            seen=f"{receipt.n_changed:,} of {wanted:,} weights changed"
            + (f"; {left:,} were left in full precision" if left else ""),
            fix="leave this variant out: it would be the original under another name",
        )


def already_quantized(name: str, quantization: str, variant: str) -> VariantError:
    """The error for a checkpoint that cannot be compressed again."""
    return VariantError(
        "variants must be made from a full-precision checkpoint",
        seen=f"{name} is already quantized ({quantization}); asked for {variant}",
        fix="give the full-precision model as --model, or audit this one alone with "
        "--variants original",
    )


def library_missing(variant: str, requires: tuple[str, ...], seen: str) -> VariantError:
    """The error for a library that is not there, with the line that installs it."""
    named = " ".join(requires)
    return VariantError(
        f"variant {variant} needs {', '.join(requires) or 'a library that is not installed'}",
        seen=seen,
        fix=f"pip install -c constraints.txt {named}" if named else "install what is named above",
    )
