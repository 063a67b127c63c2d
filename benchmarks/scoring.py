"""Scoring speed as ratios to forms run beside it, in turn, on the same records.

    python -m benchmarks.scoring [--threads 2] [--records 400] [--rounds 5]

naive   one record at a time, the whole matrix of logits, p-weighted moments from it: what the
        published tools do
bare    `model(input_ids).logits` in the engine's own batches, nothing computed from them
engine  what an audit does: all four token facts
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from auditor.scoring.batches import Budget, cut, default_tokens, pad
from auditor.scoring.encode import Encoded
from auditor.scoring.engine import Engine
from benchmarks.machine import machine

SHAPES: dict[str, dict[str, Any]] = {
    "llama 5.5M, vocabulary 4,096": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "gpt2 124M, vocabulary 50,257": {"model_type": "gpt2"},
}


def short_records(n: int, vocabulary: int) -> list[Encoded]:
    """Records of 20 to 120 tokens, median about 50."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(50), 0.4, n).astype(int), 20, 120)
    return [Encoded(rng.integers(0, vocabulary, k).tolist(), 1, False, 1, 1) for k in lengths]


@torch.inference_mode()
def naive(model: PreTrainedModel, records: list[Encoded]) -> None:
    for record in records:
        ids = torch.tensor([record.ids])
        logits = model(input_ids=ids).logits[0, :-1].float()
        logp = torch.log_softmax(logits, -1)
        p = logp.exp()
        mu = (p * logp).sum(-1)
        sigma = (p * logp.square()).sum(-1) - mu.square()
        own = logp.gather(-1, ids[0, 1:, None])
        (own[:, 0].numpy(), mu.numpy(), sigma.sqrt().numpy())


@torch.inference_mode()
def bare(model: PreTrainedModel, records: list[Encoded]) -> None:
    device = torch.device("cpu")
    ordered = sorted(records, key=lambda record: -len(record.ids))
    lengths = [len(record.ids) for record in ordered]
    for batch in cut(lengths, Budget(default_tokens(device, model.config))):
        ids = pad([ordered[row] for row in batch], 0, device)
        _ = model(input_ids=ids, use_cache=False).logits


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    print("| model | records | engine, tokens/s | naive / engine | engine / bare forward |")
    print("|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        settings = dict(shape)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = AutoModelForCausalLM.from_config(config).eval()
        size = options.records if config.vocab_size < 10_000 else max(20, options.records // 8)
        records = short_records(size, config.vocab_size)
        engine = Engine(model, torch.device("cpu"))
        rows = []
        for round_ in range(options.rounds + 1):
            row = (
                seconds(partial(naive, model, records)),
                seconds(partial(bare, model, records)),
                seconds(partial(engine.score, records)),
            )
            if round_:  # the first warms up
                rows.append(row)
        tokens = sum(len(record.ids) for record in records)
        rate = tokens / median(row[2] for row in rows)
        against = median(row[0] / row[2] for row in rows)
        over = median(row[2] / row[1] for row in rows)
        print(f"| {name} | {size} | {rate:,.0f} | {against:.2f} | {over:.2f} |", flush=True)


if __name__ == "__main__":
    main()
