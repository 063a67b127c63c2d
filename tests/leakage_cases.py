"""Invented token statistics of several versions, with membership that is known."""

from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from auditor.leakage.attackers import Attackers
from auditor.leakage.blocks import Blocks, of_scores
from auditor.leakage.folds import draw_folds
from auditor.scoring.scores import Scores


class Case(NamedTuple):
    """n records under several versions.

    Attributes:
        is_member: Shape (n,).
        versions: By name, the original first.
    """

    is_member: np.ndarray
    versions: dict[str, Scores]

    def blocks(self) -> Blocks:
        names = list(self.versions)
        pairs = [(names[0], names[0]), *combinations(names, 2)]
        return of_scores(self.versions, pairs, original=names[0], beside=None, same_tokens=True)


def make_case(
    rng: np.random.Generator,
    n: int,
    *,
    n_variants: int = 1,
    leak: float = 0.0,
    variant_leak: float = 0.0,
    noise: float = 0.3,
    reference: bool = False,
) -> Case:
    """Half members, half not; `leak` is what a member gains per token under every version.

    A variant is the original with noise in l_t that knows no label, and `variant_leak` more that a
    member gains in the move from the original to the variant.
    """
    member = np.arange(n) < n // 2
    lengths = rng.integers(15, 45, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    own = rng.normal(0.0, 0.4, n)
    mu, sigma = rng.uniform(-4, -1, total), rng.uniform(0.5, 2.5, total)
    spread, hit = rng.normal(size=total), rng.random(total) < 0.3
    sizes = lengths * 4

    def version(moved: np.ndarray, gain: np.ndarray) -> Scores:
        logp = mu + sigma * (spread + moved) + np.repeat(gain + own, lengths)
        return Scores(
            offsets,
            np.minimum(logp, -1e-4).astype(np.float32),
            mu.astype(np.float32),
            sigma.astype(np.float32),
            hit,
            sizes,
            sizes // 2 + 9,
        )

    versions = {"original": version(np.zeros(total), leak * member)}
    for number in range(n_variants):
        moved = noise * rng.normal(size=total)
        versions[f"variant {number}"] = version(moved, (leak + variant_leak) * member)
    if reference:
        base = version(0.5 * rng.normal(size=total), np.zeros(n))
        versions = {name: replace(own, reference=base) for name, own in versions.items()}
    return Case(member, versions)


def make_attackers(
    case: Case, *, seed: int = 0, trees: bool = False, repeats: int = 2
) -> Attackers:
    folds = draw_folds(
        case.is_member,
        np.arange(len(case.is_member)),
        n_folds=5,
        n_repeats=repeats,
        seed=seed,
    )
    order = list(case.versions)
    return Attackers(case.blocks(), case.is_member, folds, order=order, trees=trees)
