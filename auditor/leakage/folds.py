"""Folds: the same for every attack, so that differences are paired.

Every record is held out once in each repeat. What chooses a learner and its strength happens on
inner folds of the records that are not held out. Near-duplicates share a fold, outer and inner:
else a record could be judged by a model that was trained on its twin.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.errors import ConfigError, RecordsError

N_INNER = 3
# A learner of some hundred weights learns no more from the next record; what choosing costs is
# bounded sooner, because it is done for every candidate and inner fold.
MOST_TRAINED = 50_000
MOST_CHOOSING = 10_000

Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Part(NamedTuple):
    """One outer fold of one repeat.

    Attributes:
        test: Positions of the records that are held out.
        train: Positions of those that the learner is trained on; at most `MOST_TRAINED`.
        choosing: Positions of those among them that learner and strength are chosen on.
        inner: Shape of `choosing`: the inner fold of each.
    """

    test: Rows
    train: Rows
    choosing: Rows
    inner: Rows


class Folds(NamedTuple):
    """Outer folds of every repeat.

    Attributes:
        repeats: `repeats[r][k]` is outer fold k of repeat r.
        overlap: Share of its training records that two learners of different repeats have in
            common, when neither was trained on a given record.
    """

    repeats: list[list[Part]]
    overlap: float


def draw_folds(is_member: Bools, groups: Rows, *, n_folds: int, n_repeats: int, seed: int) -> Folds:
    """Draw repeated, stratified folds; records of one group share a fold.

    Args:
        is_member: Shape (n,).
        groups: Shape (n,): the group of near-duplicates that each record belongs to.
        n_folds: Outer folds.
        n_repeats: Repeats.
        seed: Of the draws.

    Raises:
        ConfigError: There are too few records for so many folds.
        RecordsError: Near-duplicates leave a learner with one side alone.
    """
    must_fill(n_folds, int(is_member.sum()), int((~is_member).sum()))
    rng = np.random.default_rng(seed)
    repeats, n_trained = [], 0
    for _ in range(n_repeats):
        number = stratified(is_member, groups, n_folds, rng)
        parts = []
        for k in range(n_folds):
            train = at_most(np.flatnonzero(number != k), MOST_TRAINED, rng)
            choosing = at_most(train, MOST_CHOOSING, rng)
            inner = stratified(is_member[choosing], groups[choosing], N_INNER, rng)
            part = Part(np.flatnonzero(number == k), train, choosing, inner)
            must_teach(part, is_member, groups)
            if not len(part.test):
                raise _too_alike(groups)
            parts.append(part)
            n_trained += len(train)
        repeats.append(parts)
    return Folds(repeats, n_trained / (n_repeats * n_folds * len(is_member)))


def must_fill(n_folds: int, n_members: int, n_nonmembers: int) -> None:
    """Refuse more folds than the records of a side can fill, inner ones counted.

    Raises:
        ConfigError: There are fewer records than that on a side.
    """
    least = n_folds * N_INNER
    if min(n_members, n_nonmembers) < least:
        raise ConfigError(
            f"{n_folds} folds need at least {least} members and {least} nonmembers",
            seen=f"{n_members} members and {n_nonmembers} nonmembers",
            fix="give more records, or a smaller --folds",
        )


def must_teach(part: Part, is_member: Bools, groups: Rows) -> None:
    """Refuse folds that leave a learner with one side alone.

    Args:
        part: Where learners are trained and chosen.
        is_member: Shape (n,).
        groups: Near-duplicates, shape (n,).

    Raises:
        RecordsError: So many records are near-duplicates of each other that one fold has a side.
    """
    taught = [part.train, *(part.choosing[part.inner != fold] for fold in range(N_INNER))]
    if any(is_member[rows].all() or not is_member[rows].any() for rows in taught) or (
        len(np.unique(part.inner)) < N_INNER
    ):
        raise _too_alike(groups)


def _too_alike(groups: Rows) -> RecordsError:
    sizes = np.unique(groups, return_counts=True)[1]
    return RecordsError(
        "every fold must hold members and nonmembers, and near-duplicates share one",
        seen=f"{len(groups)} records in {len(sizes)} groups of near-duplicates, "
        f"{sizes.max()} in the largest",
        fix="leave near-duplicates out of the records, or ask for attacks that are not learned",
    )


def stratified(is_member: Bools, groups: Rows, n_folds: int, rng: np.random.Generator) -> Rows:
    """The fold of each record: as many of each side in every fold as the groups allow.

    Groups of several records go first, the largest before, each to the fold that then has the
    fewest records of the sides that it holds; single records fill up what is missing.

    Args:
        is_member: Shape (n,).
        groups: Shape (n,).
        n_folds: Folds.
        rng: Draws.

    Returns:
        int64, shape (n,).
    """
    number = np.full(len(groups), -1, dtype=np.int64)
    filled = np.zeros((n_folds, 2), dtype=np.int64)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    several = np.flatnonzero(sizes > 1)
    order = rng.permutation(several)
    order = order[np.argsort(-sizes[order], kind="stable")]
    by_group = np.argsort(group, kind="stable")
    ends = np.cumsum(sizes)
    for one in order:
        rows = by_group[ends[one] - sizes[one] : ends[one]]
        held = np.array([(~is_member[rows]).sum(), is_member[rows].sum()])
        fold = int(np.argmin(filled @ held))
        number[rows] = fold
        filled[fold] += held
    for side in (0, 1):
        rows = rng.permutation(np.flatnonzero((number < 0) & (is_member == bool(side))))
        number[rows] = _levelled(filled[:, side], len(rows), rng)
    return number


def _levelled(filled: Rows, n: int, rng: np.random.Generator) -> Rows:
    """Folds for n more records, so that all folds end as equal as they can."""
    folds = rng.permutation(len(filled))
    # Poured in, they rise to one level over the folds that hold less: with the j lowest folds
    # below it, j * level = n + what those hold, and of all j the lowest level is the true one.
    lowest = np.cumsum(np.sort(filled))
    level = int(((n + lowest) // np.arange(1, len(filled) + 1)).min())
    missing = np.maximum(0, level - filled)[folds]
    left = n - int(missing.sum())
    return np.concatenate([np.repeat(folds, missing), folds[filled[folds] <= level][:left]])


def at_most(rows: Rows, most: int, rng: np.random.Generator) -> Rows:
    """At most so many of the rows, drawn, in their order."""
    if len(rows) <= most:
        return rows
    return np.sort(rng.choice(rows, most, replace=False))
