"""What `config.json` says of a checkpoint, and what it must say for an audit."""

from pathlib import Path
from typing import TYPE_CHECKING

from auditor.compress.inside import foreign_code, must_have_no_foreign_code
from auditor.compress.weights import read_json, some_files
from auditor.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ADAPTER_CONFIG = "adapter_config.json"
CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")


def check_whole_model(name: str, path: Path) -> None:
    """Refuse a folder that is no whole model.

    Args:
        name: What errors call it.
        path: The folder.

    Raises:
        ModelError: It holds an adapter, or no model.
    """
    if (path / ADAPTER_CONFIG).is_file():
        # With this file there, transformers would load the model that it names, from anywhere.
        raise ModelError(
            f"{name} must be a whole model",
            seen=f"{ADAPTER_CONFIG}: it is an adapter, or holds one",
            fix=f"give the model that it was trained on, and it beside: --model BASE --adapter "
            f"{name}",
        )
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{name} must be a model in the Hugging Face format",
            seen=f"no config.json among {some_files(path)}",
            fix="give the folder that save_pretrained wrote",
        )


def read_config(name: str, path: Path, *, trust_remote_code: bool) -> "PretrainedConfig":
    """The configuration of a causal language model.

    Args:
        name: What errors call it.
        path: The folder.
        trust_remote_code: Whether Python code in it may be run.

    Raises:
        ModelError: It cannot be read, needs code of its own, or is of another kind of model.
    """
    from transformers import AutoConfig

    raw = read_json(name, path / "config.json")
    must = f"the config.json of {name} must be as transformers writes it"
    code = raw.get("auto_map") or {}
    if not isinstance(code, dict):
        raise ModelError(must, seen=f"an auto_map that is a {type(code).__name__}")
    heads = raw.get("architectures") or []
    if not isinstance(heads, list) or not all(isinstance(head, str) for head in heads):
        raise ModelError(must, seen=f"architectures that are no list of names: {heads!r}")
    has_code = "AutoModelForCausalLM" in code
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # transformers raises whatever the file provokes
        if "auto_map" in raw and not trust_remote_code:
            raise _remote_code(name) from error
        raise ModelError(
            f"{name} must be a model that this transformers knows",
            seen=first_line(error),
            fix="check model_type in config.json, or install a transformers that knows it",
        ) from error
    if not trust_remote_code:
        must_have_no_foreign_code(name, foreign_code(config))
    if _is_causal(config, heads):
        return config
    if has_code and trust_remote_code:
        return config
    if has_code:
        raise _remote_code(name)
    raise ModelError(
        f"{name} must be a causal language model",
        seen=f"model_type {config.model_type}, architectures {raw.get('architectures')}",
        fix="audit a decoder that predicts the next token",
    )


def _is_causal(config: "PretrainedConfig", architectures: list[str]) -> bool:
    """Whether transformers itself has the model, and the weights are of one with such a head."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        return False
    # BERT too has a causal class, into which the weights of a masked model would go unasked.
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return not architectures or any(
        name in known or name.endswith(CAUSAL_HEADS) for name in architectures
    )


def _remote_code(name: str) -> ModelError:
    return ModelError(
        f"{name} must run without code of its own",
        seen="it needs Python code that comes with the checkpoint (auto_map)",
        fix="read that code, then give --trust-remote-code",
    )
