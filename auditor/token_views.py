"""A few records token by token, for the report; only where `--include-text` lets texts out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from auditor.results import TokenView

if TYPE_CHECKING:
    from auditor.judge import Findings
    from auditor.records import Records
    from auditor.scoring.encode import Encoder, RecordText
    from auditor.store import VariantStore

NEW: Final = "newly exposed"
SUREST: Final = "surest member"
LIKE: Final = "nonmember most like a member"
EACH = 3  # records of a kind
DIGITS = 4

Kind = Literal["newly exposed", "surest member", "nonmember most like a member"]


def token_views(
    records: "Records",
    findings: "Findings",
    encoder: "Encoder",
    stores: Mapping[str, "VariantStore"],
) -> list[TokenView]:
    """Show a few records token by token under every version.

    Args:
        records: The audited records.
        findings: Chooses the records: exposed ones, and the largest primary signals on the
            original.
        encoder: Cuts the texts as they were scored.
        stores: Token statistics by version, and of the reference if it saw the same tokens.

    Raises:
        RecordsError: A source has changed since it was read.
        StoreError: A shard is damaged.
    """
    chosen = _chosen(records, findings)
    rows = np.array(list(chosen), dtype=np.int64)
    scored = {name: _log_p(store, rows) for name, store in stores.items()}
    views = []
    for row, text in zip(rows.tolist(), records.texts(rows), strict=True):
        encoded = encoder.encode([text])[0]
        views.append(
            TokenView(
                record_id=str(records.ids[row]),
                is_member=bool(records.is_member[row]),
                chosen=chosen[row],
                tokens=pieces(encoder, text, encoded.ids),
                first=encoded.first,
                log_p={name: found[row] for name, found in scored.items()},
            )
        )
    return views


def _chosen(records: "Records", findings: "Findings") -> dict[int, Kind]:
    """Positions of the records to show, each with why, in the order of showing."""
    original = next(iter(findings.signals.values())).by_attack[findings.primary]
    exposed = findings.judged.leakage.exposed if findings.judged is not None else None
    place = {str(found): row for row, found in enumerate(records.ids)}
    chosen: dict[int, Kind] = {}
    for found in exposed.ids[:EACH] if exposed is not None else []:
        chosen[place[found]] = NEW
    order = np.argsort(-original, kind="stable")
    sides: tuple[tuple[Kind, npt.NDArray[np.bool_]], ...] = (
        (SUREST, records.is_member),
        (LIKE, ~records.is_member),
    )
    for why, side in sides:
        for row in order[side[order]][:EACH].tolist():
            chosen.setdefault(row, why)
    return chosen


def _log_p(store: "VariantStore", rows: npt.NDArray[np.int64]) -> dict[int, list[float]]:
    """Log p of every scored token of some records, by position."""
    found = {}
    for shard in store.read():
        for at in np.flatnonzero(np.isin(shard.records, rows)).tolist():
            start, end = shard.scores.offsets[at], shard.scores.offsets[at + 1]
            values = shard.scores.logp[start:end].astype(np.float64)
            found[int(shard.records[at])] = [round(value, DIGITS) for value in values.tolist()]
    return found


def pieces(encoder: "Encoder", text: "RecordText", ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text up to the last, special tokens aside.

    A character that is made of several tokens goes to the first, and the others are empty.

    Args:
        encoder: Its tokenizer.
        text: The record.
        ids: The record's tokens, after truncation.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        return [str(tokenizer.decode([token])) for token in ids]
    whole = text.prompt + text.text
    offsets = tokenizer(
        whole,
        add_special_tokens=text.add_special_tokens,
        return_offsets_mapping=True,
        verbose=False,
    )["offset_mapping"][: len(ids)]
    special, done, found = set(tokenizer.all_special_ids), 0, []
    for token, (_, end) in zip(ids, offsets, strict=True):
        if token in special:
            found.append(str(tokenizer.decode([token])))
            continue
        # From where the last one ended: what lies between belongs to no token of its own.
        found.append(whole[done:end])
        done = max(done, end)
    return found
