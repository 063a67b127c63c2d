"""Peak memory of scoring above the model itself, and whether it grows with the number of records.

    python -m benchmarks.memory head [--dtype float32]      # a vocabulary of 128,000 words
    python -m benchmarks.memory records --records 10000,100000,1000000

`head` scores records of 512 tokens through a small trunk with a very large head, at the default
budget. `records` stores the scores of so many invented records, shard by shard as an audit does,
and gives the peak of resident memory above what the process held before the first of them.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from auditor.environment import PeakMemory
from auditor.scoring.encode import Encoded
from auditor.scoring.engine import Engine
from auditor.store import VariantStore, plan_shards
from benchmarks.machine import machine
from benchmarks.shapes import DTYPES, build


def head(dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    model = build("llama-wide", device=device, dtype=dtype)
    vocabulary = model.config.vocab_size
    rng = np.random.default_rng(0)
    records = [Encoded(rng.integers(0, vocabulary, 512).tolist(), 1, False, 1, 1) for _ in range(8)]
    engine = Engine(model, device)
    engine.score(records[:1])  # libraries make their buffers
    with PeakMemory("cpu") as memory:
        engine.score(records)
    held = sum(p.numel() * p.element_size() for p in set(model.parameters())) / 2**20
    whole = engine.budget.tokens * vocabulary * 4 / 2**20
    name = str(dtype).removeprefix("torch.")
    print("| dtype | model, MiB | tokens a batch | its logits would be, MiB | peak above, MiB |")
    print("|---|---|---|---|---|")
    peak = memory.peak_bytes / 2**20
    print(f"| {name} | {held:,.0f} | {engine.budget.tokens:,} | {whole:,.0f} | {peak:,.0f} |")


def many(n: int) -> None:
    device = torch.device("cpu")
    model = build("llama-tiny", device=device, dtype=torch.float32)
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 24, n)
    ids = np.array([f"{i:016x}" for i in range(n)])
    shards = plan_shards(lengths)
    engine = Engine(model, device)
    tokens = torch.from_numpy(rng.integers(0, 512, (256, 24))).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store = VariantStore(Path(folder), "v", fingerprint={}, shards=shards, record_ids=ids)
        half: list[float] = []
        with PeakMemory("cpu") as memory:
            for number, shard in enumerate(shards):
                begin = time.perf_counter()
                records = [
                    Encoded(tokens[row % 256][: lengths[row]], 1, False, 20, 20) for row in shard
                ]
                store.write_shard(number, engine.score(records))
                half.append((time.perf_counter() - begin) / sum(lengths[shard]))
    middle = len(half) // 2
    slower = np.median(half[middle:]) / np.median(half[: middle or 1])
    print(
        f"| {n:,} | {lengths.sum():,} | {len(shards):,} | {memory.peak_bytes / 2**20:,.0f} "
        f"| {slower:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["head", "records"])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--records", type=lambda t: [int(n) for n in t.split(",")], default=[10_000, 100_000]
    )
    options = parser.parse_args()
    print(machine())
    if options.what == "head":
        head(DTYPES[options.dtype])
        return
    print(
        "| records | tokens | shards | peak above, MiB | second half over first, seconds a token |"
    )
    print("|---|---|---|---|---|")
    for n in options.records:
        many(n)


if __name__ == "__main__":
    main()
