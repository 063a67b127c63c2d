"""How long it takes to judge what versions give away together, from stored scores.

    python -m benchmarks.leakage --records 2000 --variants 8
    python -m benchmarks.leakage --records 100000 --variants 8 --settings NR,SR

The scores are invented: what a model would have stored of records of 15 to 64 tokens, members a
little likelier. Records are both sides together; `sets` are sets of versions, original and all.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from auditor.attacks.signals import compute_signals
from auditor.config import AuditConfig
from auditor.leakage.evidence import Evidence
from auditor.leakage.judge import judge_leakage
from auditor.scoring.scores import Scores
from auditor.store import VariantStore, plan_shards


def invented(n: int, n_variants: int, root: Path) -> tuple[dict[str, VariantStore], np.ndarray]:
    """Stores of an original and its variants, and who is a member."""
    rng = np.random.default_rng(0)
    member = np.arange(n) % 2 == 0
    lengths = rng.integers(15, 65, n)
    own = rng.normal(0, 0.4, n) + 0.3 * member
    ids = np.array([f"{i:016x}" for i in range(n)])
    shards = plan_shards(lengths)
    names = ["original", *(f"variant-{i}" for i in range(n_variants))]
    stores = {
        name: VariantStore(root, name, fingerprint={"of": name}, shards=shards, record_ids=ids)
        for name in names
    }
    for number, records in enumerate(shards):
        sizes = lengths[records]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        total = int(offsets[-1])
        mu, sigma = rng.uniform(-4, -1, total), rng.uniform(0.5, 2.5, total)
        spread = rng.normal(size=total)
        for place, store in enumerate(stores.values()):
            moved = 0.02 * 2**place * rng.normal(size=total) if place else 0.0
            logp = np.minimum(mu + sigma * (spread + moved) + np.repeat(own[records], sizes), -1e-4)
            hit = logp > -0.5
            flat = [column.astype(np.float32) for column in (logp, mu, sigma)]
            store.write_shard(number, Scores(offsets, *flat, hit, sizes * 4, sizes * 2 + 9))
    return stores, member


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--settings", default="NR,SR,MR")
    parser.add_argument("--learners", default="logistic,trees")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stores, member = invented(given.records, given.variants, Path(folder))
        config = AuditConfig(
            model="m",
            members="m.jsonl",
            nonmembers="n.jsonl",
            variants=[f"cluster:k={k + 2}" for k in range(given.variants)],
            settings=given.settings,
            learners=given.learners,
        )
        begin = time.perf_counter()
        attacks = ["loss", "zlib", "min-k", "min-k-plus-plus"]
        found = {
            name: compute_signals(store, attacks, is_member=member)
            for name, store in stores.items()
        }
        signals_s = time.perf_counter() - begin
        begin = time.perf_counter()
        evidence = Evidence(
            ids=np.array([f"{i:016x}" for i in range(given.records)]),
            is_member=member,
            groups=np.arange(given.records),
            stores=stores,
            noises={},
            reference=None,
            same_tokens=False,
            signals={name: one.by_attack for name, one in found.items()},
            perplexities={name: one.perplexity for name, one in found.items()},
            primary="min-k-plus-plus",
            left_out={},
        )
        leakage = judge_leakage(evidence, config).leakage
        judged_s = time.perf_counter() - begin
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    n_sets = len(leakage.releases.sets) if leakage.releases is not None else 0
    print(
        "| records | variants | settings | learners | sets | signals, s | judged, s | peak, GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {given.records:,} | {given.variants} | {given.settings} | {given.learners} | {n_sets} "
        f"| {signals_s:.1f} | {judged_s:.1f} | {sum(u.ru_maxrss for u in usage) / 2**20:.2f} |"
    )


if __name__ == "__main__":
    main()
