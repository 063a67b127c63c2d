"""Tiny models and tokenizers, built from a configuration on the spot, without a network."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 300
CONTEXT = 64

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "gpt2": {
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
    },
    "gpt_neox": {"rotary_pct": 0.25, "num_key_value_heads": 4},
    "opt": {"pad_token_id": 1},
    "qwen3": {},
    "mistral": {"sliding_window": 32},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 16, "pad_token_id": 0},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16, "pad_token_id": 0},
    "cohere": {"logit_scale": 0.25, "pad_token_id": 0},
    "granite": {"logits_scaling": 3.0, "pad_token_id": 0},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with 257 tokens: the end of text, then every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{letter: i + 1 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", model_max_length=CONTEXT
    )


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of a family with random weights, spread wide enough that its logits differ."""
    torch.manual_seed(seed)
    settings = {**SMALL, **FAMILIES[family], **changes}
    width = settings["hidden_size"]
    if width != SMALL["hidden_size"]:  # a wider model: everything that hangs on it grows with it
        settings.update(intermediate_size=width * 3 // 2, head_dim=width // 4)
        settings.update(changes)
    if family == "opt":
        settings.update(ffn_dim=settings["intermediate_size"], word_embed_proj_dim=width)
    if family == "gpt2":
        settings["n_embd"] = width
        names = ("hidden_size", "intermediate_size", "num_key_value_heads", "head_dim")
        settings = {key: value for key, value in settings.items() if key not in names}
    config = AutoConfig.for_model(family.partition("-")[0], **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15 * (SMALL["hidden_size"] / width) ** 0.5)
    return model


def save(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save a model and the byte tokenizer as a Hugging Face directory."""
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
