"""SR attacks without training: the original, with one variant in the place of the reference.

`Scores` are the original's and `Scores.reference` is the variant's.
"""

from auditor.attacks import single
from auditor.scoring.scores import Float64, Scores


def gap(scores: Scores) -> Float64:
    """L̄_variant - L̄_original: the variant as the reference."""
    return single.ref(scores)


def ez_gap(scores: Scores) -> Float64:
    """`ez` with the variant as the reference."""
    return single.ez(scores)
