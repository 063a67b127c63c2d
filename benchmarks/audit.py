"""Where the time of a whole audit goes, and what memory it takes, from its own `audit.json`.

    python -m benchmarks.audit [RUN ...]     # finished runs; without any, the demo is run first

The share outside the forward passes, the loading and the compressing should stay under 15%.
"""

import sys
from pathlib import Path

from auditor.results import AuditResult
from auditor.run import read_result
from benchmarks.machine import machine


def row(name: str, result: AuditResult) -> str:
    timings = result.timings
    forward = sum(step.forward_s for step in timings.variants)
    load = sum(step.load_s + step.compress_s for step in timings.variants)
    rest = timings.total_s - forward - load
    peak = max((step.peak_bytes for step in timings.variants), default=0)
    records = result.records.members.n_audited + result.records.nonmembers.n_audited
    passed = sum(step.n_forward_records for step in timings.variants)
    cells = (
        name,
        f"{records:,} x {len(timings.variants)}",
        f"{passed:,}",
        f"{timings.total_s:.1f}",
        f"{load:.1f}",
        f"{forward:.1f}",
        f"{100 * rest / timings.total_s:.1f}%",
        f"{peak / 2**20:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    runs = [Path(argument) for argument in sys.argv[1:]]
    if not runs:
        from auditor.cli import main as run

        run(["demo", "--output-path", "runs/demo", "--display", "plain"])
        runs = [Path("runs/demo")]
    print(machine())
    heads = (
        "run",
        "records x versions",
        "passes of a record",
        "total, s",
        "load and compress, s",
        "forward, s",
    )
    print(f"| {' | '.join((*heads, 'outside both', 'peak, MiB'))} |")
    print("|---|---|---|---|---|---|---|---|")
    for run_path in runs:
        print(row(run_path.name, read_result(run_path / "audit.json")))


if __name__ == "__main__":
    main()
