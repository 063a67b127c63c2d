"""NR, SR and MR: what each attacker finds, with its figures."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.attacks.combined import mean_rank
from auditor.leakage.attackers import Attackers, Holding, published
from auditor.leakage.learners import Float64
from auditor.results import AttackResult, Estimate, SettingResult
from auditor.results.leakage import Setting, Supervision
from auditor.stats.crossfitted import noise_share
from auditor.stats.figures import tpr_estimates
from auditor.stats.roc import auc_estimate, balanced_accuracy_estimate

Bools = npt.NDArray[np.bool_]


class Levels(NamedTuple):
    """How figures are made.

    Attributes:
        fprs: False positive rates.
        confidence: Level of every interval.
        draws: Bootstrap draws.
        seed: Of the draws.
    """

    fprs: tuple[float, ...]
    confidence: float
    draws: int
    seed: int


class Found(NamedTuple):
    """One attacker's signal.

    Attributes:
        setting: NR, SR or MR.
        attack: The attack's id.
        holding: What he holds.
        supervision: How the attack was trained.
        signal: Shape (n,), larger = more likely a member.
        repeats: Shape (R, n) of a cross-fitted signal, else None.
        learners: Folds by the learner that they chose.
    """

    setting: Setting
    attack: str
    holding: Holding
    supervision: Supervision
    signal: Float64
    repeats: Float64 | None = None
    learners: dict[str, int] = {}  # noqa: RUF012 - a NamedTuple's default, never changed


def learned_attack(holding: Holding, original: str) -> tuple[Setting, str]:
    """The setting and the id of the learned attack on a set of versions."""
    if len(holding.versions) == 1:
        return "NR", "single"
    if len(holding.versions) == 2 and original in holding.versions:
        return "SR", "paired"
    return "MR", "combined"


def learned_by(attackers: Attackers, holding: Holding) -> Found:
    """The learned attack of one attacker."""
    found = attackers.learned(holding)
    setting, attack = learned_attack(holding, attackers.order[0])
    how: Supervision = "crossfit" if found.is_cross_fitted else "shadow"
    repeats = found.repeats if found.is_cross_fitted else None
    return Found(setting, attack, holding, how, found.signal, repeats, found.chosen)


def training_free(
    attackers: Attackers, primary: Sequence[Float64], *, primary_holds_reference: bool
) -> Iterator[Found]:
    """`gap` and `ez-gap` on every variant, `mean-rank` on all versions and on the variants alone.

    Args:
        attackers: Knows the versions and the SR signals.
        primary: The primary attack's signal under every version, in the audit's order.
        primary_holds_reference: Whether that attack needs the reference.
    """
    original, *variants = attackers.order
    for attack, by_variant in attackers.blocks.gaps.items():
        for name in variants:
            yield Found("SR", attack, Holding((original, name)), "none", by_variant[name])
    together = published(attackers.order)
    by_name = dict(zip(attackers.order, primary, strict=True))
    for skipped in (0, 1):
        held = together[skipped:]
        if len(held) > 1:
            yield Found(
                "MR",
                "mean-rank",
                Holding(held, primary_holds_reference),
                "none",
                mean_rank(np.stack([by_name[name] for name in held])),
            )


def holdings(
    attackers: Attackers, *, settings: Sequence[Setting], with_reference: bool
) -> list[Holding]:
    """The learned attackers of an audit, with and without the reference where there is one."""
    original, *variants = attackers.order
    together = published(attackers.order)
    found: list[Holding] = []
    for beside in (False, True) if with_reference else (False,):
        if "NR" in settings:
            found += [Holding((name,), beside) for name in attackers.order]
        if "SR" in settings:
            found += [Holding((original, name), beside) for name in variants]
        if "MR" in settings:
            found += [
                Holding(held, beside)
                for held in (together, together[1:])
                # Two versions with the original are SR; one is NR.
                if len(held) > 2 or (len(held) == 2 and held[0] != original)
            ]
    return found


def result_of(found: Found, is_member: Bools, *, overlap: float, levels: Levels) -> SettingResult:
    """An attacker's figures.

    Args:
        found: His signal.
        is_member: Shape (n,).
        overlap: Of the folds, see `Folds`.
        levels: How figures are made.
    """
    noise = _noise_of(found, is_member, overlap=overlap)
    auc, tprs = _auc_and_tprs(found, is_member, noise=noise, levels=levels)
    balanced = balanced_accuracy_estimate(
        found.signal[is_member],
        found.signal[~is_member],
        confidence=levels.confidence,
        seed=levels.seed,
        inflation=_inflation(noise),
    )
    return SettingResult(
        setting=found.setting,
        attack=found.attack,
        versions=list(found.holding.versions),
        with_reference=found.holding.with_reference,
        supervision=found.supervision,
        figures=AttackResult(auc=auc, tpr_at_fpr=tprs, balanced_accuracy=balanced),
        noise_share=noise,
        learners=found.learners,
    )


def auc_and_tprs(
    found: Found, is_member: Bools, *, overlap: float, levels: Levels
) -> tuple[Estimate, dict[str, Estimate]]:
    """The AUC and the TPRs of `result_of` without the rest, for what is asked of every release.

    Args:
        found: The attacker's signal.
        is_member: Shape (n,).
        overlap: Of the folds, see `Folds`.
        levels: How figures are made.
    """
    noise = _noise_of(found, is_member, overlap=overlap)
    return _auc_and_tprs(found, is_member, noise=noise, levels=levels)


def _auc_and_tprs(
    found: Found, is_member: Bools, *, noise: float | None, levels: Levels
) -> tuple[Estimate, dict[str, Estimate]]:
    inflation = _inflation(noise)
    sides = found.signal[is_member], found.signal[~is_member]
    auc = auc_estimate(*sides, confidence=levels.confidence, inflation=inflation)
    tprs = tpr_estimates(
        *sides,
        fprs=levels.fprs,
        confidence=levels.confidence,
        draws=levels.draws,
        seed=levels.seed,
        inflation=inflation,
    )
    return (auc if noise is None else no_worse_than_chance(auc)), tprs


def _inflation(noise: float | None) -> float:
    """The factor on every interval's reach."""
    return math.sqrt(1 + (noise or 0.0))


def _noise_of(found: Found, is_member: Bools, *, overlap: float) -> float | None:
    """The share of a cross-fitted signal's spread that is the accident of training."""
    if found.repeats is None:
        return None
    return noise_share(found.repeats, is_member, overlap=overlap)


def no_worse_than_chance(auc: Estimate) -> Estimate:
    """The AUC with an interval that reaches 0.5.

    What a learner learns from noise can be worse than chance on the very records that it is tested
    on, because what one fold has too much of the others have too little of; in the population it
    is not. So the upper end is never below 0.5.
    """
    if auc.high is None or auc.high >= 0.5:
        return auc
    return auc.model_copy(update={"high": 0.5, "method": f"{auc.method}, upper end at least 0.5"})
