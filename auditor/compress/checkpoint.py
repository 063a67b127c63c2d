"""The checkpoint that is audited: found, checked and identified, and loaded when asked.

Everything that can be refused without reading weights is refused here: a folder without a
tokenizer, pickle-only weights, remote code, a checkpoint that is already quantized.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from auditor.compress.receipt import Receipt


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
        load_args: Further arguments of `from_pretrained` (subfolder, attn_implementation,
            trust_remote_code, use_safetensors).
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
