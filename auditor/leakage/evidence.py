"""What is stored of an audit, as far as more than one version at a time is concerned."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.config import AuditConfig
from auditor.leakage.blocks import Blocks
from auditor.leakage.bounds import check_supported, parse_bound
from auditor.leakage.folds import Rows, must_fill
from auditor.leakage.learners import Bools, Float64
from auditor.store import VariantStore

# A learned attack on fewer records a side learns next to nothing.
LEAST = 50


class Evidence(NamedTuple):
    """The scores of n records.

    Attributes:
        ids: Shape (n,).
        is_member: Shape (n,).
        groups: Near-duplicates have the same number, shape (n,).
        stores: Token statistics by version, the original first; only versions that are not broken.
        noises: By variant, those of the original with noise of the same norm.
        reference: Those of the reference model, or None.
        same_tokens: Whether it has the model's tokenizer.
        signals: Training-free NR signals by version, by attack.
        perplexities: On nonmembers, by version.
        primary: The attack named before the run.
        left_out: Versions that are not judged, with the reason.
        blocks: Features that were made when the scores were read; None: they are still to be made.
    """

    ids: npt.NDArray[np.str_]
    is_member: Bools
    groups: Rows
    stores: Mapping[str, VariantStore]
    noises: Mapping[str, VariantStore]
    reference: VariantStore | None
    same_tokens: bool
    signals: Mapping[str, Mapping[str, Float64]]
    perplexities: Mapping[str, float]
    primary: str
    left_out: Mapping[str, str]
    blocks: Blocks | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """The versions, the original first."""
        return tuple(self.stores)

    @property
    def fewest(self) -> int:
        """Records of the smaller side."""
        return min(int(self.is_member.sum()), int((~self.is_member).sum()))

    @property
    def read(self) -> dict[str, VariantStore]:
        """All whose features are wanted: versions, then noises."""
        return {**self.stores, **{store.name: store for store in self.noises.values()}}

    def pairs(self, config: AuditConfig) -> list[tuple[str, str]]:
        """The pairs of versions whose difference is looked at."""
        original = self.order[0]
        noises = [(original, store.name) for store in self.noises.values()]
        return [*pairs_of(self.order, config), *noises]


def pairs_of(order: Sequence[str], config: AuditConfig) -> list[tuple[str, str]]:
    """Every variant with the original, and for MR with the others; the first is a control."""
    original, *variants = order
    pairs = [(original, name) for name in order]
    return [*pairs, *combinations(variants, 2)] if "MR" in config.settings else pairs


def must_be_possible(config: AuditConfig, is_member: Bools) -> None:
    """Refuse what the counts cannot support, before anything is run.

    Raises:
        ConfigError: Fewer records than the folds need; a bound on a TPR that so few nonmembers
            cannot show.
    """
    n_members, n_nonmembers = int(is_member.sum()), int((~is_member).sum())
    if config.at_most is not None:
        check_supported(parse_bound(config.at_most), n_nonmembers)
    if min(n_members, n_nonmembers) >= LEAST and "crossfit" in config.supervisions:
        must_fill(config.folds, n_members, n_nonmembers)
