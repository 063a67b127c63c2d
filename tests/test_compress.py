"""Variants and their receipts: counted against a naive count, exact, and refused when empty."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from auditor.compress import COMPRESSORS, Compressor, measure, parse_variant, prune
from auditor.compress.bnb_cpu import unpacked_weight
from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
    open_checkpoint,
)
from auditor.compress.make import compress
from auditor.compress.measure import Ledger, write_receipt
from auditor.compress.options import Options, PruneMagnitudeOptions
from auditor.compress.receipt import LEFT, Receipt
from auditor.errors import VariantError
from tests.tiny import VOCABULARY, save, tiny_model

CPU = Placement("cpu", torch.float32)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama-tied", {}),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt-neox": ("gpt_neox", {}),
    "gpt-neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
}
# What the architectures hold, written down by hand: blocks and, in each, its matrices.
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
MATRICES = {
    "llama": [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up")],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neox": ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h"],
}
MATRICES["llama"].append("mlp.down_proj")
MATRICES["gpt_neox"].append("mlp.dense_4h_to_h")
EMBEDDINGS = {
    "llama": ["model.embed_tokens"],
    "gpt2": ["transformer.wte", "transformer.wpe"],
    "gpt_neox": ["gpt_neox.embed_in"],
}
VARIANTS = (
    "bnb-nf4",
    "bnb-fp4:double_quant=true",
    "bnb-int8",
    "prune-magnitude:sparsity=0.3",
    "prune-magnitude:sparsity=0.7,scope=global",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("models")
    for name, (family, changes) in FAMILIES.items():
        save(tiny_model(family, **changes), root / name)
    return {name: open_checkpoint(str(root / name)) for name in FAMILIES}


def make(checkpoint: Checkpoint, variant: str, placement: Placement = CPU) -> CompressedModel:
    return compress(checkpoint, parse_variant(variant), placement)


def matrix_names(name: str) -> list[str]:
    family = FAMILIES[name][0].partition("-")[0]
    return [f"{BLOCKS[family]}.{i}.{matrix}" for i in range(2) for matrix in MATRICES[family]]


def weight_in(model: Any, name: str) -> Tensor:
    """The weight that a module of a variant computes with, by way of the forward pass."""
    module = model.get_submodule(name)
    if type(module).__name__ == "Linear8bitLt":
        # LLM.int8 rounds its inputs; its weight is what the codes and scales say.
        return module.weight.data.float() * module.weight.SCB[:, None] / 127
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


# -- receipts ------------------------------------------------------------------------------------


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
    for name, module in measure.matrices(model):
        ledger.add(name, "Linear", before=module.weight.data, after=module.weight.data)
    return CompressedModel(model, receipt_of(model, ledger, variant))


def make_one_matrix(
    checkpoint: Checkpoint, options: Options, placement: Placement, *, variant: str
) -> CompressedModel:
    """Changes 10 weights of the first matrix and leaves the others alone without a word."""
    model, ledger = load_model(checkpoint, placement), Ledger()
    name, module = next(measure.matrices(model))
    before = module.weight.data.clone()
    module.weight.data.view(-1)[:10] += 1
    ledger.add(name, "Linear", before=before, after=module.weight.data)
    return CompressedModel(model, receipt_of(model, ledger, variant))


def make_error(*_: object, **__: object) -> CompressedModel:
    raise RuntimeError("the kernel is not there\nand more")


def make_import_error(*_: object, **__: object) -> CompressedModel:
    raise ImportError("No module named 'squeeze'")


def receipt_of(model: Any, ledger: Ledger, variant: str) -> Receipt:
    return write_receipt(
        model, ledger, variant=variant, library="none", bits_per_weight=4, stored=torch.float32
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
    register(monkeypatch, "make_error", "squeeze")
    with pytest.raises(VariantError, match="must be possible") as caught:
        make(checkpoints["llama"], "a-test")
    assert "squeeze raised RuntimeError: the kernel is not there" in caught.value.seen
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


# -- magnitude pruning ---------------------------------------------------------------------------


def naive_prune(arrays: list[np.ndarray], n: int) -> list[np.ndarray]:
    flat = np.concatenate([array.ravel() for array in arrays])
    flat[np.argsort(np.abs(flat), kind="stable")[:n]] = 0
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [p.reshape(a.shape) for p, a in zip(np.split(flat, ends), arrays, strict=True)]


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[Tensor]:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0])
    many = st.floats(-60000, 60000, width=16)
    values = draw(st.sampled_from([few, many]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3))
    return [
        torch.tensor(draw(st.lists(values, min_size=r * c, max_size=r * c)), dtype=dtype).view(r, c)
        for r, c in shapes
    ]


@settings(max_examples=150, deadline=None)
@given(tensors=tensor_lists(), share=st.floats(0, 1), chunk=st.sampled_from([1, 5, 2**22]))
def test_pruning_is_a_stable_argsort(tensors: list[Tensor], share: float, chunk: int) -> None:
    n = round(share * sum(tensor.numel() for tensor in tensors))
    expected = naive_prune([tensor.double().numpy().copy() for tensor in tensors], n)
    given_values = [tensor.clone() for tensor in tensors]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "CHUNK", chunk)
        before = list(prune.zero_smallest(tensors, n))
    for one, other in zip(before, given_values, strict=True):
        assert torch.equal(one, other)
    for tensor, naive in zip(tensors, expected, strict=True):
        assert np.array_equal(tensor.double().numpy(), naive)


def test_neighbours_in_float64_are_told_apart() -> None:
    base = torch.full((9,), 1.0, dtype=torch.float64)
    base += torch.arange(9, 0, -1, dtype=torch.float64) * 2.0**-52
    list(prune.zero_smallest([base], 4))
    assert (base == 0).tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.01, 0.3333, 0.5, 0.995])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gpt-neox"])
def test_pruned_models(
    name: str, sparsity: float, scope: str, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[name], f"prune-magnitude:sparsity={sparsity},scope={scope}")
    original = load_model(checkpoints[name], CPU)
    names = matrix_names(name)
    arrays = [original.get_submodule(n).weight.numpy() for n in names]
    if scope == "layer":
        expected = [naive_prune([a], round(sparsity * a.size))[0] for a in arrays]
    else:
        expected = naive_prune(arrays, round(sparsity * sum(a.size for a in arrays)))
    pruned = {n: made.model.get_submodule(n).weight.numpy() for n in names}
    for n, array in zip(names, expected, strict=True):
        assert np.array_equal(pruned[n], array), n
    # Everything else, embeddings and head above all, is what it was.
    others = {
        n: p for n, p in made.model.named_parameters() if n.removesuffix(".weight") not in names
    }
    for n, parameter in others.items():
        assert torch.equal(parameter, original.get_parameter(n)), n
    assert {"lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"} & set(others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_matrices_lose_their_first_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    model: Any = tiny_model("gpt2")
    for name in matrix_names("gpt2"):
        model.get_submodule(name).weight.data.fill_(-0.125)
    checkpoint = open_checkpoint(str(save(model, tmp_path)))
    for scope in ("layer", "global"):
        made = make(
            checkpoint, f"prune-magnitude:sparsity=0.3,scope={scope}", Placement("cpu", dtype)
        )
        weights = [made.model.get_submodule(n).weight.flatten() for n in matrix_names("gpt2")]
        for flat in [torch.cat(weights)] if scope == "global" else weights:
            n = round(0.3 * len(flat))
            assert not flat[:n].any()
            assert bool((flat[n:] == -0.125).all())


def test_pruning_never_holds_the_original_twice(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Checkpoint] = []

    def counted(checkpoint: Checkpoint, placement: Placement) -> Any:
        loads.append(checkpoint)
        return load_model(checkpoint, placement)

    monkeypatch.setattr(prune, "load_model", counted)
    options = PruneMagnitudeOptions(sparsity=0.5, scope="global")
    prune.make_magnitude(checkpoints["llama"], options, CPU, variant="x")
    assert len(loads) == 1


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
