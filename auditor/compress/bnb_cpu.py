"""Are bitsandbytes' 4-bit layers right on this machine? Tried on every layer shape, mended if not.

Known on processors with AVX512: the first forward in eval mode packs the weights anew and computes
in bfloat16 whatever the compute dtype says, after which saving corrupts them; layers whose sides
are no multiples of what that kernel wants crash; and the kernel that unpacks to floating point
gives wrong weights where the input width is a multiple of 16 and not of 64. Instead of a list of
processors and versions there is a probe: a layer of the same shape, compared with the product with
its weights unpacked by the definition. Where the probe finds nothing, nothing is touched.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn

from auditor.errors import VariantError

# Relative error of the layer's output that arithmetic in a dtype explains. Products rounded to
# bfloat16 are off by 2e-3 and more, a wrong unpacking of the probe's weights by 0.1 and more.
TOLERANCE = {torch.float32: 5e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Neighbouring groups of the probe's weights differ in size by up to 2 to this power, so that a
# weight that takes its neighbour's scale cannot be overlooked.
SPREAD = 4
GROUP = 16


def unpacked_weight(module: Any) -> Tensor:  # noqa: ANN401
    """The weight that a 4-bit layer stands for, by the definition of the format.

    Two codes in a byte, the first in the high half; a code's value from the code book times the
    scale of its block (Dettmers et al. 2023, sec. 3); scales of scales with double quantization.

    Returns:
        float32, shape (out_features, in_features).
    """
    state = module.weight.quant_state
    n = math.prod(state.shape)
    packed = module.weight.data.view(torch.uint8).reshape(-1)
    codes = torch.stack([packed >> 4, packed & 0x0F], dim=1).reshape(-1)[:n]
    scales = state.absmax
    if state.nested:
        inner = state.state2
        spread = inner.absmax.repeat_interleave(inner.blocksize)[: scales.numel()]
        scales = inner.code[scales.long()] * spread + state.offset
    values = state.code.float()[codes.int()]
    per_value = scales.float().repeat_interleave(state.blocksize)[:n]
    weight: Tensor = (values * per_value).reshape(state.shape)
    return weight


class UnpackedLinear4bit(Linear4bit):
    """A 4-bit layer that multiplies with its weights unpacked by the definition."""

    def unpack(self) -> Tensor:
        """The weight, shape (out_features, in_features)."""
        return unpacked_weight(self)

    def forward(self, x: Tensor) -> Tensor:
        """The product in the compute dtype, in the dtype of `x`."""
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), self.unpack().to(dtype), bias).to(x.dtype)


class BlockwiseLinear4bit(UnpackedLinear4bit):
    """A 4-bit layer whose weights are unpacked by the library as a matrix with a block a row.

    A row is then as wide as the kernel does right, and it is many times faster than the definition.
    """

    def unpack(self) -> Tensor:
        """The weight, shape (out_features, in_features)."""
        weight: Any = self.weight
        state = copy.copy(weight.quant_state)
        shape = state.shape
        state.shape = torch.Size((math.prod(shape) // state.blocksize, state.blocksize))
        unpacked: Tensor = dequantize_4bit(weight.data, state)
        return unpacked.reshape(shape)


def _keep_unpacked(module: Any) -> None:  # noqa: ANN401
    module.support_avx512bf16_for_cpu = False


def _unpack_blockwise(module: Any) -> None:  # noqa: ANN401
    module.__class__ = BlockwiseLinear4bit


def _unpack_by_definition(module: Any) -> None:  # noqa: ANN401
    module.__class__ = UnpackedLinear4bit


class Repair(NamedTuple):
    """One way of making a 4-bit layer right; each touches the one layer that it is given."""

    done: str
    apply: Callable[[Any], None]


# The mildest first: the first that passes the probe is taken.
REPAIRS = (
    Repair("kept from packing its weights anew for bfloat16", _keep_unpacked),
    Repair("unpacked by the library block by block, then multiplied", _unpack_blockwise),
    Repair("unpacked by the format's definition, then multiplied", _unpack_by_definition),
)


class Finding(NamedTuple):
    """What the probe saw of one layer.

    Attributes:
        error: Relative error of the output, the worst of several forwards.
        trouble: A crash or a change of the stored weights, in words; empty where there was none.
        limit: The error that arithmetic in the layer's dtype explains.
    """

    error: float
    trouble: str
    limit: float

    @property
    def is_right(self) -> bool:
        """Whether the layer computes with the weights that it stores, and leaves them alone."""
        return not self.trouble and self.error <= self.limit


def _fresh(like: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """A layer of the same kind and shape, with weights that show a wrong scale."""
    generator = torch.Generator().manual_seed(0)
    n_groups = -(-like.in_features // GROUP)
    sizes = torch.randint(
        -SPREAD, SPREAD + 1, (like.out_features, n_groups, 1), generator=generator
    )
    values = torch.randn(like.out_features, n_groups, GROUP, generator=generator) * 2.0**sizes
    values = values.flatten(1)[:, : like.in_features] * 0.05
    kind = {
        "compress_statistics": like.weight.compress_statistics,
        "quant_type": like.weight.quant_type,
    }
    layer = Linear4bit(
        like.in_features, like.out_features, bias=False, compute_dtype=dtype, device="meta", **kind
    )
    layer.weight = Params4bit(
        values.to(dtype),
        requires_grad=False,
        blocksize=like.weight.blocksize,
        module=layer,
        **kind,
    )
    layer.to(like.weight.device)
    if like.bias is not None:
        bias = torch.randn(like.out_features, generator=generator)
        layer.bias = nn.Parameter(bias.to(like.weight.device, dtype), requires_grad=False)
    return layer.eval()


@torch.no_grad()
def probe(like: Any, repair: Repair | None = None) -> Finding:  # noqa: ANN401
    """Try a fresh layer of the same kind and shape, as it is shipped or after a repair.

    Args:
        like: The 4-bit layer whose shape, format, dtype and device are tried; it is not touched.
        repair: Applied to the fresh layer first.
    """
    dtype = like.compute_dtype or torch.float32
    limit = TOLERANCE[dtype]
    layer = _fresh(like, dtype)
    if repair is not None:
        repair.apply(layer)
    stored, weight = layer.weight.data.clone(), unpacked_weight(layer)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3, like.in_features, generator=generator).to(like.weight.device, dtype)
    bias = None if layer.bias is None else layer.bias.float()
    worst = 0.0
    # One row and several take different ways through the library, and so may a second forward.
    for inputs in (rows, rows[None, :1], rows):
        expected = nn.functional.linear(inputs.float(), weight.to(dtype).float(), bias)
        try:
            error = float((layer(inputs).float() - expected).norm() / expected.norm())
        except Exception as problem:  # whatever it is, the layer cannot be used
            return Finding(math.inf, f"crash ({type(problem).__name__})", limit)
        worst = max(worst, error if math.isfinite(error) else math.inf)
    kept = layer.weight.data.shape == stored.shape and torch.equal(layer.weight.data, stored)
    if not kept or not torch.equal(unpacked_weight(layer), weight):
        return Finding(worst, "change their stored weights at the first forward", limit)
    return Finding(worst, "", limit)


def make_right(model: Any) -> list[str]:  # noqa: ANN401
    """Probe every kind of 4-bit layer in a model and mend those that are wrong.

    Returns:
        What was found and done, a sentence for each kind of defect.

    Raises:
        VariantError: A layer stays wrong after every repair.
    """
    kinds: dict[tuple[Any, ...], list[Any]] = {}
    for module in model.modules():
        if isinstance(module, Linear4bit):
            kinds.setdefault(_kind(module), []).append(module)
    done: dict[tuple[str, str], list[str]] = {}
    for modules in kinds.values():
        like = modules[0]
        if (found := probe(like)).is_right:
            continue
        seen, shape = _words(found), f"{like.in_features}x{like.out_features}"
        for repair in REPAIRS:
            if (found := probe(like, repair)).is_right:
                break
            seen += f" and, {repair.done}, {_words(found)}"
        else:
            raise VariantError(
                "a 4-bit layer must compute with the weights that it stores",
                seen=f"bitsandbytes' layers of {shape} (in x out features) {seen}",
                fix="use a GPU, another machine or another version of bitsandbytes",
            )
        for module in modules:
            repair.apply(module)
        done.setdefault((seen, repair.done), []).append(shape)
    return [
        "by a probe on this machine, bitsandbytes' 4-bit layers of "
        f"{', '.join(dict.fromkeys(same))} (in x out features) {seen}; they were {what}"
        for (seen, what), same in done.items()
    ]


def _words(found: Finding) -> str:
    """What is wrong, in words; one digit of the error, so that alike shapes are told together."""
    if found.trouble and not math.isfinite(found.error):
        return found.trouble
    # The power of ten is a property of the defect; the digits before it are the probe's chance.
    error = f"1e{math.floor(math.log10(max(found.error, 1e-9))):+d}"
    wrong = f"compute with a relative error of the order of {error}"
    return f"{found.trouble} and {wrong}" if found.trouble else wrong


def _kind(module: Any) -> tuple[Any, ...]:  # noqa: ANN401
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
