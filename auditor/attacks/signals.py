"""From stored scores to signals: every attack on each version of the model, shard by shard.

No model is run here and no torch is imported: an audit can be judged again in seconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from auditor.attacks import ATTACKS
from auditor.scoring.scores import Float64, Scores
from auditor.store import VariantStore
from auditor.workers import in_order

Done = TypeVar("Done")


class Signals(NamedTuple):
    """What the attacks make of one version.

    Attributes:
        by_attack: Attack id to float64 of shape (n,), in the order of the records.
        perplexity: exp of the mean of -log p over all scored tokens of the nonmembers.
    """

    by_attack: dict[str, Float64]
    perplexity: float


def applicable(
    wanted: Sequence[str], *, has_reference: bool, same_tokens: bool
) -> tuple[list[str], dict[str, str]]:
    """The attacks that can be run, and why the others cannot.

    Args:
        wanted: Attack ids, of which those on one version without training count; or none for all.
        has_reference: Whether a reference model was given.
        same_tokens: Whether it has the model's own tokenizer.
    """
    alone = [name for name, found in ATTACKS.items() if found.setting == "NR" and not found.learned]
    # A wish for learned attacks alone leaves nothing that is named before the run: take all then.
    names = [name for name in wanted if name in alone] or alone
    left_out: dict[str, str] = {}
    for name in names:
        attack = ATTACKS[name]
        if attack.needs_reference and not has_reference:
            left_out[name] = "needs a reference model (--reference)"
        elif attack.needs_same_tokens and has_reference and not same_tokens:
            left_out[name] = (
                "compares token by token, and the reference model has another tokenizer"
            )
    return [name for name in names if name not in left_out], left_out


class Beside(Protocol):
    """What else is made of the scores of a shard while they are at hand."""

    def __call__(
        self,
        records: npt.NDArray[np.int64],
        scores: Mapping[str, Scores],
        reference: Scores | None,
    ) -> None:
        """Take a shard; called from several threads at once, each with other records."""


def compute_signals(
    stores: Mapping[str, VariantStore],
    attacks: Sequence[str],
    *,
    is_member: npt.NDArray[np.bool_],
    reference: VariantStore | None = None,
    same_tokens: bool = True,
    beside: Beside | None = None,
) -> dict[str, Signals]:
    """Run attacks on the stored scores of each version; every shard is read once.

    Args:
        stores: Their scores, by version.
        attacks: Attack ids that apply (see `applicable`).
        is_member: bool, shape (n,).
        reference: Scores of the reference model on the same records, or None.
        same_tokens: Whether the reference scored the same tokens.
        beside: Given every shard too, or None.

    Raises:
        StoreError: A shard is missing or damaged.
    """
    functions = {name: ATTACKS[name].load() for name in attacks}
    found: dict[str, dict[str, Float64]] = {
        name: {one: np.full(len(is_member), np.nan) for one in attacks} for name in stores
    }

    def attack(
        records: npt.NDArray[np.int64], scores: Mapping[str, Scores], other: Scores | None
    ) -> dict[str, Spent]:
        for name, own in scores.items():
            both = replace(own, reference=other, same_tokens=same_tokens) if other else own
            for one, function in functions.items():
                found[name][one][records] = function(both)
        if beside is not None:
            beside(records, scores, other)
        outside = ~is_member[records]
        return {name: _spent(own, outside) for name, own in scores.items()}

    shards = list(over_shards(stores, reference, attack))
    for by_attack in found.values():
        for name, values in by_attack.items():
            if not np.isfinite(values).all():
                raise ValueError(f"attack {name} gave a signal that is not a finite number")
    return {
        name: Signals(by_attack, _perplexity([shard[name] for shard in shards]))
        for name, by_attack in found.items()
    }


class Spent(NamedTuple):
    """What a version says of the nonmembers of a shard: the sum of log p, and their tokens."""

    logp: float
    n_tokens: int


def _spent(scores: Scores, outside: npt.NDArray[np.bool_]) -> Spent:
    total = float(scores.sums(scores.logp)[outside].sum())
    return Spent(total, int(scores.n_tokens[outside].sum()))


def _perplexity(shards: Sequence[Spent]) -> float:
    total, count = 0.0, 0
    for shard in shards:
        total += shard.logp
        count += shard.n_tokens
    return float(np.exp(-total / max(1, count)))


def over_shards(
    stores: Mapping[str, VariantStore],
    reference: VariantStore | None,
    work: Callable[[npt.NDArray[np.int64], dict[str, Scores], Scores | None], Done],
) -> Iterator[Done]:
    """What `work` makes of each shard of all versions side by side, in the order of the shards.

    A thread holds one shard of each version at a time, and no more.

    Args:
        stores: By version; at least one.
        reference: The reference model's, or None.
        work: Given records, scores by version, and those of the reference; called from several
            threads at once.

    Raises:
        StoreError: A shard is missing or damaged.
    """

    def one(number: int) -> Done:
        shards = {name: store.shard(number) for name, store in stores.items()}
        other = None if reference is None else reference.shard(number).scores
        scores = {name: shard.scores for name, shard in shards.items()}
        return work(next(iter(shards.values())).records, scores, other)

    return in_order(one, range(len(next(iter(stores.values())).shards)))
