"""Memory that may still be taken: the least of what the machine has and every group allows."""

import errno
import sys
from pathlib import Path

import pytest
import torch

from auditor import memory
from auditor.errors import ConfigError, ShortageError
from auditor.memory import GIB, free_bytes, ran_out, shortage_is_said, spare_bytes


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as a kernel would show them: 40 GiB available, no control group."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable:   {40 * 2**20} kB\n")
    (tmp_path / "own").write_text("")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def add_group(folder: Path, limit: str, used: int, cache: int, *, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    first = version == 1
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{used}\n")
    key = "total_inactive_file" if first else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cache}\nfile 7\n")


def test_a_machine_without_groups(system: Path) -> None:
    assert free_bytes("cpu") == 40 * GIB
    assert spare_bytes("cpu") == 36 * GIB
    # Of little, a whole GiB is left.
    (system / "meminfo").write_text(f"MemAvailable: {3 * 2**20} kB\n")
    assert spare_bytes("cpu") == 2 * GIB
    (system / "meminfo").write_text("MemAvailable: 1024 kB\n")
    assert spare_bytes("cpu") == 0


def test_a_system_that_does_not_tell_has_none(system: Path) -> None:
    (system / "meminfo").unlink()
    assert free_bytes("cpu") == spare_bytes("cpu") == 0


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_group_decides(version: int, system: Path) -> None:
    """The job's own group is wide, the one that it lies in is not; what it caches can be freed."""
    line = "4:cpu,memory:/jobs/one\n" if version == 1 else "0::/jobs/one\n"
    (system / "own").write_text("12:pids:/elsewhere\n" + line)
    root = system / "groups" / ("memory" if version == 1 else "")
    no_limit = str(2**63 - 4096) if version == 1 else "max"
    add_group(root, no_limit, 50 * GIB, 0, version=version)
    add_group(root / "jobs", str(20 * GIB), 16 * GIB, 3 * GIB, version=version)
    add_group(root / "jobs/one", str(30 * GIB), 16 * GIB, 3 * GIB, version=version)
    assert free_bytes("cpu") == 7 * GIB
    add_group(root / "jobs/one", str(10 * GIB), 16 * GIB, 0, version=version)
    assert free_bytes("cpu") == 0


def test_a_container_is_limited_at_the_mount_point(system: Path) -> None:
    """Its path is that of the host, of which it sees nothing but its own part."""
    (system / "own").write_text("0::/system.slice/docker-1a2b.scope\n")
    add_group(system / "groups", str(8 * GIB), 2 * GIB, GIB, version=2)
    assert free_bytes("cpu") == 7 * GIB


def test_processes_on_one_machine_share_it(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del system
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert free_bytes("cpu") == 5 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes("cpu") == 10 * GIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
def test_this_machine_tells() -> None:
    assert 0 < free_bytes("cpu") < 2**50


@pytest.mark.gpu
def test_what_torch_keeps_on_a_gpu_and_does_not_use_is_free() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.empty_cache()
    before = free_bytes("cuda")
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    assert before - free_bytes("cuda") == pytest.approx(GIB, rel=0.1)
    del held
    assert free_bytes("cuda") == pytest.approx(before, rel=0.05)


def test_what_was_raised_from_a_shortage_is_one() -> None:
    error = ValueError("could not load")
    assert not ran_out(error)
    error.__cause__ = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert ran_out(error)
    assert not ran_out(OSError(errno.ENOSPC, "No space left on device"))


def test_only_a_shortage_is_said_as_one() -> None:
    with pytest.raises(ShortageError, match="memory must be enough") as found, shortage_is_said():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes\nmore")
    assert "you tried 9 bytes" in found.value.seen
    assert "more" not in found.value.seen
    with pytest.raises(RuntimeError, match="a defect"), shortage_is_said():
        raise RuntimeError("a defect")
    # What says already what to do is left as it is.
    with pytest.raises(ConfigError), shortage_is_said():
        raise ConfigError("out of memory") from MemoryError()
