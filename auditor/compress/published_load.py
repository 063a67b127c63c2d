"""Loading a published version: by the library of its format, or unpacked into plain weights."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from auditor.compress.checkpoint import (
    LOADED_S,
    Checkpoint,
    Placement,
    load_model,
    whole_model,
)
from auditor.compress.dispatch import input_device, load_placed
from auditor.compress.formats import Format
from auditor.compress.matrices import skeleton
from auditor.compress.measure import held_tensors
from auditor.compress.quiet import quiet_transformers, quietly
from auditor.compress.weights import weight_files
from auditor.errors import ModelError, VariantError, first_line
from auditor.memory import ran_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from auditor.compress.published_gguf import GgufFile

# Tensors that old checkpoints hold and no model needs.
BUFFERS = ("inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
ROUNDED_INPUTS = (
    "its layers round their inputs as they run, which a plain folder cannot say; the published "
    "folder itself is what loads anywhere"
)


@dataclass(frozen=True)
class Loaded:
    """A published version, ready to be scored.

    Attributes:
        model: The model.
        library: What loaded it, with its version.
        packed: Names of the parameters that are stored compressed.
        kinds: What the library calls the layers that hold them, by module.
        bits_per_weight: Of these, scales included; None where every weight is stored as it is.
        read: The weight that a module computes with, shape (outputs, inputs), by the module's
            name; None where the model's own parameter is what it computes with.
        batch_dependent: Whether a record's scores would depend on its batch.
        repairs: Defects of the library that a probe found here, and what was done.
        notes: For the receipt.
        cannot_save: Why it cannot be written as a folder that loads anywhere, or None.
    """

    model: "PreTrainedModel"
    library: str
    packed: frozenset[str] = frozenset()
    kinds: Mapping[str, str] = field(default_factory=dict)
    bits_per_weight: float | None = None
    read: Callable[[str], Tensor | None] = lambda _name: None
    batch_dependent: bool = False
    repairs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cannot_save: str | None = None


def load(
    checkpoint: Checkpoint, form: Format, placement: Placement, gguf: "GgufFile | None"
) -> Loaded:
    """Load a published version, timed as loading.

    Args:
        checkpoint: The version.
        form: What it was recognised as.
        placement: Where to, and in which dtype.
        gguf: Its file where it is one.

    Raises:
        ModelError: Its weights do not fit its configuration, or are not all there.
        VariantError: Its library cannot load it.
    """
    begin, before = time.perf_counter(), LOADED_S.get()
    try:
        with quietly():
            if gguf is not None:
                loaded = _gguf(checkpoint, gguf, placement)
            else:
                loaded = LOADERS[form.kind](checkpoint, form, placement)
            _run_once(loaded.model)
            return loaded
    except (ModelError, VariantError):
        raise
    except Exception as error:  # these libraries raise whatever the file provokes
        if ran_out(error):
            raise
        needed = ", ".join(form.requires) or "transformers"
        raise VariantError(
            f"{checkpoint.name} must load with {needed} on this machine ({form.method})",
            seen=f"{type(error).__name__}: {first_line(error)}",
            fix="try another version of the library, or leave this variant out",
        ) from error
    finally:
        LOADED_S.set(before + time.perf_counter() - begin)


@torch.no_grad()
def _run_once(model: Any) -> None:  # noqa: ANN401
    """What a library cannot run here it says at the first forward, and not while it loads."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=input_device(model))
    model.base_model(input_ids=tokens)


def _library(*names: str) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def _plain(checkpoint: Checkpoint, form: Format, placement: Placement) -> Loaded:
    del form
    return Loaded(load_model(checkpoint, placement, offload=True), _library("transformers"))


def _unpacked(checkpoint: Checkpoint, form: Format, placement: Placement) -> Loaded:
    from auditor.compress.published_packed import unpack

    found = unpack(checkpoint, form, dtype=placement.dtype)
    model, notes = load_dense(checkpoint, found.tensors, placement)
    prefix = f"{model.base_model_prefix}."
    names = {f"{name}.weight" for name in found.modules}
    return Loaded(
        model,
        _library("compleak-llm", *form.requires),
        packed=frozenset(names | {f"{prefix}{name}" for name in names}),
        bits_per_weight=found.n_bits / max(1, found.n_weights),
        notes=notes,
    )


def _gguf(checkpoint: Checkpoint, file: "GgufFile", placement: Placement) -> Loaded:
    from auditor.compress.published_gguf import ARITHMETIC, read_gguf

    found = read_gguf(file, checkpoint, dtype=placement.dtype)
    model, notes = load_dense(checkpoint, found.tensors, placement)
    return Loaded(
        model,
        _library("gguf"),
        packed=frozenset(found.quantized),
        bits_per_weight=found.n_bits / max(1, found.n_weights),
        notes=[ARITHMETIC, *notes],
    )


def load_dense(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], placement: Placement
) -> "tuple[PreTrainedModel, list[str]]":
    """A model with the configuration of a checkpoint and weights from memory.

    Returns:
        The model, and what the receipt must say of tensors that it had no place for.

    Raises:
        ModelError: Weights are missing, or of other shapes.
    """
    bones = skeleton(checkpoint)
    kind: Any = type(bones)
    attention = checkpoint.load_args.get("attn_implementation")

    def load(where: dict[str, Any]) -> Any:  # noqa: ANN401
        return kind.from_pretrained(
            None,
            config=bones.config,
            state_dict=tensors,
            dtype=placement.dtype,
            output_loading_info=True,
            **where,
            **({"attn_implementation": attention} if attention else {}),
        )

    try:
        with quiet_transformers():
            model, info = load_placed(load, placement, checkpoint.name)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{checkpoint.name} must hold weights that fit its configuration",
            seen=first_line(error),
            fix="copy or download it again",
        ) from error
    left = sorted(key for key in info["unexpected_keys"] if not key.endswith(BUFFERS))
    if acting := [key for key in left if key.endswith("act.scales")]:
        raise VariantError(
            "a published version must do no more than its original does",
            seen=f"{checkpoint.name} scales its activations ({acting[0]})",
            fix="leave this variant out",
        )
    whole = whole_model(checkpoint.name, model, info["missing_keys"])
    if not left:
        return whole, []
    return whole, [f"{len(left)} of its tensors have no place in the model, such as {left[0]}"]


def _bitsandbytes(checkpoint: Checkpoint, form: Format, placement: Placement) -> Loaded:
    from auditor.compress.bitsandbytes import is_quantized, kind_of, load_quantized, weight_of

    del form
    # Published for a GPU, most name a precision of 16 bits to compute in; here it is the audit's.
    config = copy.deepcopy(checkpoint.config)
    for part in (config, config.get_text_config()):
        if isinstance(getattr(part, "quantization_config", None), dict):
            name = str(placement.dtype).removeprefix("torch.")
            part.quantization_config["bnb_4bit_compute_dtype"] = name
    args = checkpoint.load_args | {"config": config}
    quantized = load_quantized(replace(checkpoint, load_args=args), placement)
    model = quantized.model

    def read(name: str) -> Tensor | None:
        layer = model.get_submodule(name)
        return weight_of(layer, dtype=placement.dtype) if is_quantized(layer) else None

    for layer in filter(is_quantized, model.modules()):
        # So is the precision that 4-bit weights are unpacked to.
        if (state := getattr(layer.weight, "quant_state", None)) is not None:
            state.dtype = placement.dtype
    kinds = {name: kind_of(layer) for name, layer in model.named_modules() if is_quantized(layer)}
    return Loaded(
        model,
        _library("bitsandbytes"),
        packed=frozenset(f"{name}.weight" for name in kinds),
        kinds=kinds,
        bits_per_weight=quantized.bits_per_weight,
        read=read,
        batch_dependent=quantized.batch_dependent,
        repairs=quantized.repairs,
    )


def _compressed_tensors(checkpoint: Checkpoint, form: Format, placement: Placement) -> Loaded:
    compressors = import_module("compressed_tensors.compressors")
    model: Any = load_model(checkpoint, placement)
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }
    n_bits = 8 * _stored_bytes(checkpoint, {f"{name}.weight" for name in layers})
    inputs = [layer.quantization_scheme.input_activations for layer in layers.values()]
    rounds = any(args is not None for args in inputs)
    for layer in layers.values():
        # The library does this at the first forward of the whole model, which scoring never runs.
        compressors.decompress_module(layer, leave_decompressed=rounds)
    if hasattr(model, "ct_decompress_hook"):
        model.ct_decompress_hook.remove()
        del model.ct_decompress_hook
    n_weights = sum(layer.weight.numel() for layer in layers.values())
    if not rounds:
        _forget_quantization(model)
    return Loaded(
        model,
        _library("compressed-tensors"),
        packed=frozenset(f"{name}.weight" for name in layers),
        bits_per_weight=n_bits / max(1, n_weights),
        # Rounding turns the last bit of a sum, which depends on the batch, into a step of a code.
        batch_dependent=rounds,
        cannot_save=ROUNDED_INPUTS if rounds else None,
    )


def _stored_bytes(checkpoint: Checkpoint, names: set[str]) -> int:
    """Bytes of weights in a checkpoint's files, under these names and with parts of the library's.

    Loaded they take more, because scales are widened to the precision that is computed in.
    """
    n_bytes = 0
    files = weight_files(checkpoint.name, checkpoint.path, allow_pickle=checkpoint.allow_pickle)
    for file in (file for file in files if file.suffix == ".safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - the handle is no mapping
                module, _, part = key.rpartition(".")
                is_data = part.startswith("weight") and part != "weight_shape"
                if is_data and f"{module}.weight" in names:
                    n_bytes += opened.get_tensor(key).nbytes
    return n_bytes


def _torchao(checkpoint: Checkpoint, form: Format, placement: Placement) -> Loaded:
    from auditor.compress.torchao import products_are_exact

    model = load_model(checkpoint, placement)

    def packed(module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return isinstance(weight, Tensor) and held_tensors(weight) != [weight]

    def read(name: str) -> Tensor | None:
        layer: Any = model.get_submodule(name)
        return layer.weight.dequantize() if packed(layer) else None

    layers: dict[str, Any] = {n: module for n, module in model.named_modules() if packed(module)}
    n_bits = sum(_torchao_bits(layer.weight) for layer in layers.values())
    for layer in layers.values():
        layer.weight = nn.Parameter(_in_dtype(layer.weight, placement.dtype), requires_grad=False)
    weights = {name: layer.weight for name, layer in layers.items()}
    settings = str(form.settings)
    rounds = "Dynamic" in settings or "StaticActivation" in settings
    if "Int8DynamicActivation" in settings and not products_are_exact(placement.device):
        raise VariantError(
            "8-bit activations need a processor that multiplies 8-bit integers",
            seen="torch._int_mm gave wrong products on this machine",
            fix="leave this variant out, or run it where VNNI or a GPU is at hand",
        )
    return Loaded(
        model,
        _library("torchao"),
        packed=frozenset(f"{name}.weight" for name in weights),
        kinds={name: type(weight).__name__ for name, weight in weights.items()},
        bits_per_weight=n_bits / max(1, sum(weight.numel() for weight in weights.values())),
        read=read,
        batch_dependent=rounds,
    )


def _in_dtype(weight: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401 - torchao's own classes
    """A packed weight that gives, and asks for, activations of another precision.

    It keeps the precision of the model that it was made from, most often 16 bits, in which it
    would round every output, or refuse others. The class's own conversion leaves it so.
    """
    if weight.dtype == dtype:
        return weight
    names, settings = weight.__tensor_flatten__()
    held = {name: getattr(weight, name) for name in names}
    held = {name: t.to(dtype) if t.dtype == weight.dtype else t for name, t in held.items()}
    return type(weight).__tensor_unflatten__(held, settings | {"dtype": dtype}, None, None)


def _torchao_bits(weight: Any) -> int:  # noqa: ANN401
    """Bits of a weight, scales included; codes of fewer than 8 bits are held one to a byte."""
    name = str(getattr(weight, "target_dtype", ""))
    code_bits = int(name.removeprefix("torch.int")) if name.startswith("torch.int") else 8
    codes, *others = held_tensors(weight)
    held = code_bits if codes.dtype == torch.int8 else 8 * codes.element_size()
    return codes.numel() * held + sum(8 * other.nbytes for other in others)


def _forget_quantization(model: Any) -> None:  # noqa: ANN401
    """Let a model whose weights are plain by now be saved as what it is."""
    model.hf_quantizer = None
    model._weight_conversions = None  # among them those of the library; saving looks for its own
    for part in (model.config, model.config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config


LOADERS: dict[str, Callable[[Checkpoint, Format, Placement], Loaded]] = {
    "awq": _unpacked,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "gptq": _unpacked,
    "hqq": _unpacked,
    "plain": _plain,
    "torchao": _torchao,
}
