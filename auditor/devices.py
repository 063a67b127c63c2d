"""Which devices an audit may use, settled before any model is opened.

`--device-map auto` spreads one model over all GPUs, then memory, then disk (`compress.dispatch`).
What it may take of each device is settled once, so that every version of the audit, and what is
said of it beforehand, has the same map. Ways of running in parallel that an audit cannot use are
refused here by name.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.errors import ConfigError

if TYPE_CHECKING:
    from auditor.config import Shared

UNITS = {unit: 1000**n for n, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
UNITS |= {unit: 1024 ** (n + 1) for n, unit in enumerate(("KiB", "MiB", "GiB", "TiB"))}
# No more digits than any memory needs: what is read must fit into a machine's numbers.
SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
GPU = re.compile(r"(?:cuda:)?([0-9]{1,4})")
# Of a GPU's free memory this much goes to weights where the user has named no size: the rest is for
# activations and for the tiles of the head.
GPU_SHARE = 0.9
WHOLE = "leave --device-map out, so that each process holds a whole model on a device of its own"


@dataclass(frozen=True)
class Spread:
    """What one model may take of each device.

    Attributes:
        max_memory: Bytes by device, GPUs by their number, in order.
        folder: Where weights go, or may be read from in place, that fit nowhere else; None where
            none may.
    """

    max_memory: tuple[tuple[int | str, int], ...]
    folder: Path | None = None

    @property
    def main(self) -> str:
        """Where inputs go and what is offloaded is computed: the first GPU, or the CPU."""
        first = self.max_memory[0][0]
        return f"cuda:{first}" if isinstance(first, int) else first

    @property
    def gpus(self) -> tuple[str, ...]:
        """Its GPUs."""
        return tuple(f"cuda:{name}" for name, _ in self.max_memory if isinstance(name, int))


def parse_max_memory(value: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
    """Turn `0=20GiB,cpu=60GiB`, or a mapping that says the same, into sizes by device.

    Raises:
        ConfigError: A device or a size that cannot be.
    """
    if isinstance(value, str):
        pieces = [piece.partition("=") for piece in value.split(",") if piece.strip()]
        pairs = [(name.strip(), size.strip()) for name, _, size in pieces]
    elif isinstance(value, dict):
        pairs = [(str(name), str(size)) for name, size in value.items()]
    else:
        return value
    found: dict[str, str] = {}
    for given, size in pairs:
        gpu = GPU.fullmatch(given)
        if gpu is None and given != "cpu":
            raise ConfigError(
                "--max-memory must name GPUs by their number, and cpu",
                seen=repr(given),
                fix="for example --max-memory 0=20GiB,1=20GiB,cpu=60GiB; what fits in neither goes "
                "to disk, with --offload-folder",
            )
        name = given if gpu is None else str(int(gpu[1]))
        if name in found:
            raise ConfigError(
                "--max-memory must name a device once",
                seen=f"{name} with {found[name]} and with {size}",
                fix="leave one of them out",
            )
        n_bytes(size)
        found[name] = size
    return found


def n_bytes(size: str) -> int:
    """Bytes of a size such as `20GiB`, `500MB` or `123456`.

    Raises:
        ConfigError: It is none.
    """
    found = SIZE.fullmatch(size)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    factor = units.get(found[2].lower() or "b") if found else None
    if found is None or factor is None or not (total := int(Fraction(found[1]) * factor)):
        raise ConfigError(
            "a size in --max-memory must be a number above 0 and a unit",
            seen=repr(size),
            fix=f"units: {', '.join(UNITS)}; for example 20GiB",
        )
    return total


def gib(size: int) -> str:
    """A size for a reader."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


# -- before anything is opened --------------------------------------------------------------------


def must_be_whole(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse launchers that give a process a part of a model; errors as in `must_be_supported`."""
    for name, chosen, why in (*_sharded(environment), *_meshes(environment)):
        raise ConfigError(
            f"{name} cannot be used by an audit: every process needs a whole model",
            seen=f"{chosen} in the environment, which an Accelerate configuration sets; {why}",
            fix="launch with a configuration of plain data parallelism (accelerate launch "
            "--multi_gpu, or --config_file with distributed_type MULTI_GPU); for a model that no "
            "single device holds start one process without the launcher and give --device-map auto",
        )


def must_be_supported(config: "Shared", environment: Mapping[str, str] = os.environ) -> None:
    """Refuse ways of running in parallel that would give no scores, or wrong ones.

    Args:
        config: Its `device_map` decides.
        environment: What a launcher has set.

    Raises:
        ConfigError: Such a way was chosen; says what to do instead.
    """
    must_be_whole(environment)
    world = _count(environment, "WORLD_SIZE")
    if config.device_map == "auto" and world > 1:
        # Accelerate gives each process one device (PartialState.device is that of its local rank),
        # and Accelerator.prepare refuses models with more than one entry in their device map under
        # any launcher (verify_device_map): a group of devices for each process is not known there.
        # And by itself each process would spread its model over the same GPUs.
        raise ConfigError(
            "--device-map auto is for one process, which spreads one model over all devices",
            seen=f"a launcher has started {world} processes; one process per group of devices is "
            "not supported by Accelerate for models that lie on several",
            fix=f"start it without the launcher (compleak-llm audit ...), or {WHOLE}",
        )
    if config.device_map == "single" and (config.max_memory or config.offload_folder):
        given = "--max-memory" if config.max_memory else "--offload-folder"
        raise ConfigError(
            f"{given} is of no use while the whole model goes to one device",
            seen=f"{given} without --device-map auto",
            fix=f"give --device-map auto, or leave {given} out",
        )


def _count(environment: Mapping[str, str], key: str) -> int:
    """A number of processes in the environment; 1 where there is none."""
    said = environment.get(key, "")
    return int(said) if said.isdecimal() else 1


# Why these are refused. All of them need every process in every forward pass, in step; here each
# process scores shards of its own, in batches of its own, and the first to be done would leave the
# others waiting for good. Weights are slices (DTensor, flat parameters), so that what is
# compressed, compared with the original and counted would be the slice. Tried with torch 2.13 and
# transformers 5.23 on two CPU processes: fully_shard gives the right logits while both run the
# same batches; tensor parallel (tp_plan="auto") gives logits 3e-6 off, has no plan for GPT-2, and
# its head cannot be multiplied with part by part; with one batch more on one side both fail.
IN_STEP = (
    "its processes must run the same batches in step, and hold slices of the weights, where an "
    "audit's processes score records of their own"
)


def _sharded(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    named = {
        "ACCELERATE_USE_FSDP": "FSDP",
        "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
        "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    }
    return [
        (name, f"{key}={environment[key]}", IN_STEP)
        for key, name in named.items()
        if environment.get(key, "").lower() in ("1", "true", "yes", "on", "y", "t")
    ]


def _meshes(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Parts of Accelerate's parallelism configuration, but for copies of the whole model."""
    named = {
        "TP": "tensor parallelism (tp_plan)",
        "DP_SHARD": "FSDP",
        "CP": "context parallelism",
        "SP": "sequence parallelism",
    }
    sizes = {f"PARALLELISM_CONFIG_{key}_SIZE": name for key, name in named.items()}
    return [
        (name, f"{key}={environment[key]}", IN_STEP)
        for key, name in sizes.items()
        if _count(environment, key) > 1
    ]


# -- where a model may lie ------------------------------------------------------------------------


def settle(config: "Shared") -> Spread:
    """What a model may take of this machine's devices.

    Raises:
        ConfigError: A device that this machine lacks, or flags that contradict each other.
    """
    import torch

    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            "--device-map auto chooses the devices itself",
            seen=f"--device {config.device}",
            fix="leave --device out, and name the GPUs that it may use in --max-memory",
        )
    n_gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    if config.device == "cuda" and not n_gpus:
        raise ConfigError(
            "--device cuda needs a GPU that PyTorch can use",
            seen="none",
            fix="leave --device out: --device-map auto then takes memory, and disk",
        )
    sizes: dict[int | str, int] = {}
    for name, size in config.max_memory.items():
        if name != "cpu" and int(name) >= n_gpus:
            raise ConfigError(
                "--max-memory must name devices of this machine",
                seen=f"GPU {int(name)} with {n_gpus} to be used",
                fix="name GPUs below that number, and cpu",
            )
        sizes[name if name == "cpu" else int(name)] = n_bytes(size)
    if not sizes:
        sizes = _free(n_gpus)
    elif config.device == "cuda" and set(sizes) == {"cpu"}:
        raise ConfigError(
            "--device cuda must have a GPU in --max-memory",
            seen="cpu alone",
            fix="name the GPUs as well, for example 0=20GiB,cpu=60GiB, or leave --device out",
        )
    # GPUs first, by their numbers: the first is the main device.
    ordered = sorted(sizes.items(), key=lambda item: (item[0] == "cpu", str(item[0]).zfill(4)))
    folder = Path(config.offload_folder).expanduser() if config.offload_folder else None
    return Spread(tuple(ordered), folder)


def _free(n_gpus: int) -> dict[int | str, int]:
    """What all devices have to give, less some room."""
    from accelerate.utils import get_max_memory

    from auditor.memory import free_bytes, spare_bytes

    sizes: dict[int | str, int] = {
        number: int(free_bytes(f"cuda:{number}") * GPU_SHARE) for number in range(n_gpus)
    }
    # Accelerate's own figure is the machine's, whatever a container is allowed: it is for systems
    # that tell no other.
    sizes["cpu"] = spare_bytes("cpu") if free_bytes("cpu") else int(get_max_memory()["cpu"])
    return sizes
