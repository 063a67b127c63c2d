"""NR attacks: one model alone, or one model beside a reference that saw none of the members.

Each is a function from `Scores` (n records) to one signal per record, float64, shape (n,), larger =
more likely a member.
"""

import numpy as np
import numpy.typing as npt

from auditor.attacks.ragged import rank_within, sorted_within
from auditor.scoring.scores import Float64, Scores

K = 0.2
# Where a record holds no token on which the model does worse than the reference, the ratio of `ez`
# has no denominator: strongest of all evidence for membership, so that it is capped high, not 0.
EZ_CAP = 1e6


def loss(scores: Scores) -> Float64:
    """Mean log-likelihood, -L̄ (Yeom et al. 2018, sec. 3)."""
    return scores.sums(scores.logp) / scores.n_tokens


def zlib(scores: Scores) -> Float64:
    """Mean log-likelihood over the zlib size of the scored text (Carlini et al. 2021, sec. 5.2)."""
    return loss(scores) / scores.zlib_bytes


def min_k(scores: Scores) -> Float64:
    """Mean of the 20% smallest l_t (Shi et al. 2024, eq. 1)."""
    return mean_of_smallest(scores, scores.logp)


def min_k_plus_plus(scores: Scores) -> Float64:
    """Mean of the 20% smallest (l_t - mu_t) / sigma_t (Zhang et al. 2024, eq. 3)."""
    return mean_of_smallest(scores, (scores.logp - scores.mu) / scores.sigma)


def ref(scores: Scores) -> Float64:
    """How much likelier the record is under the model than under the reference (Carlini 2021).

    L̄_ref - L̄ in nats per token; in nats per byte of text where the reference has another tokenizer,
    because a token of the one is then not a token of the other.
    """
    reference = needed(scores)
    if scores.same_tokens:
        return np.subtract(loss(scores), loss(reference), dtype=np.float64)
    own, other = (side.sums(side.logp) / side.text_bytes for side in (scores, reference))
    return np.asarray(own - other, dtype=np.float64)


def ez(scores: Scores) -> Float64:
    """Over the tokens that the model misses, gain over the reference against loss (2601.12104).

    The sum of the positive l_t - l_ref,t over the sum of the absolute negative ones, over the
    tokens with hit_t = 0.
    """
    return ez_ratio(scores, needed(scores))


def ez_ratio(scores: Scores, reference: Scores) -> Float64:
    """The ratio of `ez`, with a reference of the same tokens given apart."""
    missed = ~scores.hit
    change = np.where(missed, scores.logp.astype(np.float64) - reference.logp, 0.0)
    gain = scores.sums(np.maximum(change, 0.0))
    fall = scores.sums(np.maximum(-change, 0.0))
    ratio = np.full(len(scores), EZ_CAP)
    np.divide(gain, fall, out=ratio, where=fall > 0)
    capped: Float64 = np.minimum(ratio, EZ_CAP)
    return capped


def needed(scores: Scores) -> Scores:
    """The reference of `scores`; `ValueError` where an attack that needs one was run without."""
    if scores.reference is None:
        raise ValueError("this attack needs scores with a reference")
    return scores.reference


def mean_of_smallest(scores: Scores, values: npt.NDArray[np.floating], *, k: float = K) -> Float64:
    """Mean of the smallest share `k` of each record's values, at least one of them.

    Args:
        scores: Says which value belongs to which record.
        values: Shape (T,).
        k: Share; n = max(1, int(k * tokens)) values are taken.
    """
    lengths = scores.n_tokens
    count = np.maximum(1, (k * lengths).astype(np.int64))
    kept = rank_within(lengths) < np.repeat(count, lengths)
    total: Float64 = scores.sums(np.where(kept, sorted_within(values, lengths), 0.0)) / count
    return total
