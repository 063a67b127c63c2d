"""Models with random weights in the shapes that are measured, and short records for them."""

import argparse
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from auditor.scoring.encode import Encoded

SHAPES: dict[str, dict[str, Any]] = {
    "llama-5m": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "gpt2-124m": {"model_type": "gpt2"},
    "llama-1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-7b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    # A large vocabulary over a small trunk: what the head needs stands out.
    "llama-wide": {
        "model_type": "llama",
        "vocab_size": 128_000,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    # As little model as there can be, where what is measured is everything else.
    "llama-tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(shape: str, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the shape, in eval mode, with random weights that are always the same."""
    settings = dict(SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def short_records(n: int, vocabulary: int) -> list[Encoded]:
    """Records of 20 to 120 tokens, median about 50."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(50), 0.4, n).astype(int), 20, 120)
    return [Encoded(rng.integers(0, vocabulary, k).tolist(), 1, False, 1, 1) for k in lengths]


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that all measurements of scoring share."""
    parser.add_argument(
        "--shape",
        type=lambda text: text.split(","),
        default=["llama-5m", "gpt2-124m"],
        help=", ".join(SHAPES),
    )
    parser.add_argument(
        "--dtype",
        type=lambda text: [DTYPES[name] for name in text.split(",")],
        default=[torch.float32],
        help=", ".join(DTYPES),
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch would")
    parser.add_argument("--records", type=int, default=200)
