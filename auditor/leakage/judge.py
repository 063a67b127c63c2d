"""From stored scores to all about more than one version; no model is run here.

evidence -> features -> attackers (crossfit, shadow) -> settings, questions, controls,
                                                        releases, exposed records, epsilon
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from auditor.attacks import ATTACKS
from auditor.config import AuditConfig
from auditor.errors import RecordsError
from auditor.leakage.attackers import Attackers, Holding, published
from auditor.leakage.blocks import Blocks, read_blocks
from auditor.leakage.bounds import parse_bound
from auditor.leakage.columns import columns_of
from auditor.leakage.controls import judge_controls
from auditor.leakage.epsilon import epsilon_bounds
from auditor.leakage.evidence import LEAST, Evidence, must_be_possible
from auditor.leakage.exposed import find_exposed
from auditor.leakage.features import N_LENGTHS, N_PAIR, N_VERSION
from auditor.leakage.folds import Folds, draw_folds
from auditor.leakage.learners import Float64, one_thread
from auditor.leakage.questions import Answering, answer, compare_learned, questions
from auditor.leakage.releases import judge_releases
from auditor.leakage.settings import Found, Levels, holdings, learned_by, result_of, training_free
from auditor.leakage.shadow import Shadow, Shadowed
from auditor.leakage.wanted import learns, may_ask, wants
from auditor.results import (
    BestOf,
    Exposed,
    Leakage,
    LeakageComparison,
    Releases,
    SettingResult,
)
from auditor.results.leakage import Supervision
from auditor.stats.figures import adjusted, rate_name
from auditor.stats.selection import best_of
from auditor.workers import in_order

PERMUTATIONS = 2000


class Judged(NamedTuple):
    """What was found, and the signals behind it.

    Attributes:
        leakage: The result.
        signals: By version, by column: signals of one version, or of the original beside it.
        together: By column, shape (n,): the out-of-fold probability of membership at even odds
            under NR (the original), SR (the best pair) and MR (all versions), and `mean-rank`.
    """

    leakage: Leakage
    signals: dict[str, dict[str, Float64]]
    together: dict[str, Float64]


class Case(NamedTuple):
    """One judgement: what is stored, what was asked for, who attacks.

    Attributes:
        evidence: What is stored.
        config: Settings, attacks, folds, bounds.
        blocks: Features of all records.
        attackers: The learned attackers by supervision; none where records are too few.
        left_out: What is not judged, with the reason.
    """

    evidence: Evidence
    config: AuditConfig
    blocks: Blocks
    attackers: dict[Supervision, Attackers]
    left_out: dict[str, str]

    @property
    def levels(self) -> Levels:
        """How figures are made."""
        config = self.config
        return Levels(config.fpr, config.confidence, config.bootstrap, config.seed)

    @property
    def has_reference(self) -> bool:
        """Whether the attackers may hold a reference."""
        return self.evidence.reference is not None

    @property
    def main(self) -> Attackers | None:
        """Whose word counts for releases and exposed records: cross-fit where there is one."""
        return next(iter(self.attackers.values()), None)

    @property
    def trees(self) -> bool:
        """Whether trees are among the learners."""
        return "trees" in self.config.learners


def judge_leakage(
    evidence: Evidence, config: AuditConfig, *, shadow: Shadow | None = None
) -> Judged:
    """Judge what versions give away alone, beside the original and together.

    Args:
        evidence: What is stored.
        config: Settings, attacks, folds, bounds.
        shadow: The shadow audits' records, or None.

    Raises:
        StoreError: A shard is missing or damaged.
        ConfigError: As for `must_be_possible`.
    """
    case = open_case(evidence, config, shadow=shadow)
    # Log-odds are weighed in thousands of small products, which more threads would only slow down.
    with one_thread() if case.attackers else nullcontext():
        found = _found(case)
        main: Supervision = next(iter(case.attackers), "none")
        columns = columns_of(found, published(case.evidence.order), main=main)
        return Judged(_leakage(case, found), columns, _together(case, found))


def open_case(evidence: Evidence, config: AuditConfig, *, shadow: Shadow | None = None) -> Case:
    """Read the features and set up the attackers; arguments and errors as for `judge_leakage`."""
    must_be_possible(config, evidence.is_member)
    blocks = evidence.blocks or read_blocks(
        evidence.read,
        evidence.pairs(config),
        n_records=len(evidence.ids),
        reference=evidence.reference,
        same_tokens=evidence.same_tokens,
        learned=learns(config),
    )
    left_out = dict(evidence.left_out)
    attackers = _attackers(evidence, config, blocks, shadow=shadow, left_out=left_out)
    return Case(evidence, config, blocks, attackers, left_out)


def _attackers(
    evidence: Evidence,
    config: AuditConfig,
    blocks: Blocks,
    *,
    shadow: Shadow | None,
    left_out: dict[str, str],
) -> dict[Supervision, Attackers]:
    found: dict[Supervision, Attackers] = {}
    if not learns(config):
        return found
    trees = "trees" in config.learners
    if "crossfit" in config.supervisions and evidence.fewest < LEAST:
        left_out["learned attacks"] = (
            f"they need {LEAST} members and {LEAST} nonmembers; a side has {evidence.fewest}"
        )
    elif "crossfit" in config.supervisions:
        try:
            folds = draw_folds(
                evidence.is_member,
                evidence.groups,
                n_folds=config.folds,
                n_repeats=config.repeats,
                seed=config.seed,
            )
            found["crossfit"] = Attackers(
                blocks, evidence.is_member, folds, order=evidence.order, trees=trees
            )
        except RecordsError as error:
            # Heaps of near-duplicates: all else has been scored and is worth telling.
            left_out["learned attacks"] = f"{error.must}; seen: {error.seen}"
    if shadow is not None:
        try:
            found["shadow"] = Shadowed(
                blocks,
                evidence.is_member,
                shadow,
                order=evidence.order,
                seed=config.seed,
                trees=trees,
            )
        except RecordsError as error:
            left_out["attacks learned on shadows"] = f"{error.must}; seen: {error.seen}"
    return found


def _found(case: Case) -> list[Found]:
    """Every attacker's signal."""
    evidence, config = case.evidence, case.config
    primary = [evidence.signals[name][evidence.primary] for name in evidence.order]
    unlearned = Attackers(case.blocks, evidence.is_member, Folds([], 0.0), order=evidence.order)
    found = list(
        training_free(
            unlearned,
            primary,
            primary_holds_reference=ATTACKS[evidence.primary].needs_reference,
        )
    )
    for attackers in case.attackers.values():
        wanted = holdings(attackers, settings=config.settings, with_reference=case.has_reference)
        attackers.prepare(wanted)
        found += [learned_by(attackers, held) for held in wanted]
    return [one for one in found if wants(config, one.attack)]


def _leakage(case: Case, found: list[Found]) -> Leakage:
    main, config = case.main, case.config
    if main is not None and not main.folds.repeats:
        case.left_out["controls"] = "they are made by cross-fitting, which was not asked for"
    folds = main.folds if main is not None and main.folds.repeats else None

    def figures(one: Found) -> SettingResult:
        overlap = folds.overlap if folds else 0.0
        return result_of(one, case.evidence.is_member, overlap=overlap, levels=case.levels)

    return Leakage(
        supervision=list(case.attackers),
        n_folds=len(folds.repeats[0]) if folds else None,
        n_repeats=len(folds.repeats) if folds else None,
        n_groups=len(np.unique(case.evidence.groups)),
        n_features={"version": N_VERSION, "pair": N_PAIR, "lengths": N_LENGTHS},
        shadows=list(config.shadow),
        left_out=case.left_out,
        settings=list(in_order(figures, found)),
        comparisons=_comparisons(case),
        controls=judge_controls(
            main,
            case.evidence.groups,
            levels=case.levels,
            settings=config.settings,
            with_reference=case.has_reference,
            trees=case.trees,
        )
        if main is not None and folds
        else [],
        best=_best(case, found),
        exposed=_exposed(case),
        releases=releases_of(case),
        epsilon=epsilon_bounds(
            config,
            case.evidence.is_member,
            _primary_signals(case, found),
        ),
    )


def _comparisons(case: Case) -> list[LeakageComparison]:
    """The questions that were named before the run, under each supervision."""
    noises = {name: store.name for name, store in case.evidence.noises.items()}
    found: list[LeakageComparison] = []
    for how, attackers in case.attackers.items():
        asked = questions(
            case.evidence.order,
            settings=case.config.settings,
            with_reference=case.has_reference,
            # Shadows have the variants that the target has, and no noise to learn from.
            noises=noises if how == "crossfit" else {},
        )
        asked = [one for one in asked if may_ask(case.config, one.stronger)]
        found += answer(asked, Answering(attackers, case.levels, supervision=how))
    # Under both supervisions the same is asked twice: all answers are one family.
    return adjusted(found)


def _best(case: Case, found: list[Found]) -> BestOf | None:
    """The best training-free attack on one version or two, its selection paid for."""
    named = [
        (attack, [version], signal)
        for version in published(case.evidence.order)
        for attack, signal in case.evidence.signals[version].items()
    ]
    named += [
        (one.attack, list(one.holding.versions), one.signal)
        for one in found
        if one.supervision == "none" and published(one.holding.versions) == one.holding.versions
    ]
    if not named:
        return None
    best = best_of(
        np.stack([signal for _, _, signal in named]),
        case.evidence.is_member,
        permutations=PERMUTATIONS,
        seed=case.config.seed,
    )
    attack, versions, _ = named[best.row]
    return BestOf(
        attack=attack,
        versions=versions,
        auc=best.auc,
        n_candidates=len(named),
        p_value=best.p_value,
        n_permutations=PERMUTATIONS,
    )


def _everything(case: Case) -> Holding:
    return Holding(published(case.evidence.order), case.has_reference)


def _exposed(case: Case) -> Exposed | None:
    main = case.main
    everything = _everything(case)
    if main is None or not wants(case.config, "combined") or len(everything.versions) < 2:
        return None
    alone = Holding(case.evidence.order[:1], case.has_reference)
    is_member, original = case.evidence.is_member, main.learned(alone)
    together = main.learned(everything)
    found = find_exposed(
        case.evidence.ids, is_member, original.signal, together.signal, fprs=case.config.fpr
    )
    if found.fpr is None:
        return found
    tests = compare_learned(
        together,
        original,
        is_member,
        overlap=main.folds.overlap,
        levels=case.levels._replace(fprs=(found.fpr,)),
    )
    return found.model_copy(update={"p_value": tests[f"tpr@{rate_name(found.fpr)}"].p_value})


def releases_of(case: Case) -> Releases | None:
    """Which versions can be published together; None where learned attacks are not there."""
    main, config = case.main, case.config
    is_one = len(_everything(case).versions) < 2
    if main is None or not wants(config, "combined") or is_one:
        return None
    if not config.releases:
        return None
    # A version that is broken cannot be judged; `release.must_pass_gate` says so.
    gate = [name for name in config.release if name in case.evidence.order]
    return judge_releases(
        main,
        case.evidence.perplexities,
        levels=case.levels,
        with_reference=case.has_reference,
        bound=parse_bound(config.at_most) if config.at_most else None,
        gate=gate or None,
    )


def _primary_signals(case: Case, found: list[Found]) -> list[tuple[str, list[str], Float64]]:
    """Training-free signals named before the run: on the original alone, and on all versions."""
    evidence = case.evidence
    original = evidence.order[0]
    named = [(evidence.primary, [original], evidence.signals[original][evidence.primary])]
    named += [
        (one.attack, list(one.holding.versions), one.signal)
        for one in found
        if one.attack == "mean-rank" and one.holding.versions == published(evidence.order)
    ]
    return named


def _together(case: Case, found: list[Found]) -> dict[str, Float64]:
    """What each record gives away under NR, SR and MR."""
    order, beside, main = published(case.evidence.order), case.has_reference, case.main
    columns = {
        one.attack: one.signal
        for one in found
        if one.attack == "mean-rank" and one.holding.versions == order
    }
    if main is None:
        return columns
    columns["nr"] = expit(main.learned(Holding(order[:1], beside)).log_odds)
    if len(order) < 2:
        return columns
    if wants(case.config, "paired"):
        pairs = [Holding((order[0], name), beside) for name in order[1:]]
        columns["sr"] = expit(main.best_inside(pairs).log_odds)
    if wants(case.config, "combined"):
        columns["mr"] = expit(main.learned(_everything(case)).log_odds)
    return columns
