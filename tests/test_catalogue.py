"""The matrix: every way of compressing on every family, or refused with a message."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from auditor.compress import COMPRESSORS, parse_variant
from auditor.compress.checkpoint import Checkpoint, load_model
from auditor.compress.receipt import Receipt
from auditor.errors import VariantError
from auditor.publish import load_written
from tests.conftest import needs
from tests.families import CATALOGUE, CPU, expert_names, make, matrix_names, saved_catalogue
from tests.tiny import VOCABULARY

# Each with the largest relative error of the logits that was seen here, and half as much again.
BOUNDS: dict[str, float] = {
    "float16": 0.01,
    "bfloat16": 0.05,
    "bnb-int8": 0.05,
    "bnb-nf4:double_quant=true": 0.4,
    "bnb-fp4": 0.5,
    "gptq:bits=8,group_size=32": 0.03,
    "gptq:bits=4,group_size=32": 0.3,
    "gptq:bits=3,group_size=32": 0.6,
    "int8": 0.03,
    "int8-dynamic": 0.06,
    "int4": 0.4,
    "fp8": 0.15,
    "hqq:bits=8,group_size=32": 0.03,
    "hqq:bits=4,group_size=32": 0.3,
    "hqq:bits=2,group_size=32": 1.2,
    "prune-magnitude:sparsity=0.3": 0.5,
    "prune-magnitude:pattern=2:4": 1.2,
    "prune-wanda:sparsity=0.3": 0.5,
    "prune-wanda:pattern=4:8": 1.2,
    "prune-sparsegpt:sparsity=0.3": 0.5,
    "prune-sparsegpt:pattern=2:4": 1.2,
    "cluster:k=16": 0.3,
    "cluster:k=4": 1.0,
}
# What a library cannot do, with what it says.
REFUSED: dict[tuple[str, str], str] = {}
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
    if message := REFUSED.get((variant, family)):
        with pytest.raises(VariantError, match=message):
            make(checkpoint, variant)
        return
    made = make(checkpoint, variant)
    check_receipt(made.receipt, variant, family)
    original = logits(load_model(checkpoint, CPU))
    found = logits(made.model)
    assert torch.isfinite(found).all()
    assert 0 < distance(found, original) < BOUNDS[variant]
    # Written and loaded by transformers alone, it is the same model.
    if made.cannot_save is None:
        model = made.model if made.dense is None else made.dense()
        model.save_pretrained(tmp_path)
        del model
        assert distance(logits(load_written(tmp_path, CPU)), found) < 1e-4
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before


def test_the_matrix_holds_the_whole_catalogue() -> None:
    tried = {parse_variant(variant).id for variant in BOUNDS}
    assert tried == set(COMPRESSORS) - {"original", "checkpoint"}
