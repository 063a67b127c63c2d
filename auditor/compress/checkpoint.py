"""The checkpoint that is audited: found, checked and identified, and loaded when asked.

Everything that can be refused without reading weights is refused here: a folder without a
tokenizer, pickle-only weights, remote code, a file that was cut off.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from auditor.compress.receipt import Receipt

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
DEFAULT_CONTEXT = 2048
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a variant is loaded.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        dtype: The torch dtype of weights that are not compressed, and of activations.
    """

    device: str
    dtype: "torch.dtype"


@dataclass(frozen=True)
class Checkpoint:
    """A causal language model on disk (a local folder; hub ids are resolved to their snapshot).

    Attributes:
        name: The path or id as the user gave it.
        path: The folder.
        config: Its transformers configuration.
        sha256: Over the weight files' contents and `config.json`, hex.
        load_args: Further arguments of `from_pretrained` (attn_implementation, trust_remote_code,
            use_safetensors).
    """

    name: str
    path: Path
    config: "PretrainedConfig"
    sha256: str
    load_args: dict[str, Any]


@dataclass(frozen=True)
class CompressedModel:
    """A variant ready to be scored, and the receipt of how it was made."""

    model: "PreTrainedModel"
    receipt: "Receipt"


def open_checkpoint(
    name: str,
    *,
    model_args: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Find a checkpoint and check all that can be checked without loading it.

    Args:
        name: A folder, or a model id of the Hugging Face hub.
        model_args: `revision`, `subfolder` and `attn_implementation` are used here.
        trust_remote_code: Whether Python code in the checkpoint may be run.
        allow_pickle: Whether weights may be read from pickle files (`weights_only`).

    Raises:
        ModelError: It cannot be used; says why and what to do.
    """
    args = dict(model_args or {})
    path = _folder(name, args, allow_pickle=allow_pickle)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{name} must be a model in the Hugging Face format",
            seen=f"no config.json among {_some_files(path)}",
            fix="give the folder that save_pretrained wrote",
        )
    config = _config(name, path, trust_remote_code=trust_remote_code)
    if not any((path / file).is_file() for file in TOKENIZER_FILES) and "tokenizer" not in args:
        raise ModelError(
            f"{name} must hold a tokenizer beside its weights",
            seen=f"none of {', '.join(TOKENIZER_FILES)}",
            fix="save it with tokenizer.save_pretrained(...), or name one with "
            "--model-args tokenizer=PATH",
        )
    weights = _weight_files(name, path, allow_pickle=allow_pickle)
    load_args: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "use_safetensors": weights[0].suffix == ".safetensors",
    }
    if "attn_implementation" in args:
        load_args["attn_implementation"] = args["attn_implementation"]
    return Checkpoint(name, path, config, model_sha256(path, weights), load_args)


def _folder(name: str, args: Mapping[str, str], *, allow_pickle: bool) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path / args.get("subfolder", "")
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            "--model must be a folder in the Hugging Face format, or a model id",
            seen=f"{name} is {'a file' if path.exists() else 'not there'}",
        )
    from huggingface_hub import snapshot_download

    patterns = [*HUB_FILES, *(["*.bin"] if allow_pickle else [])]
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    try:
        found = snapshot_download(
            name,
            revision=args.get("revision"),
            allow_patterns=patterns,
            local_files_only=offline,
        )
    except Exception as error:  # the hub raises errors of several libraries
        raise ModelError(
            "--model must be a folder in the Hugging Face format, or a model id that can be had",
            seen=f"{name} is no folder here, and the hub gave: {str(error).splitlines()[0]}",
            fix="give the path of a local folder",
        ) from error
    return Path(found) / args.get("subfolder", "")


def _config(name: str, path: Path, *, trust_remote_code: bool) -> "PretrainedConfig":
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}/config.json must be readable JSON", seen=str(error)) from error
    remote = isinstance(raw, dict) and "auto_map" in raw
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises whatever the file provokes
        if remote and not trust_remote_code:
            raise _remote_code(name) from error
        raise ModelError(
            f"{name} must be a model that this transformers knows",
            seen=str(error).strip().splitlines()[0],
        ) from error
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    if remote and "AutoModelForCausalLM" in raw["auto_map"]:
        if trust_remote_code:
            return config
        raise _remote_code(name)
    raise ModelError(
        f"{name} must be a causal language model",
        seen=f"model_type {config.model_type}, architectures {raw.get('architectures')}",
    )


def _remote_code(name: str) -> ModelError:
    return ModelError(
        f"{name} must run without code of its own",
        seen="it needs Python code that comes with the checkpoint (auto_map)",
        fix="read that code, then give --trust-remote-code",
    )


def _weight_files(name: str, path: Path, *, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights, checked as far as their headers tell."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [path / file for file in names]
    else:
        files = sorted(path.glob("model*.safetensors"))
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{name} must hold all of its weights", seen=f"missing: {', '.join(missing)}"
        )
    for file in files:
        _check_safetensors(name, file)
    if files:
        return files
    pickles = sorted([*path.glob("pytorch_model*.bin"), *path.glob("*.pth")])
    if pickles and not allow_pickle:
        raise ModelError(
            f"{name} must hold its weights as safetensors",
            seen=f"only pickle: {', '.join(file.name for file in pickles)}",
            fix="convert it, or give --allow-pickle if you trust where it comes from",
        )
    if not pickles:
        raise ModelError(
            f"{name} must hold weights",
            seen=f"no model*.safetensors among {_some_files(path)}",
        )
    return pickles


def _check_safetensors(name: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name}/{file.name} must be a whole safetensors file",
            seen=str(error),
            fix="copy or download it again",
        ) from error


def _some_files(path: Path) -> str:
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no files"


def model_sha256(path: Path, weights: list[Path]) -> str:
    """SHA-256 over `config.json` and the weight files: names and contents, in order, hex."""
    total = hashlib.sha256()
    for file in [path / "config.json", *weights]:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        total.update(file.name.encode() + b"\0" + content)
    return total.hexdigest()


def load_model(checkpoint: Checkpoint, placement: Placement, **more: Any) -> "PreTrainedModel":  # noqa: ANN401
    """Load the weights: eval mode, no gradients, on `placement`.

    Args:
        checkpoint: What to load.
        placement: Where to, and in which dtype.
        more: Further arguments of `from_pretrained`, such as `quantization_config`.

    Raises:
        ModelError: The weights do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            dtype=placement.dtype,
            device_map=placement.device,
            **checkpoint.load_args,
            **more,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{checkpoint.name} must hold weights that fit its config.json",
            seen=str(error).strip().splitlines()[0],
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    model.eval()
    model.requires_grad_(requires_grad=False)
    return model


def load_tokenizer(checkpoint: Checkpoint, tokenizer: str | None = None) -> Any:  # noqa: ANN401
    """The checkpoint's tokenizer, or the one named.

    Raises:
        ModelError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            tokenizer or checkpoint.path,
            trust_remote_code=checkpoint.load_args.get("trust_remote_code", False),
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(
            f"the tokenizer of {checkpoint.name} must load",
            seen=str(error).strip().splitlines()[0],
            fix="name another with --model-args tokenizer=PATH",
        ) from error


def tokenizer_sha256(tokenizer: Any) -> str:  # noqa: ANN401
    """SHA-256 over what decides how text becomes tokens, hex; truncation and padding left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def context_tokens(config: "PretrainedConfig", tokenizer: Any) -> int:  # noqa: ANN401
    """Tokens that the model was made for: beyond them GPT-2 crashes and rotary models extrapolate."""
    text = config.get_text_config()
    for name in CONTEXT_NAMES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    # Tokenizers without a limit say so with an absurdly large number.
    return limit if isinstance(limit, int) and 0 < limit < 10**7 else DEFAULT_CONTEXT


def quantization_of(config: "PretrainedConfig") -> str | None:
    """The quantization that a checkpoint already carries, or None."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))
