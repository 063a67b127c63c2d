"""How long an audit takes right of the store: attacks, intervals, tests, and the files it leaves.

    python -m benchmarks.leakage --records 100000 --variants 8 --settings NR,SR
    python -m benchmarks.leakage --records 2000 --variants 8 --settings NR,SR,MR

No model is run: the scores are invented, what a model would have stored of records of 15 to 64
tokens, members a little likelier. Records are both sides together; a reference is stored beside
the versions. Steps are whole runs of the audit's own functions, so that a later one holds an
earlier one again:

    reading      every shard of every version, checked and decoded
    NR           the six training-free attacks on each version alone, all intervals and paired tests
    eight        the same with gap and ez-gap beside the original, and the best of all of them
    writing      scores.parquet of that
    learned      all that the settings ask for: cross-fitted attackers, controls, sets of versions
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from auditor.config import AuditConfig
from auditor.judge import ORIGINAL, Findings, judge
from auditor.outputs import write_signals
from auditor.records import Records
from auditor.results import ModelIdentity
from auditor.scoring.scores import Scores
from auditor.scoring.variants import Pass
from auditor.store import REFERENCE, Manifest, VariantStore, plan_shards
from auditor.subject import Subjects

NR = ("loss", "zlib", "min-k", "min-k-plus-plus", "ref", "ez")
EIGHT = (*NR, "gap", "ez-gap")
NOBODY = cast(Any, None)  # in the place of what no step here looks at
IDENTITY = ModelIdentity.model_construct(name="m", model_type="m", sha256="0")


class Stored(NamedTuple):
    """An invented audit after its last forward pass.

    Attributes:
        records: Both sides, without texts.
        plan: By version, the original first, the reference last.
        manifests: All of them finished.
        subjects: There is a reference, and it has the model's tokenizer.
    """

    records: Records
    plan: dict[str, Pass]
    manifests: dict[str, Manifest]
    subjects: Subjects


def labels(n_variants: int) -> list[str]:
    """The variants, as a configuration has them."""
    return [f"cluster:k={k + 2}" for k in range(n_variants)]


def invented(n: int, n_variants: int, root: Path) -> Stored:
    """Stores of an original, its variants and a reference, and who is a member."""
    rng = np.random.default_rng(0)
    member = np.arange(n) % 2 == 0
    lengths = rng.integers(15, 65, n)
    own = rng.normal(0, 0.4, n) + 0.3 * member
    ids = np.array([f"{i:016x}" for i in range(n)])
    shards = plan_shards(lengths)
    names = [ORIGINAL, *(spec.label for spec in config_of(n_variants, ()).variant_specs[1:])]
    stores = {
        name: VariantStore(root, name, fingerprint={"of": name}, shards=shards, record_ids=ids)
        for name in (*names, REFERENCE)
    }
    for number, records in enumerate(shards):
        _write(stores, number, records, lengths[records], own[records], rng=rng, member=member)
    plan = {
        name: Pass(name, NOBODY, NOBODY, store, NOBODY, IDENTITY) for name, store in stores.items()
    }
    manifests = {
        name: store.manifest_of(identity=IDENTITY, receipt=None) for name, store in stores.items()
    }
    empty: list[Any] = []
    records_ = Records(
        ids, member, lengths, np.arange(n), NOBODY, empty, NOBODY, NOBODY, empty, NOBODY
    )
    return Stored(records_, plan, manifests, Subjects(NOBODY, cast(Any, 1), True, {}))


def _write(
    stores: Mapping[str, VariantStore],
    number: int,
    records: np.ndarray,
    sizes: np.ndarray,
    own: np.ndarray,
    *,
    rng: np.random.Generator,
    member: np.ndarray,
) -> None:
    """One shard of every version: the first is the original, the last the reference."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    total = int(offsets[-1])
    mu, sigma = rng.uniform(-4, -1, total), rng.uniform(0.5, 2.5, total)
    spread = rng.normal(size=total)
    for place, (name, store) in enumerate(stores.items()):
        moved = 0.02 * 2 ** min(place, 4) * rng.normal(size=total) if place else 0.0
        likely = own - 0.3 * member[records] if name == REFERENCE else own
        logp = np.minimum(mu + sigma * (spread + moved) + np.repeat(likely, sizes), -1e-4)
        l_t, mu_t, sigma_t = (column.astype(np.float32) for column in (logp, mu, sigma))
        scores = Scores(offsets, l_t, mu_t, sigma_t, logp > -0.5, sizes * 4, sizes * 2 + 9)
        store.write_shard(number, scores)


def config_of(n_variants: int, attacks: tuple[str, ...], **more: str) -> AuditConfig:
    return AuditConfig(
        model="m",
        reference="r",
        members="m.jsonl",
        nonmembers="n.jsonl",
        variants=labels(n_variants),
        attacks=attacks,
        **cast(dict[str, Any], more),
    )


def peak_gib() -> float:
    """Of this process and of its largest worker together, so far."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_maxrss for used in usage) / 2**20


class Clock:
    """Prints a line of the table for every step, as it ends."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def start(self) -> None:
        self._begin = time.perf_counter()

    def row(self, step: str) -> None:
        """Close a step."""
        took = time.perf_counter() - self._begin
        print(f"| {step} | {took:.1f} | {peak_gib():.2f} |", flush=True)
        self.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--settings", default="NR,SR,MR")
    parser.add_argument("--learners", default="logistic,trees")
    parser.add_argument("--steps", default="reading,NR,eight,writing,learned")
    given = parser.parse_args()
    steps = given.steps.split(",")
    asked = {"settings": given.settings, "learners": given.learners}
    with tempfile.TemporaryDirectory() as folder:
        stored = invented(given.records, given.variants, Path(folder))
        print(f"{given.records:,} records, {given.variants} variants, {given.settings}\n")
        print("| step | seconds | peak memory, GiB |")
        print("|---|---|---|")
        clock, found = Clock(), None
        if "reading" in steps:
            for step in stored.plan.values():
                for _ in step.store.read():
                    pass
            clock.row("reading")
        for name, attacks in (("NR", NR), ("eight", EIGHT)):
            if name in steps:
                found = run(stored, config_of(given.variants, attacks, **asked))
                clock.row(name)
        if "writing" in steps and found is not None:
            config = config_of(given.variants, EIGHT)
            blind = np.zeros(given.records)
            write_signals(Path(folder), config, stored.records, found, blind=blind)
            clock.row("writing")
        if "learned" in steps:
            run(stored, config_of(given.variants, (), **asked))
            clock.row("learned")


def run(stored: Stored, config: AuditConfig) -> Findings:
    """Everything that an audit does from stored scores to results."""
    return judge(config, stored.records, stored.plan, stored.manifests, stored.subjects)


if __name__ == "__main__":
    main()
