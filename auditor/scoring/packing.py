"""Packing: the records of a batch as one row of tokens, so that no padding is computed.

Attention of variable length is told where in the row each record begins and ends, and every other
part of a model looks at one token at a time; position ids begin anew with each record. Elsewhere
the row would cost more than padding does, as attention would look at all pairs of its tokens and
throw most of them away.

Whether a model keeps the records of a row apart is not taken from a list but tried out, as with
the head: state space models and convolutions carry on from one record into the next, and models
that count positions by themselves do not begin anew.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from auditor.scoring.batches import to_device
from auditor.scoring.encode import Encoded


class Packed(NamedTuple):
    """Records as one row of T tokens.

    Attributes:
        ids: The tokens, int64, shape (1, T).
        position_ids: Place of each token in its record, int64, shape (1, T).
        kwargs: Where records begin and end, for attention of variable length; other attention
            takes no notice of it.
        rows: Positions of the row that lead to a token that is scored, int64, shape (N,).
        targets: Those tokens, int64, shape (N,).
    """

    ids: Tensor
    position_ids: Tensor
    kwargs: dict[str, Any]
    rows: Tensor
    targets: Tensor


def pack(records: Sequence[Encoded], device: torch.device) -> Packed:
    """Lay records end to end.

    A record's last token predicts nothing that is scored, so that it is left out.
    """
    lengths = [len(record.ids) - 1 for record in records]
    ends = np.cumsum([0, *lengths])
    spans = list(pairwise(ends.tolist()))
    rows = [
        np.arange(start + record.first - 1, end)
        for record, (start, end) in zip(records, spans, strict=True)
    ]
    # One transfer instead of four: each of them costs more than it carries.
    flat = np.concatenate(
        [
            *(np.asarray(record.ids[:-1], dtype=np.int64) for record in records),
            *(np.arange(length) for length in lengths),
            *rows,
            *(np.asarray(record.ids[record.first :], dtype=np.int64) for record in records),
        ]
    )
    n_scored = sum(len(row) for row in rows)
    ids, position_ids, picked, targets = to_device(flat, device).split(
        [int(ends[-1]), int(ends[-1]), n_scored, n_scored]
    )
    bounds = to_device(ends.astype(np.int32), device)
    kwargs = {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    return Packed(ids[None], position_ids[None], kwargs, picked, targets)


def is_variable_length(model: Any) -> bool:  # noqa: ANN401 - any causal LM
    """Whether a model's attention skips what lies between records: flash attention in any form."""
    chosen = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return isinstance(chosen, str) and "flash" in chosen


@torch.inference_mode()
def can_pack(model: Any, body: nn.Module, device: torch.device) -> bool:  # noqa: ANN401
    """Whether packed records come out of a model's body as they do alone, by trying it.

    Args:
        model: A transformers causal language model in eval mode.
        body: The part of it that gives the final hidden states.
        device: Where its inputs go.
    """
    size = min(97, int(model.config.get_text_config().vocab_size))
    # 4 + 9 + 3 tokens; a body that is not causal, or whose records run into each other either
    # way, gives the second of them something else between two than alone.
    records = [_record(range(1 + 11 * k, 2 + 11 * k + n), size) for k, n in enumerate((4, 9, 3))]
    others = [_record(range(50, 55), size), records[1], _record(range(70, 74), size)]
    try:
        together = _hidden(body, records, device)
        between_others = _hidden(body, others, device)
        alone = [body(input_ids=pack([r], device).ids, use_cache=False)[0][0] for r in records]
    except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError):
        return False  # it knows no position ids, or not this attention
    if together.shape != between_others.shape or len(together) != sum(map(len, alone)):
        return False
    second = slice(len(alone[0]), len(alone[0]) + len(alone[1]))
    is_single = together.dtype == torch.float32
    # Same shapes, same kernels: what is left is that of experts, which group the row's tokens.
    is_apart = _differ(together[second], between_others[second]) < (1e-5 if is_single else 2e-3)
    return is_apart and _differ(together, torch.cat(alone)) < (1e-4 if is_single else 5e-2)


def _record(tokens: Sequence[int], size: int) -> Encoded:
    return Encoded(
        ids=[token % size for token in tokens], first=1, truncated=False, text_bytes=0, zlib_bytes=0
    )


def _hidden(body: nn.Module, records: Sequence[Encoded], device: torch.device) -> Tensor:
    """Hidden states of packed records, shape (T, H)."""
    packed = pack(records, device)
    states: Tensor = body(
        input_ids=packed.ids, position_ids=packed.position_ids, use_cache=False, **packed.kwargs
    )[0][0]
    return states


def _differ(ours: Tensor, theirs: Tensor) -> float:
    """The largest distance at a position, over the length of its hidden state."""
    distance = (ours.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1)
    return float(distance.nan_to_num(nan=torch.inf).max())
