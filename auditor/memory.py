"""How much memory a model may still take: on this machine, in its container, on a GPU.

Nothing is guessed: where the system does not tell, there is said to be none.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MEMINFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
GIB = 2**30
# Of what is free this much is left alone, for batches and for whoever else runs here.
ROOM_SHARE, ROOM_BYTES = 0.1, GIB


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
