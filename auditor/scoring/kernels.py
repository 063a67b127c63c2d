"""Token statistics on a GPU: from hidden states and output embedding, logits never written.

The sums of `statistics.py` in one Triton kernel. A program holds a tile of rows and goes over its
share of the vocabulary: a tile of logits is a matrix product that is accumulated in float32 and
stays in registers, where it is rounded to the model's dtype, scaled and capped as `Head.finish`
does it (these are the logits that a user of the model gets, no finer) and added to the running
sums. The vocabulary is split over several programs, so that a few rows fill the device as well;
their sums are joined exactly afterwards. Kept libraries with a fused head (Liger Kernel, Cut
Cross-Entropy) give the loss and its gradient but neither moment, hence a kernel of our own.

Block sizes are constants and not found by trying at run time: another choice is another order of
summation, and a store must hold the same bytes run after run.
"""

import contextlib
import functools
import importlib.util
import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from auditor.errors import first_line
from auditor.scoring.statistics import Head, Sums, TokenStatistics, statistics_of_sums


class Tile(NamedTuple):
    """One program's work: tiles of `rows` x `columns` logits, summed `depth` at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# Speed by reasoning, not by measurement; registers and memory as compiled for an H100. 16 bits:
# 128 x 128 float32 sums over 8 warps are 64 registers a thread, and with all that is computed from
# them 160 to 200 of 255 (with 256 columns some are spilled); each of the two warp groups that feed
# the tensor cores has 64 rows. Three stages of two 128 x 64 operands are 96 KiB of shared memory:
# of 227, and of 99 on the smallest card that has bfloat16.
# 32 bits: tensor cores do not multiply float32 exactly, every thread does it for itself, and a
# deeper tile would only make the unrolled loop longer.
_HALF = Tile(rows=128, columns=128, depth=64, warps=8, stages=3)
TILES = {
    torch.bfloat16: _HALF,
    torch.float16: _HALF,
    torch.float32: Tile(rows=64, columns=64, depth=16, warps=4, stages=2),
}
# Programs that run at a time should read the same things. 8 tiles of rows x 16 shares of the
# vocabulary are 128 programs, for an H100's 132 processors: the rows stay in its cache and every
# step reads 16 new tiles of the vocabulary, a sixth of what its memory gives in that time.
GROUP = 8
SPLITS = 16
# Where rows are few, more shares: some eight programs a processor, so that none idles for long
# while the last ones end.
PROGRAMS = 1024


def is_available(device: torch.device) -> bool:
    """Whether the kernel runs on a device: Triton is there and was seen to give the right sums.

    True for every device where Triton interprets (TRITON_INTERPRET=1): for tests, it is slow.
    """
    is_cuda = device.type == "cuda" and torch.version.hip is None
    if not (is_cuda or "TRITON_INTERPRET" in os.environ) or not _has_triton():
        return False
    from auditor.scoring.triton_sums import IS_INTERPRETED

    if IS_INTERPRETED or not is_cuda:
        return IS_INTERPRETED
    # Older devices have no bfloat16, and less shared memory than the tiles want.
    return torch.cuda.get_device_capability(device) >= (8, 0) and _works(device)


def applies(hidden: Tensor, *, head: Head) -> bool:
    """Whether `fused_statistics` can take these hidden states and this head."""
    return (
        head.module is None
        and hidden.dtype in TILES
        and head.weight.dtype == hidden.dtype
        and head.weight.device == hidden.device
        and is_available(hidden.device)
    )


def fused_statistics(hidden: Tensor, targets: Tensor, *, head: Head) -> TokenStatistics:
    """Statistics of `targets` under the distributions that `hidden` leads to.

    The same as `token_statistics`, but for the order of summation. Beside its arguments it takes
    24 bytes for each row and share of the vocabulary: with many rows 384 bytes a row, less than
    their hidden states.

    Args:
        hidden: Final hidden states, shape (N, H), in bfloat16, float16 or float32.
        targets: The tokens that follow, int64, shape (N,).
        head: The output projection, of the same dtype; not one that is a module.

    Returns:
        float32 in nats, on the device of `hidden`. NaN or infinity in the logits stays visible as
        NaN or infinity.
    """
    if head.module is not None or hidden.dtype not in TILES or head.weight.dtype != hidden.dtype:
        raise ValueError(f"no kernel for {hidden.dtype} hidden states and {head.weight.dtype} head")
    if not len(hidden):
        empty = torch.zeros(0, device=hidden.device)
        return TokenStatistics(empty, empty, empty, empty.bool())
    targets = targets.contiguous()
    sums, best = _partial_sums(hidden, targets, head)
    return statistics_of_sums(_join(*sums.unbind(), best=best, targets=targets))


def _partial_sums(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Run the kernel: (maximum, s, a, b, target's logit) x shares x N, and the maximum's column."""
    from auditor.scoring.triton_sums import IS_INTERPRETED, sums_of_share

    rows, width = hidden.shape
    columns = head.weight.shape[0]
    tile = TILES[hidden.dtype]
    row_tiles, column_tiles = -(-rows // tile.rows), -(-columns // tile.columns)
    wanted = max(SPLITS, -(-PROGRAMS // row_tiles))
    per_split = -(-column_tiles // min(wanted, column_tiles))
    splits = -(-column_tiles // per_split)  # none of them is empty
    sums = torch.empty(5, splits, rows, dtype=torch.float32, device=hidden.device)
    best = torch.empty(splits, rows, dtype=torch.int32, device=hidden.device)
    on_device = torch.cuda.device(hidden.device) if hidden.is_cuda else contextlib.nullcontext()
    with on_device:
        sums_of_share[(row_tiles * splits,)](
            hidden,
            head.weight,
            head.weight if head.bias is None else head.bias.contiguous(),
            targets,
            sums,
            best,
            rows,
            columns,
            width,
            splits,
            per_split,
            *hidden.stride(),
            *head.weight.stride(),
            head.scale,
            head.softcap or 1.0,
            1.0 / (head.softcap or 1.0),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            GROUP=GROUP,
            HAS_BIAS=head.bias is not None,
            HAS_SCALE=head.scale != 1.0,
            HAS_CAP=head.softcap is not None,
            IS_EVEN=width % tile.depth == 0,
            INTERPRETED=IS_INTERPRETED,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,  # products in float32 want it; the default has changed
        )
    return sums, best


def _join(
    maximum: Tensor,
    s: Tensor,
    a: Tensor,
    b: Tensor,
    target: Tensor,
    *,
    best: Tensor,
    targets: Tensor,
) -> Sums:
    """Join the sums of all shares of the vocabulary, each (shares, N), about the one maximum."""
    top = maximum.amax(dim=0)
    # The first of equal maxima, as in argmax over the whole; no share leads where one holds NaN.
    share = (maximum == top).to(torch.uint8).argmax(dim=0)
    d = maximum - top
    factor = d.exp()
    s_whole = (s * factor).sum(dim=0)
    return Sums(
        maximum=top,
        s=s_whole,
        a=((a + d * s) * factor).sum(dim=0),
        b=((b + d * (2 * a + d * s)) * factor).sum(dim=0),
        target=target.sum(dim=0),  # 0 in every share but its own
        hit=(best.gather(0, share[None])[0] == targets) & ~s_whole.isnan(),
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a tiny problem comes out right: where Triton finds no compiler, nothing would."""
    generator = torch.Generator().manual_seed(0)
    # Multiples of 1/8, so that no order of summation matters; 64 wide, so that what is compiled for
    # this serves most models as well.
    hidden, weight = (
        (torch.randint(-8, 9, (n, 64), generator=generator) / 8).to(device, torch.bfloat16)
        for n in (3, 200)
    )
    targets = torch.tensor([0, 128, 199], device=device)
    try:
        found = fused_statistics(hidden, targets, head=Head(weight))
    except Exception as error:
        reason = first_line(error)
        warnings.warn(f"scoring without the GPU kernel, which did not run: {reason}", stacklevel=2)
        return False
    logp = (hidden.float() @ weight.float().T).bfloat16().double().log_softmax(dim=1)
    mu = (logp.exp() * logp).sum(dim=1)
    is_right = torch.allclose(found.mu.double(), mu, atol=1e-4) and torch.allclose(
        found.logp.double(), logp.gather(1, targets[:, None])[:, 0], atol=1e-4
    )
    if not is_right:
        warnings.warn("scoring without the GPU kernel, whose sums are wrong here", stacklevel=2)
    return is_right
