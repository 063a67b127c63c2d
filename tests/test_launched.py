"""What launchers start gives what one process gives, byte for byte; what befalls it is mended."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from auditor.demo.letters import letters
from benchmarks.forked import contents
from tests.tiny import save, tiny_model

ROOT = Path(__file__).resolve().parent.parent
N_RECORDS = 240
LAUNCHERS = {
    1: (sys.executable,),
    2: (
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0"),
    ),
    5: (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "5"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two lists of letters."""
    folder = tmp_path_factory.mktemp("launched")
    save(tiny_model("llama", seed=1), folder / "model")
    texts = [text[:60] for text in letters(N_RECORDS, seed=3)]
    for name, part in (("members", texts[::2]), ("nonmembers", texts[1::2])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def arguments(folder: Path, output: Path) -> list[str]:
    return [
        *("audit", "--model", str(folder / "model")),
        *("--members", str(folder / "members.jsonl")),
        *("--nonmembers", str(folder / "nonmembers.jsonl")),
        *("--variants", "prune-magnitude:sparsity=0.5,cluster:k=4", "--settings", "NR"),
        *("--learners", "logistic", "--bootstrap", "100", "--fpr", "0.05"),
        *("--dtype", "float32", "--display", "plain", "--output-path", str(output)),
    ]


def launched(
    folder: Path, output: Path, *more: str, world: int = 1
) -> subprocess.CompletedProcess[str]:
    return ran([*LAUNCHERS[world], "-m", "auditor", *arguments(folder, output), *more], output)


def ran(command: list[str], output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "COMPLEAK_CACHE": str(output.with_name("cache")),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def environment_of(output: Path) -> Any:
    return json.loads((output / "audit.json").read_text())["environment"]


@pytest.fixture(scope="module")
def alone(given: Path) -> dict[str, Any]:
    """All files of a run by one process."""
    found = launched(given, given / "one")
    assert found.returncode == 0, found.stderr
    assert environment_of(given / "one")["n_processes"] == 1
    return contents(given / "one")


@pytest.mark.parametrize("world", [2, 5])
def test_as_many_processes_give_the_same_bytes(
    world: int, given: Path, alone: dict[str, Any]
) -> None:
    output = given / f"by{world}"
    found = launched(given, output, world=world)
    assert found.returncode == 0, found.stderr
    # A launcher that quietly starts one process would show nothing.
    assert environment_of(output)["n_processes"] == world
    together = contents(output)
    assert sorted(together) == sorted(alone)
    assert [name for name in alone if alone[name] != together[name]] == []
    # One process speaks for all of them.
    assert found.stdout.count("results in ") == 1


def test_bad_input_is_said_once(given: Path) -> None:
    found = launched(given, given / "bad", "--reference", "nowhere", world=2)
    assert found.returncode != 0
    assert found.stderr.count("error: ") == 1, found.stderr
    assert "nowhere" in found.stderr
    assert not (given / "bad").exists()


# The libraries take what they take; then so little more is allowed.
STARVED = """
import resource, sys
from auditor.environment import _status_bytes
from benchmarks.faults import load_libraries
load_libraries()
most = _status_bytes("VmSize") + 60 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
from auditor.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_memory_that_runs_out_is_one_error(given: Path) -> None:
    output = given / "starved"
    found = ran([sys.executable, "-c", STARVED, *arguments(given, output)], output)
    assert found.returncode == 2, found.stderr
    assert "error: memory must be enough for the audit" in found.stderr
    assert "Traceback" not in found.stderr


def test_what_was_killed_goes_on_to_the_same_files() -> None:
    """The benchmark of faults, one moment of each; its exit code says whether all was mended."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--moments", "1", "--only", "kill"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("\n| kill -9") == 3
