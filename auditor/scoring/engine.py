"""The engine: records through one model, once, and out come their token statistics."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from auditor.compress.dispatch import input_device
from auditor.errors import BrokenVariantError
from auditor.scoring.batches import (
    MAX_LOGITS,
    Budget,
    default_tokens,
    pad,
    run_in_batches,
    to_device,
)
from auditor.scoring.encode import Encoded
from auditor.scoring.head import take_apart
from auditor.scoring.packing import can_pack, is_variable_length, pack
from auditor.scoring.scores import Scores
from auditor.scoring.statistics import TokenStatistics, statistics_of_logits, token_statistics


@dataclass
class Counters:
    """What an engine has done so far.

    Attributes:
        forward_s: Seconds in the model and the token statistics.
        n_records: Records that went through the model.
        n_passes: Batches that went through the model.
        n_tokens: Tokens of those records, padding not counted.
    """

    forward_s: float = 0.0
    n_records: int = 0
    n_passes: int = 0
    n_tokens: int = 0


@dataclass
class Engine:
    """Scores records under one model.

    Attributes:
        model: A transformers causal language model in eval mode.
        device: Where its inputs go; of a model over several devices the engine finds that out.
        batch_size: Records per batch at most, or "auto" for a token budget.
        one_at_a_time: Score every record alone, for a model whose answer depends on the batch.
        pad_id: What padding is written as; it is never scored and cannot be seen.
        counters: What was done.
        on_batch: Told after every batch how many records and tokens it held.
    """

    model: Any
    device: torch.device
    batch_size: int | str = "auto"
    one_at_a_time: bool = False
    pad_id: int = 0
    counters: Counters = field(default_factory=Counters)
    on_batch: Callable[[int, int], None] = lambda records, tokens: None

    def __post_init__(self) -> None:
        self.device = input_device(self.model)
        self._trunk = take_apart(self.model, self.device)
        body = self._trunk.body
        self._packs = (
            body is not None
            and is_variable_length(self.model)
            and can_pack(self.model, body, self.device)
        )
        config = self.model.config.get_text_config()
        if isinstance(self.batch_size, int):
            self._budget = Budget(2**62, self.batch_size)
        else:
            self._budget = Budget(default_tokens(self.device, config))
        if self._trunk.head is None:
            most = max(1, MAX_LOGITS // config.vocab_size)
            self._budget.tokens = min(self._budget.tokens, most)
        if self.one_at_a_time:
            self._budget.records = 1

    @property
    def budget(self) -> Budget:
        """What a batch may hold now."""
        return self._budget

    def score(self, records: Sequence[Encoded]) -> Scores:
        """Token statistics of `records`, in their order.

        Raises:
            BrokenVariantError: Logits are NaN or infinite.
            ModelError: A single record does not fit into memory.
        """
        begin = time.perf_counter()
        # Longest first: neighbours are alike, so that little is padded, and what cannot fit
        # fails at once. The sort is stable, so that the batches are always the same.
        order = sorted(range(len(records)), key=lambda row: -len(records[row].ids))
        wanted = [row for row in order if records[row].n_scored]
        parts = run_in_batches([records[row] for row in wanted], self._budget, self._forward)
        # Fetched once, so that the host does not wait for the device batch by batch.
        columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
        logp, mu, sigma, hit = columns or [np.zeros(0, np.float32)] * 4
        by_row = np.argsort(wanted, kind="stable")
        scores = _flat(records, (logp, mu, sigma, hit.astype(np.bool_)), wanted, by_row)
        self.counters.forward_s += time.perf_counter() - begin
        self.counters.n_records += len(wanted)
        self.counters.n_tokens += sum(len(records[row].ids) for row in wanted)
        _must_be_finite(scores)
        return scores

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Encoded]) -> TokenStatistics:
        """One pass: the facts of the scored tokens of the batch, on the device."""
        self.counters.n_passes += 1
        statistics = self._packed(batch) if len(batch) > 1 else None
        if statistics is None:
            statistics = self._padded(batch)
        self.on_batch(len(batch), sum(len(record.ids) for record in batch))
        return statistics

    def _packed(self, batch: Sequence[Encoded]) -> TokenStatistics | None:
        """The facts from one row of all records, where the model's attention tells them apart."""
        body = self._trunk.body
        if not self._packs or body is None:
            return None
        row = pack(batch, self.device)
        states = body(
            input_ids=row.ids, position_ids=row.position_ids, use_cache=False, **row.kwargs
        )[0][0]
        return self._of_states(states, row.rows, row.targets)

    def _padded(self, batch: Sequence[Encoded]) -> TokenStatistics:
        """The facts from a row for each record."""
        ids = pad(batch, self.pad_id, self.device)
        # Position t - 1 speaks of token t: rows that lead to padding or to the prompt are left out
        # before the head, and never cost a product with the vocabulary.
        rows = np.concatenate(
            [
                np.arange(record.first - 1, len(record.ids) - 1) + number * ids.shape[1]
                for number, record in enumerate(batch)
            ]
        )
        targets = np.concatenate([np.asarray(record.ids[record.first :]) for record in batch])
        return self._statistics(ids, to_device(rows, self.device), to_device(targets, self.device))

    def _statistics(
        self, ids: torch.Tensor, picked: torch.Tensor, targets: torch.Tensor
    ) -> TokenStatistics:
        trunk = self._trunk
        if trunk.body is None or trunk.head is None:
            logits = trunk.model(input_ids=ids, use_cache=False).logits
            return statistics_of_logits(logits.flatten(0, 1)[picked], targets)
        hidden = trunk.body(input_ids=ids, use_cache=False)[0]
        return self._of_states(hidden.flatten(0, 1), picked, targets)

    def _of_states(
        self, states: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
    ) -> TokenStatistics:
        """The facts of `targets` from the hidden states at `rows`, all rows where they are as many.

        Where the model lies over several devices, the states come out on that of its last block.
        """
        picked = states if len(rows) == len(states) else states[rows.to(states.device)]
        device = self._trunk.device
        with self._trunk.loaded_head() as head:
            return token_statistics(picked.to(device), targets.to(device), head=head)


def _flat(
    records: Sequence[Encoded],
    columns: tuple[npt.NDArray[Any], ...],
    wanted: list[int],
    by_row: npt.NDArray[Any],
) -> Scores:
    """Put flat columns, in the order of `wanted`, into the order of `records`."""
    lengths = np.array([records[row].n_scored for row in wanted], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    pieces = [np.arange(starts[k], starts[k + 1]) for k in by_row]
    order = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    counts = np.array([record.n_scored for record in records], dtype=np.int64)
    return Scores(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        logp=columns[0][order],
        mu=columns[1][order],
        sigma=columns[2][order],
        hit=columns[3][order],
        text_bytes=np.array([record.text_bytes for record in records], dtype=np.int64),
        zlib_bytes=np.array([record.zlib_bytes for record in records], dtype=np.int64),
    )


def _must_be_finite(scores: Scores) -> None:
    for name, column in (("logp", scores.logp), ("mu", scores.mu), ("sigma", scores.sigma)):
        bad = ~np.isfinite(column)
        if bad.any():
            n_records = len(np.unique(scores.record_of_token[bad]))
            raise BrokenVariantError(
                "a model's log-probabilities must be finite",
                seen=f"{int(bad.sum())} tokens of {n_records} records are NaN or infinite ({name})",
                fix="try --dtype float32; if it stays, the variant is broken",
            )
