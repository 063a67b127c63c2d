"""Scores: the per-token facts of one model on many records, flat, in NumPy.

Records differ in length, so that the four facts of all records lie one after another in flat
arrays, and `offsets` says where each record begins. Record i owns `offsets[i]:offsets[i + 1]`.
All attacks are functions of this type alone; nothing here knows about torch or about files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Token statistics of n records under one model, T tokens in all.

    Attributes:
        offsets: int64, shape (n + 1,), first 0, last T. Every record has a token; only a reference
            with another tokenizer may see nothing to predict.
        logp: float32, shape (T,): l_t = log p(x_t), in nats.
        mu: float32, shape (T,): sum over the vocabulary of p log p (minus the entropy), in nats.
        sigma: float32, shape (T,): standard deviation of log p under p, in nats.
        hit: bool, shape (T,): whether x_t was the most likely token.
        text_bytes: int64, shape (n,): UTF-8 bytes of the text that was scored.
        zlib_bytes: int64, shape (n,): bytes of that text after zlib.
        reference: The same records under the reference model, or None.
        same_tokens: Whether the reference saw the same tokens, so that differences token by
            token mean something; False for a reference with another tokenizer.
    """

    offsets: Int64
    logp: Float32
    mu: Float32
    sigma: Float32
    hit: Bool
    text_bytes: Int64
    zlib_bytes: Int64
    reference: "Scores | None" = None
    same_tokens: bool = True

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> Int64:
        """int64, shape (n,): how many tokens of each record were scored."""
        return np.diff(self.offsets)

    @property
    def record_of_token(self) -> Int64:
        """int64, shape (T,): the record that each token belongs to."""
        return np.repeat(np.arange(len(self)), self.n_tokens)

    def sums(self, values: npt.NDArray[np.floating | np.bool_]) -> Float64:
        """Sum of a per-token array over each record, float64, shape (n,)."""
        # reduceat gives the next value where a segment is empty, and wants every start in range.
        padded = np.append(values, values.dtype.type(0))
        totals: Float64 = np.add.reduceat(padded, self.offsets[:-1], dtype=np.float64)
        return np.where(self.n_tokens > 0, totals, 0.0)

    def take(self, order: Sequence[int] | Int64) -> "Scores":
        """The records named by `order`, in that order, with their reference."""
        picked = np.asarray(order, dtype=np.int64)
        lengths = self.n_tokens[picked]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        tokens = np.repeat(self.offsets[picked], lengths) + within
        return replace(
            self,
            offsets=offsets,
            logp=self.logp[tokens],
            mu=self.mu[tokens],
            sigma=self.sigma[tokens],
            hit=self.hit[tokens],
            text_bytes=self.text_bytes[picked],
            zlib_bytes=self.zlib_bytes[picked],
            reference=None if self.reference is None else self.reference.take(picked),
        )
