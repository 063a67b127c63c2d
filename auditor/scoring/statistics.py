"""Token statistics: the three sums over the vocabulary in one pass, never holding the logits whole.

For the logits z of one position, p = softmax(z) and a target x:

    l = log p(x)      mu = sum_v p_v log p_v      sigma^2 = sum_v p_v (log p_v)^2 - mu^2

Loss, zlib, Min-K% (Shi 2024) and Min-K%++ (Zhang 2024, eq. 3, with moments weighted by p) need
nothing else. The sums run over the vocabulary tile by tile with a running maximum, as in online
softmax (Milakov and Gimelshein 2018), extended here to the first and second moment: when the
maximum moves from m to m' and d = m - m', the sums s = sum e^(z-m), a = sum e^(z-m) (z-m) and
b = sum e^(z-m) (z-m)^2 become s e^d, (a + d s) e^d and (b + 2 d a + d^2 s) e^d.

Moments are taken about the maximum, so that the difference of squares stays exact where a
distribution is sharp, which is where Min-K%++ divides by its root.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Rows times columns of a tile of logits. Measured on two cores (EPYC, 1 MiB of cache each):
# 1024 x 1024 was the fastest of 128..1024 x 512..4096 at vocabularies of 4,096 and 50,257, and
# cheaper than writing the logits of the batch, nothing computed from them.
TILE_CPU = (1024, 1024)
TILE_GPU = (4096, 8192)


@dataclass(frozen=True)
class Head:
    """What turns final hidden states into logits: scale * (h W^T + b), softly capped.

    Attributes:
        weight: Shape (V, H), in the model's dtype.
        bias: Shape (V,), or None.
        scale: Factor on the logits (Cohere multiplies, Granite divides).
        softcap: c in c tanh(z / c) (Gemma 2), or None.
        module: Called with hidden states instead of the product with `weight`, for a head whose
            weights are packed; its logits are then held for one tile of rows at a time.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    module: Callable[[Tensor], Tensor] | None = None

    def logits(self, hidden: Tensor, columns: slice) -> Tensor:
        """float32 logits of shape (R, columns) for hidden states of shape (R, H).

        The product is in the model's own dtype, as the model would do it, and every step after
        it in float32: these are the logits that a user of the model gets, no finer.
        """
        if self.module is not None:
            raw = self.module(hidden)[:, columns]
        else:
            bias = None if self.bias is None else self.bias[columns]
            raw = torch.nn.functional.linear(hidden, self.weight[columns], bias)
        return self.finish(raw).float()

    def finish(self, raw: Tensor) -> Tensor:
        """Scale and cap logits in their own dtype, as transformers does."""
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw


class TokenStatistics(NamedTuple):
    """Facts of N positions: three float32 tensors and a bool one, each of shape (N,)."""

    logp: Tensor
    mu: Tensor
    sigma: Tensor
    hit: Tensor


class Sums(NamedTuple):
    """Running sums of R rows; `target` is the target's logit, `hit` whether it leads so far."""

    maximum: Tensor
    s: Tensor
    a: Tensor
    b: Tensor
    target: Tensor
    hit: Tensor


def token_statistics(hidden: Tensor, targets: Tensor, *, head: Head) -> TokenStatistics:
    """Statistics of `targets` under the distributions that `hidden` leads to.

    Args:
        hidden: Final hidden states, shape (N, H).
        targets: The tokens that follow, int64, shape (N,).
        head: The output projection.

    Returns:
        float32 in nats, on the device of `hidden`. NaN or infinity in the logits stays visible as
        NaN or infinity.
    """
    if hidden.device.type == "cuda":
        from auditor.scoring import kernels

        if kernels.applies(hidden, head=head):
            return kernels.fused_statistics(hidden, targets, head=head)
    rows, columns = TILE_CPU if hidden.device.type == "cpu" else TILE_GPU
    vocabulary = head.weight.shape[0]
    width = vocabulary if head.module is not None else columns

    def tiles(block: Tensor) -> Callable[[slice], Tensor]:
        return lambda span: head.logits(block, span)

    parts = [
        _statistics(tiles(hidden[row : row + rows]), targets[row : row + rows], vocabulary, width)
        for row in range(0, len(hidden), rows)
    ]
    return _join(parts, hidden.device)


def statistics_of_logits(logits: Tensor, targets: Tensor) -> TokenStatistics:
    """The same from logits that are already there, shape (N, V): the way of opaque heads."""
    rows, columns = TILE_CPU if logits.device.type == "cpu" else TILE_GPU

    def tiles(block: Tensor) -> Callable[[slice], Tensor]:
        # A vocabulary entry that a model masks with -inf has p log p = 0; in floating point
        # 0 * inf is NaN, and a logit this low weighs exactly 0 as well.
        return lambda span: block[:, span].float().clamp(min=-1e9)

    parts = [
        _statistics(
            tiles(logits[row : row + rows]), targets[row : row + rows], logits.shape[1], columns
        )
        for row in range(0, len(logits), rows)
    ]
    return _join(parts, logits.device)


def _statistics(
    tile: Callable[[slice], Tensor], targets: Tensor, vocabulary: int, width: int
) -> TokenStatistics:
    sums: Sums | None = None
    for start in range(0, vocabulary, width):
        logits = tile(slice(start, min(start + width, vocabulary)))
        sums = _add_tile(sums, logits, targets, start)
    if sums is None:
        raise ValueError("the vocabulary must not be empty")
    return statistics_of_sums(sums)


def statistics_of_sums(sums: Sums) -> TokenStatistics:
    """What the sums over the whole vocabulary say."""
    log_s = sums.s.log()
    mean = sums.a / sums.s
    variance = sums.b / sums.s - mean * mean
    # Only what rounding made of a vanishing variance is floored: a distribution that really is
    # this sharp has a standard deviation of its own, and flooring everything would hide it.
    sigma = torch.where(variance < 1e-12, torch.full_like(variance, 1e-6), variance.sqrt())
    return TokenStatistics(
        logp=sums.target - sums.maximum - log_s,
        mu=mean - log_s,
        sigma=torch.where(variance.isnan(), variance, sigma),
        hit=sums.hit,
    )


def _add_tile(sums: Sums | None, logits: Tensor, targets: Tensor, start: int) -> Sums:
    """Add columns `start..` to the running sums; `logits` is used up."""
    top = logits.amax(dim=1)
    at = targets - start
    inside = (at >= 0) & (at < logits.shape[1])
    own = logits.gather(1, at.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    leads = inside & (own == top)
    _first_of_equals(leads, logits, at, top)
    if sums is None:
        new, target, hit = top, own, leads
        old_s = old_a = old_b = torch.zeros_like(top)
    else:
        new = torch.maximum(sums.maximum, top)
        target = torch.where(inside, own, sums.target)
        # Among equals the first column wins, as in argmax over the whole: a target must be larger
        # than what stands before it, and no less than what comes after.
        hit = torch.where(inside, leads & (top > sums.maximum), sums.hit & (top <= sums.maximum))
        d = sums.maximum - new
        factor = d.exp()
        old_s = sums.s * factor
        old_a = (sums.a + d * sums.s) * factor
        old_b = (sums.b + d * (2 * sums.a + d * sums.s)) * factor
    z = logits.sub_(new[:, None])
    weights = z.exp()
    s = old_s + weights.sum(dim=1)
    weights.mul_(z)
    a = old_a + weights.sum(dim=1)
    weights.mul_(z)
    b = old_b + weights.sum(dim=1)
    return Sums(new, s, a, b, target, hit)


def _first_of_equals(leads: Tensor, logits: Tensor, at: Tensor, top: Tensor) -> None:
    """Take back `leads` where an earlier column of the tile holds the same maximum, in place.

    On a CPU only rows whose target is a maximum are looked at, once over all tiles: finding the
    column of every row's maximum costs as much as the exponentials, its value a fifteenth of that.
    On a GPU to ask which rows they are would be to wait for the device.
    """
    if leads.device.type != "cpu":
        leads &= logits.argmax(dim=1) == at
        return
    rows = leads.nonzero()[:, 0]
    if len(rows):
        first = (logits[rows] == top[rows, None]).to(torch.uint8).argmax(dim=1)
        leads[rows] = first == at[rows]


def _join(parts: list[TokenStatistics], device: torch.device) -> TokenStatistics:
    if not parts:
        empty = torch.zeros(0, device=device)
        return TokenStatistics(empty, empty, empty, empty.bool())
    return TokenStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))
