"""What the tests of an audit allow to be claimed, and nothing beyond.

Two families of tests were named before the run: each variant alone against the original, and what
an attacker gains who holds several versions. Holm's correction stands inside each. A change is
claimed where the corrected p-value says so, in its direction, and where there is leakage to change.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from auditor.compress import is_retrained
from auditor.results import AttackResult, AuditResult, Estimate
from auditor.results.leakage import Question

AUC = "auc"
# What an attacker gains over what he could do with less; noise of the same norm is no such thing.
GAINS: tuple[Question, ...] = (
    "SR over NR",
    "MR over SR",
    "SR over original and reference",
    "MR over original and reference",
)


class Change(NamedTuple):
    """One difference in AUC that the tests allow to be claimed.

    Attributes:
        versions: The variant; of a gain, all versions that the attacker holds.
        difference: In AUC, the variant minus the original, or the gain.
        p_value: After Holm's correction.
    """

    versions: tuple[str, ...]
    difference: Estimate
    p_value: float


class Claims(NamedTuple):
    """What can be claimed of an audit.

    Attributes:
        more: Variants that alone give away more than the original, the largest difference first.
        less: Variants that give away less, the largest difference first.
        gains: By question, what is gained; a question that was asked and not answered so has an
            empty list.
        n_alone: Variants that were compared with the original.
        highest: The largest upper end of all these intervals, each taken by itself; None where
            there is no interval.
        is_firm: Whether a claim is left when both families are counted as one audit: the smallest
            p-value is then held against the level over the number of families.
    """

    more: list[Change]
    less: list[Change]
    gains: dict[Question, list[Change]]
    n_alone: int
    highest: float | None
    is_firm: bool

    @property
    def gained(self) -> list[Change]:
        """All gains that can be claimed, the largest first."""
        return _sorted(change for changes in self.gains.values() for change in changes)

    @property
    def every(self) -> list[Change]:
        """Everything that can be claimed."""
        return [*self.more, *self.less, *self.gained]


def read_claims(result: AuditResult) -> Claims:
    """What the tests of an audit allow to be claimed.

    Args:
        result: The audit.
    """
    level = 1 - result.confidence
    by_name = {found.variant: found for found in result.variants}
    leaks = {
        name: above(found.attacks.get(result.primary_attack), 0.5)
        for name, found in by_name.items()
    }
    original = result.variants[0].variant
    more, less, p_values, ends = [], [], [], []
    tested = [
        item
        for item in result.comparisons
        if item.family == "primary"
        and item.metric == AUC
        and not is_retrained(item.variant)  # it is compared with the recovered ones, and is none
        and (item.variant not in by_name or by_name[item.variant].status == "ok")
        and item.difference.value is not None
    ]
    for item in tested:
        p_values.append(item.p_adjusted)
        ends.append(item.difference.high)
        value = item.difference.value or 0.0
        if item.p_adjusted is None or not item.p_adjusted < level:
            continue
        change = Change((item.variant,), item.difference, item.p_adjusted)
        # Two signals that are both no better than guessing may differ; that gives nothing away.
        if value > 0 and leaks.get(item.variant):
            more.append(change)
        elif value < 0 and leaks.get(original):
            less.append(change)
    gains, gain_p_values = _gains(result, level, ends)
    claimed = [change.p_value for change in (*more, *less, *_flat(gains.values()))]
    n_families = sum(any(p is not None for p in ps) for ps in (p_values, gain_p_values))
    finite = [end for end in ends if end is not None and math.isfinite(end)]
    # One comparison without an end, and nothing is excluded in each.
    is_bounded = bool(finite) and len(finite) == len(ends)
    return Claims(
        more=_sorted(more),
        less=_sorted(less),
        gains={question: _sorted(changes) for question, changes in gains.items()},
        n_alone=len(tested),
        highest=max(finite) if is_bounded else None,
        is_firm=bool(claimed) and min(claimed) < level / max(1, n_families),
    )


def _gains(
    result: AuditResult, level: float, ends: list[float | None]
) -> tuple[dict[Question, list[Change]], list[float | None]]:
    """By question the gains that can be claimed; upper ends of all intervals are added to `ends`.

    Under two supervisions the same is asked twice; the surer answer stands.
    """
    found: dict[Question, dict[tuple[str, ...], Change]] = {}
    p_values: list[float | None] = []
    for item in result.leakage.comparisons if result.leakage is not None else []:
        if item.family != "primary" or item.metric != AUC or item.question not in GAINS:
            continue
        if item.difference.value is None or any(map(is_retrained, item.versions)):
            continue
        answers = found.setdefault(item.question, {})
        p_values.append(item.p_adjusted)
        ends.append(item.difference.high)
        p_value, versions = item.p_adjusted, tuple(item.versions)
        if p_value is None or not p_value < level or not item.difference.value > 0:
            continue
        if versions not in answers or p_value < answers[versions].p_value:
            answers[versions] = Change(versions, item.difference, p_value)
    return {question: list(answers.values()) for question, answers in found.items()}, p_values


def above(found: AttackResult | None, chance: float) -> bool:
    """Whether the interval of an attack's AUC lies above chance."""
    return found is not None and found.auc.low is not None and found.auc.low > chance


def _flat(lists: Iterable[list[Change]]) -> list[Change]:
    return [change for changes in lists for change in changes]


def _sorted(changes: Iterable[Change]) -> list[Change]:
    """The largest first; equal ones by name, so that the same audit reads the same."""
    return sorted(changes, key=lambda x: (-abs(x.difference.value or 0.0), x.versions))
