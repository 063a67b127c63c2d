"""Meetings of real processes: who is late is named, who is busy is waited for."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from auditor.dist import Processes, processes

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 2.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(case: str, *, world: int = 2, n_started: int | None = None) -> list[Any]:
    """Processes as a launcher that minds nobody would start them."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.meeting", case, str(TIMEOUT_S)],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world if n_started is None else n_started)
    ]


def ended(process: Any) -> tuple[int, Any]:
    """Exit code, and what was printed as JSON (None where nothing was)."""
    out, _ = process.communicate(timeout=90)
    return process.returncode, json.loads(out) if out.strip() else None


def test_one_process_needs_nobody() -> None:
    alone = processes()
    assert alone == Processes()
    alone.wait()
    assert alone.tell_all("x") == ["x"]
    assert alone.share([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("case", ["busy", "slow-steps"])
def test_who_shows_signs_of_life_is_waited_for(case: str) -> None:
    told = [ended(one) for one in started(case)]
    expected = [{"rank": rank, "local": rank} for rank in range(2)]
    assert told == [(0, expected), (0, expected)]


@pytest.mark.parametrize("case", ["silent", "dead", "stuck"])
def test_who_shows_none_is_named(case: str) -> None:
    first, last = started(case)
    try:
        code, said = ended(first)
        assert code == 2
        assert f"within --rank-timeout {TIMEOUT_S:g} s" in said
        assert f"rank 1 on {socket.gethostname()} showed none; last: case {case}" in said
        assert "every finished shard is kept" in said
    finally:
        last.send_signal(signal.SIGCONT)
        last.kill()
        last.communicate()


def test_an_error_is_shown_by_whom_it_befell_and_by_the_main_process() -> None:
    (code, said), (other_code, other) = (ended(one) for one in started("failed"))
    assert (code, other_code) == (2, 2)
    assert other.startswith("the disk must have room")
    assert "rank 1 on" in said
    assert "has stopped: the disk must have room" in said


def test_an_error_of_all_is_shown_once() -> None:
    (code, said), (other_code, other) = (ended(one) for one in started("all-failed"))
    assert (code, other_code) == (2, 2)
    assert said.startswith("the disk must have room")
    assert other is None


def test_a_defect_stops_the_others_at_once() -> None:
    first, last = started("defect")
    begin = time.monotonic()
    code, said = ended(first)
    assert code == 2
    assert "has stopped: by zero" in said
    _, trace = last.communicate(timeout=60)
    assert last.returncode == 1
    assert "ZeroDivisionError" in trace
    assert time.monotonic() - begin < 60


def test_a_process_that_never_comes() -> None:
    code, said = ended(started("plain", n_started=1)[0])
    assert code == 2
    assert "all 2 processes must meet at 127.0.0.1:" in said
    assert "--rank-timeout" in said
