"""Lower bounds on the epsilon of the training, where a coin decided who was trained on.

Compressing a model is post-processing, so that whatever all versions give away together bounds
the training itself. Only training-free attacks count: they saw no label.
"""

from auditor.config import AuditConfig
from auditor.leakage.learners import Bools, Float64
from auditor.results import EpsilonBound
from auditor.stats.epsilon import one_run_bound, split_threshold_bound

METHODS = ("one-run", "split-threshold")
NOT_RANDOMIZED = (
    "a lower bound on epsilon has a meaning only where a coin decided which records were trained "
    "on (--membership randomized)"
)


def epsilon_bounds(
    config: AuditConfig, is_member: Bools, named: list[tuple[str, list[str], Float64]]
) -> list[EpsilonBound]:
    """The bounds of each signal by both methods, absent where membership was not drawn by coin.

    Args:
        config: Says whether it was, and delta and confidence.
        is_member: Shape (n,).
        named: Attack, versions held and signal of shape (n,), all named before the run.
    """
    found = []
    # The largest of them is what is quoted, so that they must hold together.
    risk = (1 - config.confidence) / (len(METHODS) * len(named))
    for attack, versions, signal in named:
        sides = signal[is_member], signal[~is_member]
        for method in METHODS:
            shared = {
                "method": method,
                "attack": attack,
                "versions": versions,
                "delta": config.delta,
                "confidence": config.confidence,
            }
            if config.membership != "randomized":
                found.append(EpsilonBound.model_validate({**shared, "absent": NOT_RANDOMIZED}))
                continue
            compute = one_run_bound if method == "one-run" else split_threshold_bound
            bound = compute(*sides, delta=config.delta, confidence=1 - risk, seed=config.seed)
            found.append(
                EpsilonBound.model_validate(
                    {
                        **shared,
                        "epsilon": bound.epsilon,
                        "n_guesses": bound.n_guesses,
                        "n_correct": bound.n_correct,
                    }
                )
            )
    return found
