"""GPTQ, AWQ and HQQ checkpoints unpacked into plain weights, by the definitions of their formats.

All three store a weight as `scale * (code - zero)` with small integer codes that are packed into
larger integers; GPTQ and AWQ round it to the precision of the scales, as their kernels do.
Unpacked, a checkpoint of any family loads as the plain model that it stands for, mixtures of
experts and GPT-2 included, without the kernels of its library, which want certain devices, shapes
and precisions of their own.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint
from auditor.compress.formats import AWQ_BITS, Format
from auditor.compress.matrices import skeleton
from auditor.compress.measure import CHUNK
from auditor.compress.quiet import quietly
from auditor.compress.weights import weight_files
from auditor.errors import ModelError, first_line

WORD = 32
# The tensor by which a packed module is known.
CODES = {"gptq": "qweight", "awq": "qweight", "hqq": "W_q"}
# What else the weights of one are stored in.
DATA = ("qweight", "qzeros", "scales", "g_idx", "W_q", "scale", "zero")
# AWQ puts eight columns into a word in the order 0, 2, 4, 6, 1, 3, 5, 7 (Lin et al. 2024, the GEMM
# layout of their code): where each column is found.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)

Parts = Mapping[str, Any]


class Unpacked(NamedTuple):
    """A checkpoint as plain tensors.

    Attributes:
        tensors: By name, as a checkpoint of the same family without compression has them.
        modules: Names of the modules that were packed, as the checkpoint has them.
        n_bits: What they are stored in, scales and zero points included, biases not.
        n_weights: Weights in them.
    """

    tensors: dict[str, Tensor]
    modules: list[str]
    n_bits: int
    n_weights: int


def unpack(checkpoint: Checkpoint, form: Format, *, dtype: torch.dtype) -> Unpacked:
    """Unpack a checkpoint, one module at a time.

    Args:
        checkpoint: The published version.
        form: What it was recognised as: gptq, awq or hqq.
        dtype: What the weights are rounded to once they are unpacked in float32.

    Raises:
        ModelError: What it holds is not what its settings say.
    """
    bones = skeleton(checkpoint)
    modules = dict(bones.named_modules())
    found = Unpacked({}, [], 0, 0)
    n_bits = n_weights = 0
    for name, parts in _by_module(checkpoint, form):
        if CODES[form.kind] not in parts:
            found.tensors.update({f"{name}.{key}" if name else key: parts[key] for key in parts})
            continue
        module = modules.get(name, modules.get(f"{bones.base_model_prefix}.{name}"))
        try:
            weight = UNPACK[form.kind](parts, form.settings, dtype)
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
            raise ModelError(
                f"{checkpoint.name} must hold weights as its settings say ({form.method})",
                seen=f"{name}: {first_line(error)}",
                fix="copy or download it again",
            ) from error
        if "bias" in parts:
            found.tensors[f"{name}.bias"] = parts["bias"]
        turned = weight.T if isinstance(module, Conv1D) else weight
        found.tensors[f"{name}.weight"] = _cropped(turned, module).contiguous()
        found.modules.append(name)
        n_bits += sum(8 * parts[key].nbytes for key in DATA if key in parts)
        n_weights += weight.numel()
    return found._replace(n_bits=n_bits, n_weights=n_weights)


def _cropped(weight: Tensor, module: Any) -> Tensor:  # noqa: ANN401
    """The weight without the rows and columns that a library has padded it with."""
    shape = getattr(getattr(module, "weight", None), "shape", weight.shape)
    return weight[: shape[0], : shape[1]]


def _by_module(checkpoint: Checkpoint, form: Format) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every module of a checkpoint with what is stored of it, by name."""
    files = form.weights or weight_files(
        checkpoint.name, checkpoint.path, allow_pickle=checkpoint.allow_pickle
    )
    if files[0].suffix != ".safetensors":
        yield from _from_pickles(files, checkpoint.name)
        return
    where: dict[str, dict[str, Path]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - the handle is no mapping
                module, _, part = key.rpartition(".")
                where.setdefault(module, {})[part] = file
    for module, parts in where.items():
        found = {}
        for part, file in parts.items():
            with safe_open(file, framework="pt") as opened:
                found[part] = opened.get_tensor(f"{module}.{part}" if module else part)
        yield module, found


def _from_pickles(files: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401
    for file in files:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the file provokes; nothing of it is run
            raise ModelError(
                f"{name} must hold nothing but tensors in its pickles",
                seen=f"{file.name}: {first_line(error)}",
                fix="convert it to safetensors",
            ) from error
        modules: dict[str, dict[str, Any]] = {}
        for key, value in loaded.items():
            if isinstance(value, dict):  # HQQ's own form: a dictionary a module
                modules[key] = value | (value.get("meta") or {})
            else:
                module, _, part = key.rpartition(".")
                modules.setdefault(module, {})[part] = value
        yield from modules.items()


# -- the formats ---------------------------------------------------------------------------------


def codes(words: Tensor, bits: int) -> Tensor:
    """Unsigned integers of `bits` bits from a stream of 32-bit words, low bits first.

    Args:
        words: int32, shape (rows, words).
        bits: 2, 3, 4 or 8; a code of 3 bits may lie across two words.

    Returns:
        uint8, shape (rows, 32 * words / bits).
    """
    n = words.shape[1] * WORD // bits
    start = torch.arange(n) * bits
    word, offset = start // WORD, (start % WORD).int()
    # The shift fills with the sign, which the masks take off again.
    found = (words[:, word] >> offset) & (2 ** (WORD - offset).clamp(max=bits) - 1).int()
    across = (offset + bits > WORD).nonzero()[:, 0]
    if len(across):
        seen = WORD - offset[across]
        rest = words[:, word[across] + 1] & (2 ** (bits - seen) - 1).int()
        found[:, across] |= rest << seen
    return found.to(torch.uint8)


def gptq_weight(parts: Parts, settings: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """The weight of a module in GPTQ's format (Frantar et al. 2023, as AutoGPTQ laid it out).

    `qweight` (words, outputs) packs codes along the inputs, `qzeros` (groups, words) zero points
    along the outputs, less one in the first version of the format; `g_idx` names the group of
    every input. The bits are read off the shapes, because they may differ from module to module.

    Returns:
        Shape (outputs, inputs).
    """
    words, scales, computed = parts["qweight"], parts["scales"].float(), parts["scales"].dtype
    outputs = words.shape[1]
    bits = parts["qzeros"].shape[1] * WORD // outputs
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"codes of {bits} bits")
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    zeros = codes(parts["qzeros"], bits).int()
    zeros = (zeros + 1) & (2**bits - 1) if layout == "gptq" else zeros
    inputs = words.shape[0] * WORD // bits
    group = parts.get("g_idx")
    if group is None:
        group = torch.arange(inputs) // -(-inputs // len(scales))
    group = group.long()
    weight = torch.empty(outputs, inputs, dtype=dtype)
    for rows in torch.arange(outputs).split(max(1, CHUNK // inputs)):
        found = codes(words[:, rows].T, bits) - zeros[:, rows].T[:, group]
        weight[rows] = (found * scales[:, rows].T[:, group]).to(computed).to(dtype)
    return weight


def awq_weight(parts: Parts, settings: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """The weight of a module in AWQ's GEMM layout.

    `qweight` (inputs, outputs / 8) and `qzeros` (groups, outputs / 8) pack eight columns a word.

    Returns:
        Shape (outputs, inputs).
    """
    words, scales, computed = parts["qweight"], parts["scales"].float(), parts["scales"].dtype
    inputs, outputs = words.shape[0], words.shape[1] * WORD // AWQ_BITS
    zeros = _awq_codes(parts["qzeros"])
    size = int(settings.get("group_size", 128))
    group = torch.arange(inputs) // (size if size > 0 else inputs)
    weight = torch.empty(outputs, inputs, dtype=dtype)
    for rows in torch.arange(inputs).split(max(1, CHUNK // outputs)):
        found = _awq_codes(words[rows]) - zeros[group[rows]]
        weight[:, rows] = (found * scales[group[rows]]).T.to(computed).to(dtype)
    return weight


def _awq_codes(words: Tensor) -> Tensor:
    shifts = AWQ_BITS * torch.tensor(AWQ_PLACES, dtype=torch.int32)
    found: Tensor = ((words[..., None] >> shifts) & (2**AWQ_BITS - 1)).flatten(-2)
    return found


def hqq_weight(parts: Parts, settings: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """The weight of a module in HQQ's format, unpacked by the library.

    The library's own way of loading evaluates text that stands in the file; here its settings are
    read one by one and nothing else is.

    Returns:
        Shape (outputs, inputs).
    """
    del settings
    with quietly():
        hqq = import_module("hqq.core.quantize")
    if "zero_q" in parts or "scale_q" in parts:
        raise ValueError("scales or zero points that are themselves quantized")
    packing = _text(parts["packing"])
    size = parts.get("group_size")
    meta = {
        "nbits": _number(parts["nbits"]),
        "axis": _number(parts["axis"]),
        "group_size": None if size is None else _number(size),
        "shape": torch.Size([int(side) for side in parts["shape"]]),
        "packing": packing,
        "unpack_view_dtype": hqq.Quantizer.unpack_view_dtype[packing],
        "view_as_float": bool(_number(parts.get("view_as_float", False))),
        "compute_dtype": torch.float32,
        "scale": parts["scale"].float(),
        "zero": parts["zero"].float(),
    }
    weight: Tensor = hqq.Quantizer.dequantize(parts["W_q"].detach(), meta)
    return weight.to(dtype)


def _number(value: Any) -> int:  # noqa: ANN401
    return int(value.item()) if isinstance(value, Tensor) else int(value)


def _text(value: Any) -> str:  # noqa: ANN401
    """A string, which a safetensors file holds as the codes of its letters."""
    return "".join(map(chr, value.tolist())) if isinstance(value, Tensor) else str(value)


UNPACK: dict[str, Callable[[Parts, Mapping[str, Any], torch.dtype], Tensor]] = {
    "awq": awq_weight,
    "gptq": gptq_weight,
    "hqq": hqq_weight,
}
