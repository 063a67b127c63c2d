"""What must hold for any input whatever.

It is read, or refused by an error that is the user's to mend: no traceback, no hang over a second,
memory bounded, and after a refusal the output folder is as it was.
"""

import atexit
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from auditor.errors import CompleakError
from tests.fuzz.mutations import Kind

# Of processor time, so that what else runs on the machine is not held against an input.
SECONDS = 1.0
# What one input may add to the most that the process has ever held.
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


def check(target: Target, data: bytes) -> bool:
    """Whether a target takes an input or refuses it, as it must.

    Raises:
        Exception: The property does not hold.
        Hang: It took too long.
    """
    output = place().output
    before, held = _listed(output), _peak_bytes()
    refused: CompleakError | None = None
    try:
        with _no_longer_than(SECONDS):
            target.run(data)
    except CompleakError as error:
        refused = error
    if (added := _peak_bytes() - held) > MOST_BYTES:
        raise Broken(f"it took {added / 2**20:,.0f} MiB")
    if refused is None:
        return True
    if len(str(refused)) > MOST_LETTERS:
        raise Broken(f"an error of {len(str(refused)):,} letters: {refused!s:.200}")
    if _listed(output) != before:
        raise Broken(f"it was refused, and wrote: {refused!s:.200}")
    return False


def _listed(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"over {seconds:g} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
