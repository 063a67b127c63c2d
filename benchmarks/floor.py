"""The floor: the least time that scoring can take on this machine, from two measured ceilings.

    python -m benchmarks.floor [--device cpu] [--threads 2] [--shape llama-5m,gpt2-124m]

For a model and a set of records, the fewest operations are the products of every token that
predicts one (a record of L tokens has L - 1) with every weight matrix, the causal half of
attention, and one product with the output embedding for each; the fewest bytes are the weights,
read once. The machine's ceilings are the rate of a large matrix product in the dtype and of a
memory copy, measured in the same run. The floor is the larger of the two times: what softmax,
norms, activations and Python cost is not in it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from auditor.probe import shape_of
from auditor.scoring.encode import Encoded
from benchmarks.machine import machine
from benchmarks.shapes import add_shape_arguments, build, short_records


class Ceilings(NamedTuple):
    """What the machine can do at most.

    Attributes:
        flops: Floating-point operations per second of a large matrix product.
        bytes: Bytes per second read and written by a copy.
    """

    flops: float
    bytes: float


class Least(NamedTuple):
    """What scoring cannot do without.

    Attributes:
        flops: Floating-point operations, a multiplication and an addition counted as two.
        bytes: Bytes of weights.
    """

    flops: float
    bytes: float

    def seconds(self, ceilings: Ceilings) -> float:
        """The floor."""
        return max(self.flops / ceilings.flops, self.bytes / ceilings.bytes)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(function: Callable[[], object], device: torch.device, *, rounds: int = 9) -> float:
    """The least of several times: a ceiling is what the machine does undisturbed."""
    best = float("inf")
    for _ in range(rounds):
        wait(device)
        begin = time.perf_counter()
        function()
        wait(device)
        best = min(best, time.perf_counter() - begin)
    return best


@torch.inference_mode()
def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the machine: the best of a few square products, and of a copy beyond all caches."""
    rates = []
    for side in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a = torch.randn(side, side, device=device).to(dtype)
        b = torch.randn(side, side, device=device).to(dtype)
        took = best_seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b), device)
        rates.append(2 * side**3 / took)
    source = torch.zeros(2**28 if device.type == "cpu" else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = best_seconds(lambda: target.copy_(source), device)
    return Ceilings(max(rates), 2 * len(source) / took)


def least(model: PreTrainedModel, records: Sequence[Encoded]) -> Least:
    """The fewest operations and bytes of one pass of `records` through a dense `model`."""
    shape = shape_of(model)
    head: Any = model.get_output_embeddings()
    lengths = np.array([len(record.ids) for record in records])
    return Least(shape.operations(lengths), shape.weights * head.weight.element_size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_arguments(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine())
    print("| model | dtype | product, GFLOP/s | copy, GB/s | GFLOP a token | floor, tokens/s |")
    print("|---|---|---|---|---|---|")
    for shape in options.shape:
        for dtype in options.dtype:
            model = build(shape, device=device, dtype=dtype)
            records = short_records(options.records, model.config.vocab_size)
            found, lowest = ceilings(device, dtype), least(model, records)
            tokens = sum(len(record.ids) for record in records)
            print(
                f"| {shape} | {str(dtype).removeprefix('torch.')} | {found.flops / 1e9:,.0f} "
                f"| {found.bytes / 1e9:.1f} | {lowest.flops / tokens / 1e9:.3f} "
                f"| {tokens / lowest.seconds(found):,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
