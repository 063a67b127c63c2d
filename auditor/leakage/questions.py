"""The questions that are named before the run, each answered on the same records and folds.

An attacker with more must beat the best that he could do with less, and chance as well: the
p-value is the larger of the two. A learner's AUC on pure noise can fall below 0.5 on the records
at hand, and to beat that is no finding.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from auditor.leakage.attackers import Attackers, Holding, published
from auditor.leakage.crossfit import Learned
from auditor.leakage.settings import Levels, learned_attack
from auditor.results import Estimate, LeakageComparison
from auditor.results.leakage import Question, Supervision
from auditor.stats.crossfitted import noise_share
from auditor.stats.figures import adjusted, paired_tests
from auditor.stats.paired import PairedTest
from auditor.stats.sides import placements

Bools = npt.NDArray[np.bool_]


class Asked(NamedTuple):
    """A question.

    Attributes:
        question: What is asked.
        stronger: Who must win.
        weaker: Whom he must beat; of several, the best is chosen inside the folds.
        primary: Whether its AUC belongs to the primary family.
    """

    question: Question
    stronger: Holding
    weaker: tuple[Holding, ...]
    primary: bool = True


def questions(
    order: Sequence[str], *, settings: Sequence[str], with_reference: bool, noises: dict[str, str]
) -> list[Asked]:
    """The questions of an audit, from nothing but what it holds.

    Where there is a reference, what SR adds to NR and MR to SR is asked without it in the primary
    family, and again beside it in the secondary one; what they add to original and reference is
    primary. What was only trained further is a control: it is asked about as a variant, and is
    nothing that an attacker holds together with others.

    Args:
        order: The versions, the original first.
        settings: The settings that were asked for.
        with_reference: Whether there is a reference.
        noises: By variant, the version that is the original with noise of the same norm.
    """
    original, *variants = order
    together = published(order)
    asked: list[Asked] = []
    for beside in (False, True) if with_reference else (False,):
        alone = Holding((original,), beside)
        pairs = {name: Holding((original, name), beside) for name in variants}
        everything = Holding(together, beside)
        only_variants = Holding(together[1:], beside)
        if "SR" in settings:
            asked += [
                Asked("SR over NR", pair, (alone, Holding((name,), beside)), primary=not beside)
                for name, pair in pairs.items()
            ]
            asked += [
                Asked(
                    "compression over noise",
                    pairs[name],
                    (Holding((original, noise), beside),),
                    primary=not beside,
                )
                for name, noise in noises.items()
                if name in pairs
            ]
        if "SR" in settings and beside:
            asked += [
                Asked("SR over original and reference", pair, (alone,)) for pair in pairs.values()
            ]
        if "MR" in settings and len(together) > 2:
            over_pairs = tuple(pairs[name] for name in together[1:])
            asked.append(Asked("MR over SR", everything, over_pairs, primary=not beside))
            if beside:
                asked.append(Asked("MR over original and reference", everything, (alone,)))
        if "MR" in settings and len(together) > 1:
            asked.append(Asked("variants over original", only_variants, (alone,), primary=False))
    return asked


class Answering(NamedTuple):
    """What answers need.

    Attributes:
        attackers: All attackers.
        levels: How figures are made.
        supervision: How the learned attacks were trained.
    """

    attackers: Attackers
    levels: Levels
    supervision: Supervision = "crossfit"


def answer(asked: Sequence[Asked], how: Answering) -> list[LeakageComparison]:
    """Answer all questions, and correct them by Holm within each family."""
    return adjusted([comparison for one in asked for comparison in _answer(one, how)])


def _answer(one: Asked, how: Answering) -> list[LeakageComparison]:
    attackers, levels = how.attackers, how.levels
    stronger = attackers.learned(one.stronger)
    weaker = (
        attackers.learned(one.weaker[0])
        if len(one.weaker) == 1
        else attackers.best_inside(one.weaker)
    )
    original = attackers.order[0]
    against = dict.fromkeys(name for held in one.weaker for name in held.versions)
    tests = compare_learned(
        stronger, weaker, attackers.is_member, overlap=attackers.folds.overlap, levels=levels
    )
    return [
        LeakageComparison(
            question=one.question,
            attack=learned_attack(one.stronger, original)[1],
            versions=list(one.stronger.versions),
            against=learned_attack(one.weaker[0], original)[1],
            against_versions=list(against),
            with_reference=one.stronger.with_reference,
            supervision=how.supervision,
            metric=metric,
            difference=test.difference,
            p_value=test.p_value,
            p_adjusted=None,
            family="primary" if one.primary and metric == "auc" else "secondary",
        )
        for metric, test in tests.items()
    ]


def compare_learned(
    stronger: Learned, weaker: Learned, is_member: Bools, *, overlap: float, levels: Levels
) -> dict[str, PairedTest]:
    """One learned signal against another: AUC and TPRs, one-sided, see the top of this file.

    Args:
        stronger: The signal that must win.
        weaker: The one to beat, cross-fitted on the same folds.
        is_member: Shape (n,).
        overlap: Of the folds.
        levels: How figures are made.

    Returns:
        By metric.
    """
    inflation = 1.0
    if stronger.is_cross_fitted:
        share = noise_share(stronger.repeats, is_member, overlap=overlap, against=weaker.repeats)
        inflation = math.sqrt(1 + share)
    by_chance = above_chance(stronger, is_member, overlap=overlap)
    tests = paired_tests(
        weaker.signal,
        stronger.signal,
        is_member,
        fprs=levels.fprs,
        confidence=levels.confidence,
        draws=levels.draws,
        seed=levels.seed,
        inflation=inflation,
    )
    return {name: _one_sided(test, at_least=by_chance) for name, test in tests.items()}


def above_chance(found: Learned, is_member: Bools, *, overlap: float) -> float:
    """One-sided p-value of an AUC above 0.5, the accident of training counted."""
    placed = placements(found.signal[is_member], found.signal[~is_member])
    if not placed.varies:
        return 1.0 if placed.auc <= 0.5 else 0.0
    inflation = 1.0
    if found.is_cross_fitted:
        inflation = math.sqrt(1 + noise_share(found.repeats, is_member, overlap=overlap))
    return float(ndtr(-(placed.auc - 0.5) / (inflation * placed.standard_error)))


def _one_sided(test: PairedTest, *, at_least: float) -> PairedTest:
    """The test of a gain, from the two-sided one of a difference."""
    value: Estimate = test.difference
    if test.p_value is None or value.value is None:
        return test
    if value.value == 0.0:
        return PairedTest(value, 1.0)
    half = test.p_value / 2
    return PairedTest(value, max(at_least, half if value.value > 0 else 1 - half))
