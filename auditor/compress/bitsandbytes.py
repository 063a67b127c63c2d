"""LLM.int8, NF4 and FP4 through bitsandbytes, on a CPU and on CUDA."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.measure import (
    Ledger,
    count_parameters,
    matrices,
    stored_dtype,
    write_receipt,
)
from auditor.compress.options import FourBitOptions, Int8Options


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what bitsandbytes says at import and at every layer away from the terminal.

    It reports a missing optional kernel, which would have to be fetched from a hub, and every cast
    of an input to float16, which is how LLM.int8 works.
    """
    names = ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
        yield


with quiet():
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    from auditor.compress.bnb_cpu import make_right, unpacked_weight


def make_nf4(
    checkpoint: Checkpoint, options: FourBitOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """4-bit NormalFloat (Dettmers et al. 2023)."""
    return _make_4bit(checkpoint, options, placement, variant=variant, kind="nf4")


def make_fp4(
    checkpoint: Checkpoint, options: FourBitOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """4-bit float."""
    return _make_4bit(checkpoint, options, placement, variant=variant, kind="fp4")


def make_int8(
    checkpoint: Checkpoint, options: Int8Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """LLM.int8 (Dettmers et al. 2022)."""
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=options.threshold)
    return _make(
        checkpoint,
        placement,
        config,
        variant=variant,
        batch_dependent=options.threshold > 0,
    )


def _make_4bit(
    checkpoint: Checkpoint,
    options: FourBitOptions,
    placement: Placement,
    *,
    variant: str,
    kind: str,
) -> CompressedModel:
    # The type is always named: the library's own default is fp4.
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=options.double_quant,
        bnb_4bit_compute_dtype=placement.dtype,
    )
    return _make(checkpoint, placement, config, variant=variant)


def _make(
    checkpoint: Checkpoint,
    placement: Placement,
    config: BitsAndBytesConfig,
    *,
    variant: str,
    batch_dependent: bool = False,
) -> CompressedModel:
    with quiet():
        model = load_model(checkpoint, placement, quantization_config=config)
        repairs = make_right(model)
    # The quantized model is a quarter of the original, so that both are in memory only now.
    original = load_model(checkpoint, Placement("cpu", placement.dtype))
    ledger, n_bits = Ledger(), 0
    for name, module in matrices(original):
        layer = model.get_submodule(name)
        if not isinstance(layer, Linear4bit | Linear8bitLt):
            continue
        after = weight_of(layer).to("cpu", placement.dtype)
        before = module.weight.data
        # bitsandbytes holds a Conv1D of GPT-2 as a Linear, the other way round.
        before = before if isinstance(module, nn.Linear) else before.T
        ledger.add(name, type(layer).__name__, before.contiguous(), after)
        n_bits += 8 * sum(t.numel() * t.element_size() for t in _stored(layer))
    receipt = write_receipt(
        model,
        ledger,
        variant=variant,
        library=f"bitsandbytes {version('bitsandbytes')}",
        n_parameters=count_parameters(original),
        bits_per_weight=n_bits / max(1, ledger.n_compressed),
        stored_dtype=stored_dtype(checkpoint.config, placement.dtype),
        batch_dependent=batch_dependent,
        repairs=repairs,
    )
    return CompressedModel(model, receipt)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight that a quantized layer stands for, float32, shape (out, in).

    Raises:
        TypeError: The layer is not one of bitsandbytes'.
    """
    if isinstance(layer, Linear4bit):
        return unpacked_weight(layer)
    if isinstance(layer, Linear8bitLt):
        codes, scales = _int8(layer)
        return codes.float() * (scales.float()[:, None] / 127)
    raise TypeError(f"{type(layer).__name__} is not a quantized layer")


def _int8(layer: Linear8bitLt) -> tuple[Tensor, Tensor]:
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data, scales


def _stored(layer: nn.Module) -> list[Tensor]:
    """The tensors that hold a layer's weights: codes and scales, without the shared code book."""
    if isinstance(layer, Linear8bitLt):
        return list(_int8(layer))
    state: Any = layer.weight.quant_state
    scales = [state.absmax]
    if state.nested:
        scales += [state.state2.absmax, state.offset.reshape(1)]
    return [layer.weight.data, *scales]
