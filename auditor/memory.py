"""How much memory a model may still take: on this machine, in its container, on a GPU.

Nothing is guessed: where the system does not tell, there is said to be none. Where it runs out all
the same, that is told apart from other errors here, and said to the user.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from auditor.errors import CompleakError, ShortageError, first_line

MEMINFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
GIB = 2**30
# Of what is free this much is left alone, for batches and for whoever else runs here.
ROOM_SHARE, ROOM_BYTES = 0.1, GIB
# How libraries say that memory ran out, in errors that are of no class of their own.
SHORTAGES = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
)
# More than a library of linear algebra takes for itself in each of its threads.
BUFFER_BYTES = 64 * 2**20


class Names(NamedTuple):
    """What a version of the kernel's control groups calls its files.

    Attributes:
        folder: Below the mount point.
        limit: Bytes at most, or a word.
        used: Bytes held, the page cache among them.
        cache: In `memory.stat`, bytes of the page cache that would be given back.
    """

    folder: str
    limit: str
    used: str
    cache: str


FIRST = Names("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
SECOND = Names("", "memory.max", "memory.current", "inactive_file")


def spare_bytes(device: str) -> int:
    """Bytes that may be taken on a device so that at least 1 GiB, and a tenth, stays free there.

    Args:
        device: "cpu", "cuda" or "cuda:N".
    """
    free = free_bytes(device)
    return max(0, free - max(ROOM_BYTES, int(free * ROOM_SHARE)))


def free_bytes(device: str) -> int:
    """Bytes that are free on a device; on a host, this process's share of them.

    Args:
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        0 where the system does not tell.
    """
    if device.startswith("cuda"):
        import torch

        # What torch keeps for itself and does not use is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    free = min([_available(), *_allowed()])
    # Processes that were started together ask together.
    return free // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)


def _available() -> int:
    """What the kernel would give without swapping; 0 where it is another kernel."""
    with suppress(OSError):
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _allowed() -> Iterator[int]:
    """What is left to every control group that this process is in, by either version's files."""
    with suppress(OSError):
        for line in OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            names = FIRST if controllers else SECOND
            own = Path(path.lstrip("/"))
            for part in (own, *own.parents):
                # A container sees itself at the mount point, whatever its path outside.
                with suppress(OSError, ValueError):
                    yield _left(CGROUPS / names.folder / part, names)


def _left(folder: Path, names: Names) -> int:
    """Bytes left to one group.

    Raises:
        OSError: There is no such group here.
        ValueError: It has no limit.
    """
    limit = int((folder / names.limit).read_text(encoding="ascii"))
    used = int((folder / names.used).read_text(encoding="ascii"))
    figures = dict(
        line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    )
    return max(0, limit - used + int(figures.get(names.cache, 0)))


# -- where it ran out -----------------------------------------------------------------------------


def ran_out(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, means that memory ran out anywhere."""
    cause: BaseException | None = error
    while cause is not None:
        # torch's class is looked for by its name, so that it need not be imported.
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        if isinstance(cause, OSError | RuntimeError | ImportError) and any(
            sign in str(cause) for sign in SHORTAGES
        ):
            return True
        cause = cause.__cause__
    return False


@contextmanager
def shortage_is_said() -> Iterator[None]:
    """Inside, memory that runs out where nothing can make up for it is an error for the user.

    Raises:
        ShortageError: It ran out.
    """
    try:
        yield
    except CompleakError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise ShortageError(
            "memory must be enough for the audit",
            seen=f"it ran out: {first_line(error)}",
            fix="free some, raise the limit of this job, or choose --dtype bfloat16, a lower "
            "--batch-size or fewer variants; the same command goes on: all that was stored is kept",
        ) from error


def take_buffers() -> None:
    """Have the libraries of linear algebra take now what they keep for themselves.

    Each takes a buffer for each thread at its first product and keeps it. OpenBLAS, where there is
    none to be had, tries for ever: an audit would hang after hours of scoring.

    Raises:
        OSError: There is no memory for it.
    """
    import numpy as np
    from scipy.linalg.blas import dgemm
    from threadpoolctl import threadpool_info

    n_threads = max((library["num_threads"] for library in threadpool_info()), default=1)
    square = np.ones((512, 512))
    for product in (np.matmul, lambda a, b: dgemm(1.0, a, b)):
        mmap.mmap(-1, BUFFER_BYTES * n_threads).close()
        product(square, square)
