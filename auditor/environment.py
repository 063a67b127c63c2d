"""What this run stands on: versions, processor, device, precision, memory."""

import os
import platform
import resource
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from auditor.config import DTYPES, Shared
from auditor.errors import ConfigError, unknown

if TYPE_CHECKING:
    import torch

    from auditor.compress.checkpoint import Placement
    from auditor.compress.receipt import Receipt

PACKAGES = (
    "compleak-llm",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "bitsandbytes",
    "gptqmodel",
    "optimum",
    "torchao",
    "hqq",
    "compressed-tensors",
    "gguf",
    "datasets",
    "peft",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
)


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Python and the libraries that figures depend on."""
    found = {name: installed(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **{name: number for name, number in found.items() if number},
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(
    placement: "Placement", world: int, *, receipt: "Receipt | None" = None
) -> dict[str, Any]:
    """Processor, device, threads; nothing that names the machine or its user.

    Args:
        placement: Where models go.
        world: How many processes there are.
        receipt: Of the original, which says where its parts lie.
    """
    import torch

    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "n_processes": world,
        "device": placement.device,
        "dtype": str(placement.dtype).removeprefix("torch."),
    }
    if placement.spread is not None:
        found["device_map"] = "auto"
        found["held"] = {
            key: f"{part.n_modules} modules, {part.n_bytes} bytes"
            for key, part in (receipt.devices if receipt is not None else {}).items()
        }
    if placement.device.startswith("cuda"):
        names = map(device_name, placement.computing)
        found["device_name"] = ", ".join(dict.fromkeys(names))
        found["cuda"] = torch.version.cuda
    return found


# The highest peak that was seen before the system's own was set back (see `PeakMemory`).
_earlier_peak = 0


def _status_bytes(key: str) -> int:
    """A figure of `/proc/self/status` in bytes, or 0 where there is none."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    # getrusage keeps the peak of the process that started this one; the kernel's own does not.
    if found := _status_bytes("VmHWM"):
        return max(found, _earlier_peak)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: str) -> str:
    """A GPU's name as its driver gives it, or "cpu"."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


class PeakMemory:
    """Measures the memory that a block takes at its peak, above what was held when it began.

    Args:
        devices: "cpu" for resident memory; "cuda..." for memory that torch has allocated there, of
            several GPUs the sum.

    Attributes:
        peak_bytes: Once the block has ended; 0 where the system does not tell.
    """

    def __init__(self, *devices: str) -> None:
        self._gpus = [device for device in devices if device.startswith("cuda")]
        self._begin = 0
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        global _earlier_peak  # noqa: PLW0603 - the kernel's counter is one for the process too
        if self._gpus:
            import torch

            for device in self._gpus:
                torch.cuda.reset_peak_memory_stats(device)
            self._begin = sum(map(torch.cuda.memory_allocated, self._gpus))
            return self
        _earlier_peak = peak_bytes()
        with suppress(OSError):  # sets the kernel's peak back to what is held now
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._begin = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpus:
            import torch

            found = sum(map(torch.cuda.max_memory_allocated, self._gpus))
        else:
            found = _status_bytes("VmHWM")
        self.peak_bytes = max(0, found - self._begin)


def device_of(device: str) -> str:
    """What `--device` means here: "cpu", or "cuda:N" with the device of this process.

    Raises:
        ConfigError: A device that this machine lacks.
    """
    import torch

    from auditor.dist import processes

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigError("--device must be auto, cpu, cuda or cuda:N", seen=device)
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(
                "--device cuda needs a CUDA device that torch can see",
                seen=f"torch {torch.__version__} sees none",
                fix="leave --device out to run on the CPU; `compleak-llm doctor` says more",
            )
        if device == "cuda":
            device = f"cuda:{processes().local_rank % torch.cuda.device_count()}"
        count = torch.cuda.device_count()
        number = device.partition(":")[2]
        if not number.isdigit() or int(number) >= count:
            raise ConfigError(f"--device cuda:N needs N below {count} on this machine", seen=device)
    return device


def place(config: Shared, checkpoint_dtype: "torch.dtype | str | None") -> "Placement":
    """Where models go and in which precision; torch is given the threads that it may use.

    Args:
        config: Its `device`, `device_map` and `dtype` (or `--model-args dtype=`) decide.
        checkpoint_dtype: What the checkpoint is stored in, for `auto` on a GPU.

    Raises:
        ConfigError: A device that this machine lacks, an unknown dtype, or a way of running in
            parallel that an audit cannot use.
    """
    import torch

    from auditor.compress.checkpoint import Placement
    from auditor.devices import must_be_supported, settle
    from auditor.scoring.threads import set_threads

    must_be_supported(config)
    set_threads()
    device, spread = config.device, None
    if config.device_map == "auto":
        spread = settle(config)
        device = spread.main
    device = device_of(device)
    name = config.dtype
    if name == "auto":
        given = config.model_args.get("dtype", "auto")
        if given not in DTYPES:
            raise unknown("dtype", given, DTYPES)
        name = given  # type: ignore[assignment]
    if name != "auto":
        return Placement(device, getattr(torch, name), spread)
    # The checkpoint's own precision where the device multiplies in it: what a user of the model
    # gets. Elsewhere float32, which is as fast there and rounds nothing away.
    stored = checkpoint_dtype
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    own = isinstance(stored, torch.dtype) and (
        device.startswith("cuda") or (stored == torch.bfloat16 and multiplies_bfloat16())
    )
    return Placement(device, stored if own and stored is not None else torch.float32, spread)


# Of x86 processors (one of them is enough), and of ARM's.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies matrices in bfloat16 itself; elsewhere it is emulated.

    Args:
        cpuinfo: Where the kernel lists what the processor can do.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return not BFLOAT16_FLAGS.isdisjoint(next(flags, "").split())
