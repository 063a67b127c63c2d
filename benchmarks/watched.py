"""A process watched from outside: its resident memory over time, and what it says it is at."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import NamedTuple

EVERY_S = 0.5


class Sample(NamedTuple):
    """One look at a process.

    Attributes:
        at: Seconds of the clock.
        resident: Bytes of the main process.
        workers: Bytes of the processes that it started, shared pages counted in each.
        cpu_s: Seconds of a processor that it has had so far; others on the machine do not count.
        stage: What it was at.
    """

    at: float
    resident: int
    workers: int
    cpu_s: float
    stage: str


class Ran(NamedTuple):
    """One process from its start to its end.

    Attributes:
        begin: Seconds of the clock.
        end: The same.
        samples: What was seen between them.
    """

    begin: float
    end: float
    samples: list[Sample]


class Watched:
    """A command in a process of its own, watched while it runs.

    Args:
        command: The command; what it says on its standard error is passed on with the seconds.
        stages: The stage that begins with a line, by the line's first letters.
    """

    def __init__(self, command: Sequence[str], stages: Mapping[str, str]) -> None:
        self._stages = stages
        self._stage = "start"
        self._samples: list[Sample] = []
        self.begin = time.time()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._heard = Thread(target=self._hear, daemon=True)
        self._heard.start()

    def _hear(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(f"{time.time() - self.begin:8.1f}  {line}")
            named = [stage for word, stage in self._stages.items() if line.startswith(word)]
            self._stage = named[0] if named else self._stage

    def until(self, is_enough: Callable[[], bool]) -> Ran:
        """Watch until it ends, or kill it where that is enough.

        Raises:
            RuntimeError: It failed.
        """
        while self._process.poll() is None:
            if resident := resident_bytes(self._process.pid):
                workers = sum(map(resident_bytes, children(self._process.pid)))
                used = cpu_seconds(self._process.pid)
                self._samples.append(Sample(time.time(), resident, workers, used, self._stage))
            if is_enough():
                self._process.send_signal(signal.SIGKILL)
            time.sleep(EVERY_S)
        end = time.time()
        self._heard.join()
        if self._process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the command ended with exit code {self._process.returncode}")
        return Ran(self.begin, end, self._samples)


def resident_bytes(process: int) -> int:
    """Resident memory of a process; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(process: int) -> float:
    """Processor time of a process, all its threads together; 0 where it is gone."""
    try:
        found = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except OSError:
        return 0.0
    # Of the fields after the name, which may hold spaces, the 12th and 13th: user and system.
    return sum(map(int, found.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def children(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    path = Path(f"/proc/{process}/task/{process}/children")
    try:
        found = [int(word) for word in path.read_text(encoding="ascii").split()]
    except OSError:
        return []
    return [*found, *(below for one in found for below in children(one))]
