"""How long a report takes and how large it is, beside reading the audit's table alone.

    python -m benchmarks.report [--records 100000] [--variants 12]

The audit is invented (tests/report_cases.py) and not timed. The goal: 12 variants and 100,000
records in under 20 seconds and under 5 MB.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq

from auditor.finished import read_finished
from auditor.report.page import render_page
from auditor.report.plots import draw, files
from benchmarks.machine import machine
from tests.report_cases import invented_run

T = TypeVar("T")


def timed(steps: dict[str, float], name: str, work: Callable[[], T]) -> T:
    begin = time.perf_counter()
    found = work()
    steps[name] = time.perf_counter() - begin
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--variants", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = invented_run(
            Path(folder) / "run", n=given.records, n_variants=given.variants, warned=True
        )
        steps: dict[str, float] = {}
        scores = run / "scores.parquet"
        for _ in range(2):  # the first one warms the disk's cache up
            timed(steps, "scores.parquet alone", lambda: pq.read_table(scores, use_threads=False))
        alone = steps.pop("scores.parquet alone")
        finished = timed(steps, "reading the audit", lambda: read_finished(run))
        drawings = timed(steps, "drawing", lambda: draw(finished))
        page = timed(steps, "the page", lambda: render_page(finished, drawings))
        figures = timed(steps, "figures as PNG and SVG", lambda: files(drawings))
    print(machine())
    print(
        f"{given.records:,} records, {given.variants} variants; reading scores.parquet with pyarrow"
    )
    print(f"alone took {alone:.2f} s, and is 1 in the last column.\n")
    print("| step | seconds | times |")
    print("|---|---|---|")
    for name, seconds in {**steps, "in all": sum(steps.values())}.items():
        print(f"| {name} | {seconds:.2f} | {seconds / alone:.1f} |")
    n_bytes = len(page.encode())
    n_figures = sum(map(len, figures.values()))
    print(f"\nreport.html {n_bytes / 1e6:.2f} MB; {len(figures)} figures {n_figures / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
