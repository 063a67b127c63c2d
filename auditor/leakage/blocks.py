"""The features of all records, block by block: a version, a pair of versions, the lengths.

Shards of all versions speak of the same records, so that they are read side by side and a thread
holds no more than one of each. What is kept is float32: 27 numbers a version and 31 a pair, and
nothing of them where nobody learns from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.attacks import ATTACKS
from auditor.attacks.signals import over_shards
from auditor.leakage.features import (
    N_LENGTHS,
    distant_features,
    length_features,
    pair_features,
    version_features,
)
from auditor.scoring.scores import Float64, Scores
from auditor.store import VariantStore

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Pair = tuple[str, str]


class Blocks(NamedTuple):
    """Features of n records.

    Attributes:
        lengths: float32, shape (n, 4).
        versions: By version, float32, shape (n, 27); empty, as references and pairs, where only
            the training-free attacks were asked for.
        references: What the reference adds to a version, shape (n, 31), or (n, 2) where it has
            another tokenizer; empty without a reference.
        pairs: By pair, float32, shape (n, 31).
        gaps: The training-free SR attacks: by attack, by the version in the place of the
            reference, float64, shape (n,).
    """

    lengths: Float32
    versions: dict[str, Float32]
    references: dict[str, Float32]
    pairs: dict[Pair, Float32]
    gaps: dict[str, dict[str, Float64]]

    def version(self, name: str, *, with_reference: bool) -> Float32:
        """Everything about one version.

        Args:
            name: The version.
            with_reference: Whether what the reference adds is among the features.

        Returns:
            float32, shape (n, p).
        """
        beside = [self.references[name]] if with_reference else []
        return np.concatenate([self.versions[name], *beside, self.lengths], axis=1)


class Making:
    """The features of all records while their scores are read, shard by shard.

    Args:
        pairs: Pairs of versions whose difference is wanted.
        original: Name of the original.
        n_records: n.
        same_tokens: Whether the reference has the model's tokenizer.
        learned: Whether anybody learns from features; else there are only the training-free SR
            signals.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        original: str,
        n_records: int,
        same_tokens: bool = True,
        learned: bool = True,
    ) -> None:
        self._pairs = tuple(pairs)
        self._original = original
        self._n = n_records
        self._same_tokens = same_tokens
        self._learned = learned
        self._blocks: Blocks | None = None
        self._room = Lock()

    def __call__(
        self, records: Rows, scores: Mapping[str, Scores], reference: Scores | None
    ) -> None:
        """Take a shard; from several threads at once, each with other records."""
        part = of_scores(
            scores,
            self._pairs,
            original=self._original,
            beside=reference,
            same_tokens=self._same_tokens,
            learned=self._learned,
        )
        with self._room:
            if self._blocks is None:
                self._blocks = _empty_like(part, self._n)
        _put(self._blocks, records, part)

    def made(self) -> Blocks:
        """The features, once every shard was taken."""
        if self._blocks is None:
            raise ValueError("there must be records")
        return self._blocks


def read_blocks(
    stores: Mapping[str, VariantStore],
    pairs: Sequence[Pair],
    *,
    n_records: int,
    reference: VariantStore | None = None,
    same_tokens: bool = True,
    learned: bool = True,
) -> Blocks:
    """Make the features of all records from stored scores.

    Args:
        stores: By version, the original first; all with finite scores.
        pairs: As for `Making`.
        n_records: n.
        reference: Scores of the reference model, or None.
        same_tokens: Whether it has the model's tokenizer.
        learned: As for `Making`.

    Raises:
        StoreError: A shard is missing or damaged.
    """
    making = Making(
        pairs,
        original=next(iter(stores)),
        n_records=n_records,
        same_tokens=same_tokens,
        learned=learned,
    )
    for _ in over_shards(stores, reference, making):
        pass
    return making.made()


def of_scores(
    scores: Mapping[str, Scores],
    pairs: Sequence[Pair],
    *,
    original: str,
    beside: Scores | None,
    same_tokens: bool,
    learned: bool = True,
) -> Blocks:
    """The features of the records of some scores.

    Args:
        scores: By version, the same records.
        pairs: As for `read_blocks`.
        original: Name of the original.
        beside: The reference's scores of these records, or None.
        same_tokens: Whether it has the model's tokenizer.
        learned: As for `Making`.
    """

    def single(block: npt.NDArray[np.floating]) -> Float32:
        return block.astype(np.float32)

    references = {}
    if beside is not None and learned:
        for name, own in scores.items():
            references[name] = single(
                pair_features(beside, own)
                if same_tokens
                else distant_features(replace(own, reference=beside, same_tokens=False))
            )
    first = scores[original]
    # The original beside itself is a control: nothing may be found there.
    beside_original = {name: replace(first, reference=other) for name, other in scores.items()}
    return Blocks(
        lengths=single(length_features(first)),
        versions={
            name: single(version_features(scores[name])) for name in (scores if learned else ())
        },
        references=references,
        pairs={
            (first_of, second): single(pair_features(scores[first_of], scores[second]))
            for first_of, second in (pairs if learned else ())
        },
        gaps={
            attack: {name: function(found) for name, found in beside_original.items()}
            for attack, function in _training_free().items()
        },
    )


def _training_free() -> dict[str, Callable[[Scores], Float64]]:
    """The SR attacks without training."""
    return {
        name: attack.load()
        for name, attack in ATTACKS.items()
        if attack.setting == "SR" and not attack.learned
    }


def _empty_like(part: Blocks, n: int) -> Blocks:
    def room(block: Float32) -> Float32:
        return np.full((n, block.shape[1]), np.nan, dtype=np.float32)

    return Blocks(
        lengths=np.full((n, N_LENGTHS), np.nan, dtype=np.float32),
        versions={name: room(block) for name, block in part.versions.items()},
        references={name: room(block) for name, block in part.references.items()},
        pairs={name: room(block) for name, block in part.pairs.items()},
        gaps={
            attack: {name: np.full(n, np.nan) for name in found}
            for attack, found in part.gaps.items()
        },
    )


def _put(blocks: Blocks, rows: Rows, part: Blocks) -> None:
    blocks.lengths[rows] = part.lengths
    for kept, found in (
        (blocks.versions, part.versions),
        (blocks.references, part.references),
        (blocks.pairs, part.pairs),
        *((blocks.gaps[attack], part.gaps[attack]) for attack in blocks.gaps),
    ):
        for key, values in found.items():  # type: ignore[attr-defined]
            kept[key][rows] = values  # type: ignore[index]
