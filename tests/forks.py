"""The command line in processes of their own, forked from one that has the libraries loaded.

To import them takes ten seconds of processor time, and an audit of a tiny model one. The process
that is forked has computed nothing, so that each of its children begins as a fresh one does, but
for its imports; what is promised of those is tested in interpreters of their own.
"""

import atexit
import multiprocessing
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.forked import LIBRARIES

# Of all tests: a process has one that it forks from, and that loads what was asked for last.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*LIBRARIES])


class Forked:
    """One process.

    Args:
        call: What it does, told the arguments; its value is the exit code.
        arguments: Of the call.
        log: A file's stem for what it prints.
        environment: Variables besides those of this process.
        limits: Limits by `resource.RLIMIT_*`.
    """

    def __init__(
        self,
        call: Callable[[list[str]], int],
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        limits: Mapping[int, int] | None = None,
    ) -> None:
        self._files = log.with_name(f"{log.name}.out"), log.with_name(f"{log.name}.err")
        given = {**os.environ, **(environment or {})}
        self._process = CONTEXT.Process(
            target=_child, args=(call, [*arguments], self._files, given, limits or {})
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.returncode is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def ended(self, timeout: float = 120.0) -> tuple[str, str]:
        """Wait for its end; returns what it wrote to stdout and to stderr."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutError(f"no end after {timeout:g} s: {self._files[1].read_text()[-2000:]}")
        out, err = (path.read_text(errors="replace") for path in self._files)
        return out, err


def started(
    call: Callable[[list[str]], int],
    arguments: Sequence[str],
    log: Path,
    *,
    world: int,
    n_started: int | None = None,
) -> list[Forked]:
    """Processes that meet, as a launcher that minds nobody would start them.

    Args:
        call: As for `Forked`.
        arguments: As for `Forked`.
        log: As for `Forked`; the rank is added to it.
        world: How many there are said to be.
        n_started: How many there are; all, if it is not given.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    numbers = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    same = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}
    return [
        Forked(
            call,
            arguments,
            log.with_name(f"{log.name}.{rank}"),
            environment={**same, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world if n_started is None else n_started)
    ]


def command(arguments: list[str]) -> int:
    """`compleak-llm`."""
    from auditor.cli import main

    return main(arguments)


def in_small_shards(arguments: list[str]) -> int:
    """`compleak-llm` with many small shards, so that a signal hits in the middle of a version."""
    from auditor import store

    store.SHARD_TOKENS = 400
    return command(arguments)


def _child(
    call: Callable[[list[str]], int],
    arguments: list[str],
    files: tuple[Path, Path],
    environment: dict[str, str],
    limits: dict[int, int],
) -> None:
    """Be the program, and never come back."""
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    code = 1
    atexit._clear()  # what the process that is forked tidies up is not this one's to tidy
    try:
        # The process that is forked fails to import in silence.
        assert sys.modules.keys() >= {*LIBRARIES}, {*LIBRARIES} - sys.modules.keys()
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for what, most in limits.items():
            resource.setrlimit(what, (most, most))
        code = call(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter would show it
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
