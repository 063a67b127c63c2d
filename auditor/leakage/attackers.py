"""Learned attackers: who holds which versions, each cross-fitted on the same folds.

Every version has a learner on its features and on the record's lengths, every pair one on what
moves between the two. Who holds one version is the first alone (`single`); who holds more has a
logistic regression weigh the log-odds of all his versions and pairs (`paired`, `combined`). So
every set of versions is judged from the same parts, each fitted once, which makes all 2^v
releases affordable.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from auditor.compress import is_retrained
from auditor.leakage.blocks import Blocks
from auditor.leakage.crossfit import Fitted, Learned, best_inside, cross_fit, learned, stacked
from auditor.leakage.folds import Folds
from auditor.leakage.learners import STRENGTHS, Bools, Float32, Float64, one_thread

# Below this many numbers to learn from, starting processes costs more than it saves.
WORTH_PROCESSES = 2_000_000
# Numbers that the signals of all sets of versions may take together before they are not kept.
KEPT = 2**25


class Holding(NamedTuple):
    """What an attacker holds.

    Attributes:
        versions: In the order of the audit.
        with_reference: Whether the reference model too.
    """

    versions: tuple[str, ...]
    with_reference: bool = False


class _Candidates(TypedDict):
    """Which learners may be chosen."""

    trees: bool
    strengths: tuple[float, ...]


class Attackers:
    """All attackers of an audit, fitted when they are first asked for.

    Args:
        blocks: Features.
        is_member: Shape (n,).
        folds: The folds that all share.
        order: Every version in the order of the audit, the original first.
        trees: Whether gradient-boosted trees are among the candidates of attackers on one version
            and of those on the original and a variant.
        strengths: Penalties of the logistic regressions among them, descending.
    """

    def __init__(
        self,
        blocks: Blocks,
        is_member: npt.NDArray[np.bool_],
        folds: Folds,
        *,
        order: Sequence[str],
        trees: bool = True,
        strengths: Sequence[float] = STRENGTHS,
    ) -> None:
        self.blocks = blocks
        self.is_member = is_member
        self.folds = folds
        self.order = tuple(order)
        self._trees = trees
        self._strengths = tuple(strengths)
        self._bases: dict[Holding, Fitted] = {}
        self._signals: dict[Holding, Learned] = {}

    def holding(self, versions: Iterable[str], *, with_reference: bool = False) -> Holding:
        """What holds these versions, in the audit's order."""
        return Holding(in_order(versions, self.order), with_reference)

    def prepare(self, holdings: Iterable[Holding]) -> None:
        """Fit what these attackers need, in as many processes as there are cores."""
        needed = dict.fromkeys(base for holding in holdings for base in bases_of(holding))
        todo = [base for base in needed if base not in self._bases]
        if not todo:
            return
        size = self.matrix(todo[0]).size * len(todo)
        for base, found in zip(todo, self._fit_all(todo, size=size), strict=True):
            self._bases[base] = found

    def base(self, base: Holding) -> Fitted:
        """One part, cross-fitted."""
        self.prepare([base])
        return self._bases[base]

    def take(self, base: Holding, fitted: Fitted) -> None:
        """Take a part as it was fitted elsewhere, on the same features, sides and folds."""
        self._bases[base] = fitted

    def learned(self, holding: Holding) -> Learned:
        """The signal of an attacker."""
        if holding in self._signals:
            return self._signals[holding]
        found = learned(self._fitted(holding), self.folds)
        # Of many records the signals of all 2^v sets would fill the memory; weighing is cheap.
        if len(holding.versions) <= 2 or found.repeats.size * 2 ** len(self.order) <= KEPT:
            self._signals[holding] = found
        return found

    def best_inside(self, holdings: Sequence[Holding]) -> Learned:
        """The best of several attackers, chosen inside the folds."""
        self.prepare(holdings)
        fitted = [self._fitted(holding) for holding in holdings]
        return best_inside(fitted, self.is_member, self.folds)

    def _fitted(self, holding: Holding) -> Fitted:
        self.prepare([holding])
        parts = [self._bases[base] for base in bases_of(holding)]
        return stacked(parts, self.is_member, self.folds)

    def matrix(self, base: Holding) -> Float32:
        """The features of a part, shape (n, p)."""
        return matrix_of(self.blocks, base)

    def may_use_trees(self, base: Holding) -> bool:
        """Whether trees are among the candidates: not for a pair without the original."""
        return self._trees and (len(base.versions) == 1 or base.versions[0] == self.order[0])

    def _fit_all(self, todo: Sequence[Holding], *, size: int) -> Iterator[Fitted]:
        from joblib import Parallel, cpu_count, delayed

        n_jobs = min(cpu_count(), len(todo))
        if size < WORTH_PROCESSES or n_jobs < 2:
            yield from (self._fit(base) for base in todo)
            return
        jobs = (
            delayed(_fit_alone)(
                self.matrix(base), self.is_member, self.folds, **self._candidates(base)
            )
            for base in todo
        )
        yield from Parallel(n_jobs=n_jobs, return_as="generator")(jobs)

    def _candidates(self, base: Holding) -> "_Candidates":
        return {"trees": self.may_use_trees(base), "strengths": self._strengths}

    def _fit(self, base: Holding) -> Fitted:
        return _fit_alone(self.matrix(base), self.is_member, self.folds, **self._candidates(base))


def _fit_alone(
    features: Float32,
    is_member: Bools,
    folds: Folds,
    *,
    trees: bool,
    strengths: Sequence[float],
) -> Fitted:
    """`cross_fit` on one thread."""
    with one_thread():
        return cross_fit(features, is_member, folds, trees=trees, strengths=strengths)


def published(order: Sequence[str]) -> tuple[str, ...]:
    """The versions that somebody could publish: not what was only trained further, a control."""
    return tuple(name for name in order if not is_retrained(name))


def in_order(held: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Some of the names, in the order of all."""
    wanted = set(held)
    return tuple(name for name in names if name in wanted)


def matrix_of(blocks: Blocks, base: Holding) -> Float32:
    """The features of a version, or of what moves between two, shape (n, p)."""
    if len(base.versions) == 2:
        return blocks.pairs[base.versions[0], base.versions[1]]
    return blocks.version(base.versions[0], with_reference=base.with_reference)


def bases_of(holding: Holding) -> list[Holding]:
    """The parts that an attacker is made of: every version, and what moves in every pair.

    What moves is the same with a reference and without.
    """
    alone = [Holding((name,), holding.with_reference) for name in holding.versions]
    return [*alone, *(Holding(pair) for pair in combinations(holding.versions, 2))]


def single(attackers: Attackers, version: str, *, with_reference: bool = False) -> Float64:
    """Learned on all features of one version, cross-fitted or from a shadow."""
    return attackers.learned(attackers.holding([version], with_reference=with_reference)).signal


def paired(attackers: Attackers, variant: str, *, with_reference: bool = False) -> Float64:
    """Learned on all features of the original, of a variant, and of what moves between them."""
    held = [attackers.order[0], variant]
    return attackers.learned(attackers.holding(held, with_reference=with_reference)).signal


def combined(
    attackers: Attackers, versions: Sequence[str], *, with_reference: bool = False
) -> Float64:
    """Learned on all features of many versions and of what moves between every two."""
    return attackers.learned(attackers.holding(versions, with_reference=with_reference)).signal
