"""HQQ: groups of weights with a scale and a zero point, found without data (Badri and Shaji 2023).

The zero points are moved by half-quadratic splitting so that a norm of the error below one, which
large errors weigh little in, falls. Through the library's own layer, on a CPU and on CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from hqq.core.optimize import optimize_weights_proximal
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from torch import Tensor, nn

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.conv1d import dense_model, linear_from_conv1d
from auditor.compress.matrices import linear_layers
from auditor.compress.measure import Ledger, write_receipt
from auditor.compress.options import HqqOptions
from auditor.compress.receipt import NOT_DIVISIBLE

THREE_BITS = "hqq packs ten 3-bit codes into 32 bits and fills up the last ones"
DENSE = (
    "transformers does not load hqq's packed layers: a folder that is written holds the weights "
    "unpacked"
)


class Layer(HQQLinear):  # type: ignore[misc]
    """The library's layer, computing in PyTorch whatever backend the process has set for all."""

    def __init__(self, linear: nn.Linear, options: HqqOptions, placement: Placement) -> None:
        config = BaseQuantizeConfig(nbits=options.bits, group_size=options.group_size, axis=1)
        device = str(linear.weight.device)
        super().__init__(linear, config, compute_dtype=placement.dtype, device=device)

    @classmethod
    def set_backend(cls, backend: object) -> None:
        """Ignored: the library would give every layer of the process another forward."""

    def forward(self, x: Tensor) -> Tensor:
        """The product with the unpacked weight."""
        return nn.functional.linear(x, self.dequantize(), self.bias)

    def stored(self) -> list[Tensor]:
        """The tensors that hold the weight: codes, scales, zero points."""
        return [self.W_q, self.meta["scale"], self.meta["zero"]]


def make(
    checkpoint: Checkpoint, options: HqqOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """Quantize every linear layer whose weights can be divided into groups."""
    model = load_model(checkpoint, placement)
    linear_from_conv1d(model)
    ledger, reasons, n_bits = Ledger(), dict[str, str](), 0
    for name, linear in list(linear_layers(model)):
        if not options.divides(linear.weight.numel()):
            reasons[name] = NOT_DIVISIBLE
            continue
        before = linear.weight.data
        with _own_solver():
            layer = Layer(linear, options, placement)
        model.set_submodule(name, layer.eval())
        ledger.add(name, "HQQLinear", before=before, after=layer.dequantize())
        n_bits += sum(8 * t.numel() * t.element_size() for t in layer.stored())
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=f"hqq {version('hqq')}",
        bits_per_weight=n_bits / max(1, ledger.n_compressed),
        reasons=reasons,
        notes=[DENSE, THREE_BITS] if options.bits == 3 else [DENSE],
    )
    names = [item.module for item in ledger.compressed]
    return CompressedModel(
        model, receipt, dense=lambda: dense_model(checkpoint, placement, _unpacked(model, names))
    )


@contextmanager
def _own_solver() -> Iterator[None]:
    """Solve with the library's default, whichever one the process has set for all layers."""
    there = Quantizer.optimize_weights
    Quantizer.optimize_weights = optimize_weights_proximal
    try:
        yield
    finally:
        Quantizer.optimize_weights = there


def _unpacked(model: Any, names: list[str]) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    for name in names:
        yield name, model.get_submodule(name).dequantize()
