"""int8, int4 and float8 by rounding to the nearest, through torchao, on a CPU and on CUDA.

Weights are quantized symmetrically, with one scale a row (int8, float8) or one a group along the
inputs (int4). `int8-dynamic` also rounds a layer's inputs to 8 bits, token by token, and multiplies
integers, as PyTorch does on mobile devices.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.kernel import int_scaled_matmul
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers.auto import AutoHfQuantizer

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.conv1d import dense_model, linear_from_conv1d
from auditor.compress.matrices import linear_layers
from auditor.compress.measure import Ledger, held_tensors, write_receipt
from auditor.compress.options import GroupOptions, Options
from auditor.compress.receipt import NOT_DIVISIBLE
from auditor.errors import VariantError

UNPACKED = "torchao holds and saves 4-bit codes one to a byte; bits_per_weight counts 4 for each"
DENSE = (
    "transformers builds this model with Conv1D layers, which torchao does not pack: a folder that "
    "is written holds the weights unpacked"
)
NO_CONV1D = (
    "transformers builds this model with Conv1D layers, which cannot round their inputs as "
    "int8-dynamic does; with its weights alone it would be another variant (that is int8)"
)
EMPTY_ROWS = "torchao's float8 divides a row of zeros by zero: such rows were given a scale of 1"
SATURATES = (
    "products of 8-bit integers overflow on this processor (it lacks VNNI): weights and inputs "
    "are rounded to 7 bits instead, as torchao provides for it"
)


@dataclass(frozen=True)
class Format:
    """One of torchao's formats.

    Attributes:
        config: What torchao calls it.
        computed: The weight that a layer computes with: (packed weight, activation dtype) -> float.
        code_bits: Bits that the format needs for a weight's code.
        group_size: Weights along the inputs that share a scale; 1 where any width will do.
        weight_only: Whether a layer's inputs stay as they are.
        notes: For the receipt.
        repairs: For the receipt.
    """

    config: AOBaseConfig
    computed: Callable[[Any, torch.dtype], Tensor]
    code_bits: int = 8
    group_size: int = 1
    weight_only: bool = True
    notes: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)


def make_int8(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """8-bit weights, a scale a row."""
    del options
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    return _make(checkpoint, placement, Format(config, _scaled_in_dtype), variant=variant)


def make_int8_dynamic(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """8-bit weights, a scale a row, and 8-bit inputs, a scale a token."""
    del options
    narrow = not products_are_exact(placement.device)
    if narrow and not products_are_exact(placement.device, bits=7):
        raise VariantError(
            "int8-dynamic needs a processor that multiplies 8-bit integers",
            seen="torch._int_mm gave wrong products on this machine",
            fix="take int8, which multiplies in floating point",
        )
    config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=narrow)
    found = Format(config, _scaled, weight_only=False, repairs=[SATURATES] if narrow else [])
    return _make(checkpoint, placement, found, variant=variant)


def make_int4(
    checkpoint: Checkpoint, options: GroupOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """4-bit weights, a scale for every `group_size` of them along the inputs."""
    size = options.group_size
    config = IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        granularity=PerGroup(size),
    )
    found = Format(config, _unpacked, code_bits=4, group_size=size, notes=[UNPACKED])
    return _make(checkpoint, placement, found, variant=variant)


def make_fp8(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """8-bit float weights with 4 bits of exponent (e4m3), a scale a row."""
    del options
    config = Float8WeightOnlyConfig(weight_dtype=torch.float8_e4m3fn, set_inductor_config=False)
    return _make(checkpoint, placement, Format(config, _unpacked), variant=variant)


def _make(
    checkpoint: Checkpoint, placement: Placement, found: Format, *, variant: str
) -> CompressedModel:
    model = load_model(checkpoint, placement)
    turned = linear_from_conv1d(model)
    ledger, reasons, repairs, n_bits = Ledger(), dict[str, str](), found.repairs, 0
    for name, layer in list(linear_layers(model)):
        if layer.in_features % found.group_size:
            reasons[name] = NOT_DIVISIBLE
            continue
        before = layer.weight.data
        # A function of its own for every layer: torchao's own choice would be all Linear ones.
        quantize_(layer, found.config, filter_fn=lambda _module, _name: True)
        if fill_empty_rows(layer.weight):
            repairs = [*found.repairs, EMPTY_ROWS]
        after = found.computed(layer.weight, placement.dtype)
        ledger.add(name, type(layer.weight).__name__, before=before, after=after)
        n_bits += _bits(layer.weight, found.code_bits)
    if not turned:
        _make_savable(model, found.config, skipped=reasons)
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"torchao {version('torchao')}",
        bits_per_weight=n_bits / max(1, ledger.n_compressed),
        reasons=reasons,
        notes=[*found.notes, DENSE] if turned and found.weight_only else found.notes,
        repairs=repairs,
        # Rounding turns the last bit of a sum, which depends on the batch, into a step of 1/127.
        batch_dependent=not found.weight_only,
    )
    names = [item.module for item in ledger.compressed]
    unpack = partial(_computed_weights, model, names, found, placement.dtype)
    dense = (lambda: dense_model(checkpoint, placement, unpack())) if turned else None
    if turned and not found.weight_only:
        return CompressedModel(model, receipt, cannot_save=NO_CONV1D)
    return CompressedModel(model, receipt, dense=dense)


def _computed_weights(
    model: PreTrainedModel, names: list[str], found: Format, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        yield name, found.computed(model.get_submodule(name).weight, dtype)


def _make_savable(model: Any, config: AOBaseConfig, *, skipped: Iterable[str]) -> None:  # noqa: ANN401
    """Tell transformers how the model is quantized, as if it had done so, and it can save it."""
    head = model.get_output_embeddings()
    left = [name for name, module in model.named_modules() if module is head]
    settings = TorchAoConfig(config, modules_to_not_convert=[*left, *skipped])
    model.hf_quantizer = AutoHfQuantizer.from_config(settings)
    model.config.quantization_config = settings


def _scaled(weight: Any, _dtype: torch.dtype) -> Tensor:  # noqa: ANN401
    """Codes times scales, where products are scaled in float32."""
    scaled: Tensor = weight.qdata.float() * weight.scale
    return scaled


def _scaled_in_dtype(weight: Any, dtype: torch.dtype) -> Tensor:  # noqa: ANN401
    """Codes times scales, where products are scaled in the precision of the activations."""
    scaled: Tensor = weight.qdata.float() * weight.scale.to(dtype).float()
    return scaled


def _unpacked(weight: Any, _dtype: torch.dtype) -> Tensor:  # noqa: ANN401
    """The weight as torchao unpacks it before every product."""
    unpacked: Tensor = weight.dequantize()
    return unpacked


def fill_empty_rows(weight: Any) -> bool:  # noqa: ANN401
    """Make rows of zeros zeros again, which float8 divides by their largest weight.

    Returns:
        Whether there were any.
    """
    empty = weight.scale == 0
    if not bool(empty.any()):
        return False
    weight.scale.masked_fill_(empty, 1.0)
    weight.qdata.view(torch.uint8).masked_fill_(empty.expand_as(weight.qdata), 0)
    return True


def _bits(weight: Tensor, code_bits: int) -> int:
    """Bits of a packed weight, scales and zero points included."""
    codes, *others = held_tensors(weight)
    return codes.numel() * code_bits + sum(8 * t.numel() * t.element_size() for t in others)


def products_are_exact(device: str, *, bits: int = 8) -> bool:
    """Whether torchao's products of signed integers of so many bits are right on this device.

    Processors without VNNI add pairs of products in 16 bits, where large ones saturate. Nothing
    says so, and sums are then off by half.
    """
    high = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-high - 1, high + 1, (32, 64), generator=generator) for _ in range(2))
    a[0], a[1], b[0], b[1] = high, -high - 1, high, -high - 1
    ones = torch.ones(32, 1, device=device)
    left, right = a.to(device, torch.int8), b.to(device, torch.int8)
    return torch.equal(int_scaled_matmul(left, right.T, ones).cpu(), (a @ b.T).float())
