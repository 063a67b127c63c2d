"""How many threads a process takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from auditor.scoring.threads import allowed_cores, n_threads


@pytest.mark.parametrize(
    ("cores", "environment", "expected"),
    [
        (64, {}, 64),
        (2, {}, 2),
        (64, {"LOCAL_WORLD_SIZE": "8"}, 8),
        (64, {"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "1"}, 8),  # torchrun's own caution
        (64, {"LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "3"}, None),
        (64, {"OMP_NUM_THREADS": "1"}, None),
        (64, {"MKL_NUM_THREADS": "4"}, None),
        (2, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 1),
        (2, {"LOCAL_WORLD_SIZE": "5"}, 1),
        (64, {"OMP_NUM_THREADS": ""}, 64),
    ],
)
def test_processes_share_the_cores_unless_the_user_said_otherwise(
    cores: int, environment: dict[str, str], expected: int | None
) -> None:
    assert n_threads(cores, environment) == expected


def test_a_quota_counts_and_a_broken_file_does_not(tmp_path: Path) -> None:
    everything = allowed_cores(tmp_path)
    assert everything >= 1
    for content, expected in (
        ("max 100000\n", everything),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("6400000 100000\n", everything),
        ("rubbish\n", everything),
    ):
        (tmp_path / "cpu.max").write_text(content, encoding="ascii")
        assert allowed_cores(tmp_path) == expected


def test_the_first_kind_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n", encoding="ascii")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n", encoding="ascii")
    everything = allowed_cores(tmp_path)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n", encoding="ascii")
    assert (everything >= 1, allowed_cores(tmp_path)) == (True, 1)


def test_one_core_gives_torch_one_thread() -> None:
    code = (
        "import os\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from auditor.scoring.threads import set_threads\n"
        "import torch; torch.set_num_threads(2)\n"
        "print(set_threads(), torch.get_num_threads())"
    )
    import os

    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
    )
    assert ran.stdout.split() == ["1", "1"]
