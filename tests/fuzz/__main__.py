"""Fuzz the parsers: `python -m tests.fuzz [--runs 100000] [--seconds 600] [TARGET ...]`.

One target after another, each in a process of its own. Atheris draws by coverage of the parsers'
code; where it is not installed, hypothesis draws instead, and that is said. An input for which the
property does not hold is kept under `--out`, two of each kind, and the run goes on: move it to
`tests/fuzz/corpus/TARGET/` with the fix, and the normal tests read it from then on.
"""

import argparse
import importlib.util
import json
import math
import mmap
import os
import random
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz.mutations import MOST_BYTES, mutated

FOUND = 1
LIKE = 2  # inputs that are kept of one finding
LENGTH = 8  # bytes of an input's length
CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    """Run the targets; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all when left out")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="processor time for each target at most"
    )
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), default="atheris")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for what is found")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.engine == "atheris" and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install -e '.[fuzz]'): hypothesis draws the inputs")
        asked.engine = "hypothesis"
    if asked.child:
        return _fuzz(asked.targets[0], asked)
    from tests.fuzz.targets import TARGETS

    if unknown := [name for name in asked.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    begin, found = time.perf_counter(), 0
    print(f"{'target':<22}{'inputs':>9}{'taken':>9}{'cpu s':>9}  engine      findings", flush=True)
    for name in asked.targets or TARGETS:
        found += _in_a_process(name, asked)
    print(f"{time.perf_counter() - begin:,.0f} s in all; {found or 'nothing'} found", flush=True)
    return FOUND if found else 0


def _in_a_process(name: str, asked: argparse.Namespace) -> int:
    """Fuzz one target and print its line; returns what was found."""
    options = [f"--runs={asked.runs}", f"--seconds={asked.seconds}", f"--seed={asked.seed}"]
    options += [f"--engine={asked.engine}"]
    command = [sys.executable, "-m", "tests.fuzz", "--child", *options, f"--out={asked.out}", name]
    summary = asked.out / name / "summary.json"
    summary.unlink(missing_ok=True)
    ended = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace")
    if not summary.is_file():
        last = asked.out / name / "last-input"
        content = last.read_bytes() if last.is_file() else b""
        last.write_bytes(content[LENGTH:][: int.from_bytes(content[:LENGTH], "little")])
        print(f"{name}: ended with {ended.returncode}:\n{ended.stderr[-4000:]}", flush=True)
        return 1
    told = json.loads(summary.read_text(encoding="utf-8"))
    kinds = told["findings"]
    print(
        f"{name:<22}{told['n']:>9,}{told['n_taken']:>9,}{told['cpu_s']:>9.0f}  "
        f"{asked.engine:<12}{len(kinds) or 'none'}",
        flush=True,
    )
    for kind, count in kinds.items():
        print(f"    {count:>7,} x {kind}", flush=True)
    return len(kinds)


class _Tally:
    """What came of the inputs of one target so far."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        from tests.fuzz.property import check
        from tests.fuzz.targets import TARGETS

        self._target, self._check = TARGETS[name], check
        self._folder, self._runs, self._seconds = asked.out / name, asked.runs, asked.seconds
        self._folder.mkdir(parents=True, exist_ok=True)
        self._kinds: Counter[str] = Counter()
        self._n = self._n_taken = 0
        # What ends the process at once, such as a fault in a library, leaves its input here: pages
        # in memory, which the system keeps when the process is gone.
        self._last = self._folder / "last-input"
        self._last.write_bytes(b"\0" * (LENGTH + MOST_BYTES))
        with self._last.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 0)

    def one(self, data: bytes) -> None:
        """Check one input; ends the process after the last."""
        self._n += 1
        size = min(len(data), MOST_BYTES)
        self._page[:LENGTH] = size.to_bytes(LENGTH, "little")
        self._page[LENGTH : LENGTH + size] = data[:size]
        try:
            self._n_taken += self._check(self._target, data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._keep(error, data)
        seconds = time.process_time()
        if self._n >= self._runs or seconds > self._seconds:
            self._last.unlink()
            told = {"n": self._n, "n_taken": self._n_taken, "cpu_s": seconds}
            told["findings"] = dict(self._kinds)
            (self._folder / "summary.json").write_text(json.dumps(told))
            os._exit(0)

    def _keep(self, error: BaseException, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "auditor" in Path(frame.filename).parts] or frames
        kind = f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"
        self._kinds[kind] += 1
        if self._kinds[kind] <= LIKE:
            name = "".join(c if c.isalnum() else "-" for c in f"{kind}-{self._kinds[kind]}")
            (self._folder / name).write_bytes(data)
            told = "".join(traceback.format_exception(error))
            (self._folder / f"{name}.txt").write_text(told[-8000:], errors="backslashreplace")


def _fuzz(name: str, asked: argparse.Namespace) -> int:
    if asked.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["auditor"]):
            tally = _Tally(name, asked)
            _with_atheris(name, asked, tally)
    else:
        _with_hypothesis(name, asked, _Tally(name, asked))
    return 0


def _with_atheris(name: str, asked: argparse.Namespace, tally: _Tally) -> None:
    import atheris

    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    corpus = asked.out / name / "inputs"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate([*seeds, *saved(name)]):
        (corpus / f"{number:03d}").write_bytes(seed)
    for seed in seeds:  # imports what the target needs, instrumented
        tally.one(seed)

    def custom_mutator(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.1:
            return bytes(atheris.Mutate(data, most))
        # Every now and then from the start: what was mutated often is all but random.
        start = rng.choice(seeds) if rng.random() < 0.3 else data
        return mutated(start, rng, target.kind, seeds)[:most]

    options = [f"-seed={asked.seed}", f"-max_len={MOST_BYTES}", "-timeout=60", "-runs=-1"]
    options += ["-rss_limit_mb=6144", f"-artifact_prefix={asked.out / name}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], tally.one, custom_mutator=custom_mutator)
    atheris.Fuzz()


def _with_hypothesis(name: str, asked: argparse.Namespace, tally: _Tally) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    from tests.fuzz.strategies import inputs

    @given(inputs(name))
    @settings(
        max_examples=asked.runs,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def draw(data: bytes) -> None:
        tally.one(data)

    while True:  # until the tally ends the process: hypothesis stops early where it repeats itself
        draw()


def saved(name: str) -> list[bytes]:
    """The inputs that were found for a target and are kept."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


if __name__ == "__main__":
    sys.exit(main())
