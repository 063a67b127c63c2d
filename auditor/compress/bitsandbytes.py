"""LLM.int8, NF4 and FP4 through bitsandbytes, on a CPU and on CUDA."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.matrices import cast_plain, linear_layers
from auditor.compress.measure import Ledger, OriginalWeights, write_receipt
from auditor.compress.options import FourBitOptions, Int8Options


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """Keep bitsandbytes from fetching a kernel from the hub while it is imported.

    It asks for one on some processors where the package `kernels` is installed, and falls back to
    its own where it is not.
    """
    there = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["kernels"]
        if there is not None:
            sys.modules["kernels"] = there


# It logs the kernel that it did not get, and every cast to float16, which is how LLM.int8 works.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
with without_hub_kernels():
    from bitsandbytes.functional import int8_vectorwise_dequant
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    from auditor.compress.bnb_cpu import make_right, unpacked_weight


def make_nf4(
    checkpoint: Checkpoint, options: FourBitOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """4-bit NormalFloat (Dettmers et al. 2023)."""
    return _make(checkpoint, placement, config_of("nf4", options, placement), variant=variant)


def make_fp4(
    checkpoint: Checkpoint, options: FourBitOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """4-bit float."""
    return _make(checkpoint, placement, config_of("fp4", options, placement), variant=variant)


def make_int8(
    checkpoint: Checkpoint, options: Int8Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """LLM.int8 (Dettmers et al. 2022)."""
    return _make(checkpoint, placement, config_of("int8", options, placement), variant=variant)


def config_of(kind: str, options: Any, placement: Placement) -> BitsAndBytesConfig:  # noqa: ANN401
    """What transformers is told, so that it quantizes while it loads.

    Args:
        kind: "int8", "nf4" or "fp4".
        options: The options of that kind.
        placement: Where the model goes.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=options.threshold)
    # The type is always named: the library's own default is fp4.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=options.double_quant,
        bnb_4bit_compute_dtype=placement.dtype,
    )


class Quantized(NamedTuple):
    """A model with bitsandbytes layers, right on this machine.

    Attributes:
        model: The model.
        bits_per_weight: Of its quantized matrices, scales included.
        batch_dependent: Whether a record's scores depend on the batch.
        repairs: What was wrong with the library here, and what was done.
    """

    model: PreTrainedModel
    bits_per_weight: float
    batch_dependent: bool
    repairs: list[str]


def load_quantized(
    checkpoint: Checkpoint, placement: Placement, config: BitsAndBytesConfig | None = None
) -> Quantized:
    """Load a model with quantized layers, probe them and mend what is wrong.

    Args:
        checkpoint: What to load.
        placement: Where to, and in which dtype.
        config: How to quantize it; None where the checkpoint is quantized already.

    Raises:
        VariantError: A layer stays wrong after every repair.
    """
    more: dict[str, Any] = {} if config is None else {"quantization_config": config}
    model = load_model(checkpoint, placement, **more)
    if config is None:
        cast_plain(model, placement.dtype)
    repairs = make_right(model)
    layers: list[Any] = [module for module in model.modules() if is_quantized(module)]
    n_bits = sum(8 * t.numel() * t.element_size() for layer in layers for t in _stored(layer))
    n_weights = sum(layer.in_features * layer.out_features for layer in layers)
    # Outlier columns are picked over the whole batch wherever there is a threshold.
    batch_dependent = any(
        isinstance(layer, Linear8bitLt) and layer.state.threshold > 0 for layer in layers
    )
    return Quantized(model, n_bits / max(1, n_weights), batch_dependent, repairs)


def _make(
    checkpoint: Checkpoint, placement: Placement, config: BitsAndBytesConfig, *, variant: str
) -> CompressedModel:
    quantized = load_quantized(checkpoint, placement, config)
    original = OriginalWeights(checkpoint, quantized.model, dtype=placement.dtype)
    ledger = Ledger()
    for name, layer in linear_layers(quantized.model):
        if not is_quantized(layer):
            continue
        before = original.read(name)
        # bitsandbytes holds a Conv1D of GPT-2 as a Linear, the other way round.
        before = before if issubclass(layer.source_cls, nn.Linear) else before.T
        after = weight_of(layer, dtype=placement.dtype).cpu()
        ledger.add(name, kind_of(layer), before=before, after=after)
    receipt = write_receipt(
        checkpoint,
        quantized.model,
        ledger,
        variant=variant,
        library=f"bitsandbytes {version('bitsandbytes')}",
        bits_per_weight=quantized.bits_per_weight,
        batch_dependent=quantized.batch_dependent,
        repairs=quantized.repairs,
    )
    return CompressedModel(quantized.model, receipt)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of bitsandbytes' and its weight is in its format by now."""
    if isinstance(module, Linear4bit):
        return getattr(module.weight, "quant_state", None) is not None
    return isinstance(module, Linear8bitLt) and module.weight.dtype == torch.int8


def kind_of(layer: nn.Module) -> str:
    """The library's class of a layer, also where a repair put a subclass in its place."""
    return "Linear4bit" if isinstance(layer, Linear4bit) else "Linear8bitLt"


def weight_of(layer: nn.Module, *, dtype: torch.dtype) -> Tensor:
    """The weight that a quantized layer computes with, float32, shape (out, in).

    A 4-bit layer unpacks its weights to `dtype` and multiplies them so; LLM.int8 multiplies the
    integers and applies the scales to the result, so that nothing of the weight is rounded.
    """
    if isinstance(layer, Linear4bit):
        return unpacked_weight(layer).to(dtype).float()
    weight: Tensor = int8_vectorwise_dequant(*_int8(layer))
    return weight.float()


def _int8(layer: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    # The scales move from the weight to the layer's state at the first forward.
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data, scales


def _stored(layer: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors that hold a layer's weights: codes and scales, without the shared code books."""
    if isinstance(layer, Linear8bitLt):
        return list(_int8(layer))
    state = layer.weight.quant_state
    nested = [state.state2.absmax, state.offset] if state.nested else []
    return [layer.weight.data, state.absmax, *nested]
