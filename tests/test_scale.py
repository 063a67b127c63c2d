"""Recipes from one GPU to several machines: each is read by its own reader, the job really runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from auditor import recipes
from auditor.cli import main
from auditor.demo.letters import letters
from auditor.devices import must_be_supported
from tests.conftest import write_records
from tests.tiny import save, tiny_model

ROOT = Path(__file__).resolve().parent.parent
JOB = ROOT / "recipes" / "slurm" / "audit.sbatch"
FILES = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
N_RECORDS = 120
# What the job asks of Slurm, on one machine: `srun` runs its step here, `scancel` signals all the
# step's processes, `scontrol` knows the machine and notes down what it is told to queue again.
SLURM = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\necho $$ >"$STEP"\nSLURM_NODEID=0 exec "$@"',
    "scancel": 'step=$(<"$STEP")\nkill -TERM "$step" $(pgrep -P "$step")',
    "scontrol": 'if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >>"$STEP.queued"; fi',
}


@pytest.mark.parametrize("name", ["single-gpu", "multi-gpu", "multi-node"])
def test_the_recipes_are_recipes_and_name_what_is_there(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    for path in re.findall(r"recipes/[\w/.-]+\.(?:yaml|sbatch)", text):
        assert (ROOT / path).is_file(), path
    config = recipes.configure(dict(FILES), recipe=name)
    assert (config.device, config.device_map, config.dtype) == ("auto", "single", "auto")
    must_be_supported(config, {"WORLD_SIZE": "16", "ACCELERATE_MIXED_PRECISION": "no"})
    assert main(["list", "recipes"]) == 0
    assert re.search(rf"^{name} +\w", capsys.readouterr().out, flags=re.MULTILINE)


def test_what_lies_beside_the_recipes_is_none() -> None:
    assert {path.stem for path in CONFIGS} == {"eight-gpus", "two-machines"}
    assert not {path.stem for path in CONFIGS} & recipes.names().keys()
    with pytest.raises(Exception, match="a recipe must be one of those that exist"):
        recipes.load("accelerate")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    config: Any = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type.value == "MULTI_GPU"
    assert config.num_processes == 8 * config.num_machines
    # Autocast and slices of weights are what an audit must not be launched with.
    assert config.mixed_precision == "no"
    assert not (config.fsdp_config or config.deepspeed_config or config.parallelism_config)
    assert config.use_cpu is False


def test_they_are_packed_with_the_program() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["recipes"] == "auditor/_recipes"
    assert {"recipes", "docs"} <= set(build["sdist"]["include"])


def test_the_job_is_a_script_that_slurm_reads() -> None:
    subprocess.run(["bash", "-n", str(JOB)], check=True, timeout=20)
    lines = JOB.read_text(encoding="utf-8").splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--ntasks-per-node=1", "--signal=B:TERM@300", "--requeue"} <= set(asked)
    # Slurm stops reading at the first command.
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < first


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two lists of letters, and a machine of a Slurm cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    save(tiny_model("llama", seed=1), folder / "model")
    texts = [text[:60] for text in letters(N_RECORDS, seed=3)]
    write_records(folder / "members.jsonl", texts[::2])
    write_records(folder / "nonmembers.jsonl", texts[1::2])
    (folder / "bin").mkdir()
    for name, does in SLURM.items():
        path = folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{does}\n")
        path.chmod(0o755)
    return folder


def start(folder: Path, *, gpus: int) -> "subprocess.Popen[str]":
    """The job, as Slurm starts it on one machine with so many GPUs (that it does not look for)."""
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}"
    return subprocess.Popen(
        [
            *(str(JOB), "audit", "--model", "model"),
            *("--members", "members.jsonl", "--nonmembers", "nonmembers.jsonl"),
            *("--variants", "prune-magnitude:sparsity=0.5", "--settings", "NR"),
            *("--learners", "logistic", "--bootstrap", "100", "--fpr", "0.05"),
            *("--dtype", "float32", "--display", "plain", "--output-path", "run"),
        ],
        cwd=folder,
        env={
            **{key: value for key, value in os.environ.items() if key not in ("HF_HOME", "TMPDIR")},
            "PATH": path + os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "STEP": str(folder / "step"),
            "COMPLEAK_CACHE": str(folder / "cache"),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": str(10_000 * (os.getpid() % 10) + os.getpid()),
            "SLURM_JOB_NODELIST": "here",
            "SLURM_NNODES": "1",
            "SLURM_GPUS_ON_NODE": str(gpus),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_queued_again_and_goes_on(submitted: Path) -> None:
    """One process is told that the time is over; two processes of another job do what is left."""
    job = start(submitted, gpus=1)
    deadline = time.monotonic() + 120
    while not list(submitted.glob("run/tokens/*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode not in (0, 2), printed
    assert "the same command goes on where this one stopped" in printed
    assert not (submitted / "run" / "audit.json").exists()
    queued = (submitted / "step.queued").read_text().splitlines()
    assert len(queued) == 1
    assert queued[0].startswith("requeue ")
    kept = {path: path.stat().st_mtime_ns for path in submitted.glob("run/tokens/*/*.parquet")}

    again = start(submitted, gpus=2)
    printed, _ = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    result = json.loads((submitted / "run" / "audit.json").read_text())
    assert result["environment"]["n_processes"] == 2
    assert kept
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()
    assert len((submitted / "step.queued").read_text().splitlines()) == 1
    assert not list((submitted / "tmp").iterdir())
