"""Several processes give what one gives, byte for byte; what befalls them is mended."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from auditor.demo.letters import letters
from auditor.environment import _status_bytes
from benchmarks.forked import contents
from tests.forks import Forked, command, started
from tests.tiny import save, tiny_model

ROOT = Path(__file__).resolve().parent.parent
N_RECORDS = 240
LAUNCHER = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
    *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
    *("--dynamo_backend", "no", "--main_process_port", "0"),
)

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


def together(folder: Path, output: Path, *, world: int) -> tuple[list[int | None], str]:
    """So many processes, without a launcher: their exit codes, and what all of them said."""
    log = output.with_name(f"{output.name}-said")
    processes = started(command, arguments(folder, output), log, world=world)
    said = "".join("".join(one.ended(300.0)) for one in processes)
    return [one.returncode for one in processes], said


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
    codes, said = together(given, given / "one", world=1)
    assert codes == [0], said
    assert environment_of(given / "one")["n_processes"] == 1
    return contents(given / "one")


def must_equal(output: Path, alone: dict[str, Any], *, world: int, said: str) -> None:
    # A launcher that quietly starts one process would show nothing.
    assert environment_of(output)["n_processes"] == world
    found = contents(output)
    assert sorted(found) == sorted(alone)
    assert [name for name in alone if alone[name] != found[name]] == []
    # One process speaks for all of them.
    assert said.count("results in ") == 1


def test_two_that_a_launcher_starts_give_the_same_bytes(given: Path, alone: dict[str, Any]) -> None:
    found = ran([*LAUNCHER, "-m", "auditor", *arguments(given, given / "by2")], given / "by2")
    assert found.returncode == 0, found.stderr
    must_equal(given / "by2", alone, world=2, said=found.stdout)


def test_five_processes_give_the_same_bytes(given: Path, alone: dict[str, Any]) -> None:
    codes, said = together(given, given / "by5", world=5)
    assert codes == [0] * 5, said
    must_equal(given / "by5", alone, world=5, said=said)


def test_bad_input_is_said_once(given: Path) -> None:
    flags = [*arguments(given, given / "bad"), "--reference", "nowhere"]
    found = ran([*LAUNCHER, "-m", "auditor", *flags], given / "bad")
    assert found.returncode != 0
    assert found.stderr.count("error: ") == 1, found.stderr
    assert "nowhere" in found.stderr
    assert not (given / "bad").exists()


def starved(arguments: list[str]) -> int:
    """The libraries take what they take; then so little more is allowed."""
    most = _status_bytes("VmSize") + 60 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return command(arguments)


def test_memory_that_runs_out_is_one_error(given: Path) -> None:
    output = given / "starved"
    process = Forked(starved, arguments(given, output), given / "starved-said")
    _, said = process.ended()
    assert process.returncode == 2, said
    assert "error: memory must be enough for the audit" in said
    assert "Traceback" not in said


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
