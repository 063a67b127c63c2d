"""What tests of models over several devices share: memory that is small, and a disk."""

import gc
from pathlib import Path

import torch

from auditor.compress.checkpoint import Placement
from auditor.devices import Spread

KB = 1000


def spread(size: int, folder: Path | None, *, dtype: torch.dtype = torch.float32) -> Placement:
    """So many bytes of memory, and what does not fit on disk where there is a folder."""
    return Placement("cpu", dtype, Spread((("cpu", size),), folder))


def left_in(folder: Path) -> list[str]:
    """What lies in an offload folder once nothing holds a model any more."""
    gc.collect()
    return [path.name for path in folder.iterdir()]
