"""From signals to figures: every number with n and an interval, every comparison paired."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from auditor.results import AttackResult, Comparison
from auditor.stats.paired import holm, paired_auc, paired_tpr
from auditor.stats.roc import auc_estimate, balanced_accuracy_estimate, tpr_estimate

Float64 = npt.NDArray[np.float64]


def rate_name(fpr: float) -> str:
    """The key of a false positive rate in results: 0.01 -> "0.01", 0.001 -> "0.001"."""
    return format(fpr, ".10g")


def attack_result(
    signal: Float64,
    is_member: npt.NDArray[np.bool_],
    *,
    fprs: Sequence[float],
    confidence: float,
    draws: int,
    seed: int,
) -> AttackResult:
    """AUC, TPR at each rate and balanced accuracy of one signal, with intervals.

    Args:
        signal: Shape (n,), larger = more likely a member.
        is_member: Shape (n,).
        fprs: False positive rates.
        confidence: Level of the intervals.
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    members, nonmembers = signal[is_member], signal[~is_member]
    return AttackResult(
        auc=auc_estimate(members, nonmembers, confidence=confidence),
        tpr_at_fpr={
            rate_name(fpr): tpr_estimate(
                members, nonmembers, fpr=fpr, confidence=confidence, draws=draws, seed=seed
            )
            for fpr in fprs
        },
        balanced_accuracy=balanced_accuracy_estimate(
            members, nonmembers, confidence=confidence, seed=seed
        ),
    )


def compare(
    signals: Mapping[str, Mapping[str, Float64]],
    is_member: npt.NDArray[np.bool_],
    *,
    original: str,
    primary: str,
    fprs: Sequence[float],
    confidence: float,
    draws: int,
    seed: int,
) -> list[Comparison]:
    """Each variant against the original on the same records, with Holm over each family.

    The primary family is one test per variant: the AUC of the attack named before the run. All
    other attacks and rates are secondary, and corrected together.

    Args:
        signals: By variant, by attack, shape (n,) each.
        is_member: Shape (n,).
        original: The variant that all others are compared with.
        primary: The attack named before the run.
        fprs: False positive rates.
        confidence: Level of the intervals.
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    found: list[Comparison] = []
    for variant, by_attack in signals.items():
        if variant == original:
            continue
        for attack, signal in by_attack.items():
            base = signals[original][attack]
            sides = (base[is_member], base[~is_member], signal[is_member], signal[~is_member])
            tests = {"auc": paired_auc(*sides, confidence=confidence)}
            for fpr in fprs:
                tests[f"tpr@{rate_name(fpr)}"] = paired_tpr(
                    *sides, fpr=fpr, confidence=confidence, draws=draws, seed=seed
                )
            for metric, test in tests.items():
                is_primary = attack == primary and metric == "auc"
                found.append(
                    Comparison(
                        variant=variant,
                        attack=attack,
                        metric=metric,
                        difference=test.difference,
                        p_value=test.p_value,
                        p_adjusted=None,
                        family="primary" if is_primary else "secondary",
                    )
                )
    return _adjusted(found)


def _adjusted(comparisons: list[Comparison]) -> list[Comparison]:
    adjusted: dict[int, float | None] = {}
    for family in ("primary", "secondary"):
        rows = [row for row, item in enumerate(comparisons) if item.family == family]
        values = holm([comparisons[row].p_value for row in rows])
        adjusted.update(zip(rows, values, strict=True))
    return [
        item.model_copy(update={"p_adjusted": adjusted[row]})
        for row, item in enumerate(comparisons)
    ]
