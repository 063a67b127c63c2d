"""Writers of tiny checkpoints in the formats that compressed models are published in.

Each is written by the definition of its format, number by number, and gives back the weights that
it stands for, so that what the program makes of it can be compared with something that shares no
code with it.
"""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from auditor.compress.quiet import quietly

State = dict[str, Tensor]
Array = npt.NDArray[Any]
# Parts of the names of what is compressed.
LAYERS = ("proj", "dense", "query_key_value", "c_attn", "c_fc", ".w1", ".w2", ".w3")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def is_layer(name: str) -> bool:
    return name.endswith(".weight") and any(part in name for part in LAYERS)


def copied(source: Path, out: Path, *, settings: dict[str, Any] | None = None) -> State:
    """Everything of a folder but its weights, with quantization settings; gives the weights."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    if settings is not None:
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return load_file(source / "model.safetensors")


def saved(state: State, out: Path) -> None:
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(whole, out / "model.safetensors", metadata={"format": "pt"})


def write_plain(
    source: Path,
    out: Path,
    change: Callable[[Tensor], Tensor] = lambda weight: weight,
    *,
    dtype: torch.dtype = torch.float32,
) -> State:
    """The same folder with every matrix changed, all cast."""
    state = copied(source, out)
    state = {
        name: (change(tensor) if is_layer(name) else tensor).to(dtype)
        for name, tensor in state.items()
    }
    saved(state, out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config))
    return state


def logits_of(source: Path, dense: State, scratch: Path, ids: Tensor) -> Tensor:
    """What the original computes with other weights in the place of its own."""
    state = copied(source, scratch)
    saved(state | dense, scratch)
    model = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32).eval()
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


# -- integers in groups --------------------------------------------------------------------------


def rounded(weight: Tensor, bits: int, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (inputs, outputs), zero points and float16 scales (groups, outputs), asymmetric."""
    n, top = int(group.max()) + 1, 2**bits - 1
    low = torch.stack([weight[group == g].amin(0).clamp(max=0) for g in range(n)])
    high = torch.stack([weight[group == g].amax(0).clamp(min=0) for g in range(n)])
    scales = ((high - low) / top).clamp(min=1e-4).half()
    zeros = (-low / scales.float()).round().clamp(1, top)
    codes = (weight / scales.float()[group] + zeros[group]).round().clamp(0, top)
    return codes.int(), zeros.int(), scales


def stream(codes: Tensor, bits: int) -> Tensor:
    """Each row as one long number, low bits first, cut into 32-bit words."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(row))
        data = number.to_bytes(len(row) * bits // 8, "little")
        rows.append(np.frombuffer(data, dtype="<i4").copy())
    return torch.from_numpy(np.stack(rows))


def write_gptq(
    source: Path,
    out: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    desc_act: bool = False,
    version: str = "gptq",
    conv1d: bool = False,
) -> State:
    """Rounded to nearest in GPTQ's format; `desc_act` deals the inputs to groups at random."""
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": desc_act,
        "sym": False,
        "checkpoint_format": version,
    }
    state, dense = copied(source, out, settings=settings), State()
    for name in [name for name in state if is_layer(name)]:
        weight = state.pop(name).float()
        weight = weight if conv1d else weight.T  # (inputs, outputs)
        group = torch.arange(len(weight)) // group_size
        group = group[torch.randperm(len(group))] if desc_act else group
        codes, zeros, scales = rounded(weight, bits, group)
        module = name.removesuffix(".weight")
        less = 1 if version == "gptq" else 0
        state[f"{module}.qweight"] = stream(codes.T, bits).T
        state[f"{module}.qzeros"] = stream(zeros - less, bits)
        state[f"{module}.scales"] = scales
        state[f"{module}.g_idx"] = group.int()
        found = (scales[group] * (codes - zeros[group])).float()
        dense[name] = found if conv1d else found.T
    saved(state, out)
    return dense


def write_awq(source: Path, out: Path, *, group_size: int = 32) -> State:
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
    }
    state, dense = copied(source, out, settings=settings), State()
    for name in [name for name in state if is_layer(name)]:
        weight = state.pop(name).float().T
        group = torch.arange(len(weight)) // group_size
        codes, zeros, scales = rounded(weight, 4, group)
        module = name.removesuffix(".weight")
        state[f"{module}.qweight"] = awq_words(codes)
        state[f"{module}.qzeros"] = awq_words(zeros)
        state[f"{module}.scales"] = scales
        dense[name] = (scales[group] * (codes - zeros[group])).float().T
    saved(state, out)
    return dense


def awq_words(codes: Tensor) -> Tensor:
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    table = codes.numpy().astype(np.uint32)
    for column in range(words.shape[1]):
        for place, offset in enumerate(AWQ_ORDER):
            words[:, column] |= table[:, 8 * column + offset] << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32))


def write_compressed_tensors(source: Path, out: Path, *, rounds_inputs: bool = False) -> State:
    """4-bit weights in groups of 32, packed; or 8-bit weights and inputs, a scale a row."""
    weights: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True}
    weights |= {"strategy": "group", "group_size": 32}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if rounds_inputs:
        weights |= {"num_bits": 8, "strategy": "channel", "group_size": None}
        group["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if rounds_inputs else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    state, dense = copied(source, out, settings=settings), State()
    for name in [name for name in state if is_layer(name)]:
        weight = state.pop(name).float()
        module, size = name.removesuffix(".weight"), weight.shape[1] if rounds_inputs else 32
        top = 127 if rounds_inputs else 7
        parts = weight.unflatten(1, (-1, size))
        scales = (parts.abs().amax(2) / top).clamp(min=1e-6)
        codes = (parts / scales[..., None]).round().clamp(-top - 1, top)
        dense[name] = (codes * scales[..., None]).flatten(1)
        state[f"{module}.weight_scale"] = scales
        if rounds_inputs:
            state[name] = codes.flatten(1).to(torch.int8)
            continue
        state[f"{module}.weight_packed"] = stream(codes.flatten(1).int() + 8, 4)
        state[f"{module}.weight_shape"] = torch.tensor(weight.shape)
    saved(state, out)
    return dense


def write_hqq(source: Path, out: Path, *, bits: int = 4, pickled: bool = False) -> State:
    """As transformers 4 saved HQQ models, or as HQQ does itself, which is a pickle."""
    inner = {"nbits": bits, "group_size": 32, "axis": 1}
    settings = {"quant_method": "hqq", "quant_config": {"weight_quant_params": inner}}
    state = copied(source, out, settings=None if pickled else settings)
    dense, modules = State(), dict[str, dict[str, Any]]()
    for name in [name for name in state if is_layer(name)]:
        weight, module = state.pop(name).float(), name.removesuffix(".weight")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        with quietly():
            hqq = import_module("hqq.core.quantize")
            options = hqq.BaseQuantizeConfig(nbits=bits, group_size=32, axis=1)
            layer = hqq.HQQLinear(linear, options, compute_dtype=torch.float16, device="cpu")
        layer.encoded_state_dict = not pickled
        modules[module] = dict(layer.state_dict())
        meta = layer.meta | {"compute_dtype": torch.float32}
        layer.meta = {k: v.float() if k in ("scale", "zero") else v for k, v in meta.items()}
        dense[name] = layer.dequantize().detach()
    if pickled:
        for name, tensor in state.items():
            module, _, key = name.rpartition(".")
            modules.setdefault(module, {})[key] = tensor
        torch.save(modules, out / "qmodel.pt")
        return dense
    saved(state | {f"{m}.{k}": v.detach() for m, ps in modules.items() for k, v in ps.items()}, out)
    return dense


# -- GGUF ----------------------------------------------------------------------------------------

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "gpt_neox": gguf.MODEL_ARCH.GPTNEOX,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def write_gguf(
    source: Path,
    out: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    *,
    tokens: list[str] | None = None,
    raw: dict[str, Array] | None = None,
    gives_heads: bool = True,
    family: str | None = None,
    fields: dict[str, Any] | None = None,
) -> None:
    """The matrices and embeddings in one type, as llama.cpp's converter orders and names them.

    Args:
        source: The original.
        out: The file.
        kind: The type.
        tokens: The vocabulary, if it is to hold one.
        raw: Blocks of Q4_K for some of the tensors, to store as they are.
        gives_heads: Whether the numbers of heads are in the metadata.
        family: The architecture that the file says it is of, where it is not the original's.
        fields: Further metadata, or other.
    """
    config = json.loads((source / "config.json").read_text())
    own = config["model_type"]
    arch = ARCHITECTURES[family or own]
    n_blocks = config.get("num_hidden_layers", config.get("n_layer"))
    names = gguf.get_tensor_name_map(arch, n_blocks)
    others = dict(fields or {})
    label = others.pop("general.architecture", gguf.MODEL_ARCH_NAMES[arch])
    writer = gguf.GGUFWriter(out, label)
    for key, value in others.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key, value)
    writer.add_block_count(n_blocks)
    writer.add_embedding_length(config.get("hidden_size", config.get("n_embd")))
    if gives_heads:
        writer.add_head_count(config.get("num_attention_heads", config.get("n_head")))
    if gives_heads and "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
    for name, tensor in stacked(load_file(source / "model.safetensors")).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        if raw is not None and name in raw:
            writer.add_tensor(found, raw[name], raw_dtype=gguf.GGMLQuantizationType.Q4_K)
            continue
        values = converted(own, found, tensor.float().numpy(), config)
        is_float = values.ndim == 1 or values.shape[-1] % 32 or "ffn_gate_inp" in found
        if is_float:
            writer.add_tensor(found, values.astype(np.float32))
        else:
            writer.add_tensor(found, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_values(weight: Tensor, kind: str) -> Tensor:
    """What rows of 32 weights a block stand for once they are stored as Q8_0, Q4_0 or F16."""
    values = weight.float().numpy()
    if kind == "F16":
        return torch.from_numpy(values.astype(np.float16).astype(np.float32))
    data = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = data.reshape(-1, 34 if kind == "Q8_0" else 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        codes = blocks[:, 2:].copy().view(np.int8).astype(np.float32)
    else:  # the low halves of 16 bytes are the first 16 codes, the high halves the others
        codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1) - 8.0
    return torch.from_numpy((scale * codes).astype(np.float32).reshape(values.shape))


def stacked(state: State) -> State:
    """Experts of a block in one tensor for each of their matrices."""
    found, experts = State(), dict[str, list[Tensor]]()
    keys = {"w1": "gate", "w2": "down", "w3": "up"}
    for name, tensor in state.items():  # sorted by name, so that experts come in order
        if ".experts." not in name:
            found[name.replace("block_sparse_moe.gate", "mlp.gate")] = tensor
            continue
        block, part = name.split(".")[2], keys[name.split(".")[-2]]
        experts.setdefault(f"blk.{block}.ffn_{part}_exps.weight", []).append(tensor)
    return found | {name: torch.stack(tensors) for name, tensors in experts.items()}


def converted(family: str, name: str, values: Array, config: dict[str, Any]) -> Array:
    """What llama.cpp's converter does to a tensor's values."""
    heads = config.get("num_attention_heads", config.get("n_head"))
    if family in ("llama", "mistral", "mixtral") and (".attn_q." in name or ".attn_k." in name):
        n = heads if ".attn_q." in name else config["num_key_value_heads"]
        halves = values.reshape(n, 2, values.shape[0] // n // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if family == "gpt_neox" and ".attn_qkv." in name:
        apart = values.reshape(heads, 3, values.shape[0] // 3 // heads, *values.shape[1:])
        return np.concatenate([apart[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    if family == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return values.T.copy()
    if family == "gemma3_text" and name.endswith("norm.weight"):
        return values + 1
    return values
