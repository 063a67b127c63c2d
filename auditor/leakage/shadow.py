"""Shadow supervision: learned on another model's audit, applied without a label of this one.

The shadow is a model of the same kind that was trained on members of its own, and audited with
the same variants. Learner, strength, scaler and second level are all learned there (CompLeak,
section 4).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from auditor.leakage.attackers import Attackers, Holding, bases_of, matrix_of
from auditor.leakage.blocks import Blocks
from auditor.leakage.crossfit import Learned, choose, train_and_judge, weigh
from auditor.leakage.folds import (
    MOST_CHOOSING,
    MOST_TRAINED,
    N_INNER,
    Folds,
    Part,
    Rows,
    at_most,
    must_teach,
    stratified,
)
from auditor.leakage.learners import Bools, Float64, log_loss, one_thread


class Shadow(NamedTuple):
    """The records of one or more shadow audits.

    Attributes:
        blocks: Their features, of the same versions as the target's.
        is_member: Shape (s,).
        groups: Near-duplicates, shape (s,).
    """

    blocks: Blocks
    is_member: Bools
    groups: Rows


class _Base(NamedTuple):
    """One learner: log-odds of the target's records, and of the shadow's on inner folds."""

    target: Float64
    inner: Float64
    name: str


class Shadowed(Attackers):
    """Attackers who were trained on a shadow.

    Args:
        blocks: Features of the target's records.
        is_member: Sides of the target's records; only comparisons look at them.
        shadow: Where the attackers learn.
        order: Every version in the order of the audit, the original first.
        seed: Of the inner folds.
        trees: As for `Attackers`.

    Raises:
        RecordsError: As for `must_teach`.
    """

    def __init__(
        self,
        blocks: Blocks,
        is_member: Bools,
        shadow: Shadow,
        *,
        order: Sequence[str],
        seed: int,
        trees: bool = True,
    ) -> None:
        super().__init__(blocks, is_member, Folds([], 0.0), order=order, trees=trees)
        self._shadow = shadow
        self._found: dict[Holding, _Base] = {}
        rng = np.random.default_rng(seed)
        train = at_most(np.arange(len(shadow.is_member)), MOST_TRAINED, rng)
        choosing = at_most(train, MOST_CHOOSING, rng)
        inner = stratified(shadow.is_member[choosing], shadow.groups[choosing], N_INNER, rng)
        self._part = Part(np.zeros(0, np.int64), train, choosing, inner)
        must_teach(self._part, shadow.is_member, shadow.groups)

    def prepare(self, holdings: Iterable[Holding]) -> None:
        """Train what these attackers need, on the shadow."""
        needed = dict.fromkeys(base for holding in holdings for base in bases_of(holding))
        with one_thread():
            for base in needed:
                if base not in self._found:
                    self._found[base] = self._train(base)

    def learned(self, holding: Holding) -> Learned:
        """The signal of an attacker on the target's records, one row."""
        fitted = self._weighed(holding)
        return Learned(fitted.target[None], {fitted.name: 1}, fitted.target, is_cross_fitted=False)

    def best_inside(self, holdings: Sequence[Holding]) -> Learned:
        """The best of several on the shadow's inner folds, applied to the target."""
        fitted = [self._weighed(holding) for holding in holdings]
        best = int(np.argmin([log_loss(one.inner, self._side) for one in fitted]))
        target = fitted[best].target
        return Learned(target[None], {str(best): 1}, target, is_cross_fitted=False)

    @property
    def _side(self) -> Bools:
        return self._shadow.is_member[self._part.choosing]

    def _weighed(self, holding: Holding) -> _Base:
        self.prepare([holding])
        parts = [self._found[base] for base in bases_of(holding)]
        if len(parts) == 1:
            return parts[0]
        below = np.stack([part.inner for part in parts], axis=1)
        above = np.stack([part.target for part in parts], axis=1)
        target, inner = weigh(below, self._side, above, self._part.inner)
        return _Base(target, inner, "logistic on log-odds")

    def _train(self, base: Holding) -> _Base:
        shadow, part = self._shadow, self._part
        features = matrix_of(shadow.blocks, base)
        name, inner = choose(features, shadow.is_member, part, trees=self.may_use_trees(base))
        target = train_and_judge(
            features[part.train], shadow.is_member[part.train], self.matrix(base), name
        )
        return _Base(target, inner, name)


def joined(shadows: Sequence[Shadow]) -> Shadow:
    """Several shadows as one; near-duplicates are looked for within each."""
    starts = np.cumsum([0, *(int(s.groups.max()) + 1 for s in shadows[:-1])])
    groups = [s.groups + start for s, start in zip(shadows, starts, strict=True)]
    first = shadows[0].blocks

    def together(name: str) -> dict[object, Float64]:
        return {
            key: np.concatenate([getattr(s.blocks, name)[key] for s in shadows])
            for key in getattr(first, name)
        }

    blocks = Blocks(
        lengths=np.concatenate([s.blocks.lengths for s in shadows]),
        versions=together("versions"),  # type: ignore[arg-type]
        references=together("references"),  # type: ignore[arg-type]
        pairs=together("pairs"),  # type: ignore[arg-type]
        gaps={},
    )
    return Shadow(blocks, np.concatenate([s.is_member for s in shadows]), np.concatenate(groups))
