"""Meetings of real processes: who is late is named, who is busy is waited for."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from auditor.dist import Processes, processes
from tests.forks import Forked
from tests.forks import started as meeting
from tests.meeting import play_and_tell

TIMEOUT_S = 2.0
Starter = Callable[..., list[Forked]]


@pytest.fixture
def started(tmp_path: Path) -> Starter:
    """Processes of which each plays a case."""

    def start(case: str, *, world: int = 2, n_started: int | None = None) -> list[Forked]:
        given = [case, str(TIMEOUT_S)]
        return meeting(play_and_tell, given, tmp_path / case, world=world, n_started=n_started)

    return start


def ended(process: Forked) -> tuple[int | None, Any]:
    """Exit code, and what was printed as JSON (None where nothing was)."""
    out, _ = process.ended(90.0)
    return process.returncode, json.loads(out) if out.strip() else None


def test_one_process_needs_nobody() -> None:
    alone = processes()
    assert alone == Processes()
    alone.wait()
    assert alone.tell_all("x") == ["x"]
    assert alone.share([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("case", ["busy", "slow-steps"])
def test_who_shows_signs_of_life_is_waited_for(case: str, started: Starter) -> None:
    told = [ended(one) for one in started(case)]
    expected = [{"rank": rank, "local": rank} for rank in range(2)]
    assert told == [(0, expected), (0, expected)]


@pytest.mark.parametrize("case", ["silent", "dead", "stuck"])
def test_who_shows_none_is_named(case: str, started: Starter) -> None:
    first, last = started(case)
    try:
        code, said = ended(first)
        assert code == 2
        assert f"within --rank-timeout {TIMEOUT_S:g} s" in said
        assert f"rank 1 on {socket.gethostname()} showed none; last: case {case}" in said
        assert "every finished shard is kept" in said
    finally:
        last.send_signal(signal.SIGCONT)
        last.send_signal(signal.SIGKILL)
        last.ended()


def test_an_error_is_shown_by_whom_it_befell_and_by_the_main_process(started: Starter) -> None:
    (code, said), (other_code, other) = (ended(one) for one in started("failed"))
    assert (code, other_code) == (2, 2)
    assert other.startswith("the disk must have room")
    assert "rank 1 on" in said
    assert "has stopped: the disk must have room" in said


def test_an_error_of_all_is_shown_once(started: Starter) -> None:
    (code, said), (other_code, other) = (ended(one) for one in started("all-failed"))
    assert (code, other_code) == (2, 2)
    assert said.startswith("the disk must have room")
    assert other is None


def test_a_defect_stops_the_others_at_once(started: Starter) -> None:
    first, last = started("defect")
    begin = time.monotonic()
    code, said = ended(first)
    assert code == 2
    assert "has stopped: by zero" in said
    _, trace = last.ended(60.0)
    assert last.returncode == 1
    assert "ZeroDivisionError" in trace
    assert time.monotonic() - begin < 60


def test_a_process_that_never_comes(started: Starter) -> None:
    code, said = ended(started("plain", n_started=1)[0])
    assert code == 2
    assert "all 2 processes must meet at 127.0.0.1:" in said
    assert "--rank-timeout" in said
