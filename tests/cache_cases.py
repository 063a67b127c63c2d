"""Processes that want versions at the same time, and are killed while they make them.

They are started from a server that has imported everything once, and that is all they share.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch

from auditor.compress import COMPRESSORS, cluster, entries, parse_variant
from auditor.compress.cache import Cache
from auditor.compress.checkpoint import CompressedModel, open_checkpoint
from tests.families import CPU, tiny_calibration

VARIANT = "cluster:k=8"


def cached(
    root: Path | None, model: Path, variant: str = VARIANT, *, said: list[str] | None = None
) -> CompressedModel:
    """A version by the cache in `root`."""
    spec = parse_variant(variant)
    calibration = tiny_calibration() if COMPRESSORS[spec.id].is_calibrated else None
    cache = Cache(root, tell=[].append if said is None else said.append)
    return cache.made(open_checkpoint(str(model)), spec, CPU, calibration=calibration)


def state(model: Any) -> dict[str, torch.Tensor]:
    """Everything that a model computes with, buffers that are not saved among it."""
    return {**model.state_dict(), **{f"buffer {n}": b for n, b in model.named_buffers()}}


def digest(model: Any) -> str:
    total = hashlib.sha256()
    for name, tensor in state(model).items():
        total.update(name.encode() + str(tensor.dtype).encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def want(root: Path, model: Path, folder: Path, number: int, take_s: float) -> None:
    """Take a version, note every making in `folder`, and write there what came of it."""
    make = cluster.make

    def noted(*args: Any, **kwargs: Any) -> CompressedModel:
        (folder / f"making-{number}").touch()
        time.sleep(take_s)
        return make(*args, **kwargs)

    cluster.make = noted
    wait_for(folder / "go")
    made = cached(root, model)
    (folder / f"part-{number}").write_text(f"{digest(made.model)} {made.from_cache}")
    (folder / f"part-{number}").rename(folder / f"done-{number}")


def stop_while_writing(root: Path, model: Path, folder: Path) -> None:
    """Make a version, and stay for ever where all is written but its manifest."""

    def stay(*_: Any) -> None:
        (folder / "writing").touch()
        time.sleep(600)

    entries._write_text = stay
    cached(root, model)


def wait_for(path: Path, *, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.01)
