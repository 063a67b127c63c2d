"""Receipts, counted against a naive count on the model that is scored."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant
from torch import Tensor

from auditor.compress.bnb_cpu import unpacked_weight
from auditor.compress.checkpoint import (
    Checkpoint,
    Placement,
    load_model,
    open_checkpoint,
)
from auditor.compress.measure import Ledger
from auditor.compress.receipt import LEFT
from tests.families import CPU, EMBEDDINGS, FAMILIES, VARIANTS, make, matrix_names, saved_families
from tests.tiny import save, tiny_model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_families(tmp_path_factory.mktemp("models"))


def weight_in(model: Any, name: str) -> Tensor:
    """The weight that a module of a variant computes with, by way of the forward pass."""
    module = model.get_submodule(name)
    if type(module).__name__ == "Linear8bitLt":
        # LLM.int8 rounds its inputs; its weight is what the codes and scales say.
        return int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    if not hasattr(module, "in_features"):  # Conv1D
        return module.weight.data
    if module.bias is not None:
        module.bias.data.zero_()
    with torch.no_grad():
        return module(torch.eye(module.in_features)).T


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_receipt_against_a_naive_count(
    name: str, variant: str, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[name], variant)
    original = load_model(checkpoints[name], CPU)
    names = matrix_names(name)
    assert [item.module for item in made.receipt.compressed] == names
    error = norm = 0.0
    for item in made.receipt.compressed:
        before = original.get_submodule(item.module).weight.data
        after = weight_in(made.model, item.module)
        if name.startswith("gpt2") and item.kind != "Conv1D":
            before = before.T
        assert item.n_parameters == before.numel()
        assert item.n_changed == int((after != before).sum())
        assert item.sparsity == pytest.approx(float((after == 0).double().mean()))
        squared = float((after - before).double().square().sum())
        assert item.relative_error == pytest.approx(
            math.sqrt(squared / float(before.double().square().sum())), rel=1e-4
        )
        error += squared
        norm += float(before.double().square().sum())
    receipt = made.receipt
    assert receipt.relative_error == pytest.approx(math.sqrt(error / norm), rel=1e-4)
    assert receipt.n_compressed == sum(original.get_submodule(n).weight.numel() for n in names)
    assert receipt.n_changed == sum(item.n_changed for item in receipt.compressed)
    n_zeros = sum(item.sparsity * item.n_parameters for item in receipt.compressed)
    assert receipt.sparsity == pytest.approx(n_zeros / receipt.n_compressed)
    assert receipt.n_parameters == sum(parameter.numel() for parameter in original.parameters())
    assert receipt.compress_s > 0


@pytest.mark.parametrize("variant", ["bnb-nf4", "prune-magnitude:sparsity=0.3"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_compressed_or_skipped_with_a_reason(
    name: str, variant: str, checkpoints: dict[str, Checkpoint]
) -> None:
    receipt = make(checkpoints[name], variant).receipt
    reasons = {item.module: item.reason for item in receipt.skipped}
    family = FAMILIES[name][0].partition("-")[0]
    for embedding in EMBEDDINGS[family]:
        assert reasons[embedding] == "embedding"
    is_tied = name in ("llama-tied", "gpt2", "gpt-neox-tied")
    assert reasons["lm_head"] == "output head" + is_tied * ", tied to the input embedding"
    assert LEFT not in reasons.values()
    skipped = sum(item.n_parameters for item in receipt.skipped)
    head = next(item.n_parameters for item in receipt.skipped if item.module == "lm_head")
    assert receipt.n_compressed + skipped - is_tied * head == receipt.n_parameters


@pytest.mark.parametrize("name", FAMILIES)
def test_receipt_of_the_original(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    made = make(checkpoints[name], "original")
    receipt = made.receipt
    assert (receipt.n_compressed, receipt.n_changed, receipt.compressed) == (0, 0, [])
    assert receipt.relative_error == receipt.sparsity == 0
    assert receipt.bits_per_weight == 32
    assert not receipt.batch_dependent and not receipt.repairs
    n = sum(parameter.numel() for parameter in made.model.parameters())
    assert receipt.n_parameters == n
    assert receipt.bytes_disk == 4 * n
    buffers = sum(b.numel() * b.element_size() for b in made.model.buffers())
    assert receipt.bytes_memory == 4 * n + buffers


@pytest.mark.parametrize(
    ("variant", "bits"),
    [
        ("bnb-nf4", 4 + 32 / 64),
        ("bnb-int8", None),
        ("prune-magnitude:sparsity=0.25", 32 * 0.75 + 1),
        ("original", 32.0),
    ],
)
def test_bits_and_bytes(
    variant: str, bits: float | None, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made = make(checkpoints["llama"], variant)
    if bits is None:  # a float32 scale for every row
        rows = sum(made.model.get_submodule(n).out_features for n in matrix_names("llama"))
        bits = 8 + 32 * rows / made.receipt.n_compressed
    assert made.receipt.bits_per_weight == pytest.approx(bits)
    made.model.save_pretrained(tmp_path)
    header = 40_000  # names, shapes and places of the tensors
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size - header < made.receipt.bytes_disk <= size


def test_double_quantization_takes_less(checkpoints: dict[str, Checkpoint]) -> None:
    plain = make(checkpoints["llama"], "bnb-nf4").receipt
    double = make(checkpoints["llama"], "bnb-nf4:double_quant=true").receipt
    # A scale of 8 bits to a block of 64, and one of 32 bits and an offset to 256 of those.
    assert 4 + 8 / 64 < double.bits_per_weight < 4.2 < plain.bits_per_weight


def test_a_cast_is_no_change(tmp_path: Path) -> None:
    """The original in bfloat16 and the variant in float32, and the other way round."""
    for stored, placed in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ]:
        folder = save(tiny_model("gpt2"), tmp_path / str(stored), dtype=stored)
        made = make(
            open_checkpoint(str(folder)),
            "prune-magnitude:sparsity=0.25",
            Placement("cpu", placed),
        )
        zeros = sum(round(0.25 * item.n_parameters) for item in made.receipt.compressed)
        assert made.receipt.n_changed == zeros
        assert made.receipt.bits_per_weight == 8 * stored.itemsize * 0.75 + 1
        quantized = make(open_checkpoint(str(folder)), "bnb-nf4", Placement("cpu", placed))
        original = load_model(open_checkpoint(str(folder)), Placement("cpu", placed))
        for item in quantized.receipt.compressed:
            layer = quantized.model.get_submodule(item.module)
            before, after = original.get_submodule(item.module).weight.T, unpacked_weight(layer)
            assert item.n_changed == int((before != after.to(placed)).sum())


def test_shapes_that_differ_are_not_counted() -> None:
    with pytest.raises(ValueError, match="against"):
        Ledger().add("one", "Linear", before=torch.ones(2, 3), after=torch.ones(3, 2))


def test_old_names_in_the_file(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Base models are saved without the prefix, and pickles cannot be read tensor by tensor."""
    from safetensors.torch import save_file

    model = tiny_model("gpt2")
    save(model, tmp_path)
    expected = make(checkpoints["gpt2"], "bnb-nf4").receipt
    tensors = {
        name.removeprefix("transformer."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert make(open_checkpoint(str(tmp_path)), "bnb-nf4").receipt.compressed == expected.compressed
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    pickled = open_checkpoint(str(tmp_path), allow_pickle=True)
    assert make(pickled, "bnb-nf4").receipt.compressed == expected.compressed
