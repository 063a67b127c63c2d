"""What a published version of a model is compressed with, read off its files without loading it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auditor.compress.weights import read_json, some_files
from auditor.errors import ModelError, VariantError

# The distributions that read each format, beyond the core.
REQUIRES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "gptq": (),
    "awq": (),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gguf": ("gguf",),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
}
# Before formats were named in config.json, two tools described theirs in files of their own.
OLD_SETTINGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Names of the same thing in those files.
OLD_KEYS = {"w_bit": "bits", "q_group_size": "group_size", "checkpoint_format": "format"}
# Layouts of these formats that are read here; others are for certain kernels.
LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
AWQ_BITS = 4
HQQ_PICKLE = "qmodel.pt"
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Format:
    """How the weights of a published version are stored.

    Attributes:
        kind: A key of `REQUIRES`.
        method: The same in words, with the settings that matter.
        settings: Its quantization settings, as the checkpoint names them.
        weights: Its weight files, where they are not those that transformers reads.
    """

    kind: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[Path, ...] = ()

    @property
    def requires(self) -> tuple[str, ...]:
        """Distributions that read it, beyond the core."""
        return REQUIRES[self.kind]


def recognise(name: str, path: Path) -> Format:
    """What a folder or a file is.

    Args:
        name: What errors call it.
        path: The folder or file.

    Raises:
        ModelError: It is no model.
        VariantError: It is stored in a way that this program cannot read.
    """
    if path.is_file():
        if _magic(path) != GGUF_MAGIC:
            raise ModelError(
                f"{name} must be a folder in the Hugging Face format, or a GGUF file",
                seen=f"a file that begins with {_magic(path)!r}",
                fix="give the folder that holds it",
            )
        return Format("gguf", "GGUF", weights=(path,))
    if (path / "adapter_config.json").is_file():
        return Format("plain", "an adapter")  # which is refused where folders are opened
    if not (path / "config.json").is_file() or _holds_only_gguf(path):
        return _gguf_in(name, path)
    settings = _settings(name, path)
    pickled = path / HQQ_PICKLE
    if pickled.is_file() and not any(path.glob("*.safetensors")):
        return Format("hqq", _described(name, "hqq", settings), settings, (pickled,))
    if not settings:
        return Format("plain", "plain weights")
    kind = quant_method(settings)
    if kind not in DESCRIBE:
        raise VariantError(
            "a published version must be stored in a format that can be read here",
            seen=f"{name} is quantized with {kind}",
            fix=f"these can: {', '.join(sorted(REQUIRES))} (plain: weights that were only "
            "pruned, clustered or cast)",
        )
    _check_layout(name, kind, settings)
    return Format(kind, _described(name, kind, settings), settings)


def _described(name: str, kind: str, settings: Mapping[str, Any]) -> str:
    """The settings in words."""
    try:
        return DESCRIBE[kind](settings)
    except (AttributeError, TypeError, ValueError) as error:
        raise VariantError(
            f"the quantization settings of {name} must be as {kind} writes them",
            seen=f"{type(error).__name__}: {error}",
            fix="copy or download it again",
        ) from error


def quant_method(settings: Mapping[str, Any]) -> str:
    """The name of the method in quantization settings."""
    method = settings.get("quant_method")
    if method is None:  # written before the method was named there
        old = settings.get("load_in_8bit") or settings.get("load_in_4bit")
        method = "bitsandbytes" if old else "a method that its settings do not name"
    return str(method).lower().replace("_", "-")


def _check_layout(name: str, kind: str, settings: Mapping[str, Any]) -> None:
    """Refuse a layout that is not the format's common one."""
    known = LAYOUTS.get(kind)
    if known is None:
        return
    layout = settings.get("checkpoint_format") or settings.get("format") or settings.get("version")
    layout = str(layout or known[0]).lower()
    if layout not in known or settings.get("is_marlin_format"):
        raise VariantError(
            f"{kind} checkpoints must have the layout {' or '.join(known)}",
            seen=f"{name} has the layout {layout}",
            fix="give the version that was made for other kernels as well",
        )
    if kind == "awq" and settings.get("bits", AWQ_BITS) != AWQ_BITS:
        raise VariantError(
            f"awq checkpoints must be of {AWQ_BITS} bits",
            seen=f"{name} is of {settings['bits']}",
            fix="leave this variant out",
        )


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC))


def _holds_only_gguf(path: Path) -> bool:
    """Whether config.json stands beside GGUF files alone, as the hub likes to have it."""
    others = (*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.pt"))
    return any(path.glob("*.gguf")) and not others


def _gguf_in(name: str, path: Path) -> Format:
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return recognise(name, files[0])
    if files:
        names = ", ".join(file.name for file in files[:6])
        raise ModelError(
            "a published version must be one model",
            seen=f"{name} holds {len(files)} GGUF files: {names}",
            fix="name one of them: checkpoint:FOLDER/FILE.gguf (a model in several parts is put "
            "together by llama-gguf-split --merge)",
        )
    raise ModelError(
        f"{name} must be a model in the Hugging Face format, or hold a GGUF file",
        seen=f"no config.json among {some_files(path)}",
        fix="give the folder that save_pretrained wrote, or a .gguf file",
    )


def _settings(name: str, path: Path) -> dict[str, Any]:
    """The quantization settings of a folder, empty where its weights are plain."""
    config = read_json(name, path / "config.json")
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key)
            if isinstance(found, dict) and found:
                return found
    if isinstance(config.get("quantization"), dict):
        return {"quant_method": "mlx", **config["quantization"]}
    for file, method in OLD_SETTINGS.items():
        if (path / file).is_file():
            old = read_json(name, path / file)
            return {"quant_method": method} | {OLD_KEYS.get(k, k): v for k, v in old.items()}
    return {}


# -- in words ------------------------------------------------------------------------------------


def groups(size: Any) -> str:  # noqa: ANN401 - whatever the file says
    """How many weights share a scale."""
    return f"groups of {size}" if isinstance(size, int) and size > 0 else "a scale a row"


def _gptq(settings: Mapping[str, Any]) -> str:
    parts = ["GPTQ", f"{settings.get('bits')} bits", groups(settings.get("group_size"))]
    parts += ["desc_act"] if settings.get("desc_act") else []
    parts += ["asymmetric"] if settings.get("sym") is False else []
    return ", ".join(parts)


def _awq(settings: Mapping[str, Any]) -> str:
    return f"AWQ, {settings.get('bits', 4)} bits, {groups(settings.get('group_size', 128))}"


def _bitsandbytes(settings: Mapping[str, Any]) -> str:
    if settings.get("load_in_4bit"):
        kind = str(settings.get("bnb_4bit_quant_type", "fp4")).upper()
        double = ", double quantization" if settings.get("bnb_4bit_use_double_quant") else ""
        return f"bitsandbytes {kind}{double}"
    return f"bitsandbytes LLM.int8, threshold {settings.get('llm_int8_threshold', 6.0)}"


def _compressed_tensors(settings: Mapping[str, Any]) -> str:
    found = [f"compressed-tensors {settings.get('format')}"]
    for group in (settings.get("config_groups") or {}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        if weights:
            size = weights.get("group_size")
            shared = groups(size) if size else f"a scale a {weights.get('strategy')}"
            found.append(f"{weights.get('num_bits')}-bit {weights.get('type')} weights, {shared}")
        if inputs:
            found.append(f"{inputs.get('num_bits')}-bit {inputs.get('type')} activations")
    return ", ".join(dict.fromkeys(found))


def _torchao(settings: Mapping[str, Any]) -> str:
    kinds = settings.get("quant_type")
    found = kinds.values() if isinstance(kinds, dict) else [kinds]
    names = [k.get("_type", "") if isinstance(k, dict) else str(k) for k in found]
    return f"torchao {', '.join(dict.fromkeys(names))}"


def _hqq(settings: Mapping[str, Any]) -> str:
    inner = settings.get("quant_config")
    weights = (inner if isinstance(inner, dict) else settings).get("weight_quant_params") or {}
    if "nbits" not in weights:
        return "HQQ"
    return f"HQQ, {weights['nbits']} bits, {groups(weights.get('group_size'))}"


DESCRIBE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "hqq": _hqq,
    "torchao": _torchao,
}
