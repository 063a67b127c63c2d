"""How many threads this process may use: what it is given, shared with its neighbours.

torch starts a thread for every core of the machine. In a container that is given two cores of
sixty-four, sixty-four threads take turns on two; and several processes on one machine would each
start as many. `torchrun` guards against that with one thread a process, on any machine.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
# Whoever sets one of these has thought about it.
SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def allowed_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may run on: by affinity, and by the quota of its container.

    Args:
        cgroup: Where the kernel shows control groups; version 2, else version 1.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quotas = [quota for folder in _own(cgroup) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _own(cgroup: Path) -> list[Path]:
    """The control groups of version 2 that this process is in, and the mount point."""
    found = [cgroup]
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        path = Path(line.partition("::")[2].strip().lstrip("/"))
        # A container sees itself at the mount point, whatever its path outside.
        found += [cgroup / part for part in (path, *path.parents) if part != Path()]
    return found


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that a container gets, or None where it is not limited."""
    try:
        if (new := cgroup / "cpu.max").is_file():
            given, period = new.read_text(encoding="ascii").split()
        else:
            given = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        share = float(given) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is not a number
        return None
    return share if share > 0 else None


def n_threads(cores: int, environment: Mapping[str, str]) -> int | None:
    """Threads for this process, or None where the user has said so already.

    Args:
        cores: Cores that this process and its neighbours on the machine share.
        environment: What the launcher and the user have set.
    """
    n_local = int(environment.get("LOCAL_WORLD_SIZE") or 1)
    given = [environment[name] for name in SET_BY_USER if environment.get(name)]
    # torchrun and accelerate write a one themselves where nothing was set.
    by_launcher = n_local > 1 and given == ["1"] and environment.get("OMP_NUM_THREADS") == "1"
    if given and not by_launcher:
        return None
    return max(1, cores // n_local)


def set_threads() -> int:
    """Give torch the threads that this process may use; how many it has now."""
    import torch

    wanted = n_threads(allowed_cores(), os.environ)
    # More threads than torch chose by itself would be hyperthreads, which a product gains
    # nothing from.
    by_launcher = os.environ.get("OMP_NUM_THREADS") == "1"
    if wanted is not None and (by_launcher or wanted < torch.get_num_threads()):
        torch.set_num_threads(wanted)
    return torch.get_num_threads()
