"""What a dry run foretells over what scoring really takes, for models of some shapes.

    python -m benchmarks.estimate [--shape llama-5m,gpt2-124m] [--dtype float32,bfloat16]

One thread and its processor time, in the probe as in the pass, so that what others take of the
machine does not count. The estimate is meant to hold within a factor of two.
"""

import argparse
import tempfile
import time
from statistics import median
from unittest import mock

import numpy as np
import torch

from auditor import probe
from auditor.compress import parse_variant
from auditor.compress.checkpoint import Placement, open_checkpoint
from auditor.compress.make import compress
from auditor.cost import Work, cost, factor, speed
from auditor.probe import matrix_rate, shape_of
from auditor.scoring.engine import Engine
from benchmarks.machine import machine
from benchmarks.shapes import add_shape_arguments, build, short_records

VARIANTS = ("original", "bnb-int8", "bnb-int8:threshold=0", "int8-dynamic")
ROUNDS = 3


def row(shape: str, dtype: torch.dtype, n_records: int) -> list[str]:
    """Estimate over measurement for every variant."""
    device = torch.device("cpu")
    model = build(shape, device=device, dtype=dtype)
    records = short_records(n_records, model.config.vocab_size)
    lengths = np.array([len(record.ids) for record in records])
    seen = shape_of(model)
    operations = seen.operations(lengths)
    with mock.patch.object(probe.time, "perf_counter", time.process_time):
        product, plain = (
            max(matrix_rate("cpu", kind) for _ in range(ROUNDS)) for kind in (dtype, torch.float32)
        )
    cells = [shape, str(dtype).removeprefix("torch."), f"{product / plain:.1f}"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        checkpoint = open_checkpoint(folder, model_args={"tokenizer": "none"})
        for variant in VARIANTS:
            spec = parse_variant(variant)
            made = compress(checkpoint, spec, Placement("cpu", dtype))
            engine = Engine(made.model, device, one_at_a_time=made.receipt.batch_dependent)
            times = []
            for _ in range(ROUNDS + 1):
                begin = time.process_time()
                engine.score(records)
                times.append(time.process_time() - begin)
            times_original = factor(spec, weights=seen.weights, device="cpu")
            works = [Work(int(lengths.sum()), operations, times_original)]
            found = cost(works, speed("cpu", product, float32=plain), n_devices=1)
            cells.append(f"{found.seconds / median(times[1:]):.2f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape_arguments(parser)
    parser.set_defaults(records=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    heads = ("model", "dtype", "products over float32", *(f"`{name}`" for name in VARIANTS))
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for shape in options.shape:
        for dtype in options.dtype:
            n_records = options.records // (1 if shape == "llama-5m" else 5)
            print(f"| {' | '.join(row(shape, dtype, n_records))} |", flush=True)


if __name__ == "__main__":
    main()
