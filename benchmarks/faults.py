"""Faults, for real: an audit is killed, starved, damaged; given again, it ends as if nothing was.

    python -m benchmarks.faults [--moments 50] [--only kill,disk] [--seed 0]

A tiny model, 600 invented letters, the original and two variants (one of which goes through the
cache, empty before every run), on one and two processes, one thread each. After every fault the
same command is given again, on one, two or three processes, and all files of the output folder must
equal those of a run that nothing befell, times apart. The exit code is 1 where one did not, or
where a process showed a traceback.
"""

import argparse
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.forked import LIBRARIES, Disturbance, Ran, contents, run

N_RECORDS = 600
VARIANTS = "prune-magnitude:sparsity=0.5,cluster:k=4"


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        fault: What was done.
        n: How many times.
        codes: Exit codes that were seen, with how often.
        n_clean: Runs that showed no traceback.
        n_equal: Runs after which the same command ended with the files of an undisturbed one.
        note: What else was seen.
    """

    fault: str
    n: int
    codes: str
    n_clean: int
    n_equal: int
    note: str = ""


class Bench:
    """A model, records, and what an undisturbed run makes of them.

    Args:
        folder: Everything is in it.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.cache = folder / "cache"
        os.environ["COMPLEAK_CACHE"] = str(self.cache)
        self._n_logs = 0
        subprocess.run(
            [sys.executable, "-m", "benchmarks.faults", "--make", str(folder)], check=True
        )
        self.first = self.audit(folder / "undisturbed")
        if any(self.first.codes):
            raise SystemExit(self.first.printed[0])
        self.expected = contents(folder / "undisturbed")
        self.alone_s = self.audit(folder / "again").seconds
        self.together_s = self.audit(folder / "together", world=2).seconds

    def audit(self, output: Path, **more: object) -> Ran:
        """Run the audit into a folder; further arguments as for `run`."""
        self._n_logs += 1
        arguments = [
            *("audit", "--model", str(self.folder / "model")),
            *("--members", str(self.folder / "members.jsonl")),
            *("--nonmembers", str(self.folder / "nonmembers.jsonl")),
            *("--variants", VARIANTS, "--settings", "NR", "--learners", "logistic"),
            *("--bootstrap", "100", "--fpr", "0.05", "--dtype", "float32"),
            *("--rank-timeout", "60", "--display", "none", "--output-path", str(output)),
        ]
        return run(arguments, self.folder / f"log{self._n_logs}", **more)  # type: ignore[arg-type]

    @contextmanager
    def output(self) -> Iterator[Path]:
        """A folder for one disturbed run, and an empty cache."""
        output = self.folder / "disturbed"
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)
        yield output
        shutil.rmtree(output, ignore_errors=True)

    def is_mended(self, output: Path, *, world: int = 1) -> bool:
        """Give the command again, and compare all files with those of the undisturbed run."""
        again = self.audit(output, world=world)
        if any(again.codes):
            print(f"!! given again it ended with {again.codes}:\n{again.printed}", file=sys.stderr)
            return False
        found = contents(output)
        names = {
            n for n in found.keys() | self.expected.keys() if found.get(n) != self.expected.get(n)
        }
        if names:
            print(f"!! differ: {sorted(names)}", file=sys.stderr)
        return not names

    def moment(self, seconds: float) -> float:
        """A moment of a run that takes so long."""
        return self.random.uniform(0.0, seconds)


def kept_share(output: Path, n_expected: int) -> float:
    """Share of all shards that a run left behind."""
    return len(list(output.rglob("shard-*.parquet"))) / n_expected


def counted(codes: list[int]) -> str:
    """Codes with how often each was seen."""
    return ", ".join(f"{code} ({codes.count(code)})" for code in sorted(set(codes)))


class Tally:
    """Runs that something befell, and what became of them.

    Args:
        fault: What it was.
    """

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._codes: list[int] = []
        self._n_clean = self._n_equal = 0

    def add(self, ran: Ran, how: object, *, rank: int = 0) -> None:
        """Count a run; `how` it was disturbed is shown where it was not clean."""
        self._codes.append(ran.codes[rank])
        self._n_clean += ran.is_clean
        if not ran.is_clean:
            said = [text[-1500:] for text in ran.printed]
            print(f"!! {self._fault}, {how}: {said}", file=sys.stderr)

    def mended(self, is_equal: bool) -> None:
        """Count how it ended when it was given again."""
        self._n_equal += is_equal

    def row(self, note: str = "") -> Row:
        """Its line of the table."""
        n = len(self._codes)
        return Row(self._fault, n, counted(self._codes), self._n_clean, self._n_equal, note)


def signals(bench: Bench, fault: str, number: int, n: int, *, world: int, rank: int) -> Row:
    """A signal at random moments; given again on one, two or three processes in turn."""
    tally, kept = Tally(fault), []
    n_shards = sum(name.endswith(".parquet") and "shard-" in name for name in bench.expected)
    for turn in range(n):
        with bench.output() as output:
            whole = bench.alone_s if world == 1 else bench.together_s
            moment = Disturbance(bench.moment(whole), number, rank)
            ran = bench.audit(output, world=world, disturbance=moment)
            tally.add(ran, moment, rank=rank)
            kept.append(kept_share(output, n_shards))
            tally.mended(bench.is_mended(output, world=(1, 2, 3)[turn % 3]))
    return tally.row(f"{100 * sum(kept) / len(kept):.0f}% of the shards were kept on average")


def kills(bench: Bench, n: int) -> list[Row]:
    """Kill -9 of the main process and of a worker."""
    return [
        signals(bench, "kill -9, one process", signal.SIGKILL, n, world=1, rank=0),
        signals(bench, "kill -9, the main of two", signal.SIGKILL, n, world=2, rank=0),
        signals(bench, "kill -9, the worker of two", signal.SIGKILL, n, world=2, rank=1),
    ]


def stops(bench: Bench, n: int) -> list[Row]:
    """Ctrl-C and SIGTERM."""
    return [
        signals(bench, "Ctrl-C", signal.SIGINT, max(1, n // 2), world=1, rank=0),
        signals(bench, "SIGTERM", signal.SIGTERM, max(1, n // 2), world=1, rank=0),
        signals(bench, "SIGTERM, the main of two", signal.SIGTERM, max(1, n // 5), world=2, rank=0),
    ]


def starve(bench: Bench, fault: str, outputs: list[dict[str, object]]) -> Row:
    """The same with less and less of something; `outputs` are further arguments of each run."""
    tally, said = Tally(fault), set()
    for more in outputs:
        with bench.output() as output:
            ran = bench.audit(output, **more)
            tally.add(ran, more)
            said |= {line.strip() for line in ran.printed[0].splitlines() if "seen:" in line}
            tally.mended(bench.is_mended(output))
    return tally.row("; ".join(sorted(said)[:2])[:160])


def disk(bench: Bench, n: int) -> list[Row]:
    """A quota on every file, and a file system that is too small."""
    largest = max(len(data) for data in bench.expected.values() if isinstance(data, bytes))
    sizes = [bench.random.randint(0, largest) for _ in range(n)]
    rows = [
        starve(
            bench,
            "a file may not grow (RLIMIT_FSIZE)",
            [{"limits": {resource.RLIMIT_FSIZE: size}} for size in sizes],
        )
    ]
    tally = Tally("disk full (tmpfs), then room is made")
    total = sum(path.stat().st_size for path in (bench.folder / "undisturbed").rglob("*"))
    for _ in range(n):
        with bench.output() as output:
            output.mkdir()
            size = bench.random.randint(4096, total)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(output)]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                rows.append(Row("disk full (tmpfs)", 0, "", 0, 0, "not measured: needs mount"))
                return rows
            try:
                ran = bench.audit(output / "run")
                tally.add(ran, size)
                grow = ["mount", "-o", f"remount,size={10 * total}", str(output)]
                subprocess.run(grow, check=True)
                tally.mended(bench.is_mended(output / "run"))
            finally:
                subprocess.run(["umount", str(output)], check=True)
    return [*rows, tally.row()]


def memory(bench: Bench, n: int) -> list[Row]:
    """Less and less address space."""
    from auditor.environment import _status_bytes

    held = _status_bytes("VmSize")
    more = [int(held + (i + 1) * 25 * 2**20) for i in range(n)]
    limits: list[dict[str, object]] = [{"limits": {resource.RLIMIT_AS: size}} for size in more]
    return [starve(bench, "out of memory (RLIMIT_AS)", limits)]


def damage(bench: Bench) -> list[Row]:
    """Shards that are cut off, flipped in a bit, or come from elsewhere; two audits; the clock."""
    rows = []
    for name, harm in (("cut off", _cut), ("a bit flipped", _flip), ("another's", _foreign)):
        with bench.output() as output:
            shutil.copytree(bench.folder / "undisturbed", output)
            shards = sorted(output.rglob("shard-*.parquet"))
            harm(shards)
            equal = bench.is_mended(output)
        rows.append(Row(f"a shard: {name}", 1, "0 (1)", 1, int(equal), "computed anew"))
    rows.append(_read_only_cache(bench))
    rows.append(_two_at_once(bench))
    rows.append(_clock(bench))
    return rows


def _cut(shards: list[Path]) -> None:
    shards[0].write_bytes(shards[0].read_bytes()[:-100])


def _flip(shards: list[Path]) -> None:
    data = bytearray(shards[1].read_bytes())
    data[len(data) // 2] ^= 4
    shards[1].write_bytes(data)


def _foreign(shards: list[Path]) -> None:
    others = [path for path in shards if path.parent != shards[0].parent]
    target = shards[0].parent / others[0].name
    shards[0].unlink()
    shutil.copyfile(others[0], target)


def _read_only_cache(bench: Bench) -> Row:
    """A cache that nobody can write to, root included."""
    with bench.output() as output:
        bench.cache.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(bench.cache)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            return Row("read-only cache", 0, "", 0, 0, "not measured: needs mount")
        try:
            ran = bench.audit(output)
            equal = bench.is_mended(output)
        finally:
            subprocess.run(["umount", str(bench.cache)], check=True)
    note = "the version is made in memory"
    return Row("read-only cache", 1, counted(ran.codes), int(ran.is_clean), int(equal), note)


def _two_at_once(bench: Bench) -> Row:
    from filelock import FileLock

    with bench.output() as output:
        shutil.copytree(bench.folder / "undisturbed", output)
        with FileLock(output / ".lock"):
            ran = bench.audit(output)
        equal = bench.is_mended(output)
    note = f"refused after {ran.seconds:.1f} s, before records are read"
    return Row(
        "two audits on one folder", 1, counted(ran.codes), int(ran.is_clean), int(equal), note
    )


def _clock(bench: Bench) -> Row:
    """The clock goes back by a day in the middle of a run."""

    def set_back() -> None:
        begin, real = time.monotonic(), time.time
        late = bench.alone_s / 2
        time.time = lambda: real() - (86400.0 if time.monotonic() - begin > late else 0.0)

    with bench.output() as output:
        ran = bench.audit(output, before=set_back)
        equal = not any(ran.codes) and bench.is_mended(output)
    return Row("clock set back a day", 1, counted(ran.codes), int(ran.is_clean), int(equal))


def make(folder: Path) -> None:
    """A model and two lists of letters; in a process of its own, because it computes."""
    import json

    from auditor.demo.letters import letters
    from tests.tiny import save, tiny_model

    save(tiny_model("llama", seed=1), folder / "model")
    texts = [text[:60] for text in letters(N_RECORDS, seed=3)]
    half = N_RECORDS // 2
    for name, part in (("members", texts[:half]), ("nonmembers", texts[half:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text(lines)


def load_libraries() -> None:
    """What an audit imports, once, before anything is forked."""
    for name in LIBRARIES:
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--only", default="kill,stop,disk,memory,damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make(given.make)
        return 0
    load_libraries()
    few = max(1, given.moments * 2 // 5)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), seed=given.seed)
        print(f"undisturbed: {bench.alone_s:.1f} s alone, {bench.together_s:.1f} s by two\n")
        print("| fault | times | exit codes | no traceback | resumed to equal files | |")
        print("|---|---|---|---|---|---|", flush=True)
        for part in given.only.split(","):
            for row in {
                "kill": lambda: kills(bench, given.moments),
                "stop": lambda: stops(bench, few),
                "disk": lambda: disk(bench, few),
                "memory": lambda: memory(bench, max(1, given.moments // 5)),
                "damage": lambda: damage(bench),
            }[part]():
                rows.append(row)
                print("|", " | ".join(map(str, row)), "|", flush=True)
    return int(any(row.n_clean < row.n or row.n_equal < row.n for row in rows))


if __name__ == "__main__":
    sys.exit(main())
