"""GGUF files: read by llama.cpp's own library, and turned back into a Hugging Face model.

llama.cpp renames the tensors of a model and stores some of them in another order. The library
knows the names; what is done to the values is undone here, for the architectures of `UNDO` alone,
and the comparison with the original's weights says whether that was right.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from auditor.artifacts.headers import Unsearchable, gguf_strings
from auditor.compress.checkpoint import Checkpoint
from auditor.compress.matrices import skeleton
from auditor.errors import ModelError, VariantError, first_line

# What the library raises over a file that is not whole.
MALFORMED = (ValueError, KeyError, IndexError, OSError, OverflowError, TypeError, AttributeError)
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"
# Stored as they are, without codes and scales.
FLOATS = ("F32", "F16", "BF16", "F64")
# llama.cpp holds all experts of a block in one tensor for each of their matrices.
EXPERTS = re.compile(r".*\.(\d+)\.[\w.]*experts\.(gate_up_proj|down_proj)")
EXPERT_PARTS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
ARITHMETIC = (
    "computed with its weights unpacked; llama.cpp rounds the inputs of its layers to 8 bits too"
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, its header read.

    Attributes:
        path: The file.
        architecture: What llama.cpp calls the family.
        tensors: The library's tensors, by name.
        fields: The library's metadata.
    """

    path: Path
    architecture: str
    tensors: dict[str, Any]
    fields: Any

    def value(self, key: str) -> Any:  # noqa: ANN401
        """Metadata by its key without the architecture, or None."""
        with _whole(self.path.name, self.path):
            return _contents(self.fields, f"{self.architecture}.{key}")

    @property
    def tokens(self) -> dict[str, int] | None:
        """Ids of the tokens, or None where the file has no vocabulary."""
        with _whole(self.path.name, self.path):
            found = _contents(self.fields, "tokenizer.ggml.tokens")
            return None if found is None else {str(t): i for i, t in enumerate(found)}

    @property
    def method(self) -> str:
        """The types of its matrices, in words."""
        types = Counter(t.tensor_type.name for t in self.tensors.values() if len(t.shape) > 1)
        return "GGUF, " + ", ".join(f"{name} ({n} matrices)" for name, n in types.most_common())


def open_gguf(name: str, path: Path) -> GgufFile:
    """Read a file's header.

    Raises:
        ModelError: It is cut off, an adapter, or one part of several.
        VariantError: Its architecture is not known here.
    """
    with _whole(name, path):
        # The library believes every count in a file, and goes on for as long.
        for _ in gguf_strings(path):
            pass
        reader = import_module("gguf").GGUFReader(path)
        fields = dict(reader.fields)
        architecture = str(fields["general.architecture"].contents())
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        n_parts = int(_contents(fields, "split.count") or 0)
        kind = _contents(fields, "general.type")
    if n_parts > 1:
        raise ModelError(
            f"{name} must be a whole model",
            seen=f"one of {n_parts} parts",
            fix="put them together with llama-gguf-split --merge",
        )
    if kind not in (None, "model"):
        raise ModelError(
            f"{name} must be a whole model",
            seen=f"a GGUF file that holds an {kind}",
            fix="merge it into its model first",
        )
    if architecture not in UNDO:
        raise VariantError(
            "a GGUF file must be of an architecture that is known here",
            seen=f"{name} is of {architecture}",
            fix=f"these are: {', '.join(sorted(UNDO))}; publish the model as safetensors as well",
        )
    return GgufFile(path, architecture, tensors, fields)


@contextmanager
def _whole(name: str, path: Path) -> Iterator[None]:
    """What the library raises over a damaged file, as one error.

    Raises:
        ModelError: The file is not whole.
    """
    try:
        yield
    except (Unsearchable, *MALFORMED) as error:
        raise ModelError(
            f"{name} must be a whole GGUF file",
            seen=f"{first_line(error)}; {path.stat().st_size:,} bytes",
            fix="copy or download it again (for a Git LFS pointer: git lfs pull)",
        ) from error


def _contents(fields: Any, key: str) -> Any:  # noqa: ANN401
    """Metadata by its whole key, or None."""
    found = fields.get(key)
    return None if found is None else found.contents()


def gguf_checkpoint(name: str, file: GgufFile, original: Checkpoint, sha256: str) -> Checkpoint:
    """The file as a checkpoint with the original's configuration, but for its vocabulary and head.

    Raises:
        ModelError: Its dimensions are others than the original's.
    """
    text = original.config.get_text_config()
    for key, attribute in DIMENSIONS.items():
        found, wanted = file.value(key), getattr(text, attribute, None)
        if isinstance(found, int) and isinstance(wanted, int) and found != wanted:
            told = key.replace(".", " ").replace("_", " ")
            raise ModelError(
                f"{name} must be a version of {original.name}",
                seen=f"{told}: {found}, of the original {wanted}",
                fix="give a version of this model, or the model that it is a version of",
            )
    config = copy.deepcopy(original.config)
    settings = config.get_text_config()
    if EMBEDDING in file.tensors:
        settings.vocab_size = int(file.tensors[EMBEDDING].shape[-1])
    config.tie_word_embeddings = settings.tie_word_embeddings = HEAD not in file.tensors
    return replace(original, name=name, path=file.path, config=config, sha256=sha256)


# Metadata that must be the original's.
DIMENSIONS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "expert_count": "num_local_experts",
}


class GgufWeights(NamedTuple):
    """The tensors of a GGUF file as a Hugging Face model has them.

    Attributes:
        tensors: By name.
        quantized: Names of the parameters that are stored in fewer bits than 32.
        n_bits: What these are stored in.
        n_weights: Weights in them.
    """

    tensors: dict[str, Tensor]
    quantized: list[str]
    n_bits: int
    n_weights: int


def read_gguf(file: GgufFile, checkpoint: Checkpoint, *, dtype: torch.dtype) -> GgufWeights:
    """Unpack a file's tensors, one at a time.

    Args:
        file: The file.
        checkpoint: It as a checkpoint, as `gguf_checkpoint` gives it.
        dtype: What values are rounded to once they are unpacked in float32.

    Raises:
        VariantError: A tensor is of a type that the library cannot unpack.
    """
    bones = skeleton(checkpoint)
    names = _names(file, bones)
    found = GgufWeights({}, [], 0, 0)
    n_bits = n_weights = 0
    for name, parameter in bones.named_parameters():
        sources = [file.tensors[key] for key in _sources(name, names) if key in file.tensors]
        if not sources or len(sources) != len(_sources(name, names)):
            continue  # which the loader will find missing
        arrays = [_undone(file, source, checkpoint) for source in sources]
        weight = torch.from_numpy(np.concatenate(arrays, axis=1) if arrays[1:] else arrays[0])
        module = bones.get_submodule(name.rpartition(".")[0])
        is_turned = isinstance(module, Conv1D) and parameter.dim() == 2
        weight = (weight.T if is_turned else weight).to(dtype)
        found.tensors[name] = weight.contiguous().clone()
        types = {source.tensor_type.name for source in sources}
        if parameter.dim() > 1 and types != {"F32"}:
            found.quantized.append(name)
            n_bits += sum(8 * int(source.n_bytes) for source in sources)
            n_weights += parameter.numel()
    return found._replace(n_bits=n_bits, n_weights=n_weights)


def _names(file: GgufFile, bones: nn.Module) -> Any:  # noqa: ANN401 - the library's own type
    gguf = import_module("gguf")
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    n_blocks = file.value("block_count")
    # With none, no name is known: the tensors are then refused as those of another model.
    n_known = n_blocks if isinstance(n_blocks, int) else 0
    return gguf.get_tensor_name_map(kinds[file.architecture], n_known)


def _sources(name: str, names: Any) -> list[str]:  # noqa: ANN401
    """The tensors of the file that a parameter is made of."""
    if match := EXPERTS.fullmatch(name):
        block, key = match.groups()
        return [f"blk.{block}.ffn_{part}_exps.weight" for part in EXPERT_PARTS[key]]
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    return [] if found is None else [found]


def _undone(file: GgufFile, source: Any, checkpoint: Checkpoint) -> Array:  # noqa: ANN401
    gguf = import_module("gguf")
    try:
        values = gguf.dequantize(source.data, source.tensor_type)
    except NotImplementedError as error:
        raise VariantError(
            "a GGUF file must be of types that the library gguf can unpack",
            seen=f"{file.path.name}: {first_line(error)} ({source.name})",
            fix="pip install --upgrade gguf, or give a version of another type",
        ) from error
    # The library gives shapes with the fastest axis first, NumPy has it last.
    values = values.reshape([int(side) for side in reversed(source.shape)])
    return UNDO[file.architecture](source.name, values, checkpoint.config.get_text_config())


# -- what llama.cpp does to values, undone -------------------------------------------------------


def _as_it_is(name: str, values: Array, config: Any) -> Array:  # noqa: ANN401
    del name, config
    return values


def _halves_apart(name: str, values: Array, config: Any) -> Array:  # noqa: ANN401
    """Rows of queries and keys, which llama.cpp orders so that rotated pairs lie side by side."""
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    n = next((n for part, n in heads.items() if part in name), None)
    if n is None:
        return values
    pairs = values.reshape(n, values.shape[0] // n // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _heads_together(name: str, values: Array, config: Any) -> Array:  # noqa: ANN401
    """Query, key and value of each head together, as GPT-NeoX has them."""
    if ".attn_qkv." not in name:
        return values
    heads = config.num_attention_heads
    parts = values.reshape(3, heads, values.shape[0] // 3 // heads, *values.shape[1:])
    return parts.swapaxes(0, 1).reshape(values.shape)


def _norms_less_one(name: str, values: Array, config: Any) -> Array:  # noqa: ANN401
    """Norms as Gemma has them: what is added to one."""
    del config
    return values - 1 if name.endswith("norm.weight") else values


UNDO: dict[str, Callable[[str, Array, Any], Array]] = {
    "command-r": _as_it_is,
    "gemma": _norms_less_one,
    "gemma2": _norms_less_one,
    "gemma3": _norms_less_one,
    "gpt2": _as_it_is,
    "gptneox": _heads_together,
    "granite": _halves_apart,
    "llama": _halves_apart,
    "olmo2": _as_it_is,
    "phi3": _as_it_is,
    "qwen2": _as_it_is,
    "qwen2moe": _as_it_is,
    "qwen3": _as_it_is,
    "qwen3moe": _as_it_is,
    "starcoder2": _as_it_is,
}
