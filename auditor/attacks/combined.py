"""MR attacks: many versions, one signal."""

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from auditor.scoring.scores import Float64


def mean_rank(signals: npt.ArrayLike) -> Float64:
    """Mean over the versions of a signal's standardised rank, without training.

    The rank is taken among all records of the audit, ties sharing it, and divided by n + 1; it
    sees no label. It is the floor that a learned attack on many versions must rise above.

    Args:
        signals: Shape (v, n): one training-free signal under each of v versions.

    Returns:
        float64, shape (n,), within (0, 1).
    """
    ranks = rankdata(np.asarray(signals, dtype=np.float64), axis=1)
    return np.asarray(ranks.mean(axis=0) / (ranks.shape[1] + 1), dtype=np.float64)
