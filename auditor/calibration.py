"""Calibration: the texts that GPTQ, Wanda and SparseGPT look at, as windows of tokens."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from auditor.compress.receipt import CalibrationUse


@dataclass(frozen=True)
class Calibration:
    """Windows of tokens, all of one length, without padding.

    Attributes:
        windows: int64, shape (n_samples, n_tokens).
        use: Where they come from, as the receipt says it.
        texts: The texts that they were cut from; to be searched for in what is written, never to be
            written themselves.
    """

    windows: npt.NDArray[np.int64]
    use: CalibrationUse
    texts: tuple[str, ...] = field(repr=False)
