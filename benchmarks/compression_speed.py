"""Speed and memory of the compressors that this project writes itself, on a model of real size.

    python -m benchmarks.compression_speed [--parameters 1e9] [--threads 2]

A Llama with random weights is saved in bfloat16 to a temporary folder, which takes two bytes a
parameter and is removed at the end, and every variant is made of it in bfloat16 as an audit makes
it. Seconds are those of the receipt: compressing and counting what changed, without loading. The
peak is what making the variant took beyond what was held before, loading included; beside it stands
what is promised, original and variant and 1 GiB.

The second table sets the sum of squared distances of k-means against the best of ten starts of
scikit-learn, on some of one matrix's weights.
"""

import argparse
import gc
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from auditor.compress import parse_variant
from auditor.compress.checkpoint import Checkpoint, Placement, load_model, open_checkpoint
from auditor.compress.kmeans import kmeans
from auditor.compress.make import compress
from auditor.compress.matrices import matrices
from auditor.compress.receipt import Receipt
from benchmarks.machine import machine

BFLOAT16 = Placement("cpu", torch.bfloat16)
VARIANTS = (
    "prune-magnitude:sparsity=0.5",
    "prune-magnitude:sparsity=0.5,scope=global",
    "prune-magnitude:pattern=2:4",
    "prune-magnitude:pattern=4:8",
    "cluster:k=16",
    "cluster:k=256",
)
# Weights of one layer of the shape below.
LAYER = 60.8e6
N_SAMPLE = 200_000
MIB = 2**20


def save_model(folder: Path, n_parameters: float) -> None:
    """Save a Llama of about so many parameters, with random weights, in bfloat16."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=max(1, round((n_parameters - 65.5e6) / LAYER)),
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def receipt_of(checkpoint: Checkpoint, variant: str, n_threads: int) -> Receipt:
    torch.set_num_threads(n_threads)
    return compress(checkpoint, parse_variant(variant), BFLOAT16).receipt


def print_variants(checkpoint: Checkpoint) -> None:
    print("| variant | parameters | compress, s | s per 10^9 | peak, MiB | model, MiB | promised |")
    print("|---|---|---|---|---|---|---|")
    for name in VARIANTS:
        # A process of its own: memory that another variant gave back would hide a peak.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            made = alone.submit(receipt_of, checkpoint, name, torch.get_num_threads())
            receipt = made.result()
        n, seconds = receipt.n_parameters, receipt.compress_s
        peak, own = receipt.compress_peak_bytes / MIB, receipt.bytes_memory / MIB
        print(
            f"| `{name}` | {n:,} | {seconds:.1f} | {seconds * 1e9 / n:.1f} | {peak:,.0f} | "
            f"{own:,.0f} | {2 * own + 1024:,.0f} |",
            flush=True,
        )


def squared_distances(values: np.ndarray, centres: np.ndarray) -> float:
    distances = np.full(len(values), np.inf)
    for centre in centres:
        np.minimum(distances, (values - centre) ** 2, out=distances)
    return float(distances.sum())


def print_kmeans(checkpoint: Checkpoint) -> None:
    print("\n| k | weights | dtype | k-means, s | scikit-learn, s | squares over scikit-learn's |")
    print("|---|---|---|---|---|---|")
    weight = next(matrices(load_model(checkpoint, BFLOAT16))).weight.reshape(-1)[:N_SAMPLE]
    noise = torch.randn(len(weight), generator=torch.Generator().manual_seed(0)) * 0.02
    for sample in (weight.clone(), noise):
        values = sample.double().numpy()
        for k in (4, 16, 64):
            begin = time.perf_counter()
            centres = kmeans(sample, k)
            middle = time.perf_counter()
            with warnings.catch_warnings(action="ignore"):
                best = KMeans(k, n_init=10, random_state=0).fit(values[:, None])
            end = time.perf_counter()
            ratio = squared_distances(values, centres) / float(best.inertia_)
            dtype = str(sample.dtype).removeprefix("torch.")
            print(
                f"| {k} | {len(values):,} | {dtype} | {middle - begin:.2f} | {end - middle:.1f} | "
                f"{ratio:.4f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options.parameters)
        gc.collect()
        # No record is read here, so that the model needs no tokenizer.
        checkpoint = open_checkpoint(folder, model_args={"tokenizer": "none"})
        print_variants(checkpoint)
        print_kmeans(checkpoint)


if __name__ == "__main__":
    main()
