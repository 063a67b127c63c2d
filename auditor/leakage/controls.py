"""Controls in every audit, at no cost of a model: what is known beforehand, in the same pipeline.

Labels that are drawn anew know nothing of the model: an attack that finds them has seen what it
must not. And the original in the place of a variant adds nothing to itself: an SR attack that
gains by it gains by how it is built.
"""

from collections.abc import Sequence

import numpy as np

from auditor.leakage.attackers import Attackers, Holding
from auditor.leakage.blocks import Blocks
from auditor.leakage.folds import Rows, draw_folds
from auditor.leakage.learners import STRENGTHS
from auditor.leakage.questions import compare_learned
from auditor.leakage.settings import Levels, learned_attack, learned_by, result_of
from auditor.results import Control
from auditor.stats.roc import auc_estimate

PASSED = 0.01
CHOSEN = "chosen inside the folds"
TWICE = "original again"


def judge_controls(
    attackers: Attackers,
    groups: Rows,
    *,
    levels: Levels,
    settings: Sequence[str],
    with_reference: bool,
    trees: bool,
) -> list[Control]:
    """Both controls of an audit.

    Args:
        attackers: The audit's own.
        groups: Near-duplicates, shape (n,).
        levels: How figures are made.
        settings: The settings that were asked for.
        with_reference: Whether the attackers hold the reference too.
        trees: As for `Attackers`.
    """
    found = permuted_labels(
        attackers,
        groups,
        levels=levels,
        settings=settings,
        with_reference=with_reference,
        trees=trees,
    )
    if "SR" in settings:
        found += original_as_variant(
            attackers, levels=levels, with_reference=with_reference, trees=trees
        )
    return found


def permuted_labels(
    attackers: Attackers,
    groups: Rows,
    *,
    levels: Levels,
    settings: Sequence[str],
    with_reference: bool,
    trees: bool,
) -> list[Control]:
    """The whole pipeline, folds and choices included, on sides that were drawn anew."""
    rng = np.random.default_rng([levels.seed, 1])
    side = rng.permutation(attackers.is_member)
    n_folds = len(attackers.folds.repeats[0])
    folds = draw_folds(side, groups, n_folds=n_folds, n_repeats=1, seed=levels.seed)
    original, *variants = attackers.order
    tried = [Holding((original,), with_reference)]
    if "SR" in settings:
        tried += [Holding((original, name), with_reference) for name in variants]
    if "MR" in settings and len(variants) > 1:
        tried.append(Holding(attackers.order, with_reference))
    permuted = Attackers(attackers.blocks, side, folds, order=attackers.order, trees=trees)
    permuted.prepare(tried)
    # On noise the choice falls on learners that hardly learn, and those hide a fold that leaks. So
    # the one that remembers most is tried as well.
    eager = Attackers(
        attackers.blocks,
        side,
        folds,
        order=attackers.order,
        trees=False,
        strengths=STRENGTHS[-1:],
    )
    rows = [*((permuted, held) for held in tried), (eager, tried[0])]
    # All of them must cover 0.5 at once, or with a dozen one would fail now and then.
    levels = levels._replace(fprs=(), confidence=1 - PASSED / len(rows))
    found = []
    for who, held in rows:
        figure = result_of(
            learned_by(who, held), side, overlap=folds.overlap, levels=levels
        ).figures.auc
        found.append(
            Control(
                name="permuted-labels",
                attack=learned_attack(held, original)[1],
                versions=list(held.versions),
                with_reference=held.with_reference,
                learner=CHOSEN if who is permuted else f"logistic {STRENGTHS[-1]:g}",
                figure=figure,
                expected=0.5,
                confidence=levels.confidence,
                passed=(figure.low or 0.0) <= 0.5,
            )
        )
    return found


def original_as_variant(
    attackers: Attackers, *, levels: Levels, with_reference: bool, trees: bool
) -> list[Control]:
    """SR with the original in the place of the variant, on the audit's own folds.

    Both names have one and the same fit of the single version: what is tried is the pair, and how
    it is weighed against one version alone.
    """
    original = attackers.order[0]
    twin = Attackers(
        _doubled(attackers.blocks, original),
        attackers.is_member,
        attackers.folds,
        order=(original, TWICE),
        trees=trees,
    )
    pair, alone = Holding((original, TWICE), with_reference), Holding((original,), with_reference)
    for name in (original, TWICE):
        # The same features under either name, and those of the audit: nothing new to be learned.
        twin.take(Holding((name,), with_reference), attackers.base(alone))
    tests = compare_learned(
        twin.learned(pair),
        attackers.learned(alone),
        attackers.is_member,
        overlap=attackers.folds.overlap,
        levels=levels._replace(fprs=()),
    )
    member, gap = attackers.is_member, twin.blocks.gaps["gap"][TWICE]
    still = auc_estimate(gap[member], gap[~member], confidence=levels.confidence)
    difference = tests["auc"].difference
    return [
        Control(
            name="original-as-variant",
            attack=attack,
            versions=[original, original],
            with_reference=beside,
            learner=CHOSEN if attack == "paired" else None,
            figure=figure,
            expected=expected,
            confidence=levels.confidence,
            passed=figure.value == expected,
        )
        for attack, beside, figure, expected in (
            ("gap", False, still, 0.5),
            ("paired", with_reference, difference, 0.0),
        )
    ]


def _doubled(blocks: Blocks, original: str) -> Blocks:
    """The original twice, under two names; nothing moves from one to the other."""
    names = (original, TWICE)
    return Blocks(
        lengths=blocks.lengths,
        versions=dict.fromkeys(names, blocks.versions[original]),
        references={name: blocks.references[original] for name in names if blocks.references},
        pairs={names: blocks.pairs[original, original]},
        gaps={"gap": {TWICE: blocks.gaps["gap"][original]}},
    )
