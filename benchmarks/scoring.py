"""Scoring speed as ratios to forms run beside it, in turn, on the same records.

    python -m benchmarks.scoring [--shape llama-5m,gpt2-124m] [--dtype float32] [--threads 2]

naive   one record at a time through `model(input_ids, labels=input_ids)`, softmax and log-softmax
        of the whole matrix of logits, moments from both: what the published tools do
bare    `model(input_ids).logits` in the engine's own batches, nothing computed from them
engine  what an audit does: all four token facts
floor   the least time for the fewest operations and bytes, see `benchmarks.floor`

With several dtypes, the naive form of the first stands beside the engine in each.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from auditor.scoring.batches import Budget, cut, default_tokens, pad
from auditor.scoring.encode import Encoded
from auditor.scoring.engine import Engine
from benchmarks.floor import best_seconds, ceilings, least
from benchmarks.machine import machine
from benchmarks.shapes import add_shape_arguments, build, short_records


@torch.inference_mode()
def naive(model: PreTrainedModel, records: Sequence[Encoded]) -> None:
    """One record at a time."""
    for record in records:
        ids = torch.tensor([record.ids], device=model.device)
        output = model(ids, labels=ids)
        logits = output.logits[0, :-1].float()
        p, logp = torch.softmax(logits, dim=-1), torch.log_softmax(logits, dim=-1)
        own = logp.gather(-1, ids[0, 1:, None])[:, 0]
        mu = (p * logp).sum(-1)
        sigma = (p * logp.square()).sum(-1) - mu.square()
        (output.loss.item(), own.cpu().numpy(), mu.cpu().numpy(), sigma.sqrt().cpu().numpy())


@torch.inference_mode()
def bare(model: PreTrainedModel, records: Sequence[Encoded], *, alone: bool = False) -> int:
    """The model's own forward passes over the engine's batches; how many there were.

    Args:
        model: A causal language model.
        records: What goes through it.
        alone: One record at a time, as the engine does where a batch would change the scores.
    """
    ordered = sorted(records, key=lambda record: -len(record.ids))
    budget = Budget(default_tokens(model.device, model.config), 1 if alone else None)
    batches = cut([len(record.ids) - 1 for record in ordered], budget)
    for batch in batches:
        # As it would be done: whole records.
        rows = [ordered[row] for row in batch]
        longer = [Encoded([*row.ids, 0], 1, False, 1, 1) for row in rows]
        _ = model(input_ids=pad(longer, 0, model.device), use_cache=False).logits
    return len(batches)


class Row(NamedTuple):
    """Seconds of one round."""

    naive: float
    bare: float
    engine: float


def rounds(
    models: tuple[PreTrainedModel, PreTrainedModel], records: Sequence[Encoded], n: int
) -> tuple[list[Row], Engine]:
    """Time the three forms in turn; the first round warms up and is left out.

    Args:
        models: The model of the naive form, and the model that is measured.
        records: What goes through them.
        n: Rounds.
    """
    slow, model = models
    device = model.device
    engine = Engine(model, device)
    forms = (partial(naive, slow, records), partial(bare, model, records))
    found = [
        Row(*(best_seconds(form, device, rounds=1) for form in (*forms, partial(score, engine, r))))
        for r in [records] * (n + 1)
    ]
    return found[1:], engine


def score(engine: Engine, records: Sequence[Encoded]) -> None:
    """What an audit does."""
    engine.score(records)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine())
    heads = ("model", "dtype", "engine, tokens/s", "naive / engine", "engine / bare")
    print(f"| {' | '.join((*heads, 'share of the floor', 'bare: share', 'naive: share'))} |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in options.shape:
        slow = build(shape, device=device, dtype=options.dtype[0])
        size = options.records // (8 if slow.num_parameters() > 2**26 else 1)
        size = size if device.type == "cpu" else options.records
        records = short_records(max(20, size), slow.config.vocab_size)
        tokens = sum(len(record.ids) for record in records)
        for dtype in options.dtype:
            model = slow if dtype == options.dtype[0] else build(shape, device=device, dtype=dtype)
            rows, _ = rounds((slow, model), records, options.rounds)
            floor = least(model, records).seconds(ceilings(device, dtype))
            own = least(slow, records).seconds(ceilings(device, options.dtype[0]))
            cells = (
                shape,
                str(dtype).removeprefix("torch."),
                f"{tokens / median(row.engine for row in rows):,.0f}",
                f"{median(row.naive / row.engine for row in rows):.2f}",
                f"{median(row.engine / row.bare for row in rows):.2f}",
                f"{median(floor / row.engine for row in rows):.0%}",
                f"{median(floor / row.bare for row in rows):.0%}",
                f"{median(own / row.naive for row in rows):.0%}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
