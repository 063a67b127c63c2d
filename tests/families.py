"""Tiny models of several families, and what each is made of, written down by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from auditor.calibration import Calibration
from auditor.compress import COMPRESSORS, parse_variant
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, open_checkpoint
from auditor.compress.make import compress
from auditor.compress.receipt import CalibrationUse
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
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
MATRICES = {
    "llama": [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up")],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neox": ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h"],
}
MATRICES["llama"].append("mlp.down_proj")
MATRICES["gpt_neox"].append("mlp.dense_4h_to_h")
ATTENTION = [f"self_attn.{x}_proj" for x in "qkvo"]
for family in ("qwen3", "mistral", "gemma3_text"):
    BLOCKS[family], MATRICES[family] = BLOCKS["llama"], MATRICES["llama"]
BLOCKS.update(opt="model.decoder.layers", phi3="model.layers", mixtral="model.layers")
MATRICES["opt"] = [f"self_attn.{x}_proj" for x in ("k", "v", "q", "out")] + ["fc1", "fc2"]
MATRICES["phi3"] = ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"]
MATRICES["mixtral"] = ATTENTION
EXPERTS = [f"mlp.experts.{x}_proj[{e}]" for x in ("gate_up", "down") for e in range(4)]
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


# Every family of the catalogue's matrix: tied and not, with biases and without, two widths.
CATALOGUE: dict[str, tuple[str, dict[str, Any]]] = {
    **FAMILIES,
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-128": ("llama", {"hidden_size": 128}),
    "gpt2-128": ("gpt2", {"hidden_size": 128}),
    "gpt-neox-128": ("gpt_neox", {"hidden_size": 128}),
    "opt": ("opt", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "gemma3": ("gemma3_text", {}),
    "phi3": ("phi3", {}),
    "mixtral": ("mixtral", {}),
}


def saved_families(root: Path) -> dict[str, Checkpoint]:
    for name, (family, changes) in FAMILIES.items():
        save(tiny_model(family, **changes), root / name)
    return {name: open_checkpoint(str(root / name)) for name in FAMILIES}


def saved_catalogue(root: Path) -> dict[str, Checkpoint]:
    """A checkpoint of every model of `CATALOGUE`, by name."""
    for name, (family, changes) in CATALOGUE.items():
        save(tiny_model(family, **changes), root / name)
    return {name: open_checkpoint(str(root / name)) for name in CATALOGUE}


def tiny_calibration(n_samples: int = 4, n_tokens: int = 32) -> Calibration:
    """Windows of random tokens."""
    windows = np.random.default_rng(0).integers(1, VOCABULARY, (n_samples, n_tokens))
    use = CalibrationUse(
        source="random tokens",
        n_records=n_samples,
        n_samples=n_samples,
        n_tokens=windows.size,
        sha256="0" * 64,
        ids=[f"{number:016x}" for number in range(n_samples)],
    )
    return Calibration(windows, use, texts=())


def make(checkpoint: Checkpoint, variant: str, placement: Placement = CPU) -> CompressedModel:
    spec = parse_variant(variant)
    needed = tiny_calibration() if COMPRESSORS[spec.id].is_calibrated else None
    return compress(checkpoint, spec, placement, calibration=needed)


def matrix_names(name: str) -> list[str]:
    """The linear layers of a model, by hand."""
    return _in_blocks(name, MATRICES[_family(name)])


def expert_names(name: str) -> list[str]:
    """The matrices of its experts, by hand."""
    return _in_blocks(name, EXPERTS) if _family(name) == "mixtral" else []


def _family(name: str) -> str:
    return CATALOGUE[name][0].partition("-")[0]


def _in_blocks(name: str, matrices: list[str]) -> list[str]:
    return [f"{BLOCKS[_family(name)]}.{i}.{matrix}" for i in range(2) for matrix in matrices]
