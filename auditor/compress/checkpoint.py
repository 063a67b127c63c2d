"""The checkpoint that is audited: found, checked and identified, and loaded when asked.

Everything that can be refused without reading weights is refused here: a folder without a
tokenizer, pickle-only weights, remote code, an adapter without its model, a file that was cut off.
"""

import hashlib
import json
import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.compress.configuration import check_whole_model, read_config
from auditor.compress.hub import find_folder
from auditor.compress.inside import must_be_inside, must_have_no_foreign_code
from auditor.compress.kept import KEPT
from auditor.compress.quiet import quiet_transformers
from auditor.compress.weights import (
    model_sha256,
    weight_files,
)
from auditor.errors import ModelError, first_line
from auditor.memory import ran_out

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from auditor.compress.adapter import Adapter
    from auditor.compress.receipt import Receipt
    from auditor.devices import Spread

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# For models without a limit (state space models, some with ALiBi) whose tokenizer names none.
DEFAULT_CONTEXT = 2048
# Tokenizers without a limit say so with an absurdly large number.
NO_LIMIT = 10**7
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
# Seconds that `load_model` has taken so far: making a variant is timed apart from reading it.
LOADED_S: ContextVar[float] = ContextVar("loaded_s", default=0.0)


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a variant is loaded.

    Attributes:
        device: "cpu", "cuda" or "cuda:N": where tokens go, and the whole model or what computes
            with the parts of it that lie where nothing can be computed.
        dtype: The torch dtype of weights that are not compressed, and of activations.
        spread: What it may take of each device; None where the whole goes to `device`.
    """

    device: str
    dtype: "torch.dtype"
    spread: "Spread | None" = None

    @property
    def computing(self) -> tuple[str, ...]:
        """The devices that compute."""
        gpus = () if self.spread is None else self.spread.gpus
        return gpus or (self.device,)


@dataclass(frozen=True)
class Checkpoint:
    """A causal language model on disk (a local folder; hub ids are resolved to their snapshot).

    Attributes:
        name: The path or id as the user gave it.
        path: The folder; of a base with an adapter, the base's.
        config: Its transformers configuration.
        sha256: Over the weight files' contents and `config.json`, hex.
        load_args: Further arguments of `from_pretrained` (attn_implementation, trust_remote_code,
            use_safetensors).
        allow_pickle: Whether pickles may be read, of the checkpoint and of versions of it.
        adapter: What is merged into the weights (`auditor.compress.merged`), if anything.
    """

    name: str
    path: Path
    config: "PretrainedConfig"
    sha256: str
    load_args: dict[str, Any]
    allow_pickle: bool = False
    adapter: "Adapter | None" = None

    @property
    def weights_path(self) -> Path:
        """The folder that weights are read from; an adapter is merged when it is asked for first.

        Raises:
            CompleakError: The adapter cannot be merged.
        """
        if self.adapter is None:
            return self.path
        from auditor.compress.merged import merged_weights

        return merged_weights(self, self.adapter)


@dataclass(frozen=True)
class CompressedModel:
    """A variant ready to be scored, with the receipt of how it was made.

    Attributes:
        model: What is scored.
        receipt: What was done, counted.
        load_s: Seconds of loading, apart from compressing.
        dense: Gives the same variant as a plain model of the original's family, for formats that
            transformers cannot load; None where `model.save_pretrained` writes what it loads.
        cannot_save: Why the variant cannot be written as a folder that loads anywhere, or None.
        from_cache: Whether it was made before, or by another process, and read from the cache.
    """

    model: "PreTrainedModel"
    receipt: "Receipt"
    load_s: float = 0.0
    dense: "Callable[[], PreTrainedModel] | None" = None
    cannot_save: str | None = None
    from_cache: bool = False


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
    patterns = [
        *HUB_FILES,
        *(["pytorch_model*.bin"] if allow_pickle else []),
        *(["*.py"] if trust_remote_code else []),
    ]
    found = find_folder(name, revision=args.get("revision"), patterns=patterns)
    load_args: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if "attn_implementation" in args:
        if not trust_remote_code:
            must_have_no_foreign_code(name, args["attn_implementation"])
        load_args["attn_implementation"] = args["attn_implementation"]
    return open_folder(
        name,
        found / must_be_inside(args.get("subfolder", ""), what="subfolder of --model-args"),
        load_args=load_args,
        allow_pickle=allow_pickle,
        needs_tokenizer="tokenizer" not in args,
    )


def open_folder(
    name: str,
    path: Path,
    *,
    load_args: Mapping[str, Any],
    allow_pickle: bool = False,
    needs_tokenizer: bool = True,
    weights: Sequence[Path] = (),
) -> Checkpoint:
    """Check a folder as `open_checkpoint` does.

    Args:
        name: What errors call it.
        path: The folder.
        load_args: Further arguments of `from_pretrained`.
        allow_pickle: Whether weights may be read from pickle files (`weights_only`).
        needs_tokenizer: Whether a tokenizer must lie beside the weights.
        weights: Its weight files, where they are not those that transformers reads.

    Raises:
        ModelError: It cannot be used; says why and what to do.
    """
    check_whole_model(name, path)
    code = bool(load_args.get("trust_remote_code"))
    config = read_config(name, path, trust_remote_code=code)
    if needs_tokenizer and not has_tokenizer(path):
        raise ModelError(
            f"{name} must hold a tokenizer beside its weights",
            seen=f"none of {', '.join(TOKENIZER_FILES)}",
            fix="save it with tokenizer.save_pretrained(...), or name one with "
            "--model-args tokenizer=PATH",
        )
    files = list(weights) or weight_files(name, path, allow_pickle=allow_pickle)
    args = {**load_args, "use_safetensors": files[0].suffix == ".safetensors"}
    return Checkpoint(name, path, config, model_sha256(path, files), args, allow_pickle)


def has_tokenizer(path: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((path / file).is_file() for file in TOKENIZER_FILES)


def load_model(
    checkpoint: Checkpoint,
    placement: Placement,
    *,
    offload: bool = False,
    **more: Any,  # noqa: ANN401
) -> "PreTrainedModel":
    """The model with its weights: eval mode, no gradients, on `placement`.

    Safetensors are memory-mapped: on a CPU, weights that are stored in the dtype that is asked for
    are pages of the file until they are written to; all others are cast or copied from its pages,
    tensor by tensor. Where the original is kept (`auditor.compress.kept`), this is a copy of it.

    Args:
        checkpoint: What to load.
        placement: Where to, and in which dtype.
        offload: Whether the caller can do with weights that are fetched when they are computed
            with, and changes none.
        more: Further arguments of `from_pretrained`, such as `quantization_config`.

    Raises:
        ModelError: The weights do not fit the configuration, or some are missing.
        VariantError: Weights that the caller would change do not fit where they are computed with.
    """
    from auditor.compress.dispatch import must_be_held

    if more:  # a library that compresses while it loads is timed as compressing
        return _read(checkpoint, placement, **more)
    begin, kept = time.perf_counter(), KEPT.get()
    if kept is not None and kept.is_of(checkpoint, placement):
        model = kept.take(lambda: _read(checkpoint, placement))
    else:
        model = _read(checkpoint, placement)
    if not offload:
        must_be_held(model, placement, checkpoint.name)
    LOADED_S.set(LOADED_S.get() + time.perf_counter() - begin)
    return model


def _read(checkpoint: Checkpoint, placement: Placement, **more: Any) -> "PreTrainedModel":  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    from auditor.compress.dispatch import load_placed

    must = f"{checkpoint.name} must hold weights that fit its config.json"
    loader: Any = AutoModelForCausalLM
    folder = checkpoint.weights_path

    def load(where: dict[str, Any]) -> Any:  # noqa: ANN401
        return loader.from_pretrained(
            folder,
            dtype=placement.dtype,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            **where,
            **checkpoint.load_args,
            **more,
        )

    try:
        with quiet_transformers():
            model, info = load_placed(load, placement, checkpoint.name)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{checkpoint.name} must hold nothing but tensors in its pickles",
            seen=first_line(error.__context__ or error) + " (nothing of it was run)",
            fix="convert it to safetensors",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # With more arguments it may be another library's failure: the caller tells that apart.
        if more or ran_out(error):
            raise
        raise ModelError(
            must, seen=first_line(error), fix="give the folder that save_pretrained wrote"
        ) from error
    return whole_model(checkpoint.name, model, info["missing_keys"])


def whole_model(name: str, model: Any, missing_keys: Iterable[str]) -> "PreTrainedModel":  # noqa: ANN401
    """A model that was just loaded, in eval mode and without gradients.

    Raises:
        ModelError: Some of its weights were missing: transformers fills them with random numbers
            and says so in its log only.
    """
    parameters = {key for key, _ in model.named_parameters()}
    if missing := sorted(parameters & set(missing_keys)):
        raise ModelError(
            f"{name} must hold weights that fit its config.json",
            seen=f"{len(missing)} tensors are missing, such as {missing[0]}",
            fix="save the model with its output head, as AutoModelForCausalLM does",
        )
    ready: PreTrainedModel = model.eval().requires_grad_(requires_grad=False)
    return ready


def load_tokenizer(checkpoint: Checkpoint, tokenizer: str | None = None) -> Any:  # noqa: ANN401
    """The checkpoint's tokenizer, or the one named.

    Raises:
        ModelError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    where = tokenizer or checkpoint.path
    try:
        return AutoTokenizer.from_pretrained(
            where,
            local_files_only=Path(where).expanduser().exists(),
            trust_remote_code=checkpoint.load_args.get("trust_remote_code", False),
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(
            f"the tokenizer of {checkpoint.name} must load",
            seen=first_line(error),
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
    """Tokens that model and tokenizer both take: beyond, GPT-2 crashes and rotary models guess."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in CONTEXT_NAMES]
    # The first name wins: where a model has several, the later ones are legacy.
    found = [limit for limit in limits if isinstance(limit, int) and limit > 1][:1]
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int) and 1 < limit < NO_LIMIT:
        found.append(limit)
    return min(found, default=DEFAULT_CONTEXT)


def quantization_of(config: "PretrainedConfig") -> str | None:
    """The quantization that a checkpoint already carries, or None."""
    for part in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            found = getattr(part, name, None)
            if not found:
                continue
            get = found.get if isinstance(found, dict) else lambda k, f=found: getattr(f, k, None)
            method = get("quant_method")
            if method is None:  # written before the method was named there
                method = "bitsandbytes" if get("load_in_8bit") or get("load_in_4bit") else "unknown"
            return str(getattr(method, "value", method))
    return None
