"""GPTQ through optimum and gptqmodel: what is stored and computed with, and how well."""

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from auditor.calibration import Calibration
from auditor.compress import gptq, parse_variant
from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
    load_tokenizer,
    open_checkpoint,
)
from auditor.compress.make import compress
from auditor.compress.matrices import linear_layers
from auditor.compress.readback import computed_weight
from auditor.compress.receipt import LEFT
from auditor.errors import VariantError
from tests.conftest import needs
from tests.families import CPU, make, matrix_names, saved_catalogue, tiny_calibration
from tests.tiny import CONTEXT, VOCABULARY, save, tiny_model

OPTIONS = (
    "bits=8,group_size=32",
    "bits=4,group_size=16",
    "bits=3,group_size=-1",
    "bits=2,group_size=32,desc_act=true",
)


@pytest.fixture(autouse=True)
def installed() -> None:
    needs("gptq")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_catalogue(tmp_path_factory.mktemp("catalogue"))


def packed(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if gptq.is_packed(layer)}


def probe() -> Tensor:
    return torch.randint(1, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(7))


def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=probe() if ids is None else ids, use_cache=False).logits
    return found


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def codes_of(words: Tensor, bits: int) -> Tensor:
    """Integers of `bits` bits from int32 words along the first axis, low bits first."""
    stream = words.T.contiguous().numpy().view(np.uint8)
    ones = np.unpackbits(stream, axis=1, bitorder="little")
    codes = ones.reshape(len(stream), -1, bits) @ (2 ** np.arange(bits))
    return torch.from_numpy(codes).T


def by_definition(layer: Any) -> Tensor:
    """scale * (code - zero) of what a layer stores, rounded as it is computed: in float16."""
    codes, zeros = codes_of(layer.qweight, layer.bits), codes_of(layer.qzeros.T, layer.bits).T
    group = layer.g_idx.long()
    weight = layer.scales[group].double() * (codes - zeros[group])
    return weight.half().float().T


# -- what is stored and computed with ------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", ["llama-128", "gpt2", "opt"])
def test_layers_compute_with_what_they_store_and_the_receipt_counts_it(
    family: str, options: str, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[family], f"gptq:{options}")
    original = dict(linear_layers(load_model(checkpoints[family], CPU)))
    layers, bits, weights = packed(made.model), 0, 0
    assert list(original) == [item.module for item in made.receipt.compressed]
    assert layers.keys() == original.keys()
    for item in made.receipt.compressed:
        layer, before = layers[item.module], original[item.module].weight.data
        weight = gptq.unpacked_weight(layer, dtype=torch.float32)
        assert torch.equal(weight, by_definition(layer))
        # Read through the layer's forward the bias is taken off again, in float32.
        atol = 0 if layer.bias is None else 1e-6
        torch.testing.assert_close(
            weight, computed_weight(layer, layer.in_features), rtol=0, atol=atol
        )
        weight = weight.T if isinstance(original[item.module], Conv1D) else weight
        assert item.relative_error == pytest.approx(distance(weight, before), rel=1e-5)
        assert item.n_changed == int((weight != before).sum())
        assert item.kind == "TorchLinear"
        n = layer.bits * weight.numel() + 16 * layer.scales.numel() + 32 * layer.in_features
        bits += n + layer.bits * layer.scales.numel()
        weights += weight.numel()
    assert made.receipt.bits_per_weight == bits / weights
    assert made.receipt.library.startswith("gptqmodel ")
    biases = sum(2 * layer.out_features for layer in layers.values() if layer.bias is not None)
    kept = made.receipt.n_parameters - weights - biases // 2
    assert made.receipt.bytes_disk == bits // 8 + biases + 4 * kept
    # Beside what is saved: shifts for unpacking, which layers share, and tables of positions.
    saved = made.model.state_dict()
    unsaved = {t.data_ptr(): t.nbytes for n, t in made.model.named_buffers() if n not in saved}
    assert made.receipt.bytes_memory == made.receipt.bytes_disk + sum(unsaved.values())


def test_the_same_twice_and_nothing_of_the_surroundings_changed(
    checkpoints: dict[str, Checkpoint],
) -> None:
    environment, root = dict(os.environ), list(logging.getLogger().handlers)
    generator = torch.get_rng_state()
    first = make(checkpoints["qwen3"], "gptq:group_size=32").model.state_dict()
    second = make(checkpoints["qwen3"], "gptq:group_size=32").model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert environment == dict(os.environ)
    assert root == logging.getLogger().handlers
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_is_made_where_the_model_is(checkpoints: dict[str, Checkpoint]) -> None:
    placement = Placement("cuda:0", torch.float32)
    made = make(checkpoints["llama"], "gptq:bits=8,group_size=32", placement)
    assert {t.device.type for t in made.model.state_dict().values()} == {"cuda"}
    there = make(checkpoints["llama"], "gptq:bits=8,group_size=32").model
    with torch.inference_mode():
        found = made.model(input_ids=probe().cuda(), use_cache=False).logits.cpu()
    assert distance(found, logits(there)) < 0.03


def test_layers_that_the_library_does_not_find_are_named(
    checkpoints: dict[str, Checkpoint],
) -> None:
    receipt = make(checkpoints["mixtral"], "gptq:group_size=32").receipt
    assert [item.module for item in receipt.compressed] == matrix_names("mixtral")
    left = {item.module: item.n_parameters for item in receipt.skipped if item.reason == LEFT}
    assert left == {f"model.layers.{i}.mlp.experts": 4 * 3 * 64 * 96 for i in range(2)}


def test_a_layer_that_is_rounded_and_not_packed_is_put_back(tmp_path: Path) -> None:
    # CTRL keeps its MLP in a Sequential, whose layers the library quantizes and cannot replace.
    config = AutoConfig.for_model(
        "ctrl", vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT, dff=96
    )
    save(AutoModelForCausalLM.from_config(config), tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    made = make(checkpoint, "gptq:group_size=32")
    left = [item.module for item in made.receipt.skipped if item.reason == LEFT]
    assert left == [f"transformer.h.{i}.ffn.{j}" for i in range(2) for j in (0, 2)]
    original = load_model(checkpoint, CPU)
    for name in left:
        there: Any = made.model.get_submodule(name)
        assert torch.equal(there.weight, original.get_parameter(f"{name}.weight"))


# -- how well it is done -------------------------------------------------------------------------


def rounded(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Round to nearest on the library's grid: symmetric, a scale for a group, kept in float16.

    The largest magnitude of a group is to be (2^bits - 1) / 2 steps; codes run from 0 to
    2^bits - 1 about a zero point of 2^(bits - 1).
    """
    groups = weight.unflatten(1, (-1, group_size))
    scale = 2 * groups.abs().amax(2, keepdim=True) / (2**bits - 1)
    codes = (torch.round(groups / scale) + 2 ** (bits - 1)).clamp(0, 2**bits - 1)
    return (scale.half() * (codes - 2 ** (bits - 1)).half()).float().flatten(1)


def compare_with_rounding(checkpoint: Checkpoint, made: CompressedModel, windows: Tensor) -> None:
    """||X (W' - W)|| of every layer, X what the variant's layers see of the calibration texts."""
    seen: dict[str, Tensor] = {}
    layers = packed(made.model)
    hooks = [
        layer.register_forward_pre_hook(
            lambda _m, args, name=name: seen.update({name: args[0].flatten(0, 1)})
        )
        for name, layer in layers.items()
    ]
    logits(made.model, windows)
    for hook in hooks:
        hook.remove()
    for name, module in linear_layers(load_model(checkpoint, CPU)):
        before = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
        layer = layers[name]
        naive = rounded(before, layer.bits, layer.group_size)
        ours = seen[name] @ (gptq.unpacked_weight(layer, dtype=torch.float32) - before).T
        assert ours.norm() < 0.95 * (seen[name] @ (naive - before).T).norm(), name


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2-128", "gemma3"])
def test_outputs_change_less_than_by_rounding_to_nearest(
    family: str, bits: int, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[family], f"gptq:bits={bits},group_size=32")
    windows = torch.from_numpy(tiny_calibration().windows)
    compare_with_rounding(checkpoints[family], made, windows)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "bound"), [(4, 0.03), (3, 0.07)])
def test_outputs_of_a_trained_model_change_less(bits: int, bound: float, shared: Path) -> None:
    checkpoint = open_checkpoint(str(shared / "models" / "llama-gsm8k"))
    lines = (checkpoint.path / "nonmembers.jsonl").read_text().splitlines()[:200]
    tokenizer = load_tokenizer(checkpoint)
    tokens = [
        i for line in lines for i in tokenizer(" ".join(json.loads(line).values()))["input_ids"]
    ]
    windows = np.array(tokens[: 20 * 128]).reshape(20, 128)
    calibration = Calibration(windows[:16], tiny_calibration().use, texts=())
    spec = parse_variant(f"gptq:bits={bits},group_size=32")
    made = compress(checkpoint, spec, CPU, calibration=calibration)
    compare_with_rounding(checkpoint, made, torch.from_numpy(windows[:16]))
    held = torch.from_numpy(windows[16:])
    assert distance(logits(made.model, held), logits(load_model(checkpoint, CPU), held)) < bound


def test_every_block_is_calibrated_on_its_own_mask_and_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["sliding_attention", "full_attention"]
    save(tiny_model("gemma3_text", layer_types=kinds, sliding_window=8), tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    windows = torch.from_numpy(tiny_calibration().windows)

    def error() -> tuple[float, list[str]]:
        """How far what the library fed to a layer of the second block is from what it sees."""
        optimum, fed, seen = gptq.library(), [], []

        class Spy(optimum.GPTQ):  # type: ignore[misc, name-defined]
            def add_batch(self, inputs: Tensor, output: Tensor) -> None:
                fed.append((self.module, inputs))
                super().add_batch(inputs, output)

        modules: list[nn.Module] = []
        quantize = optimum.GPTQQuantizer.quantize_model

        def noted(self: Any, model: Any, tokenizer: Any = None) -> Any:
            modules.append(model.model.layers[1].self_attn.o_proj)
            return quantize(self, model, tokenizer)

        with monkeypatch.context() as patched:
            patched.setattr(optimum, "GPTQ", Spy)
            patched.setattr(optimum.GPTQQuantizer, "quantize_model", noted)
            made = make(checkpoint, "gptq:bits=8,group_size=32")
        layer: Any = made.model.get_submodule("model.layers.1.self_attn.o_proj")
        layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        logits(made.model, windows)
        (given,) = [inputs for module, inputs in fed if module is modules[0]]
        return distance(given, seen[0]), made.receipt.repairs

    # What is left is 8 bits, and float16 for the scales, which the library rounds at the end.
    found, repairs = error()
    assert found < 0.01
    assert repairs == [gptq.OWN_CALLS]
    monkeypatch.setattr(gptq, "_own_calls", lambda *_: nullcontext())
    assert error()[0] > 0.1


@pytest.mark.parametrize("factor", [None, float("nan")])
def test_a_hessian_that_cannot_be_inverted_is_refused(
    factor: float | None, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = gptq.library().GPTQ
    invert = kind.hessian_inverse

    def failing(self: Any, hessian: Tensor) -> Any:
        found = invert(self, hessian)
        return (None, 1.0) if factor is None else (found[0] * factor, found[1])

    monkeypatch.setattr(kind, "hessian_inverse", failing)
    with pytest.raises(VariantError, match="must be finite") as caught:
        make(checkpoints["llama"], "gptq:group_size=32")
    assert "model.layers.0.self_attn.q_proj" in caught.value.seen


def test_a_layer_that_saw_no_token_is_named(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = gptq.library().GPTQ
    add, first = kind.add_batch, list[Any]()

    def blind(self: Any, *seen: Tensor) -> None:
        first.append(self)
        if self is not first[0]:
            add(self, *seen)

    monkeypatch.setattr(kind, "add_batch", blind)
    receipt = make(checkpoints["llama"], "gptq:group_size=32").receipt
    (note,) = receipt.notes
    assert note.endswith("to go through them: model.layers.0.self_attn.q_proj")
    # Rounding is off by a third of a step, a step is 2/15 of a largest weight, of 32 normal ones
    # that is about twice the deviation.
    assert 0.05 < receipt.compressed[0].relative_error < 0.15


def test_damping_that_had_to_be_raised_is_named(checkpoints: dict[str, Checkpoint]) -> None:
    # 128 tokens cannot fill a Hessian of 192 inputs.
    (note,) = make(checkpoints["llama-128"], "gptq:group_size=32,damp=0.0000001").receipt.notes
    assert re.search(r"too little to invert \d+ of 14 Hessians: .* to 0\.0015 at most", note)
    assert not make(checkpoints["llama-128"], "gptq:group_size=32").receipt.notes


# -- what is refused -------------------------------------------------------------------------------


def test_out_of_memory_stays_out_of_memory_and_other_failures_are_named(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        return fail

    kind = gptq.library().GPTQQuantizer
    monkeypatch.setattr(kind, "quantize_model", failing(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        make(checkpoints["llama"], "gptq:group_size=32")
    monkeypatch.setattr(kind, "quantize_model", failing(AttributeError("no use_cache")))
    with pytest.raises(VariantError, match="how this model is built") as caught:
        make(checkpoints["llama"], "gptq:group_size=32")
    assert "no use_cache" in caught.value.seen


@pytest.mark.parametrize(
    ("found", "must"), [("decoder_blocks", "stand in a list"), ("record", "one after the other")]
)
def test_blocks_must_be_there_and_be_a_chain(
    found: str, must: str, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, found, lambda *_: None)
    with pytest.raises(VariantError, match=must):
        make(checkpoints["llama"], "gptq:group_size=32")
