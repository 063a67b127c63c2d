"""Are bitsandbytes' 4-bit layers right on this machine? Tried on every layer shape, mended if not.

Known on processors with AVX512: the first forward in eval mode packs the weights anew and computes
in bfloat16 whatever the compute dtype says, after which saving corrupts them; layers whose sides are
no multiples of what that kernel wants crash; and the kernel that unpacks to float32 gives wrong
weights where the input width is a multiple of 16 and not of 64. Instead of a list of processors and
versions there is a probe: a layer of the same shape with random weights, compared with the product
with its weights unpacked by the definition. Where the probe finds nothing, nothing is touched.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from auditor.errors import VariantError

# Relative error of the layer's output that arithmetic in a dtype explains.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class Repair(NamedTuple):
    """One way of making a 4-bit layer right, the mildest first."""

    name: str
    apply: Callable[[Linear4bit], None]


def unpacked_weight(module: Linear4bit) -> Tensor:
    """The weight that a 4-bit layer stands for, by the definition of the format.

    Two codes in a byte, the first in the high half; a code's value from the code book times the
    scale of its block (Dettmers et al. 2023, sec. 3); scales of scales with double quantization.

    Returns:
        float32, shape (out_features, in_features).
    """
    state = module.weight.quant_state
    packed = module.weight.data.reshape(-1).view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 0x0F], dim=1).reshape(-1)[: state.shape.numel()]
    scales = state.absmax
    if state.nested:
        inner = state.state2
        spread = inner.absmax.repeat_interleave(inner.blocksize)[: scales.numel()]
        scales = inner.code[scales.long()] * spread + state.offset
    values = state.code.float()[codes.int()]
    per_value = scales.float().repeat_interleave(state.blocksize)[: values.numel()]
    return (values * per_value).reshape(state.shape)


def keep_unpacked(module: Linear4bit) -> None:
    """Keep the layer from packing its weights anew for the bfloat16 kernel."""
    module.support_avx512bf16_for_cpu = False


def use_definition(module: Linear4bit) -> None:
    """Let the layer multiply with its weights unpacked by the definition."""

    def forward(x: Tensor) -> Tensor:
        weight = unpacked_weight(module).to(x.dtype)
        return nn.functional.linear(x, weight, module.bias)

    keep_unpacked(module)
    module.forward = forward


REPAIRS = (
    Repair("kept from re-packing its weights into bfloat16", keep_unpacked),
    Repair("multiplies with weights unpacked by the format's definition", use_definition),
)


@torch.no_grad()
def probe(like: Linear4bit, repair: Callable[[Linear4bit], None] | None = None) -> float:
    """Relative error of a fresh layer of the same kind and shape, after an optional repair.

    Args:
        like: The layer whose shape, format, dtype and device are tried.
        repair: Applied to the fresh layer first.

    Returns:
        The worse of two forwards; infinity where the layer crashes or its weights have changed.
    """
    generator = torch.Generator().manual_seed(0)
    weight, device = like.weight, like.weight.device
    dtype = like.compute_dtype or torch.float32
    values = torch.randn(like.out_features, like.in_features, generator=generator) * 0.05
    fresh = Linear4bit(
        like.in_features,
        like.out_features,
        bias=like.bias is not None,
        compute_dtype=dtype,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
    )
    fresh.weight = Params4bit(
        values.to(dtype),
        requires_grad=False,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
        blocksize=weight.blocksize,
        module=fresh,
    )
    fresh = fresh.to(device).eval().requires_grad_(requires_grad=False)
    if fresh.bias is not None:
        fresh.bias.data = fresh.bias.data.to(dtype)
    if repair is not None:
        repair(fresh)
    before = unpacked_weight(fresh)
    inputs = torch.randn(3, like.in_features, generator=generator).to(device, dtype)
    bias = None if fresh.bias is None else fresh.bias.float()
    expected = nn.functional.linear(inputs.float(), before, bias)
    worst = 0.0
    try:
        for _ in range(2):
            error = (fresh(inputs).float() - expected).norm() / expected.norm()
            worst = max(worst, float(error))
        unchanged = torch.equal(unpacked_weight(fresh), before)
    except (RuntimeError, AssertionError, ValueError, IndexError):
        return float("inf")
    return worst if unchanged and worst == worst else float("inf")


def make_right(model: Any) -> list[str]:  # noqa: ANN401
    """Probe every kind of 4-bit layer in a model and mend those that are wrong.

    Returns:
        What was found and done, a sentence for each kind of defect.

    Raises:
        VariantError: A layer stays wrong after every repair.
    """
    kinds: dict[tuple[Any, ...], list[Linear4bit]] = {}
    for module in model.modules():
        if isinstance(module, Linear4bit):
            kinds.setdefault(_kind(module), []).append(module)
    done: dict[str, list[str]] = {}
    for modules in kinds.values():
        like = modules[0]
        limit = TOLERANCE.get(like.compute_dtype or torch.float32, 1e-4)
        found = probe(like)
        if found <= limit:
            continue
        repair = next((r for r in REPAIRS if probe(like, r.apply) <= limit), None)
        shape = f"{like.in_features}x{like.out_features}"
        if repair is None:
            raise VariantError(
                "a 4-bit layer must compute with the weights that it stores",
                seen=f"bitsandbytes is wrong at {shape} on this machine (relative error {found:.2g})"
                " and no repair helped",
                fix="use another machine, a GPU, or another version of bitsandbytes",
            )
        for module in modules:
            repair.apply(module)
        error = "crashed or changed its weights" if found == float("inf") else f"error {found:.2g}"
        done.setdefault(repair.name, []).append(f"{shape} ({error})")
    return [
        f"bitsandbytes' 4-bit layers are wrong on this machine at {', '.join(shapes)}: each {name}"
        for name, shapes in done.items()
    ]


def _kind(module: Linear4bit) -> tuple[Any, ...]:
    weight = module.weight
    return (
        module.in_features,
        module.out_features,
        module.bias is not None,
        module.compute_dtype,
        weight.quant_type,
        weight.compress_statistics,
        weight.blocksize,
    )
