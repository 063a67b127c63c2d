"""Audits in forked processes, to be killed, starved and compared.

A forked process has the libraries loaded already, so that a run takes seconds and can be disturbed
a hundred times. The parent must not have computed anything with torch before it forks.
"""

import atexit
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# What may differ between two runs of one configuration: times, and what the machine was.
TIMES = ("timings", "environment", "compress_s", "compress_peak_bytes", "output_path")
# What an audit or `compress` imports, also where it does so late.
LIBRARIES = (
    "accelerate",
    "auditor.artifacts.scan",
    "auditor.audit",
    "auditor.cli",
    "auditor.compress.cluster",
    "auditor.compress.prune",
    "auditor.compress.wanda",
    "auditor.demo.target",
    "auditor.judge",
    "auditor.leakage.judge",
    "auditor.publish",
    "auditor.report.terminal",
    "auditor.run",
    "auditor.scoring.pipeline",
    "auditor.subject",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "sklearn.compose",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "transformers.models.llama.modeling_llama",
)
LAUNCHER_GRACE_S = 20.0
# A run that takes longer hangs.
MOST_S = 300.0


class Ran(NamedTuple):
    """How a run ended.

    Attributes:
        codes: Exit code of each process, minus the signal's number where one ended it.
        printed: What each wrote to stdout and stderr.
        seconds: From the first start to the last end.
    """

    codes: list[int]
    printed: list[str]
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether nobody showed a traceback or hung."""
        return self.seconds < MOST_S and not any("Traceback" in text for text in self.printed)


class Disturbance(NamedTuple):
    """What befalls one process of a run.

    Attributes:
        after_s: When, from the start.
        number: The signal.
        rank: Whom.
    """

    after_s: float
    number: int
    rank: int = 0


def run(
    arguments: Sequence[str],
    log: Path,
    *,
    world: int = 1,
    disturbance: Disturbance | None = None,
    limits: Mapping[int, int] | None = None,
    before: Callable[[], None] | None = None,
) -> Ran:
    """Run the command line in `world` forked processes, and do to one of them what is asked.

    As a launcher does, all are ended once one has failed: by SIGTERM, after a time by SIGKILL.

    Args:
        arguments: Of `compleak-llm`.
        log: A file's stem for what is printed.
        world: How many processes.
        disturbance: A signal to one of them.
        limits: Limits by `resource.RLIMIT_*`, set in every process.
        before: Called in every process before it begins.
    """
    begin = time.monotonic()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [Path(f"{log}.{rank}") for rank in range(world)]
    pids = []
    for rank in range(world):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(arguments, paths[rank], _environment(rank, world, port), limits or {}, before)
        pids.append(pid)
    codes = _watch(pids, disturbance, begin)
    seconds = time.monotonic() - begin
    return Ran(codes, [path.read_text(errors="replace") for path in paths], seconds)


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    if world == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {name: str(number) for name, number in numbers.items()} | address


def _child(
    arguments: Sequence[str],
    path: Path,
    environment: Mapping[str, str],
    limits: Mapping[int, int],
    before: Callable[[], None] | None,
) -> None:
    """Be the program, and never come back."""
    code = 1
    atexit._clear()  # what the parent tidies up at its end is not this process's to tidy
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        for what, most in limits.items():
            resource.setrlimit(what, (most, most))
        if before is not None:
            before()
        from auditor.cli import main

        code = main([*arguments])
    except BaseException:  # a defect is shown as the interpreter would show it
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _watch(pids: list[int], disturbance: Disturbance | None, begin: float) -> list[int]:
    """Wait for all; returns their codes."""
    codes: dict[int, int] = {}
    last_word: float | None = None
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        now = time.monotonic() - begin
        if disturbance is not None and now >= disturbance.after_s:
            if (pid := pids[disturbance.rank]) not in codes:
                os.kill(pid, disturbance.number)
            disturbance = None
        left = [pid for pid in pids if pid not in codes]
        if now > MOST_S:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        if last_word is None and any(codes.values()):
            last_word = now
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        elif last_word is not None and now - last_word > LAUNCHER_GRACE_S:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


def contents(folder: Path) -> dict[str, Any]:
    """What an output folder holds, without times: JSON as values, all else as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            data = path.read_bytes()
            is_json = path.suffix == ".json"
            found[str(path.relative_to(folder))] = _timeless(json.loads(data)) if is_json else data
    return found


def _timeless(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    return value
