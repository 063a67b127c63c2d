"""Packed weights decompressed once, so that a variant is scored at the speed of a dense model.

A layer that quantizes its weights alone unpacks them anew for every batch and then multiplies as
any other does. Unpacked once, it is the same arithmetic. Each such layer (4-bit ones of
bitsandbytes, those of GPTQ, torchao and HQQ) becomes, in its place and one after the other, a
Linear with the weight that it multiplied with; what it was packed in is let go before the next one
is unpacked. A layer that rounds its inputs too (LLM.int8, int8-dynamic) is left alone: its own
kernel is the arithmetic that is audited. So is one that a probe finds to give other outputs.

GGUF files, AWQ, compressed-tensors and published GPTQ and HQQ checkpoints are unpacked as they are
loaded, and pruned, clustered and cast variants are dense by nature: nothing is left to do.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from auditor.compress.checkpoint import CompressedModel, Placement
from auditor.memory import spare_bytes

How = Literal["auto", "always", "never"]

# Relative difference of two outputs that one rounding apart in a dtype explains: in float32 sums
# of thousands of terms in another order, in 16 bits the last bit of the output. Inputs rounded to
# 8 bits are off by more than 0.01 on the probe's rows.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PROBE_ROWS = 4
# One input of every row stands out by this much, as some do in language models: a layer that rounds
# its inputs then rounds most of the others away.
OUTLIER = 32.0
# While a weight is unpacked, its codes, values and scales are held one beside the other.
UNPACKING_BYTES = 24
NOT_PACKED = "its weights were decompressed to be scored, and are no longer what was made"


class SteppedLinear(nn.Linear):
    """A Linear that rounds its product, then scales it, then adds the bias: W = diag(scales) C.

    As some packed layers do, which in 16 bits is not the same as a product that is rounded once,
    and with codes C and scales that 16 bits can hold, where their product W is wider.
    """

    scales: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """`(x C^T) * scales + bias`."""
        product = nn.functional.linear(input, self.weight)
        if self.scales is not None:
            product = product * self.scales
        return product if self.bias is None else product + self.bias


class CastingLinear(nn.Linear):
    """A Linear that computes in the dtype of its weight, whatever it is given and gives back."""

    def forward(self, input: Tensor) -> Tensor:
        """The product, in the dtype of the input."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class Dense(NamedTuple):
    """What a packed layer multiplies with.

    Attributes:
        weight: Shape (outputs, inputs), in the dtype that the layer computes in.
        scales: Factors of the outputs, shape (outputs,), where they are not in the weight.
        adds_bias: Whether the bias is added to a product that is rounded already.
    """

    weight: Tensor
    scales: Tensor | None = None
    adds_bias: bool = False


# From a packed layer and the dtype of the model's activations to what it multiplies with.
Unpack = Callable[[Any, torch.dtype], Dense]


def materialise(
    made: CompressedModel, placement: Placement, *, how: How, available: int | None = None
) -> CompressedModel:
    """Decompress what is packed, in place.

    Args:
        made: A variant, with its receipt; its model is changed.
        placement: Where it is, and the dtype of its activations.
        how: "auto" where memory allows, "always", or "never".
        available: Bytes that may be taken, for "auto"; what the device has to spare if None.

    Returns:
        The same object where nothing was decompressed. Else one with the same receipt but for a
        note, which can be scored and not be written.
    """
    if how == "never":
        return made
    packed = packed_layers(made.model)
    if not packed:
        return made
    if how == "auto" and not fits(made, placement, available=available):
        return made
    unlike = {
        name: error
        for name, layer in packed.items()
        if (error := _decompress(layer, placement)) is not None
    }
    note = _note(len(packed), unlike)
    receipt = made.receipt.model_copy(update={"notes": [*made.receipt.notes, note]})
    if len(unlike) == len(packed):
        return replace(made, receipt=receipt)
    cannot_save = made.cannot_save or NOT_PACKED
    return replace(made, receipt=receipt, dense=None, cannot_save=cannot_save)


def fits(made: CompressedModel, placement: Placement, *, available: int | None = None) -> bool:
    """Whether memory allows all packed layers to be decompressed; arguments as `materialise`."""
    layers: dict[str, list[Any]] = {}
    for layer in packed_layers(made.model).values():
        layers.setdefault(_device_of(layer, placement), []).append(layer)
    return all(
        needed_bytes(there, placement.dtype)
        <= (spare_bytes(device) if available is None else available)
        for device, there in layers.items()
    )


def _device_of(layer: Any, placement: Placement) -> str:  # noqa: ANN401
    """Where a layer lies, which in a model over several devices is not always the same."""
    if placement.spread is None:
        return placement.device
    held = next(chain(layer.parameters(), layer.buffers()), None)
    return placement.device if held is None else str(held.device)


def packed_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that hold their weight packed and compute with it as a plain Linear would.

    Returns:
        By name, each once, however many places it is held in.
    """
    return {name: layer for name, layer in model.named_modules() if _unpacking(layer) is not None}


def needed_bytes(layers: list[Any], dtype: torch.dtype) -> int:
    """Bytes that decompressing takes at most: all weights dense, and the largest being unpacked.

    Args:
        layers: Packed layers.
        dtype: Of the dense weights.
    """
    sizes = [int(layer.in_features) * int(layer.out_features) for layer in layers]
    return sum(sizes) * dtype.itemsize + max(sizes, default=0) * UNPACKING_BYTES


def _note(n_packed: int, unlike: dict[str, float]) -> str:
    done = n_packed - len(unlike)
    told = (
        f"scored with the weights of {done} of {n_packed} packed layers decompressed once; bytes "
        "and bits are those of the packed form"
    )
    if not unlike:
        return told
    worst = max(unlike, key=lambda name: unlike[name])
    return (
        f"{told}; {len(unlike)} stayed packed, because decompressed they gave other outputs, such "
        f"as {worst} with a relative difference of {unlike[worst]:.0e}"
    )


# -- one layer -----------------------------------------------------------------------------------


@torch.no_grad()
def _decompress(layer: Any, placement: Placement) -> float | None:  # noqa: ANN401
    """Make a packed layer a dense one, in place, so that whoever holds it holds the dense one.

    Returns:
        None, or the relative difference of the outputs for which it was left as it is.
    """
    unpack = _unpacking(layer)
    if unpack is None:
        raise ValueError(f"{type(layer).__name__} is not packed")
    linear = _linear(unpack(layer, placement.dtype), layer.bias, placement.dtype)
    # The coarser of the two dtypes decides how far apart two right answers may be.
    tolerance = max(TOLERANCE[placement.dtype], TOLERANCE[linear.weight.dtype])
    error = _difference(layer, linear, placement)
    if not error <= tolerance:
        return error
    # Parameters of some libraries hold their layer: only emptied, it lets go of them at once.
    layer.__dict__.clear()
    layer.__dict__.update(linear.__dict__)
    object.__setattr__(layer, "__class__", type(linear))
    return None


def _linear(dense: Dense, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    kind: type[nn.Linear] = nn.Linear
    # In float32 the steps of a layer differ by nothing that anybody could see.
    in_steps = dense.scales is not None or (dense.adds_bias and bias is not None)
    if in_steps and dtype != torch.float32:
        kind = SteppedLinear
    elif dense.weight.dtype != dtype:
        kind = CastingLinear
    outputs, inputs = dense.weight.shape
    with torch.device("meta"):
        linear = kind(inputs, outputs, bias=bias is not None)
    linear.weight = nn.Parameter(dense.weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dense.weight.dtype), requires_grad=False)
    if kind is SteppedLinear:
        linear.register_buffer("scales", dense.scales)
    return linear.eval()


def _difference(layer: nn.Module, linear: nn.Linear, placement: Placement) -> float:
    """Relative difference of what the two make of a few random rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBE_ROWS, linear.in_features, generator=generator)
    rows[:, 0] *= OUTLIER
    rows = rows.to(linear.weight.device, placement.dtype)
    packed, dense = layer(rows).float(), linear(rows).float()
    norm, distance = packed.norm(), (packed - dense).norm()
    return float(distance / norm if norm > 0 else distance)


# -- what a layer is -----------------------------------------------------------------------------


def _unpacking(layer: Any) -> Unpack | None:  # noqa: ANN401
    """How to unpack a layer; None where it is not packed, or rounds its inputs as well."""
    libraries = {kind.__module__.partition(".")[0] for kind in type(layer).__mro__}
    if "bitsandbytes" in libraries:
        # What is in 4 bits has such a state: LLM.int8 has not, and an embedding is no Linear.
        is_four_bit = getattr(getattr(layer, "weight", None), "quant_state", None) is not None
        return _bitsandbytes if is_four_bit and isinstance(layer, nn.Linear) else None
    if "hqq" in libraries:
        return _hqq
    if isinstance(getattr(layer, "qweight", None), Tensor):
        return _gptq
    weight: Any = layer.weight if isinstance(layer, nn.Linear) else None
    # A tensor of torchao's own class stands in the place of a plain one.
    is_wrapper = is_traceable_wrapper_subclass(weight)
    return _torchao if is_wrapper and not _rounds_inputs(weight) else None


def _rounds_inputs(weight: Any) -> bool:  # noqa: ANN401 - torchao's own classes
    """Whether torchao rounds what it multiplies with a weight; the weight holds how."""
    names, settings = weight.__tensor_flatten__()
    held = [*names, *(name for name, value in settings.items() if value is not None)]
    return any(name.startswith(("act_quant", "activation_", "input_")) for name in held)


def _bitsandbytes(layer: Any, dtype: torch.dtype) -> Dense:  # noqa: ANN401
    from auditor.compress.bnb_cpu import UnpackedLinear4bit, unpacked_weight

    # A mended layer unpacks in its own way; the others round to the compute dtype alone.
    weight = layer.unpack() if isinstance(layer, UnpackedLinear4bit) else unpacked_weight(layer)
    return Dense(weight.to(layer.compute_dtype or dtype))


def _gptq(layer: Any, dtype: torch.dtype) -> Dense:  # noqa: ANN401
    from auditor.compress.gptq import unpacked_weight

    return Dense(unpacked_weight(layer, dtype=dtype).to(dtype), adds_bias=True)


def _hqq(layer: Any, _dtype: torch.dtype) -> Dense:  # noqa: ANN401
    return Dense(layer.dequantize())


def _torchao(layer: Any, dtype: torch.dtype) -> Dense:  # noqa: ANN401
    weight: Any = layer.weight
    kind = type(weight).__name__
    by_row = kind == "Int8Tensor" and weight.block_size[-1] == weight.shape[-1]
    if by_row and dtype != torch.float32:
        scales = weight.scale.to(dtype).flatten().expand(weight.shape[0])
        return Dense(weight.qdata.to(dtype), scales.contiguous(), adds_bias=True)
    return Dense(weight.dequantize(), adds_bias=kind in ("Int8Tensor", "Float8Tensor"))
