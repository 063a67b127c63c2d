"""A LoRA adapter in peft's format: found, checked against its base, and put over a model.

    adapter_config.json          what it is and which layers it lies over
    adapter_model.safetensors    its matrices

It comes from whoever made it. So its base is the one that is given and never the one that it names,
only settings that are known are obeyed, and all that peft would pass over with a warning (a key too
many, a key too few) is refused: the audit would be of another model than everybody thinks.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.compress.configuration import ADAPTER_CONFIG
from auditor.compress.hub import find_folder
from auditor.compress.quiet import quietly
from auditor.compress.weights import check_safetensors, read_json, some_files
from auditor.errors import ModelError, first_line
from auditor.memory import ran_out

if TYPE_CHECKING:
    from auditor.compress.checkpoint import Checkpoint

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
HUB_FILES = ("adapter_config.json", "adapter_model.safetensors", "target.json")
TARGET = "target.json"
MUST = "--adapter must be a folder with a LoRA adapter in peft's format"
GIVE = "give the folder that peft's save_pretrained wrote"
NAME = "default"
# Settings that say what an adapter is; all others must be as peft leaves them, because they change
# the base, train otherwise than they compute, or are of a newer peft.
KNOWN = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "ensure_weight_tying",
)
# What says nothing of the computation.
ASIDE = (
    "peft_type",
    "task_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
)
# Ways of beginning that leave the base's weights alone.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its base.

    Attributes:
        name: The path or id as the user gave it.
        path: The folder.
        base: The checkpoint that it lies over.
        sha256: Over its weights and its settings, hex.
        settings: Its settings, as far as they say how it computes.
        file: Its weights.
    """

    name: str
    path: Path
    base: "Checkpoint"
    sha256: str
    settings: Mapping[str, Any]
    file: Path = field(repr=False)

    @cached_property
    def n_parameters(self) -> int:
        """Parameters in its file."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def merged_note(self) -> str:
        """What the receipt of the merged model says."""
        import torch

        from auditor.compress.measure import stored_dtype

        dtype = str(stored_dtype(self.base.config, torch.float32)).removeprefix("torch.")
        return (
            f"an adapter of {self.n_parameters:,} parameters was merged into its base in float32, "
            f"and the sum rounded to {dtype}, in which the base is stored"
        )

    def tensors(self) -> dict[str, Any]:
        """Its tensors by name, in float32.

        Raises:
            ModelError: They cannot be read.
        """
        import torch
        from safetensors.torch import load_file

        try:
            if self.file.suffix == ".safetensors":
                found: Any = load_file(self.file)
            else:
                found = torch.load(self.file, map_location="cpu", weights_only=True)
            return {str(key): _in_full(tensor) for key, tensor in found.items()}
        except Exception as error:  # unpickling raises whatever the file provokes
            if ran_out(error):
                raise
            raise ModelError(
                f"{self.name}/{self.file.name} must hold nothing but tensors by name",
                seen=first_line(error),
                fix="save the adapter again with peft's save_pretrained",
            ) from error


def open_adapter(name: str, base: "Checkpoint") -> Adapter:
    """Find an adapter and check that it fits its base, without reading the base's weights.

    Args:
        name: A folder, or a model id of the Hugging Face hub.
        base: The checkpoint that it was trained on.

    Raises:
        ModelError: It cannot be used with this base; says why and what to do.
    """
    from auditor.compress.checkpoint import quantization_of

    patterns = [*HUB_FILES, *([PICKLE] if base.allow_pickle else [])]
    path = find_folder(name, revision=None, patterns=patterns, must=MUST)
    raw = _config(name, path)
    file = _weights(name, path, allow_pickle=base.allow_pickle)
    if quantized := quantization_of(base.config):
        raise ModelError(
            f"the base of {name} must be a full-precision checkpoint",
            seen=f"{base.name} is already quantized ({quantized})",
            fix="give the full-precision model as --model; unmerged:bnb-nf4 then puts the adapter "
            "over it quantized",
        )
    _must_be_of(name, path, base)
    digest = hashlib.sha256()
    for part in (path / ADAPTER_CONFIG, file):
        with part.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        digest.update(part.name.encode() + b"\0" + content)
    adapter = Adapter(name, path, base, digest.hexdigest(), _settings(name, raw), file)
    _must_fit(adapter)
    return adapter


def put_over(model: Any, adapter: Adapter, *, is_empty: bool = False) -> Any:  # noqa: ANN401
    """Put an adapter over a model: its layers are wrapped, and compute both.

    Args:
        model: The base, or a compressed version of it; it is changed.
        adapter: The adapter.
        is_empty: Whether the model has shapes and no weights.

    Returns:
        peft's model; `.base_model.model` is the one that was given.

    Raises:
        ModelError: The adapter does not fit.
        Exception: Whatever peft raises for layers that it knows nothing of.
    """
    import torch

    _import_quietly()
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.utils import set_peft_model_state_dict

    config = LoraConfig(**adapter.settings, task_type=TaskType.CAUSAL_LM, inference_mode=True)
    tensors = adapter.tensors()
    # It begins with random matrices, and the process's own draws must not depend on that.
    with quietly(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        model = get_peft_model(model, config, adapter_name=NAME, low_cpu_mem_usage=is_empty)
        loaded: Any = set_peft_model_state_dict(
            model, tensors, adapter_name=NAME, low_cpu_mem_usage=is_empty
        )
    if loaded.unexpected_keys:
        raise _unfit(adapter, loaded.unexpected_keys, "that its base has no place for")
    own = {name for name, _ in model.named_parameters() if NAME in name.split(".")}
    if missing := own.intersection(loaded.missing_keys):
        raise _unfit(adapter, missing, "missing")
    return model.eval().requires_grad_(requires_grad=False)


def _config(name: str, path: Path) -> dict[str, Any]:
    if not (path / ADAPTER_CONFIG).is_file():
        is_model = (path / "config.json").is_file()
        raise ModelError(
            MUST,
            seen=f"{name} is a whole model: it holds config.json and no {ADAPTER_CONFIG}"
            if is_model
            else f"no {ADAPTER_CONFIG} among {some_files(path)}",
            fix=f"give it as --model {name} instead, without --adapter" if is_model else GIVE,
        )
    raw = read_json(name, path / ADAPTER_CONFIG)
    if raw.get("peft_type") != "LORA":
        raise ModelError(
            MUST,
            seen=f"{name} is of the kind {str(raw.get('peft_type'))[:100]!r}, not 'LORA'",
            fix="merge it by peft's merge_and_unload() where its kind can be, and give the model "
            "that save_pretrained wrote as --model",
        )
    return raw


def _weights(name: str, path: Path, *, allow_pickle: bool) -> Path:
    if (path / WEIGHTS).is_file():
        check_safetensors(name, path / WEIGHTS)
        return path / WEIGHTS
    if not (path / PICKLE).is_file():
        raise ModelError(
            f"{name} must hold the adapter's weights",
            seen=f"no {WEIGHTS} among {some_files(path)}",
            fix=GIVE,
        )
    if not allow_pickle:
        raise ModelError(
            f"{name} must hold the adapter's weights as safetensors",
            seen=f"only pickle: {PICKLE}",
            fix="convert it, or give --allow-pickle if you trust where it comes from",
        )
    return path / PICKLE


def _settings(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say how it computes.

    Raises:
        ModelError: There is one that is not known here, or one that changes the base.
    """
    _import_quietly()
    from peft import LoraConfig

    begins = raw.get("init_lora_weights", True)
    if not (isinstance(begins, bool) or begins in PLAIN_BEGINNINGS):
        raise ModelError(
            f"{name} must lie over its base's weights as they are",
            seen=f"init_lora_weights: {str(begins)[:100]!r}, which changes them",
            fix="save it as a plain LoRA adapter (path_initial_model_for_weight_conversion of "
            "peft's save_pretrained), or give the merged model as --model",
        )
    defaults = json.loads(json.dumps(asdict(LoraConfig()), default=str))
    for key, value in raw.items():
        # Of a newer peft: switched off it says nothing, and a number means nothing alone.
        is_off = not value or (key not in defaults and isinstance(value, int | float))
        is_off = is_off and not (key not in defaults and value is True)
        if key in KNOWN or key in ASIDE or is_off or value == defaults.get(key):
            continue
        raise ModelError(
            f"{name} must be an adapter whose settings are known here",
            seen=f"{str(key)[:100]}: {str(value)[:100]}",
            fix="merge it by peft's merge_and_unload(), and give what save_pretrained then wrote "
            "as --model",
        )
    return {key: raw[key] for key in KNOWN if raw.get(key) is not None}


def _must_be_of(name: str, path: Path, base: "Checkpoint") -> None:
    """Refuse an adapter whose target.json names another base."""
    if not (path / TARGET).is_file():
        return
    said = read_json(name, path / TARGET).get("base")
    sha256 = said.get("sha256") if isinstance(said, dict) else None
    if isinstance(said, dict) and isinstance(sha256, str) and sha256 != base.sha256:
        raise ModelError(
            f"--model must be the base that {name} was trained on",
            seen=f"{TARGET} names {str(said.get('name'))[:200]} (sha256 {sha256[:12]}...), and "
            f"{base.name} is another model (sha256 {base.sha256[:12]}...)",
            fix="give that base as --model",
        )


def _must_fit(adapter: Adapter) -> None:
    """Put it over its base's shapes."""
    from auditor.compress.matrices import skeleton

    base = adapter.base
    try:
        model = put_over(skeleton(base), adapter, is_empty=True)
    except ModelError:
        raise
    except Exception as error:  # peft raises whatever the settings provoke
        if ran_out(error):
            raise
        raise ModelError(
            f"{adapter.name} must fit {base.name}: an adapter lies over the model that it was "
            "trained on",
            seen=_said(error),
            fix="give that model as --model",
        ) from error
    inner = model.base_model.model
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    if getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        for end in ends:
            if type(end).__module__.partition(".")[0] == "peft":
                raise ModelError(
                    f"{adapter.name} must leave alone what {base.name} ties together",
                    seen="it lies over the input embedding or the output head, which share their "
                    "weights: merged, they would be two",
                    fix="untie them (tie_word_embeddings), merge it by hand, and give the merged "
                    "model as --model",
                )


def _unfit(adapter: Adapter, keys: Any, what: str) -> ModelError:  # noqa: ANN401
    names = sorted(keys)
    return ModelError(
        f"{adapter.name} must hold all that its settings say, and nothing else, for the layers of "
        f"{adapter.base.name}",
        seen=f"{len(names)} tensors {what}, such as {names[0][:200]}",
        fix="give the model that it was trained on as --model, or save it again by peft",
    )


def _said(error: Exception) -> str:
    """What peft says, in one line: of shapes that differ, the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), first_line(error))


def _in_full(tensor: Any) -> Any:  # noqa: ANN401
    return tensor.float() if tensor.is_floating_point() else tensor


def _import_quietly() -> None:
    """Import peft, which imports bitsandbytes, which must not fetch a kernel from the hub."""
    with quietly():
        with suppress(ImportError):
            import_module("auditor.compress.bitsandbytes")
        import peft  # noqa: F401
