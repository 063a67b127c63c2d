"""What must hold for any input whatever.

It is read, or refused by an error that is the user's to mend: no traceback, no hang over a second,
memory bounded, and after a refusal the output folder is as it was.
"""

import atexit
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from auditor.errors import CompleakError
from tests.fuzz.mutations import Kind

# Of processor time, so that what else runs on the machine is not held against an input.
SECONDS = 1.0
# Where it is stopped. Later than a hang, for a first input may import a library, which is slow and
# must not be cut short; what takes too much is read again, and the least counts.
STOP_SECONDS = 10.0
TRIES = 3
# What one input may hold beyond what the process held before.
MOST_BYTES = 256 * 2**20
# An error is read by a person: it never repeats a whole file.
MOST_LETTERS = 4000
# In memory, where the machine has such a place: a write to a disk takes longer than a parser.
SHM = Path("/dev/shm")


class Target(NamedTuple):
    """One parser.

    Attributes:
        run: Reads an input; a CompleakError refuses it, any other error is a finding. A good
            result may be checked further, by assertions.
        seeds: Makes valid inputs, to be made wrong.
        kind: What is known of their structure.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    kind: Kind


class Hang(BaseException):
    """An input took longer than it may; no `except Exception` catches it."""


class Broken(AssertionError):
    """The property does not hold for an input."""


class Cost(NamedTuple):
    """What an input took: processor time, and memory beyond what was held."""

    seconds: float
    n_bytes: int


class Place(NamedTuple):
    """Where a target writes its input to, and the folder that a refusal must leave as it was."""

    inputs: Path
    output: Path


_places: list[Place] = []


def place() -> Place:
    """The folders of this process; removed at its end."""
    if not _places:
        root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=SHM if SHM.is_dir() else None))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        found = Place(root / "in", root / "out")
        for folder in found:
            folder.mkdir()
        _places.append(found)
    return _places[0]


def given(name: str, data: bytes) -> Path:
    """The input as a file of this name."""
    path = place().inputs / name
    path.write_bytes(data)
    return path


def check(target: Target, data: bytes, *, stop_s: float = STOP_SECONDS) -> bool:
    """Whether a target takes an input or refuses it, as it must.

    Args:
        target: The parser.
        data: The input.
        stop_s: Processor time after which it is stopped.

    Raises:
        Exception: The property does not hold.
        Hang: It took too long.
    """
    output = place().output
    before = _listed(output)
    refused, cost = _tried(target, data, stop_s)
    for _ in range(TRIES - 1):
        if cost.seconds > SECONDS or cost.n_bytes > MOST_BYTES:
            cost = Cost(*map(min, cost, _tried(target, data, stop_s)[1]))
    if cost.seconds > SECONDS:
        raise Hang(f"the quickest of {TRIES} tries took {cost.seconds:.1f} s")
    if cost.n_bytes > MOST_BYTES:
        raise Broken(f"it took {cost.n_bytes / 2**20:,.0f} MiB")
    if refused is None:
        return True
    if len(str(refused)) > MOST_LETTERS:
        raise Broken(f"an error of {len(str(refused)):,} letters: {refused!s:.200}")
    if _listed(output) != before:
        raise Broken(f"it was refused, and wrote: {refused!s:.200}")
    return False


def _tried(target: Target, data: bytes, stop_s: float) -> tuple[CompleakError | None, Cost]:
    """The refusal, if it is one, and what the input took."""
    refused: CompleakError | None = None
    held, begin = _peak_bytes(reset=True), time.process_time()
    try:
        with _no_longer_than(stop_s):
            target.run(data)
    except CompleakError as error:
        refused = error
    return refused, Cost(time.process_time() - begin, _peak_bytes() - held)


def _listed(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def _peak_bytes(*, reset: bool = False) -> int:
    """The most that the process has held since it was set back to what it holds."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"over {seconds:g} s")

    before = signal.signal(signal.SIGPROF, late)
    # Again and again: what is raised in a __del__ is swallowed.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
