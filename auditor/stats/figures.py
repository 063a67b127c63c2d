"""From signals to figures: every number with n and an interval, every comparison paired."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from auditor.results import AttackResult, Comparison, Estimate
from auditor.results.figures import BeyondTraining
from auditor.stats.paired import PairedTest, holm, paired_auc, paired_tpr
from auditor.stats.roc import auc_estimate, balanced_accuracy_estimate, tpr_estimate
from auditor.stats.sides import ascending
from auditor.workers import in_order

Float64 = npt.NDArray[np.float64]


class Corrected(Protocol):
    """What Holm's correction needs of a comparison."""

    @property
    def family(self) -> str:
        """Primary or secondary."""

    @property
    def p_value(self) -> float | None:
        """Not corrected yet; None where there is no test."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A copy with some fields changed."""
        ...


AnyComparison = TypeVar("AnyComparison", bound=Corrected)


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
    inflation: float = 1.0,
) -> AttackResult:
    """AUC, TPR at each rate and balanced accuracy of one signal, with intervals.

    Args:
        signal: Shape (n,), larger = more likely a member.
        is_member: Shape (n,).
        fprs: False positive rates.
        confidence: Level of the intervals.
        draws: Bootstrap draws.
        seed: Seed of the draws.
        inflation: Factor on every interval's reach; above 1 for a cross-fitted signal.
    """
    members, nonmembers = signal[is_member], signal[~is_member]
    auc = auc_estimate(members, nonmembers, confidence=confidence, inflation=inflation)
    # Sorted once: every rate asks for a threshold and what lies above it.
    members, nonmembers = ascending(members), ascending(nonmembers)
    return AttackResult(
        auc=auc,
        tpr_at_fpr=tpr_estimates(
            members,
            nonmembers,
            fprs=fprs,
            confidence=confidence,
            draws=draws,
            seed=seed,
            inflation=inflation,
        ),
        balanced_accuracy=balanced_accuracy_estimate(
            members, nonmembers, confidence=confidence, seed=seed, inflation=inflation
        ),
    )


def tpr_estimates(
    members: Float64,
    nonmembers: Float64,
    *,
    fprs: Sequence[float],
    confidence: float,
    draws: int,
    seed: int,
    inflation: float = 1.0,
) -> dict[str, Estimate]:
    """TPR at each rate, keyed by the rate; arguments as for `tpr_estimate`."""
    return {
        rate_name(fpr): tpr_estimate(
            members,
            nonmembers,
            fpr=fpr,
            confidence=confidence,
            draws=draws,
            seed=seed,
            inflation=inflation,
        )
        for fpr in fprs
    }


def paired_tests(
    before: Float64,
    after: Float64,
    is_member: npt.NDArray[np.bool_],
    *,
    fprs: Sequence[float],
    confidence: float,
    draws: int,
    seed: int,
    inflation: float = 1.0,
) -> dict[str, PairedTest]:
    """Two signals on the same records: AUC and TPR at each rate, `after` minus `before`.

    Args:
        before: Shape (n,), larger = more likely a member.
        after: Shape (n,), the same records in the same order.
        is_member: Shape (n,).
        fprs: False positive rates.
        confidence: Level of the intervals.
        draws: Bootstrap draws.
        seed: Seed of the draws.
        inflation: Factor on every standard error; above 1 for a cross-fitted signal.

    Returns:
        By metric: "auc", "tpr@0.01" and the like.
    """
    sides = (before[is_member], before[~is_member], after[is_member], after[~is_member])
    tests = {"auc": paired_auc(*sides, confidence=confidence, inflation=inflation)}
    for fpr in fprs:
        tests[f"tpr@{rate_name(fpr)}"] = paired_tpr(
            *sides, fpr=fpr, confidence=confidence, draws=draws, seed=seed, inflation=inflation
        )
    return tests


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
    asked = [
        (variant, attack)
        for variant, by_attack in signals.items()
        if variant != original
        for attack in by_attack
    ]

    def test_one(pair: tuple[str, str]) -> dict[str, PairedTest]:
        variant, attack = pair
        return paired_tests(
            signals[original][attack],
            signals[variant][attack],
            is_member,
            fprs=fprs,
            confidence=confidence,
            draws=draws,
            seed=seed,
        )

    found = [
        Comparison(
            variant=variant,
            attack=attack,
            metric=metric,
            difference=test.difference,
            p_value=test.p_value,
            p_adjusted=None,
            family="primary" if attack == primary and metric == "auc" else "secondary",
        )
        for (variant, attack), tests in zip(asked, in_order(test_one, asked), strict=True)
        for metric, test in tests.items()
    ]
    return adjusted(found)


def compare_trained(
    signals: Mapping[str, Mapping[str, Float64]],
    is_member: npt.NDArray[np.bool_],
    *,
    controls: Mapping[str, str],
    **how: Any,  # noqa: ANN401 - further arguments of `compare`
) -> list[BeyondTraining]:
    """Each recovered version against its control; a question, and two families, of their own.

    Args:
        signals: As for `compare`.
        is_member: As for `compare`.
        controls: The original trained by the same steps, by version.
        how: Further arguments of `compare`.
    """
    found = [
        BeyondTraining(against=control, **item.model_dump())
        for version, control in controls.items()
        for item in compare(
            {name: signals[name] for name in (control, version)}, is_member, original=control, **how
        )
    ]
    return adjusted(found)


def adjusted(comparisons: Sequence[AnyComparison]) -> list[AnyComparison]:
    """The comparisons with Holm's correction over each of the two families."""
    found: dict[int, float | None] = {}
    for family in ("primary", "secondary"):
        rows = [row for row, item in enumerate(comparisons) if item.family == family]
        values = holm([comparisons[row].p_value for row in rows])
        found.update(zip(rows, values, strict=True))
    return [
        item.model_copy(update={"p_adjusted": found[row]}) for row, item in enumerate(comparisons)
    ]
