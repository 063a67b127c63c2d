"""The matrix: every way of compressing on every family, or refused with a message."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from auditor.compress import COMPRESSORS, parse_variant
from auditor.compress.checkpoint import Checkpoint, load_model, open_checkpoint
from auditor.compress.receipt import Receipt
from auditor.errors import VariantError
from auditor.publish import load_written
from tests.conftest import needs
from tests.families import CATALOGUE, CPU, expert_names, make, matrix_names, saved_catalogue
from tests.tiny import VOCABULARY, save, tiny_model


class Bound(NamedTuple):
    """What was seen over all families, and a margin: a quarter for logits, a tenth for weights.

    Attributes:
        logits: Largest relative error of the logits. Random weights spread every error, so that
            coarse methods come near 1.4, where two models have nothing in common.
        low: Smallest relative error of the weights, which a method's arithmetic decides.
        high: The largest.
    """

    logits: float
    low: float
    high: float


BOUNDS: dict[str, Bound] = {
    "float16": Bound(0.0016, 0.00017, 0.00023),
    "bfloat16": Bound(0.011, 0.0014, 0.0018),
    "bnb-int8": Bound(0.048, 0.0053, 0.0075),
    "bnb-nf4:double_quant=true": Bound(0.48, 0.083, 0.1),
    "bnb-fp4": Bound(0.6, 0.11, 0.13),
    "gptq:bits=8,group_size=32": Bound(0.04, 0.0066, 0.01),
    "gptq:bits=4,group_size=32": Bound(0.6, 0.11, 0.17),
    "gptq:bits=3,group_size=32": Bound(1.1, 0.24, 0.37),
    "int8": Bound(0.034, 0.0054, 0.0075),
    "int8-dynamic": Bound(0.052, 0.0054, 0.0075),
    "int4": Bound(0.48, 0.085, 0.1),
    "fp8": Bound(0.15, 0.022, 0.029),
    "hqq:bits=8,group_size=32": Bound(0.026, 0.0039, 0.0048),
    "hqq:bits=4,group_size=32": Bound(0.41, 0.068, 0.084),
    "hqq:bits=2,group_size=32": Bound(1.3, 0.33, 0.41),
    "prune-magnitude:sparsity=0.3": Bound(0.6, 0.11, 0.13),
    "prune-magnitude:pattern=2:4": Bound(1.4, 0.33, 0.4),
    "prune-wanda:sparsity=0.3": Bound(0.61, 0.12, 0.17),
    "prune-wanda:pattern=4:8": Bound(1.3, 0.3, 0.4),
    "prune-sparsegpt:sparsity=0.3": Bound(0.95, 0.15, 0.29),
    "prune-sparsegpt:pattern=2:4": Bound(1.4, 0.41, 0.63),
    "cluster:k=16": Bound(0.54, 0.087, 0.11),
    "cluster:k=4": Bound(1.3, 0.31, 0.38),
}
# A router that sends a token to another expert changes more than any rounding.
ROUTED = 0.2
# What cannot be done, with what is said; everything else in the matrix is done.
REFUSED: dict[tuple[str, str], str] = {
    ("gptq:bits=4", "llama"): "group_size must divide the inputs",
    ("gptq:bits=4,group_size=32", "odd"): "multiples of 32",
    ("int4:group_size=64", "odd"): "group_size must divide the inputs",
    ("hqq:bits=4,group_size=1024", "odd"): "group_size must divide the weights",
    ("prune-magnitude:pattern=4:8", "odd"): "pattern must divide the inputs",
    ("cluster:k=256", "few-values"): "256",
    ("bnb-nf4", "no-layers"): "linear layers",
    ("prune-magnitude:sparsity=0.5", "no-layers"): "linear layers",
}
# What can be audited and not written: transformers would build the layers of GPT-2 anew.
NOT_WRITTEN = {("int8-dynamic", family) for family in ("gpt2", "gpt2-untied", "gpt2-128")}
# Fused experts are compressed by what works on tensors; libraries know linear layers only.
ON_TENSORS = ("float16", "bfloat16", "prune-magnitude", "cluster")
CASTS = ("float16", "bfloat16")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_catalogue(tmp_path_factory.mktemp("catalogue"))


def logits(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, VOCABULARY, (3, 20), generator=generator)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits.float()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check_receipt(receipt: Receipt, variant: str, family: str) -> None:
    compressor = parse_variant(variant).id
    names = [item.module for item in receipt.compressed]
    if compressor in CASTS:
        assert receipt.n_compressed == receipt.n_parameters
        assert not receipt.skipped
    else:
        experts = expert_names(family) if compressor in ON_TENSORS else []
        assert sorted(names) == sorted([*matrix_names(family), *experts])
        assert all(item.n_changed > 0 for item in receipt.compressed)
        assert receipt.n_compressed == sum(item.n_parameters for item in receipt.compressed)
        skipped = sum(item.n_parameters for item in receipt.skipped)
        tied = [s.n_parameters for s in receipt.skipped if s.reason.endswith("input embedding")]
        assert receipt.n_compressed + skipped - sum(tied) == receipt.n_parameters
        assert all(item.reason for item in receipt.skipped)
    assert receipt.bits_per_weight <= 32
    assert receipt.compress_s > 0


@pytest.mark.parametrize("family", CATALOGUE)
@pytest.mark.parametrize("variant", BOUNDS)
def test_every_variant_on_every_family(
    variant: str, family: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    needs(variant)
    checkpoint = checkpoints[family]
    weights = checkpoint.path / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    made = make(checkpoint, variant)
    check_receipt(made.receipt, variant, family)
    original = logits(load_model(checkpoint, CPU))
    found = logits(made.model)
    assert torch.isfinite(found).all()
    error = distance(found, original)
    bound = BOUNDS[variant]
    assert 0 < error < bound.logits + (ROUTED if family == "mixtral" else 0)
    assert bound.low < made.receipt.relative_error < bound.high
    # Written and loaded by transformers alone, it is the same model.
    assert (made.cannot_save is not None) == ((variant, family) in NOT_WRITTEN)
    if made.cannot_save is None:
        model = made.model if made.dense is None else made.dense()
        model.save_pretrained(tmp_path)
        del model
        assert distance(logits(load_written(tmp_path, CPU)), found) < 1e-4
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before


def test_the_matrix_holds_the_whole_catalogue() -> None:
    tried = {parse_variant(variant).id for variant in BOUNDS}
    # What is only trained, and what needs an adapter: test_recover.py, test_adapter.py.
    assert tried == set(COMPRESSORS) - {"original", "checkpoint", "retrain", "unmerged"}


@pytest.fixture(scope="module")
def odd_ones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Models whose sides divide by nothing, whose weights are all alike, with no layers at all."""
    root = tmp_path_factory.mktemp("odd")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 18}
    odd = tiny_model("llama", hidden_size=36, intermediate_size=52, **heads)
    few: Any = tiny_model("llama")
    with torch.no_grad():
        for parameter in few.parameters():
            parameter.copy_(parameter.sign())
    none = tiny_model("llama", num_hidden_layers=0)
    models = {"odd": odd, "few-values": few, "no-layers": none, "llama": tiny_model("llama")}
    return {k: open_checkpoint(str(save(model, root / k))) for k, model in models.items()}


@pytest.mark.parametrize(("variant", "model"), REFUSED)
def test_what_cannot_be_done_is_refused_with_a_message(
    variant: str, model: str, odd_ones: dict[str, Checkpoint]
) -> None:
    needs(variant)
    with pytest.raises(VariantError) as caught:
        make(odd_ones[model], variant)
    message = REFUSED[variant, model]
    assert message in str(caught.value)
    assert caught.value.seen
    assert caught.value.fix
