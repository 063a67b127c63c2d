"""Variants: right whatever the batch, refused when empty, and silent while they are made."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant
from torch import Tensor

from auditor.compress import COMPRESSORS, Compressor
from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
    open_checkpoint,
)
from auditor.compress.matrices import matrices
from auditor.compress.measure import Ledger, write_receipt
from auditor.compress.options import Options
from auditor.compress.receipt import Receipt
from auditor.errors import VariantError
from tests.families import CPU, VARIANTS, make, matrix_names, saved_families
from tests.tiny import VOCABULARY, save, tiny_model


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


def tokens(n_rows: int = 8, n_tokens: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, VOCABULARY, (n_rows, n_tokens), generator=generator)


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


# -- LLM.int8 and the batch ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_outliers(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model some of whose activations are above 6, in other columns for other tokens."""
    model: Any = tiny_model("llama")
    for layer in model.model.layers:
        layer.input_layernorm.weight.data *= 2.5
    return open_checkpoint(str(save(model, tmp_path_factory.mktemp("outliers"))))


@pytest.mark.parametrize(("threshold", "depends"), [(0, False), (6, True)])
def test_batch_dependence(threshold: float, depends: bool, with_outliers: Checkpoint) -> None:
    made = make(with_outliers, f"bnb-int8:threshold={threshold}")
    assert made.receipt.batch_dependent is depends
    ids = tokens()
    together = logits(made.model, ids)
    alone = torch.cat([logits(made.model, row[None]) for row in ids])
    difference = float((together - alone).abs().max())
    assert difference > 1e-3 if depends else difference < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_int8_computes_with_its_weights(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    made = make(checkpoints[name], "bnb-int8:threshold=0")
    for module in matrix_names(name):
        weight = weight_in(made.model, module)
        layer = made.model.get_submodule(module)
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(2))
        expected = x @ weight.T + (0 if layer.bias is None else layer.bias)
        found = layer(x)
        assert float((found - expected).norm() / expected.norm()) < 0.02


# -- what must fail ------------------------------------------------------------------------------


def make_nothing(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Says that it compressed every matrix, and changed none."""
    model, ledger = load_model(checkpoint, placement), Ledger()
    for matrix in matrices(model):
        ledger.add(matrix.name, matrix.kind, before=matrix.weight, after=matrix.weight)
    return CompressedModel(model, receipt_of(checkpoint, model, ledger, variant))


def make_one_matrix(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Changes 10 weights of the first matrix and leaves the others alone without a word."""
    model, ledger = load_model(checkpoint, placement), Ledger()
    matrix = next(matrices(model))
    before = matrix.weight.clone()
    matrix.weight.view(-1)[:10] += 1
    ledger.add(matrix.name, matrix.kind, before=before, after=matrix.weight)
    return CompressedModel(model, receipt_of(checkpoint, model, ledger, variant))


def make_error(*_: object, **__: object) -> CompressedModel:
    raise RuntimeError("the kernel is not there\nand more")


def make_import_error(*_: object, **__: object) -> CompressedModel:
    raise ImportError("No module named 'squeeze'")


def receipt_of(checkpoint: Checkpoint, model: Any, ledger: Ledger, variant: str) -> Receipt:
    return write_receipt(
        checkpoint, model, ledger, variant=variant, library="none", bits_per_weight=4
    )


def register(monkeypatch: pytest.MonkeyPatch, function: str, *requires: str) -> None:
    made = Compressor(f"{__name__}:{function}", Options, "a test", requires)
    monkeypatch.setitem(COMPRESSORS, "a-test", made)


@pytest.mark.parametrize("function", ["make_nothing", "make_one_matrix"])
def test_a_compressor_that_changes_nothing_fails(
    function: str, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Checkpoint]
) -> None:
    register(monkeypatch, function)
    with pytest.raises(VariantError, match="must change the weights") as caught:
        make(checkpoints["llama"], "a-test")
    n = sum(load_model(checkpoints["llama"], CPU).get_submodule(x).weight.numel()
            for x in matrix_names("llama"))  # fmt: skip
    changed = 10 if function == "make_one_matrix" else 0
    assert f"{changed} of {n:,} weights changed" in caught.value.seen


def test_a_little_pruning_is_enough_and_pruned_already_is_not(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama"), tmp_path / "dense")))
    made = make(checkpoint, "prune-magnitude:sparsity=0.004")
    assert 0 < made.receipt.n_changed < 0.01 * made.receipt.n_compressed
    half = make(checkpoint, "prune-magnitude:sparsity=0.5").model
    sparse = open_checkpoint(str(save(half, tmp_path / "sparse")))
    with pytest.raises(VariantError, match="must change the weights"):
        make(sparse, "prune-magnitude:sparsity=0.5")
    assert make(sparse, "prune-magnitude:sparsity=0.6").receipt.sparsity == pytest.approx(
        0.6, abs=1e-3
    )


def test_a_librarys_error_is_told_and_an_own_one_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Checkpoint]
) -> None:
    register(monkeypatch, "make_error", "rich")
    with pytest.raises(VariantError, match="must be possible") as caught:
        make(checkpoints["llama"], "a-test")
    assert "rich raised RuntimeError: the kernel is not there" in caught.value.seen
    register(monkeypatch, "make_error")
    with pytest.raises(RuntimeError, match="the kernel is not there"):
        make(checkpoints["llama"], "a-test")


@pytest.mark.parametrize("function", ["make_import_error", "not_there_at_all"])
def test_a_missing_library(
    function: str, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Checkpoint]
) -> None:
    register(monkeypatch, "make_import_error", "squeeze")
    if function == "not_there_at_all":
        monkeypatch.setitem(
            COMPRESSORS, "a-test", Compressor("no.such.module:x", Options, "", ("squeeze",))
        )
    with pytest.raises(VariantError, match="a-test needs squeeze") as caught:
        make(checkpoints["llama"], "a-test")
    assert caught.value.fix == "pip install -c constraints.txt squeeze"


@pytest.mark.parametrize("variant", ["bnb-nf4:double_quant=true", "bnb-int8"])
def test_a_quantized_checkpoint(
    variant: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made = make(checkpoints["llama"], variant)
    before = logits(made.model, tokens(1))
    save(made.model, tmp_path, dtype=None)  # type: ignore[arg-type]
    quantized = open_checkpoint(str(tmp_path))
    for spec in ("bnb-nf4", "bnb-int8", "prune-magnitude:sparsity=0.5"):
        with pytest.raises(VariantError, match="full-precision checkpoint") as caught:
            make(quantized, spec)
        assert "already quantized (bitsandbytes)" in caught.value.seen
        assert "--variants original" in caught.value.fix
    again = make(quantized, "original")
    assert torch.allclose(logits(again.model, tokens(1)), before, atol=1e-5)
    assert again.receipt.n_parameters == made.receipt.n_parameters
    assert again.receipt.n_changed == 0
    assert again.receipt.bits_per_weight == pytest.approx(made.receipt.bits_per_weight)
    assert again.receipt.batch_dependent is made.receipt.batch_dependent
    assert again.receipt.repairs == made.receipt.repairs


@pytest.mark.slow
def test_nothing_is_said_and_nobody_is_asked(checkpoints: dict[str, Checkpoint]) -> None:
    """In a fresh process, with a package `kernels` that would ask the hub, and no network."""
    program = f"""
import socket, sys, types
def refuse(*args, **kwargs):
    raise SystemExit("the network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from auditor.compress import parse_variant
from auditor.compress.checkpoint import Placement, open_checkpoint
from auditor.compress.make import compress
checkpoint = open_checkpoint({str(checkpoints["llama"].path)!r})
compress(checkpoint, parse_variant("original"), Placement("cpu", torch.float32))
kernels = types.ModuleType("kernels")
def get_kernel(*args, **kwargs):
    raise SystemExit("the hub was asked for a kernel")
kernels.get_kernel = get_kernel
sys.modules["kernels"] = kernels
for variant in ("bnb-nf4", "bnb-int8"):
    made = compress(checkpoint, parse_variant(variant), Placement("cpu", torch.float32))
    with torch.inference_mode():
        made.model(input_ids=torch.ones(1, 5, dtype=torch.long))
assert sys.modules["kernels"] is kernels
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- real models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama-gsm8k", "gpt2-mts", "toy-neox"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_real_models(model: str, variant: str, shared: Path) -> None:
    folder = shared / "models" / model
    receipt = make(open_checkpoint(str(folder)), variant).receipt
    config = json.loads((folder / "config.json").read_text())
    n_blocks = config.get("num_hidden_layers", config.get("n_layer"))
    assert len(receipt.compressed) == n_blocks * (7 if "llama" in model else 4)
    assert receipt.n_compressed / receipt.n_parameters == pytest.approx(
        {"llama-gsm8k": 0.808, "gpt2-mts": 0.797, "toy-neox": 0.219}[model], abs=1e-3
    )
    if receipt.library.startswith("bitsandbytes"):
        assert receipt.n_changed > 0.97 * receipt.n_compressed
    low, high = {"n": (0.08, 0.1), "f": (0.11, 0.13), "i": (0.005, 0.01)}.get(
        variant.removeprefix("bnb-")[0], (0.1, 0.6)
    )
    assert low < receipt.relative_error < high
