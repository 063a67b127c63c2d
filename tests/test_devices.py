"""What `--device-map auto` may take of a machine, and which ways of launching are refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auditor import AuditConfig, cli
from auditor.devices import (
    UNITS,
    Spread,
    gib,
    must_be_supported,
    n_bytes,
    parse_max_memory,
    settle,
)
from auditor.errors import ConfigError
from auditor.memory import free_bytes

FILES = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
GIB = 2**30
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def config(**given: Any) -> AuditConfig:
    return AuditConfig.model_validate({**FILES, **given})


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("20GiB", 20 * GIB),
        ("20gib", 20 * GIB),
        ("20 GB", 20 * 10**9),
        ("1.5KiB", 1536),
        ("123456", 123456),
        ("7B", 7),
        ("0.1TB", 10**11),
        ("123456789012345678", 123456789012345678),
    ],
)
def test_a_size_means_what_it_says(said: str, meant: int) -> None:
    assert n_bytes(said) == meant


@given(st.integers(1, 10**18 - 1), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_whole_sizes_are_exact_to_the_byte(number: int, unit: str, space: str) -> None:
    assert n_bytes(f"{number}{space}{unit}") == number * UNITS[unit]


@given(st.one_of(st.text(max_size=30), st.from_regex(r"\A[0-9.]{1,400} ?[A-Za-z]*\Z")))
def test_whatever_else_is_said_is_a_size_above_nothing_or_one_error(said: str) -> None:
    try:
        assert n_bytes(said) > 0
    except ConfigError as error:
        assert "20GiB" in error.fix


@pytest.mark.parametrize(
    "said", ["", "0", "0GiB", "-1GiB", "GiB", "1.GiB", "20 gigs", "²GB", "9" * 400]
)
def test_a_size_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match="a number above 0 and a unit"):
        n_bytes(said)


def test_a_size_for_a_reader() -> None:
    assert gib(3 * GIB // 2) == "1.5 GiB"
    assert gib(300 * 1024) == "0.3 MiB"


# -- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "0=20GiB, 1=10GiB,cpu=60GiB,",
        "cuda:0=20GiB,cuda:01=10GiB,cpu=60GiB",
        {0: "20GiB", 1: "10GiB", "cpu": "60GiB"},
        {"cuda:0": "20GiB", "1": "10GiB", "cpu": "60GiB"},
    ],
)
def test_a_flag_and_a_recipe_say_the_same(said: Any) -> None:
    assert config(max_memory=said).max_memory == {"0": "20GiB", "1": "10GiB", "cpu": "60GiB"}


@pytest.mark.parametrize(
    ("said", "must"),
    [
        ("0=20GiB,0=10GiB", "name a device once"),
        ("0=20GiB,cuda:0=10GiB", "name a device once"),
        ({0: "1GiB", "0": "1GiB"}, "name a device once"),
        ("gpu=20GiB", "name GPUs by their number, and cpu"),
        ("disk=20GiB", "name GPUs by their number, and cpu"),
        ("-1=20GiB", "name GPUs by their number, and cpu"),
        ("²=20GiB", "name GPUs by their number, and cpu"),
        ("9" * 5000 + "=20GiB", "name GPUs by their number, and cpu"),
        ("20GiB", "name GPUs by their number, and cpu"),
        ("cpu", "a number above 0 and a unit"),
        ({"cpu": None}, "a number above 0 and a unit"),
    ],
)
def test_devices_and_sizes_that_cannot_be(said: Any, must: str) -> None:
    with pytest.raises(ConfigError, match=must):
        config(max_memory=said)


@given(st.dictionaries(st.sampled_from(["cpu", *map(str, range(20))]), st.integers(1, 10**15)))
def test_what_is_written_is_read_again(sizes: dict[str, int]) -> None:
    said = ",".join(f"{name}={size}" for name, size in sizes.items())
    found = parse_max_memory(said)
    assert {name: n_bytes(size) for name, size in found.items()} == sizes


def test_what_is_no_such_thing_is_left_to_the_schema() -> None:
    with pytest.raises(ValueError, match="max_memory"):
        config(max_memory=[1])


def test_the_first_gpu_takes_the_tokens_and_the_processor_where_there_is_none() -> None:
    spread = Spread(((2, GIB), (10, GIB), ("cpu", GIB)))
    assert (spread.main, spread.gpus) == ("cuda:2", ("cuda:2", "cuda:10"))
    assert (Spread((("cpu", GIB),)).main, Spread((("cpu", GIB),)).gpus) == ("cpu", ())


# -- what a machine has ---------------------------------------------------------------------------


def test_named_sizes_are_taken_as_they_are() -> None:
    found = settle(config(device_map="auto", max_memory="cpu=3GiB", offload_folder="~/off"))
    assert found == Spread((("cpu", 3 * GIB),), Path.home() / "off")


@no_gpu
def test_without_sizes_what_is_free_less_some_room_is_taken() -> None:
    free = free_bytes("cpu")
    ((name, size),) = settle(config(device_map="auto")).max_memory
    assert name == "cpu"
    # What others take meanwhile is not this test's affair.
    assert size == pytest.approx(max(0, free - max(GIB, free // 10)), abs=GIB / 2)


@pytest.mark.parametrize(
    ("given", "must"),
    [
        ({"device": "cuda:0"}, "--device-map auto chooses the devices itself"),
        ({"max_memory": "4096=1GiB"}, "must name devices of this machine"),
        ({"max_memory": "0=1GiB", "device": "cpu"}, "must name devices of this machine"),
    ],
)
def test_devices_that_contradict_each_other(given: dict[str, str], must: str) -> None:
    with pytest.raises(ConfigError, match=must):
        settle(config(device_map="auto", **given))


@no_gpu
def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(ConfigError, match="--device cuda needs a GPU"):
        settle(config(device_map="auto", device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_free_memory_less_some_room_is_taken_and_gpus_come_first() -> None:
    found = settle(config(device_map="auto"))
    assert found.main == "cuda:0"
    assert found.max_memory[-1][0] == "cpu"
    assert 0 < found.max_memory[0][1] < torch.cuda.mem_get_info(0)[1]
    with pytest.raises(ConfigError, match="must have a GPU in --max-memory"):
        settle(config(device_map="auto", device="cuda", max_memory="cpu=1GiB"))


# -- ways of launching ----------------------------------------------------------------------------

REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG_TP_SIZE": "tensor parallelism",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "FSDP",
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism",
}


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("device_map", ["single", "auto"])
def test_what_needs_all_processes_in_step_is_refused_by_name(key: str, device_map: str) -> None:
    chosen = "true" if key.startswith("ACCELERATE") else "2"
    with pytest.raises(ConfigError) as found:
        must_be_supported(config(device_map=device_map), {key: chosen, "WORLD_SIZE": "2"})
    assert found.value.must.startswith(REFUSED[key])
    assert f"{key}={chosen}" in found.value.seen
    assert "--device-map auto" in found.value.fix
    assert "MULTI_GPU" in found.value.fix


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "0"},
        {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "4", "PARALLELISM_CONFIG_TP_SIZE": "1"},
        {"PARALLELISM_CONFIG_TP_SIZE": "", "WORLD_SIZE": ""},
    ],
)
def test_whole_copies_are_no_matter(environment: dict[str, str]) -> None:
    must_be_supported(config(), environment)


def test_a_launcher_and_auto_exclude_each_other_and_one_process_is_none() -> None:
    must_be_supported(config(device_map="auto"), {"WORLD_SIZE": "1"})
    with pytest.raises(ConfigError, match="--device-map auto is for one process") as found:
        must_be_supported(config(device_map="auto"), {"WORLD_SIZE": "4"})
    assert "4 processes" in found.value.seen
    assert "group of devices is not supported by Accelerate" in found.value.seen
    assert "without the launcher" in found.value.fix
    assert "leave --device-map out" in found.value.fix


@pytest.mark.parametrize("given", [{"max_memory": "cpu=1GiB"}, {"offload_folder": "off"}])
def test_sizes_and_folders_are_for_auto_alone(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is of no use while the whole model goes to one device"):
        must_be_supported(config(**given), {})
    must_be_supported(config(device_map="auto", **given), {})


@pytest.mark.parametrize("more", [("--device-map", "auto"), ("--frobnicate",)])
def test_one_process_of_a_machine_says_what_all_of_them_see(
    more: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "LINGER_S", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    flags = [f"--{name}={value}" for name, value in FILES.items()]
    for rank, n_errors in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert cli.main(["audit", *flags, f"--output-path={tmp_path / 'run'}", *more]) == 2
        assert capsys.readouterr().err.count("error: ") == n_errors


ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_sharding_strategy: FULL_SHARD}
num_machines: 1
num_processes: 2
use_cpu: true
mixed_precision: 'no'
"""


@pytest.mark.parametrize("way", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_real_processes_end_with_one_error(way: str, tmp_path: Path) -> None:
    settings = tmp_path / "fsdp.yaml"
    settings.write_text(ACCELERATE)
    launch, more, must = {
        "torchrun": (
            ("torch.distributed.run", "--nproc-per-node", "2"),
            ("--device-map", "auto"),
            "error: --device-map auto is for one process",
        ),
        "accelerate": (
            ("accelerate.commands.launch", "--config_file", str(settings)),
            (),
            "error: FSDP cannot be used by an audit",
        ),
    }[way]
    flags = [f"--{name}={value}" for name, value in FILES.items()]
    flags.append(f"--output-path={tmp_path / 'run'}")
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "auditor", "audit", *flags, *more],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("error: ") == 1
    assert must in done.stderr
    assert "terminate called" not in done.stderr
    assert not (tmp_path / "run").exists()
