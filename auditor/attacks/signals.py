"""From stored scores to signals: every attack on one version of the model, shard by shard.

No model is run here and no torch is imported: an audit can be judged again in seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.attacks import ATTACKS
from auditor.scoring.scores import Float64, Scores
from auditor.store import VariantStore


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


def compute_signals(
    store: VariantStore,
    attacks: Sequence[str],
    *,
    is_member: npt.NDArray[np.bool_],
    reference: VariantStore | None = None,
    same_tokens: bool = True,
) -> Signals:
    """Run attacks on the stored scores of one version.

    Args:
        store: Its scores.
        attacks: Attack ids that apply (see `applicable`).
        is_member: bool, shape (n,).
        reference: Scores of the reference model on the same records, or None.
        same_tokens: Whether the reference scored the same tokens.

    Raises:
        StoreError: A shard is missing or damaged.
    """
    functions = {name: ATTACKS[name].load() for name in attacks}
    signals: dict[str, Float64] = {name: np.full(len(is_member), np.nan) for name in attacks}
    total, count = 0.0, 0
    for records, scores in _beside(store, reference, same_tokens=same_tokens):
        for name, function in functions.items():
            signals[name][records] = function(scores)
        outside = ~is_member[records]
        total += float(scores.sums(scores.logp)[outside].sum())
        count += int(scores.n_tokens[outside].sum())
    for name, values in signals.items():
        if not np.isfinite(values).all():
            raise ValueError(f"attack {name} gave a signal that is not a finite number")
    return Signals(signals, float(np.exp(-total / max(1, count))))


def _beside(
    store: VariantStore, reference: VariantStore | None, *, same_tokens: bool
) -> Iterator[tuple[npt.NDArray[np.int64], Scores]]:
    """Shards of a version, each with the reference's scores of the same records."""
    if reference is None:
        for shard in store.read():
            yield shard.records, shard.scores
        return
    for own, other in zip(store.read(), reference.read(), strict=True):
        yield own.records, replace(own.scores, reference=other.scores, same_tokens=same_tokens)
