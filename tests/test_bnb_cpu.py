"""bitsandbytes' 4-bit layers compute with the weights that they store, whatever the processor."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from torch import Tensor

from auditor.compress import parse_variant
from auditor.compress.bitsandbytes import config_of, is_quantized, weight_of
from auditor.compress.bnb_cpu import (
    REPAIRS,
    Finding,
    make_right,
    probe,
    unpacked_weight,
)
from auditor.compress.checkpoint import Placement, load_model, open_checkpoint
from auditor.compress.make import compress
from auditor.compress.matrices import linear_layers
from auditor.compress.options import FourBitOptions
from auditor.errors import VariantError
from tests.tiny import VOCABULARY, save, tiny_model

CPU = Placement("cpu", torch.float32)
WIDTHS = (64, 96, 176, 256, 288)

# QLoRA (Dettmers et al. 2023), appendix E; and sign, two bits of exponent, one of mantissa.
NF4 = [-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1]
FP4 = [0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3]
BOOKS = {"nf4": np.array(NF4), "fp4": np.array(FP4) / 12}


def naive_weight(layer: Any) -> Tensor:
    """The weight, value by value in NumPy, with code books from the papers."""
    state = layer.weight.quant_state
    packed = layer.weight.data.flatten().numpy()
    codes = np.empty(2 * len(packed), dtype=np.int64)
    codes[0::2], codes[1::2] = packed // 16, packed % 16
    scales = state.absmax.numpy()
    if state.nested:
        outer = state.state2.absmax.numpy()[np.arange(len(scales)) // 256]
        scales = state.state2.code.numpy()[scales] * outer + state.offset.item()
    n = math.prod(state.shape)
    values = BOOKS[state.quant_type][codes[:n]] * scales[np.arange(n) // 64]
    return torch.from_numpy(values.reshape(state.shape)).float()


def saved_model(family: str, width: int, folder: Path) -> Path:
    if family == "gpt2":
        return save(tiny_model(family, n_embd=width, num_hidden_layers=1), folder)
    return save(
        tiny_model(family, hidden_size=width, intermediate_size=width, num_hidden_layers=1), folder
    )


def dense_twin(model: Any, folder: Path) -> Any:
    """A plain model with the naive weights of a quantized one."""
    plain = load_model(open_checkpoint(str(folder)), CPU)
    for name, layer in model.named_modules():
        if is_quantized(layer):
            module, weight = plain.get_submodule(name), naive_weight(layer)
            is_linear = isinstance(module, torch.nn.Linear)
            module.weight.data.copy_(weight if is_linear else weight.T)
    return plain


def tokens(n_rows: int = 3, n_tokens: int = 17) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, VOCABULARY, (n_rows, n_tokens), generator=generator)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens()).logits.float()


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_are_those_of_the_stored_weights(
    family: str, double_quant: bool, kind: str, width: int, tmp_path: Path
) -> None:
    folder = saved_model(family, width, tmp_path)
    spec = parse_variant(f"bnb-{kind}:double_quant={double_quant}")
    made = compress(open_checkpoint(str(folder)), spec, CPU)
    layers = [layer for layer in made.model.modules() if is_quantized(layer)]
    assert len(layers) == (4 if family == "gpt2" else 7)
    assert {layer.weight.quant_state.quant_type for layer in layers} == {kind}
    assert {layer.weight.quant_state.nested for layer in layers} == {double_quant}
    expected = logits(dense_twin(made.model, folder))
    before = state_of(made.model)
    assert off(logits(made.model), expected) < 1e-5
    assert off(logits(made.model), expected) < 1e-5, "the second forward differs from the first"
    after = made.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert off(logits(made.model), expected) < 1e-5, "saving changed the model"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_repair_is_needed_where_the_probe_says_so(width: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(saved_model("llama", width, tmp_path)))
    config = config_of("nf4", FourBitOptions(), CPU)
    shipped: Any = load_model(checkpoint, CPU, quantization_config=config)
    layers = [layer for layer in shipped.modules() if is_quantized(layer)]
    if all(probe(layer).is_right for layer in layers):
        pytest.skip("the probe finds bitsandbytes right on this machine at this width")
    expected = logits(dense_twin(shipped, tmp_path))
    try:
        error = off(logits(shipped), expected)
    except (RuntimeError, AssertionError):
        return  # it crashes as shipped
    assert error > 1e-4


@pytest.mark.parametrize("width", [96, 176, 288])
def test_the_wrong_kernel_is_found(width: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(saved_model("llama", width, tmp_path)))
    config = config_of("nf4", FourBitOptions(), CPU)
    model: Any = load_model(checkpoint, CPU, quantization_config=config)
    layers = [layer for layer in model.modules() if is_quantized(layer)]
    findings = [probe(layer, REPAIRS[0]) for layer in layers]
    if all(finding.is_right for finding in findings):
        pytest.skip("this machine's kernel unpacks this width rightly")
    assert max(finding.error for finding in findings) > 0.1
    expected = logits(dense_twin(model, tmp_path))
    for layer in layers:
        REPAIRS[0].apply(layer)
    assert off(logits(model), expected) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (96, 32), (100, 64), (48, 33), (50, 7)])
def test_some_repair_makes_every_shape_right(n_in: int, n_out: int, dtype: torch.dtype) -> None:
    layer = quantized_layer(n_in, n_out, dtype)
    holder = torch.nn.Sequential(layer)
    make_right(holder)
    stored, weight = layer.weight.data.clone(), naive_weight(layer)
    x = torch.randn(5, n_in, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = x.float() @ weight.T + layer.bias.float()
    bound = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]
    with torch.no_grad():
        for _ in range(2):
            found = layer(x)
            assert found.dtype == dtype
            assert off(found.float(), expected) < bound
    assert torch.equal(layer.weight.data, stored)


def quantized_layer(n_in: int, n_out: int, dtype: torch.dtype, kind: str = "nf4") -> Any:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    generator = torch.Generator().manual_seed(1)
    layer = Linear4bit(n_in, n_out, compute_dtype=dtype, quant_type=kind)
    values = torch.randn(n_out, n_in, generator=generator).to(dtype)
    layer.weight = Params4bit(values, quant_type=kind, module=layer)
    layer.bias.data = layer.bias.data.to(dtype)
    return layer.to("cpu").eval().requires_grad_(False)


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.apply.__name__)
def test_each_repair_touches_its_layer_only(repair: Any) -> None:
    layer, other = quantized_layer(64, 64, torch.float32), quantized_layer(64, 64, torch.float32)
    kind, flags = type(other), dict(vars(other))
    repair.apply(layer)
    assert type(other) is kind
    assert vars(other) == flags
    x = torch.randn(2, 64)
    expected = x @ naive_weight(layer).T + layer.bias
    twin = copy.deepcopy(layer)
    twin.weight.data.zero_()
    assert off(layer(x), expected) < 1e-5
    # A copy computes with its own weights and not with those that it was copied from.
    assert off(twin(x), x @ naive_weight(twin).T + twin.bias) < 1e-5


def test_the_probe_leaves_the_layer_alone() -> None:
    layer = quantized_layer(64, 64, torch.float32)
    stored, before = layer.weight.data.clone(), dict(vars(layer))
    for repair in (None, *REPAIRS):
        probe(layer, repair)
    assert torch.equal(layer.weight.data, stored)
    assert vars(layer) == before
    assert not hasattr(layer.weight.quant_state, "packing_format_for_cpu")


def test_where_the_library_is_right_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    from auditor.compress import bnb_cpu

    layer = quantized_layer(96, 64, torch.float32)
    kind, before = type(layer), dict(vars(layer))
    monkeypatch.setattr(bnb_cpu, "probe", lambda *_: Finding(0.0, "", 1e-4))
    assert make_right(torch.nn.Sequential(layer)) == []
    assert type(layer) is kind
    assert vars(layer) == before


def test_where_nothing_helps_the_variant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from auditor.compress import bnb_cpu

    layer = quantized_layer(96, 64, torch.float32)
    monkeypatch.setattr(bnb_cpu, "probe", lambda *_: Finding(0.3, "", 1e-4))
    with pytest.raises(VariantError, match="compute with the weights that it stores") as caught:
        make_right(torch.nn.Sequential(layer))
    assert "96x64" in caught.value.seen


def test_the_receipt_says_what_was_found(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(saved_model("llama", 176, tmp_path)))
    made = compress(checkpoint, parse_variant("bnb-nf4"), CPU)
    config = config_of("nf4", FourBitOptions(), CPU)
    shipped: Any = load_model(checkpoint, CPU, quantization_config=config)
    wrong = [
        f"{layer.in_features}x{layer.out_features}"
        for layer in shipped.modules()
        if is_quantized(layer) and not probe(layer).is_right
    ]
    assert bool(made.receipt.repairs) == bool(wrong)
    assert all(any(shape in text for text in made.receipt.repairs) for shape in wrong)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_unpacking_by_the_definition(kind: str, double_quant: bool) -> None:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    # 48 columns: blocks of 64 run over the ends of rows. 33 rows: the last block is not whole.
    layer: Any = Linear4bit(48, 33, bias=False)
    weight = torch.randn(33, 48, generator=torch.Generator().manual_seed(0))
    layer.weight = Params4bit(
        weight.clone(), quant_type=kind, compress_statistics=double_quant, module=layer
    )
    layer.to("cpu")
    found = unpacked_weight(layer)
    assert torch.allclose(found, naive_weight(layer), rtol=1e-5, atol=1e-7)
    # It stands for the weights that were given: no value is off by more than half a step.
    step = 0.17 if kind == "nf4" else 0.18
    assert float((found - weight).abs().max()) < step * float(weight.abs().max())


@pytest.mark.parametrize("model", ["llama-gsm8k", "gpt2-mts", "toy-neox"])
def test_real_models(model: str, shared: Path) -> None:
    folder = shared / "models" / model
    made = compress(open_checkpoint(str(folder)), parse_variant("bnb-nf4"), CPU)
    expected = logits(dense_twin(made.model, folder))
    assert off(logits(made.model), expected) < 1e-5
    assert made.receipt.bits_per_weight == 4.5
    assert 0.08 < made.receipt.relative_error < 0.1


@pytest.mark.parametrize("variant", ["bnb-int8", "bnb-nf4", "bnb-nf4:double_quant=true", "bnb-fp4"])
def test_weights_are_the_librarys_own_to_the_bit(variant: str, tmp_path: Path) -> None:
    """At widths that the library's kernel unpacks rightly, before any forward pass."""
    model = tiny_model("llama", hidden_size=128)
    made = compress(open_checkpoint(str(save(model, tmp_path))), parse_variant(variant), CPU)
    layers: list[Any] = [layer for _, layer in linear_layers(made.model)]
    assert len(layers) == 14
    for layer in layers:
        if variant == "bnb-int8":
            own = functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        else:
            own = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(weight_of(layer, dtype=torch.float32), own.float())
