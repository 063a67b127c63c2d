"""Invented attackers beyond one version, put through the product's own judgement.

A learned attacker sees the mean over the versions that he holds of what stands in `seen`; nothing
is trained. Settings, questions, releases, exposed records and columns come from
`auditor.leakage.judge`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from auditor.compress.noise import noise_name
from auditor.config import AuditConfig
from auditor.judge import ORIGINAL, Findings
from auditor.leakage import judge as leaking
from auditor.leakage.attackers import Attackers, Holding
from auditor.leakage.blocks import Blocks
from auditor.leakage.columns import columns_of
from auditor.leakage.controls import CHOSEN
from auditor.leakage.crossfit import Learned
from auditor.leakage.epsilon import epsilon_bounds
from auditor.leakage.evidence import Evidence
from auditor.leakage.folds import Folds
from auditor.leakage.learners import Bools, Float64
from auditor.leakage.settings import result_of
from auditor.results import Control, Leakage
from auditor.stats.roc import auc, auc_estimate
from auditor.store import VariantStore

Rows = npt.NDArray[np.int64]

REPEATS = 2
OVERLAP = 0.75
# Thousands of sets are weighed: of more records than this they are weighed on some of them.
MOST_WEIGHED = 2000


class Seen(NamedTuple):
    """What attackers see of n records.

    Attributes:
        learned: By version and whether the reference is held too, shape (R, n).
        gaps: The attacks without training on pairs: by attack, by variant, shape (n,).
    """

    learned: dict[tuple[str, bool], Float64]
    gaps: dict[str, dict[str, Float64]]


class Stored(NamedTuple):
    """A version whose token statistics are not there: its name is all that is asked for."""

    name: str


class Invented(Attackers):
    """Learned attackers who see the mean over their versions of what stands in `seen`.

    Args:
        seen: By version, shape (R, n): what a learner of each repeat sees; versions beside the
            reference have names of their own, `(name, True)`.
        is_member: Shape (n,).
        order: The versions, the original first.
        blocks: For the attacks without training.
    """

    def __init__(
        self,
        seen: Mapping[tuple[str, bool], Float64],
        is_member: Bools,
        *,
        order: Sequence[str],
        blocks: Blocks,
    ) -> None:
        super().__init__(blocks, is_member, Folds([], OVERLAP), order=order)
        self._seen = seen

    def prepare(self, holdings: Iterable[Holding]) -> None:
        """Nothing is fitted."""

    def learned(self, holding: Holding) -> Learned:
        """See the class."""
        rows = [self._seen[name, holding.with_reference] for name in holding.versions]
        repeats = np.asarray(np.mean(rows, axis=0))
        chosen = {"logistic 0.01": 9, "trees": 1}
        return Learned(repeats, chosen, np.asarray(repeats.mean(axis=0) / 2))

    def best_inside(self, holdings: Sequence[Holding]) -> Learned:
        """The one with the largest AUC."""
        return max((self.learned(one) for one in holdings), key=self._auc)

    def _auc(self, found: Learned) -> float:
        return auc(found.signal[self.is_member], found.signal[~self.is_member])

    def some(self, rows: Rows) -> "Invented":
        """The same attackers on some of the records."""
        seen = {key: values[:, rows] for key, values in self._seen.items()}
        return Invented(seen, self.is_member[rows], order=self.order, blocks=self.blocks)


def judge_invented(
    config: AuditConfig,
    evidence: Evidence,
    findings: Findings,
    seen: Seen,
    *,
    fails: bool,
) -> leaking.Judged:
    """What `judge_leakage` finds, with invented attackers in the place of those that learn.

    Args:
        config: Settings and levels.
        evidence: As `evidence_of` makes it.
        findings: What was found of every version alone.
        seen: What the attackers see.
        fails: Whether a control fails.
    """
    is_member = evidence.is_member
    case = _case(config, evidence, seen)
    some = _some(case)
    found = leaking._found(case)
    leakage = Leakage(
        supervision=["crossfit"],
        n_folds=5,
        n_repeats=REPEATS,
        n_groups=len(np.unique(evidence.groups)),
        n_features={"version": 27, "pair": 31, "lengths": 4},
        left_out=case.left_out,
        settings=[result_of(one, is_member, overlap=OVERLAP, levels=case.levels) for one in found],
        comparisons=leaking._comparisons(case),
        controls=_controls(config, evidence, fails=fails),
        best=leaking._best(some, leaking._found(some)),
        exposed=leaking._exposed(case),
        releases=leaking.releases_of(some),
        epsilon=epsilon_bounds(config, is_member, leaking._primary_signals(case, found)),
    )
    columns = columns_of(found, evidence.order, main="crossfit")
    return leaking.Judged(leakage, columns, leaking._together(case, found))


def evidence_of(
    config: AuditConfig,
    findings: Findings,
    *,
    ids: npt.NDArray[np.str_],
    is_member: Bools,
    groups: Rows,
) -> Evidence:
    """The evidence of an audit whose token statistics are not there."""
    usable = [one for one in findings.variants if one.status == "ok"]
    return Evidence(
        ids=ids,
        is_member=is_member,
        groups=groups,
        stores={one.variant: _stored(one.variant) for one in usable},
        noises={
            one.variant: _stored(noise_name(one.variant))
            for one in usable
            if noise_name(one.variant) in findings.signals
        },
        reference=_stored("reference") if config.reference is not None else None,
        same_tokens=True,
        signals={one.variant: findings.signals[one.variant].by_attack for one in usable},
        perplexities={one.variant: findings.signals[one.variant].perplexity for one in usable},
        primary=findings.primary,
        left_out={
            one.variant: one.reason or "it is broken"
            for one in findings.variants
            if one.status != "ok"
        },
    )


def _stored(name: str) -> VariantStore:
    return cast(VariantStore, Stored(name))


def _case(config: AuditConfig, evidence: Evidence, seen: Seen) -> leaking.Case:
    none = np.empty((len(evidence.ids), 0), dtype=np.float32)
    blocks = Blocks(none, {}, {}, {}, seen.gaps)
    attackers = Invented(seen.learned, evidence.is_member, order=evidence.order, blocks=blocks)
    left_out = dict(evidence.left_out)
    return leaking.Case(evidence, config, blocks, {"crossfit": attackers}, left_out)


def _some(case: leaking.Case) -> leaking.Case:
    """The same case on as many records as sets are weighed on, of both sides alike."""
    evidence = case.evidence
    step = max(1, len(evidence.ids) // MOST_WEIGHED)
    if step == 1:
        return case
    rows = np.arange(0, len(evidence.ids), step)
    attackers = cast(Invented, case.attackers["crossfit"])
    gaps = {
        attack: {name: signal[rows] for name, signal in found.items()}
        for attack, found in case.blocks.gaps.items()
    }
    return case._replace(
        evidence=evidence._replace(
            ids=evidence.ids[rows],
            is_member=evidence.is_member[rows],
            groups=evidence.groups[rows],
            signals={
                name: {attack: signal[rows] for attack, signal in found.items()}
                for name, found in evidence.signals.items()
            },
        ),
        blocks=case.blocks._replace(gaps=gaps),
        attackers={"crossfit": attackers.some(rows)},
    )


def _controls(config: AuditConfig, evidence: Evidence, *, fails: bool) -> list[Control]:
    """Signals that know nothing, and nothing at all; the first of them fails where it is asked."""
    rng = np.random.default_rng([config.seed, 3])
    is_member, order = evidence.is_member, list(evidence.order)
    beside = config.reference is not None
    held = [[ORIGINAL], *([ORIGINAL, name] for name in order[1:]), order]
    found = []
    for number, (attack, versions) in enumerate(
        zip(["single", *["paired"] * (len(order) - 1), "combined"], held, strict=True)
    ):
        signal = rng.normal(size=len(is_member)) + (is_member if fails and not number else 0)
        figure = auc_estimate(signal[is_member], signal[~is_member], confidence=0.999)
        found.append(
            Control(
                name="permuted-labels",
                attack=attack,
                versions=versions,
                with_reference=beside,
                learner=CHOSEN,
                figure=figure,
                expected=0.5,
                confidence=0.999,
                passed=(figure.low or 0.0) <= 0.5,
            )
        )
    still = np.zeros(len(is_member))
    figure = auc_estimate(still[is_member], still[~is_member], confidence=config.confidence)
    return [
        *found,
        Control(
            name="original-as-variant",
            attack="gap",
            versions=[ORIGINAL, ORIGINAL],
            figure=figure,
            expected=0.5,
            confidence=config.confidence,
            passed=figure.value == 0.5,
        ),
    ]
