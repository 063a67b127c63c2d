"""Scoring through packed layers over scoring with their weights decompressed once.

    python -m benchmarks.materialise [--shape llama-5m] [--dtype float32,bfloat16] [--threads 2]

A model with random weights is compressed twice; one of the two is decompressed as an audit does it
(`--materialise always`), which is timed, and then both are scored in turn on the same records. The
ratio is the median over the rounds. Beside it stands what the weights take in either form.
"""

import argparse
import gc
import tempfile
import time
from functools import partial
from statistics import median

import numpy as np
import torch
from transformers.utils import logging

from auditor.calibration import Calibration
from auditor.compress import COMPRESSORS, parse_variant
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, open_checkpoint
from auditor.compress.make import compress
from auditor.compress.materialise import materialise
from auditor.compress.measure import live_tensors, unique_bytes
from auditor.compress.receipt import CalibrationUse
from auditor.scoring.engine import Engine
from benchmarks.floor import best_seconds
from benchmarks.machine import machine
from benchmarks.scoring import score
from benchmarks.shapes import add_shape_arguments, build, short_records

VARIANTS = (
    "bnb-nf4",
    "bnb-nf4:double_quant=true",
    "bnb-fp4",
    "gptq:group_size=64",
    "int8",
    "int4:group_size=64",
    "fp8",
    "hqq",
)
WINDOWS = (8, 128)
MIB = 2**20


def calibration(vocabulary: int) -> Calibration:
    """Windows of random tokens: how fast a matrix is does not depend on how it was rounded."""
    windows = np.random.default_rng(0).integers(0, vocabulary, WINDOWS)
    n_samples, _ = WINDOWS
    ids = [f"{number:016x}" for number in range(n_samples)]
    use = CalibrationUse(
        source="random tokens",
        n_records=n_samples,
        n_samples=n_samples,
        n_tokens=windows.size,
        sha256="0" * 64,
        ids=ids,
    )
    return Calibration(windows, use, texts=())


def make(checkpoint: Checkpoint, variant: str, placement: Placement) -> CompressedModel:
    """One variant, as an audit makes it."""
    spec = parse_variant(variant)
    is_calibrated = COMPRESSORS[spec.id].is_calibrated
    texts = calibration(checkpoint.config.vocab_size) if is_calibrated else None
    return compress(checkpoint, spec, placement, calibration=texts)


def row(
    checkpoint: Checkpoint, variant: str, placement: Placement, *, n_records: int, n_rounds: int
) -> list[str]:
    """The cells of one variant."""
    device = torch.device(placement.device)
    records = short_records(n_records, checkpoint.config.vocab_size)
    packed = make(checkpoint, variant, placement)
    dense = make(checkpoint, variant, placement)
    begin = time.perf_counter()
    dense = materialise(dense, placement, how="always")
    took = time.perf_counter() - begin
    engines = [Engine(made.model, device) for made in (packed, dense)]
    forms = [partial(score, engine, records) for engine in engines]
    # The first round warms up and is left out.
    rounds = [[best_seconds(form, device, rounds=1) for form in forms] for _ in range(n_rounds + 1)]
    tokens = sum(len(record.ids) for record in records)
    sizes = [unique_bytes(live_tensors(made.model)) / MIB for made in (packed, dense)]
    return [
        f"`{variant}`",
        str(placement.dtype).removeprefix("torch."),
        f"{tokens / median(seconds[1] for seconds in rounds[1:]):,.0f}",
        f"{median(seconds[0] / seconds[1] for seconds in rounds[1:]):.2f}",
        f"{took:.2f}",
        f"{sizes[0]:,.0f}",
        f"{sizes[1]:,.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape_arguments(parser)
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(shape=["llama-5m"], records=100)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    print(machine())
    heads = ("model", "variant", "dtype", "decompressed, tokens/s", "packed / decompressed")
    print(f"| {' | '.join((*heads, 'decompressing, s', 'packed, MiB', 'decompressed, MiB'))} |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            build(shape, device=torch.device("cpu"), dtype=torch.float32).save_pretrained(folder)
            # No record is read here, so that the model needs no tokenizer.
            checkpoint = open_checkpoint(folder, model_args={"tokenizer": "none"})
            for dtype in options.dtype:
                for variant in options.variants:
                    cells = row(
                        checkpoint,
                        variant,
                        Placement(options.device, dtype),
                        n_records=options.records,
                        n_rounds=options.rounds,
                    )
                    print(f"| {' | '.join((shape, *cells))} |", flush=True)
                    gc.collect()


if __name__ == "__main__":
    main()
