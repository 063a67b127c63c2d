"""A whole audit over the sum of its bare forward passes, and two processes over one.

    python -m benchmarks.whole bare --model MODEL --members FILE --nonmembers FILE [--limit 1000]
    python -m benchmarks.whole processes --model MODEL --members FILE --nonmembers FILE

`bare` runs an audit of six variants, then puts the same records through each of these models again
in the engine's own batches, `model(input_ids).logits` and nothing more. Loading and compressing
are left out of both. `processes` scores the original with one process and with two (`torchrun`),
each on one thread, and compares the seconds from the first batch to the last shard.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from auditor import AuditConfig, audit
from auditor.compress.make import compress
from auditor.compress.materialise import materialise
from auditor.records import read_records
from auditor.store import plan_shards
from auditor.subject import open_subjects
from benchmarks.machine import machine
from benchmarks.scoring import bare

SIX = (
    "bnb-int8",
    "bnb-nf4",
    "bnb-fp4",
    "prune-magnitude:sparsity=0.5",
    "cluster:k=16",
    "int8",
)


def bare_seconds(config: AuditConfig) -> dict[str, float]:
    """Seconds of bare forward passes, by version."""
    subjects = open_subjects(config)
    subject = subjects.model
    records = read_records(config, subject.encoder)
    shards = [
        subject.encoder.encode(records.texts(shard)) for shard in plan_shards(records.n_tokens)
    ]
    found = {}
    for spec in config.variant_specs:
        made = compress(subject.checkpoint, spec, subject.placement)
        made = materialise(made, subject.placement, how="auto")
        begin = time.perf_counter()
        for shard in shards:
            bare(made.model, shard, alone=made.receipt.batch_dependent)
        found[spec.label] = time.perf_counter() - begin
    return found


def over_bare(given: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = AuditConfig(**given, variants=SIX, output_path=f"{folder}/run")
        result = audit(config)
    timings = result.timings
    apart = sum(step.load_s + step.compress_s for step in timings.variants)
    forward = {step.variant: step.forward_s for step in timings.variants}
    passes = bare_seconds(config)
    print("| version | forward and token facts, s | bare, s | ratio |")
    print("|---|---|---|---|")
    for name, seconds in passes.items():
        print(f"| {name} | {forward[name]:.1f} | {seconds:.1f} | {forward[name] / seconds:.2f} |")
    total = timings.total_s - apart
    both = sum(passes.values())
    print(
        f"| whole audit, {apart:.1f} s of loading and compressing apart | {total:.1f} | {both:.1f} "
        f"| {total / both:.2f} |"
    )
    print(
        f"records read {timings.records_s:.1f} s, checkpoints searched {timings.search_s:.1f} s, "
        f"blind baseline {timings.blind_s:.1f} s, statistics {timings.statistics_s:.1f} s"
    )


def over_processes(given: dict[str, Any]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = []
    for n in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
            launcher = (
                [sys.executable]
                if n == 1
                else [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}"]
            )
            command = [*launcher, "-m", "auditor", "audit", *flags]
            more = [f"--output-path={folder}/run", "--display=none", "--settings=NR"]
            subprocess.run(
                [*command, *more], check=True, env=environment, stdout=subprocess.DEVNULL
            )
            result = json.loads(Path(folder, "run", "audit.json").read_text(encoding="utf-8"))
            assert result["environment"]["n_processes"] == n
            step = result["timings"]["variants"][0]
            # Of the main process, which waits for nobody: its share of the shards.
            found.append(step["forward_s"] + step["rest_s"])
    print("| processes | seconds | one / this |")
    print("|---|---|---|")
    for n, seconds in zip((1, 2), found, strict=True):
        print(f"| {n} | {seconds:.1f} | {found[0] / seconds:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["bare", "processes"])
    for name in ("model", "members", "nonmembers"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int, default=1000)
    given = vars(parser.parse_args())
    what = given.pop("what")
    print(f"{machine()}; {Path(given['model']).name}, {given['limit']:,} records a side")
    (over_bare if what == "bare" else over_processes)(given)


if __name__ == "__main__":
    main()
