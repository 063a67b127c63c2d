"""What every way of compressing does to a model: size, error, perplexity, time, memory.

    python -m benchmarks.compression MODEL --calibration FILE [--nonmembers FILE] [--records 200]
    python -m benchmarks.compression random-124m --samples 32

MODEL is a folder; `random-124m` is a model of GPT-2's shape with random weights, made on the spot,
for times and memory. Perplexity is that of the first nonmembers, and stands beside the original's.
Each variant is made as an audit makes it, one after another in this process.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from auditor.calibration import Calibration, read_calibrations
from auditor.compress import COMPRESSORS, parse_variants
from auditor.compress.checkpoint import (
    Checkpoint,
    Placement,
    context_tokens,
    load_tokenizer,
    open_checkpoint,
    open_folder,
)
from auditor.compress.make import compress
from auditor.compress.receipt import CalibrationUse
from auditor.config import CompressConfig
from auditor.errors import CompleakError
from auditor.rows import RowReader
from auditor.scoring.encode import Encoded, Encoder
from auditor.scoring.engine import Engine
from auditor.sources import open_source
from benchmarks.machine import machine

VARIANTS = (
    "original,float16,bnb-int8,bnb-nf4,bnb-nf4:double_quant=true,bnb-fp4,int8,int8-dynamic,int4,fp8,"
    "gptq:bits=8,group_size=64,gptq:bits=4,group_size=64,gptq:bits=3,group_size=64,"
    "gptq:bits=2,group_size=64,hqq:bits=8,hqq:bits=4,hqq:bits=3,hqq:bits=2,"
    "prune-magnitude:sparsity=0.3,prune-magnitude:sparsity=0.5,prune-magnitude:sparsity=0.7,"
    "prune-magnitude:pattern=2:4,prune-wanda:sparsity=0.5,prune-wanda:pattern=2:4,"
    "prune-sparsegpt:sparsity=0.5,prune-sparsegpt:pattern=2:4,cluster:k=16,cluster:k=8,cluster:k=4"
)
CPU = Placement("cpu", torch.float32)
HEADS = (
    "variant",
    "compressed",
    "bits a weight",
    "zeros",
    "relative error",
    "on disk, MiB",
    "perplexity",
    "over original",
    "seconds",
    "peak, MiB",
)


def random_model(folder: Path) -> Path:
    """A model of GPT-2's shape with random weights, 124M parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2"), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def random_calibration(samples: int, tokens: int, vocabulary: int) -> Calibration:
    windows = np.random.default_rng(0).integers(0, vocabulary, (samples, tokens))
    use = CalibrationUse(
        source="random tokens",
        n_records=0,
        n_samples=samples,
        n_tokens=windows.size,
        sha256="",
        ids=[],
    )
    return Calibration(windows, use, ())


def perplexity(model: object, records: Sequence[Encoded], *, one_at_a_time: bool) -> float:
    engine = Engine(model, torch.device("cpu"), one_at_a_time=one_at_a_time)
    return float(np.exp(-engine.score(records).logp.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration")
    parser.add_argument("--nonmembers")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--variants", default=VARIANTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.model == "random-124m":
            path = random_model(Path(folder))
            checkpoint = open_folder("random", path, load_args={}, needs_tokenizer=False)
            size = checkpoint.config.get_text_config().vocab_size
            calibration = random_calibration(options.samples, options.tokens, size)
            table(checkpoint, [], calibration, options)
            return
        checkpoint = open_checkpoint(options.model)
        tokenizer = load_tokenizer(checkpoint)
        config = CompressConfig.model_validate(
            {
                "model": options.model,
                "variant": "prune-wanda:sparsity=0.5",
                "out": "unused",
                "calibration": options.calibration,
                "calibration_samples": options.samples,
                "calibration_tokens": options.tokens,
            }
        )
        context = context_tokens(checkpoint.config, tokenizer)
        calibration = read_calibrations(config, [config.spec], tokenizer, context=context)["given"]
        records = []
        if options.nonmembers:
            nonmembers = config.model_validate(
                {**config.model_dump(), "nonmembers": options.nonmembers}
            ).nonmembers
            assert nonmembers is not None
            reader = RowReader(config, tokenizer)
            rows = islice(open_source(nonmembers).stream(), options.records)
            records = Encoder(tokenizer, context).encode([reader.text(row) for row in rows])
        table(checkpoint, records, calibration, options)


def table(
    checkpoint: Checkpoint,
    records: Sequence[Encoded],
    calibration: Calibration,
    options: argparse.Namespace,
) -> None:
    print(machine())
    print(f"| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    first = None
    for spec in parse_variants([options.variants]):
        given = calibration if COMPRESSORS[spec.id].is_calibrated else None
        try:
            made = compress(checkpoint, spec, CPU, calibration=given)
        except CompleakError as error:
            print(f"| `{spec.label}` | refused: {error.must} ({error.seen}) |", flush=True)
            continue
        receipt = made.receipt
        found = (
            perplexity(made.model, records, one_at_a_time=receipt.batch_dependent)
            if records
            else None
        )
        first = found if first is None else first
        cells = (
            f"`{spec.label}`",
            f"{100 * receipt.n_compressed / receipt.n_parameters:.0f}%",
            f"{receipt.bits_per_weight:.2f}",
            f"{100 * receipt.sparsity:.1f}%",
            f"{receipt.relative_error:.4f}",
            f"{receipt.bytes_disk / 2**20:.1f}",
            f"{found:.3f}" if found else "–",
            f"{found / first:.3f}" if found and first else "–",
            f"{receipt.compress_s:.1f}",
            f"{receipt.compress_peak_bytes / 2**20:.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        del made


if __name__ == "__main__":
    main()
