"""The files of a checkpoint: checked before any weight is read, and searched."""

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from auditor.artifacts.scan import _Scan
from auditor.compress.checkpoint import context_tokens, open_folder, quantization_of
from auditor.compress.formats import recognise
from auditor.compress.published_gguf import DIMENSIONS, open_gguf
from auditor.compress.weights import weight_files
from auditor.plan import n_parameters
from tests.fuzz.property import place
from tests.tiny import SMALL, byte_tokenizer

LLAMA: dict[str, Any] = {
    **SMALL,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "dtype": "float32",
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"},
            "input_activations": {"num_bits": 8, "type": "int"},
        }
    },
}
QUANTIZED: tuple[dict[str, Any], ...] = (
    GPTQ,
    COMPRESSED,
    {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8", "_version": 1}}},
    {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
)
RECORD = (
    "The patient of the third floor was seen by two doctors in the morning of the fourth of May."
)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _weights() -> bytes:
    tensors = {"model.embed_tokens.weight": np.ones((4, 2), np.float32), "x": np.ones(3, np.int8)}
    return save(tensors, metadata={"format": "pt", "note": RECORD})


@cache
def _folder(name: str) -> Path:
    """A checkpoint that nothing is wrong with."""
    folder = place().inputs / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(_weights())
    return folder


def config(data: bytes) -> None:
    """A `config.json`."""
    folder = _folder("configured")
    (folder / "config.json").write_bytes(data)
    recognise("it", folder)
    found = open_folder("it", folder, load_args={"trust_remote_code": False})
    context_tokens(found.config, _tokenizer())
    quantization_of(found.config)


@cache
def _tokenizer() -> Any:
    return byte_tokenizer()


def configs() -> list[bytes]:
    """Configurations, plain and quantized."""
    gpt2 = {"model_type": "gpt2", "n_positions": 64, "architectures": ["GPT2LMHeadModel"]}
    quantized = [{**LLAMA, "quantization_config": settings} for settings in QUANTIZED]
    coded = {**LLAMA, "auto_map": {"AutoModelForCausalLM": "model.Model"}}
    nested = {"model_type": "gemma3", "text_config": {"hidden_size": 8}, "vision_config": {}}
    return [json.dumps(one).encode() for one in (LLAMA, gpt2, coded, nested, *quantized)]


def old_settings(data: bytes) -> None:
    """A `quantize_config.json`, as formats were described before `config.json` named them."""
    folder = _folder("old")
    (folder / "quantize_config.json").write_bytes(data)
    recognise("it", folder)


def all_old_settings() -> list[bytes]:
    """Quantization settings of each format, in a file of their own."""
    return [json.dumps(settings).encode() for settings in QUANTIZED]


def header(data: bytes) -> None:
    """A safetensors file: its header checked, counted and searched."""
    folder = _folder("headed")
    path = folder / "model.safetensors"
    path.write_bytes(data)
    _searched(folder)
    weight_files("it", folder, allow_pickle=False)
    found = open_folder("it", folder, load_args={"trust_remote_code": False})
    assert (n_parameters(found) or 0) >= 0


def headers() -> list[bytes]:
    """Safetensors files, one of them without a tensor."""
    return [_weights(), save({}, metadata={"format": "pt"})]


def index(data: bytes) -> None:
    """The list of a checkpoint's shards."""
    folder = place().inputs / "sharded"
    if not folder.exists():
        shutil.copytree(_folder("template"), folder)
        (folder / "model.safetensors").unlink()
        for name in SHARDS:
            (folder / name).write_bytes(_weights())
    (folder / "model.safetensors.index.json").write_bytes(data)
    for file in weight_files("it", folder, allow_pickle=False):
        assert file.resolve().is_relative_to(folder.resolve()), f"a shard elsewhere: {file}"


def indices() -> list[bytes]:
    """Lists of shards."""
    names = {"model.embed_tokens.weight": SHARDS[0], "x": SHARDS[1]}
    return [json.dumps({"metadata": {"total_size": 70}, "weight_map": names}, indent=2).encode()]


def gguf(data: bytes) -> None:
    """A GGUF file, recognised, opened by its library and searched."""
    path = place().inputs / "model.gguf"
    path.write_bytes(data)
    _searched(path)
    recognise("it", path)
    found = open_gguf("it", path)
    assert found.method
    assert found.tokens is None or len(found.tokens) >= 0
    for key in DIMENSIONS:
        found.value(key)


def ggufs() -> list[bytes]:
    """A GGUF file of the least that there must be."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def string(key: str, value: str) -> bytes:
        return text(key) + struct.pack("<I", 8) + text(value)

    keys = [
        string("general.architecture", "llama"),
        string("general.name", RECORD),
        text("llama.block_count") + struct.pack("<II", 4, 1),
        text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, 3)
        + b"".join(map(text, ("<s>", "a", "b"))),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 1, 2),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    return [head + b"\0" * (-len(head) % 32) + np.ones(32, np.float32).tobytes()]


def searched(name: str) -> Callable[[bytes], None]:
    """A file of any kind in a checkpoint, searched for a record."""

    def run(data: bytes) -> None:
        folder = place().inputs / f"searched-{name}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        _searched(folder)

    return run


def _searched(path: Path) -> None:
    """Put the strings of all files into the index of a search."""
    scan = _Scan(set())
    scan.checkpoint("it", path)
    scan.read()
    assert all(RECORD not in artifact.message for artifact in scan.artifacts)


def documents() -> list[bytes]:
    """JSON with the record in it, as tools leave it."""
    content = {"dataset": [RECORD, "x"], "added_tokens": [{"content": RECORD, "id": 1}], "n": 1.5}
    lines = "\n".join(json.dumps({"text": RECORD, "n": n}) for n in range(3))
    return [json.dumps(content).encode(), json.dumps(content, indent=2).encode(), lines.encode()]


def pages() -> list[bytes]:
    """Text with the record in it."""
    return [
        f"# A model\n\n{RECORD}\n".encode(),
        RECORD.encode("utf-16"),
        b"\x00\x01" + RECORD.encode(),
    ]
