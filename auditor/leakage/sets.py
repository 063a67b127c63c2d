"""Sets of versions: what the attacker who holds exactly these finds, and which sets to look at."""

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.leakage.attackers import Attackers, Holding, in_order
from auditor.leakage.bounds import AUC, fpr_of, metric_at
from auditor.leakage.crossfit import Learned
from auditor.leakage.questions import compare_learned
from auditor.leakage.settings import Levels, auc_and_tprs, learned_by
from auditor.results import Estimate
from auditor.stats.paired import PairedTest
from auditor.stats.roc import auc, tpr_at_fpr
from auditor.stats.sides import too_few_nonmembers

Float64 = npt.NDArray[np.float64]
Versions = tuple[str, ...]

# Up to this many variants besides the original every set is looked at: 511 with the original.
MOST_VARIANTS = 8
# Sets of each size that are kept while sets are grown.
BEAM = 32


class Figures(NamedTuple):
    """What one set gives away.

    Attributes:
        auc: AUC.
        tpr_at_fpr: TPR, keyed by the rate.
    """

    auc: Estimate
    tpr_at_fpr: dict[str, Estimate]

    def of(self, metric: str) -> Estimate:
        """The estimate of a metric."""
        return self.auc if metric == AUC else self.tpr_at_fpr[metric.partition("@")[2]]


class Sets:
    """The attackers on sets of versions; each set is judged when it is first asked for.

    Args:
        attackers: All attackers.
        levels: How figures are made.
        with_reference: Whether the attackers hold the reference model too.
    """

    def __init__(self, attackers: Attackers, levels: Levels, *, with_reference: bool) -> None:
        self.levels = levels
        self._attackers = attackers
        self.with_reference = with_reference
        self.original = attackers.order[0]
        self._is_member = attackers.is_member
        n_nonmembers = int((~attackers.is_member).sum())
        rates = [fpr for fpr in levels.fprs if too_few_nonmembers(fpr, n_nonmembers) is None]
        self.metrics = (AUC, *map(metric_at, rates))
        self._figures: dict[Versions, Figures] = {}
        self._worths: dict[Versions, Float64] = {}

    def prepare(self, versions: Versions) -> None:
        """Fit all that the sets of these versions are made of, in parallel."""
        held = [versions, *((name,) for name in versions)]
        self._attackers.prepare([self._holding(names) for names in held])

    def learned(self, versions: Versions) -> Learned:
        """The learned attack on a set."""
        return self._attackers.learned(self._holding(versions))

    def figures(self, versions: Versions) -> Figures:
        """The figures of a set, with intervals."""
        if versions not in self._figures:
            found = auc_and_tprs(
                learned_by(self._attackers, self._holding(versions)),
                self._is_member,
                overlap=self._attackers.folds.overlap,
                levels=self.levels,
            )
            self._figures[versions] = Figures(*found)
        return self._figures[versions]

    def worth(self, versions: Versions) -> Float64:
        """What a set gives away above chance, by `metrics`: AUC - 0.5 and TPR - FPR."""
        if versions not in self._worths:
            signal = self.learned(versions).signal
            sides = signal[self._is_member], signal[~self._is_member]
            above = [auc(*sides) - 0.5]
            for metric in self.metrics[1:]:
                fpr = fpr_of(metric)
                above.append(tpr_at_fpr(*sides, fpr=fpr) - fpr)
            self._worths[versions] = np.array(above)
        return self._worths[versions]

    def compare(self, more: Versions, less: Versions, metric: str) -> PairedTest:
        """One-sided: that the attacker on `more` finds no more than the one on `less`."""
        fprs = () if metric == AUC else (fpr_of(metric),)
        tests = compare_learned(
            self.learned(more),
            self.learned(less),
            self._is_member,
            overlap=self._attackers.folds.overlap,
            levels=self.levels._replace(fprs=fprs),
        )
        return tests[metric]

    def _holding(self, versions: Versions) -> Holding:
        return self._attackers.holding(versions, with_reference=self.with_reference)


def every_set(names: Versions) -> list[Versions]:
    """All sets that are not empty, each in the order of the audit."""
    return [held for size in range(1, len(names) + 1) for held in combinations(names, size)]


def beam(
    names: Versions,
    leakage: Callable[[Versions], float],
    *,
    width: int = BEAM,
    always: Iterable[Versions] = (),
) -> list[Versions]:
    """Sets found by growing: of each size the `width` that give away least go on.

    Every version adds to what is known, so that a set which gives away little is looked for among
    those that are a version more than another such set. All sets of one are among those found.

    Args:
        names: The versions in the order of the audit.
        leakage: What a set gives away.
        width: Sets of each size that are kept.
        always: Sets that must be among those found.
    """
    found: dict[Versions, None] = dict.fromkeys((name,) for name in names)
    kept = sorted(found, key=leakage)[:width]
    for _ in range(len(names) - 1):
        grown = {in_order({*held, name}, names) for held in kept for name in names}
        larger = sorted(held for held in grown if len(held) > len(kept[0]))
        kept = sorted(larger, key=leakage)[:width]
        found.update(dict.fromkeys(kept))
    found.update(dict.fromkeys(always))
    return list(found)
