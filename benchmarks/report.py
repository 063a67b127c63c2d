"""How long the report of a large audit takes, and how large it is.

    python -m benchmarks.report [--records 100000] [--variants 12] [--rounds 3]

The audit is invented (not timed), the report is made step by step. Seconds of a shared machine say
little: beside them stands how often `scores.parquet` could have been read in that time by pyarrow,
all columns, which is run beside each round. The page must stay under 5 MB and all of it under 20 s.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import pyarrow.parquet as pq

from auditor.finished import read_finished
from auditor.report.page import render_page, write_report
from auditor.report.plots import draw, files
from benchmarks.machine import machine
from tests.report_cases import invented_run

T = TypeVar("T")
STEPS = ("read", "draw", "render the page", "figures as PNG and SVG", "write_report, all of it")
BESIDE = "scores.parquet by pyarrow"


def timed(clocks: dict[str, list[float]], name: str, work: Callable[[], T]) -> T:
    begin = time.perf_counter()
    found = work()
    clocks.setdefault(name, []).append(time.perf_counter() - begin)
    return found


def one_round(folder: Path, clocks: dict[str, list[float]]) -> None:
    scores = folder / "scores.parquet"
    timed(clocks, BESIDE, lambda: pq.read_table(scores, use_threads=False))
    finished = timed(clocks, STEPS[0], lambda: read_finished(folder))
    drawings = timed(clocks, STEPS[1], lambda: draw(finished))
    timed(clocks, STEPS[2], lambda: render_page(finished, drawings))
    timed(clocks, STEPS[3], lambda: files(drawings))
    timed(clocks, STEPS[4], lambda: write_report(folder, kind="html", out=None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--variants", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    clocks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = invented_run(
            Path(place) / "run", n=asked.records, n_variants=asked.variants, warned=True
        )
        for _ in range(asked.rounds):
            one_round(folder, clocks)
        page = (folder / "report.html").stat().st_size
        figures = [path.stat().st_size for path in sorted((folder / "figures").iterdir())]
        scores = (folder / "scores.parquet").stat().st_size
    print(machine())
    print(f"{asked.records:,} records, {asked.variants} variants, {asked.rounds} rounds, medians\n")
    print(f"| step | s | times {BESIDE} |")
    print("|---|---|---|")
    beside = median(clocks[BESIDE])
    for step in (BESIDE, *STEPS):
        found = median(clocks[step])
        print(f"| {step} | {found:.2f} | {found / beside:.1f} |")
    print("\n| file | MB |")
    print("|---|---|")
    print(f"| report.html | {page / 1e6:.2f} |")
    print(f"| {len(figures)} figures | {sum(figures) / 1e6:.2f} |")
    print(f"| (scores.parquet) | {scores / 1e6:.1f} |")


if __name__ == "__main__":
    main()
