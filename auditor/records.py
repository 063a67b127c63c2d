"""Records: members and nonmembers, identified by content, checked, counted.

What is kept in memory of a record is its id, its side, its length and where it stands; its text is
read again when it is needed. What makes an audit worthless is found here: the same record on both
sides, copies, records that were seen in other words on the other side, sides of unlike length.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.config import AuditConfig
from auditor.errors import RecordsError
from auditor.grams import GramSample
from auditor.reading import KINDS, Alike, Found, Reading, about, keep, kept, packed
from auditor.results import LengthSummary, RecordsSummary, Side, Warned
from auditor.rows import RowReader
from auditor.scoring.encode import Encoder, RecordText
from auditor.sources import RowSource, open_source
from auditor.textfiles import Placed

BLOCK = 1024
MAX_LISTED = 100
SIDES = ("members", "nonmembers")


def record_id(text: RecordText | str) -> str:
    """The first 16 hex digits of the SHA-256 of the normalised text.

    Normalised: Unicode NFC, runs of white space as one space, none at the ends. Of a prompt with
    its completion, both with a line feed between.
    """
    whole = text if isinstance(text, str) else "\n".join(filter(None, (text.prompt, text.text)))
    normal = " ".join(unicodedata.normalize("NFC", whole).split())
    return hashlib.sha256(normal.encode("utf-8", errors="replace")).hexdigest()[:16]


@dataclass(frozen=True)
class Records:
    """The records of an audit, in input order: members first, or as they stand in one source.

    Attributes:
        ids: Shape (n,), 16 hex digits each.
        is_member: bool, shape (n,).
        n_tokens: int64, shape (n,): tokens of each record after truncation.
        groups: int64, shape (n,): near-duplicates of each other, on either side, have the same
            number; 0, 1, ... in the order of each group's first record.
        summary: Counts of what was found.
        warnings: What the reader must know.
    """

    ids: npt.NDArray[np.str_]
    is_member: npt.NDArray[np.bool_]
    n_tokens: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    summary: RecordsSummary
    warnings: list[Warned]
    _source: npt.NDArray[np.int64] = field(repr=False)
    _position: npt.NDArray[np.int64] = field(repr=False)
    _rows: list[RowSource] = field(repr=False)
    _reader: RowReader = field(repr=False)
    _reading: bytes | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[RecordText]:
        """Read the texts of some records again, in the order asked for.

        Raises:
            RecordsError: A source has changed since the audit began.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        found: list[RecordText | None] = [None] * len(wanted)
        for number, source in enumerate(self._rows):
            places = np.flatnonzero(self._source[wanted] == number)
            rows = source.read(self._position[wanted[places]].tolist())
            for place, row in zip(places, rows, strict=True):
                text = self._reader.text(Placed(0, "a record", row))
                if record_id(text) != self.ids[wanted[place]]:
                    raise RecordsError(
                        "the records must stay as they are while they are audited",
                        seen=f"record {self.ids[wanted[place]]} has changed on disk",
                        fix="run the audit again on files that nobody writes to",
                    )
                found[place] = text
        return [text for text in found if text is not None]

    def found_in(
        self, source: Literal["given", "target.json", "card"], data_set: str | None
    ) -> "Records":
        """The same records, with where they come from in their summary."""
        said = {"source": source, "data_set": data_set}
        return replace(self, summary=self.summary.model_copy(update=said))

    def keep(self, folder: Path) -> None:
        """Keep what was found in the sources, for a later `read_records`; nothing where it was.

        Raises:
            StoreError: The folder cannot be written.
        """
        if self._reading is not None:
            keep(folder, self._reading)

    def stream(self) -> Iterator[tuple[str, bool, RecordText]]:
        """Id, side and text of every record, read again in blocks."""
        for start in range(0, len(self), BLOCK):
            part = np.arange(start, min(start + BLOCK, len(self)))
            for row, text in zip(part, self.texts(part), strict=True):
                yield str(self.ids[row]), bool(self.is_member[row]), text


def records_sha256(ids: npt.NDArray[np.str_], is_member: npt.NDArray[np.bool_]) -> str:
    """SHA-256 over ids and sides in order, hex; what tells the records of two audits apart.

    Args:
        ids: Shape (n,).
        is_member: Shape (n,).
    """
    sides = np.where(is_member, "1", "0")
    pairs = zip(ids.tolist(), sides.tolist(), strict=True)
    return hashlib.sha256("".join(chain.from_iterable(pairs)).encode()).hexdigest()


def read_records(config: AuditConfig, encoder: Encoder, *, folder: Path | None = None) -> Records:
    """Read, identify, check and count the records.

    Args:
        config: Where they are, and what is allowed.
        encoder: The audited model's tokenizer: lengths are counted in its tokens.
        folder: Where an earlier run may have kept what it found in the very same sources
            (`Records.keep`), which is then not looked for again; nothing is written there.

    Raises:
        RecordsError: They cannot be read, or cannot be audited as they are.
    """
    given = [config.members, config.nonmembers] if config.data is None else [config.data]
    sources = [open_source(source) for source in given if source is not None]
    reader = RowReader(config, encoder.tokenizer, label_column=config.label_column)
    key = about(config, encoder) if folder is not None else None
    known = kept(folder, key) if folder is not None and key is not None else None
    reading = known or _first_pass(config, encoder, sources, reader)
    content = packed(reading, key) if known is None and key is not None else None
    return _checked(config, reading, sources, reader, content)


def _first_pass(
    config: AuditConfig, encoder: Encoder, sources: list[RowSource], reader: RowReader
) -> Reading:
    """Read every row once."""
    found = [Found(*(np.zeros(0, dtype=kind) for kind in KINDS))]
    grams = GramSample()
    for number, source in enumerate(sources):
        side = None if config.data is not None else number == 0
        for block in _blocks(_limited(source, reader, side, config.limit)):
            found.append(_kept(number, block, encoder))
            for _, _, text in block:
                grams.add(text.words)
    columns = Found(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    audited = _sorted_out(columns).audited
    return Reading(
        columns, Alike(grams.near_duplicates(columns.is_member, audited), grams.groups(audited))
    )


def _kept(number: int, block: list[tuple[Placed, bool, RecordText]], encoder: Encoder) -> Found:
    """What is kept of a block of rows from source `number`."""
    encoded = encoder.encode([text for _, _, text in block])
    columns = (
        [record_id(text) for _, _, text in block],
        [is_member for _, is_member, _ in block],
        [number] * len(block),
        [placed.position for placed, _, _ in block],
        [len(record.ids) for record in encoded],
        [record.n_scored for record in encoded],
        [record.truncated for record in encoded],
        [not text.text.strip() for _, _, text in block],
    )
    return Found(*(np.array(c, dtype=k) for c, k in zip(columns, KINDS, strict=True)))


def _limited(
    source: RowSource, reader: RowReader, side: bool | None, limit: int | None
) -> Iterator[tuple[Placed, bool, RecordText]]:
    """Rows with their side and text; the first `limit` of each side."""
    counts = {True: 0, False: 0}
    for placed in source.stream():
        is_member = reader.side(placed) if side is None else side
        if limit is not None and counts[is_member] >= limit:
            if side is not None or min(counts.values()) >= limit:
                return
            continue
        counts[is_member] += 1
        yield placed, is_member, reader.text(placed)


def _blocks(
    rows: Iterator[tuple[Placed, bool, RecordText]],
) -> Iterator[list[tuple[Placed, bool, RecordText]]]:
    while block := list(islice(rows, BLOCK)):
        yield block


def _checked(
    config: AuditConfig,
    reading: Reading,
    sources: list[RowSource],
    reader: RowReader,
    content: bytes | None,
) -> Records:
    found, (near, groups) = reading
    member, empty, lengths = found.is_member, found.empty, found.n_tokens
    _must_have_both_sides(member)
    ids = found.ids.astype(np.str_)
    short, overlap, duplicate, kept = _sorted_out(found)
    if overlap.any() and not config.allow_overlap:
        shared = sorted(set(ids[overlap].tolist()))
        raise RecordsError(
            "a record must not stand on both sides",
            seen=f"{len(shared)} do: {', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}",
            fix="remove them, or give --allow-overlap to leave them out of both sides",
        )
    sides = {}
    for name, mask in zip(SIDES, (member, ~member), strict=True):
        audited = int((kept & mask).sum())
        sides[name] = Side(
            n_read=int(mask.sum()),
            n_audited=audited,
            n_duplicates=int((duplicate & mask).sum()),
            n_empty=int((empty & mask).sum()),
            n_too_short=int((short & mask).sum()),
            n_overlap=int((overlap & mask).sum()),
            n_near_duplicates=int((near & mask).sum()),
            n_truncated=int((found.truncated & kept & mask).sum()),
            left_out_ids=ids[(short | empty) & mask][:MAX_LISTED].tolist(),
            tokens=_lengths(lengths[kept & mask]),
        )
        if audited < config.min_records:
            raise RecordsError(
                f"each side must have at least {config.min_records} records",
                seen=f"{audited} {name} of {int(mask.sum())} read",
                fix="give more, or lower --min-records: figures on few records say little",
            )
    auc, p_value = _length_auc(lengths[kept & member], lengths[kept & ~member])
    summary = RecordsSummary(
        members=sides["members"],
        nonmembers=sides["nonmembers"],
        sha256=records_sha256(ids[kept], member[kept]),
        length_auc=auc,
    )
    return Records(
        ids=ids[kept],
        is_member=member[kept],
        n_tokens=lengths[kept],
        groups=groups[kept],
        summary=summary,
        warnings=_warnings(summary, p_value),
        _source=found.source[kept],
        _position=found.position[kept],
        _rows=sources,
        _reader=reader,
        _reading=content,
    )


class _Sorted(NamedTuple):
    """Which rows are left out, and why; bool, shape (n,) each.

    Attributes:
        short: Nothing to predict.
        overlap: On the other side too.
        duplicate: A later copy.
        audited: The rest.
    """

    short: npt.NDArray[np.bool_]
    overlap: npt.NDArray[np.bool_]
    duplicate: npt.NDArray[np.bool_]
    audited: npt.NDArray[np.bool_]


def _sorted_out(found: Found) -> _Sorted:
    short = (found.n_scored == 0) & ~found.empty
    usable = ~found.empty & ~short
    overlap = _overlap(found.ids, found.is_member, usable)
    duplicate = _later_copies(found.ids, found.is_member) & usable & ~overlap
    return _Sorted(short, overlap, duplicate, usable & ~overlap & ~duplicate)


def _must_have_both_sides(member: npt.NDArray[np.bool_]) -> None:
    n_members = int(member.sum())
    for name, count in zip(SIDES, (n_members, len(member) - n_members), strict=True):
        if not count:
            raise RecordsError(
                "there must be members and nonmembers",
                seen=f"no {name} among {len(member)} records",
                fix="give records that the model never saw, of the same kind as the members",
            )


def _overlap(
    ids: npt.NDArray[np.bytes_], member: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    shared = np.intersect1d(ids[member & usable], ids[~member & usable])
    return np.isin(ids, shared) & usable


def _later_copies(
    ids: npt.NDArray[np.bytes_], member: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Whether a record has stood on the same side before."""
    copies = np.zeros(len(ids), dtype=np.bool_)
    for mask in (member, ~member):
        places = np.flatnonzero(mask)
        _, first = np.unique(ids[places], return_index=True)
        later = np.ones(len(places), dtype=np.bool_)
        later[first] = False
        copies[places[later]] = True
    return copies


def _lengths(tokens: npt.NDArray[np.int64]) -> LengthSummary | None:
    if not len(tokens):
        return None
    return LengthSummary(
        mean=float(tokens.mean()),
        median=float(np.median(tokens)),
        low=int(tokens.min()),
        high=int(tokens.max()),
    )


def _length_auc(
    members: npt.NDArray[np.int64], nonmembers: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """AUC of the length as a signal, and its two-sided p-value (Mann and Whitney 1947)."""
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(members, nonmembers, method="asymptotic")
    p_value = float(test.pvalue)
    # Where all lengths are equal the test has no variance and no p-value: they do not differ.
    return float(test.statistic) / (len(members) * len(nonmembers)), (
        1.0 if np.isnan(p_value) else p_value
    )


def _warnings(summary: RecordsSummary, length_p: float) -> list[Warned]:
    found: list[Warned] = []

    def warn(code: str, severity: str, message: str) -> None:
        found.append(
            Warned.model_validate({"code": code, "severity": severity, "message": message})
        )

    for name in SIDES:
        side: Side = getattr(summary, name)
        for count, code, what in (
            (side.n_duplicates, "duplicates", "are later copies of another and were left out"),
            (side.n_empty, "empty", "hold no text and were left out"),
            (side.n_too_short, "too-short", "hold nothing to predict and were left out"),
            (side.n_overlap, "overlap", "stand on the other side too and were left out of both"),
            (side.n_truncated, "truncated", "were cut to the context"),
        ):
            if count:
                warn(code, "warning", f"{count:,} of {side.n_read:,} {name} {what}.")
    near = summary.members.n_near_duplicates + summary.nonmembers.n_near_duplicates
    if near:
        warn(
            "near-duplicates",
            "warning",
            f"{near:,} records share at least half of their 13-grams with the other side: what the "
            "model learned from a member tells about its twin.",
        )
    auc = summary.length_auc
    if auc is not None and abs(auc - 0.5) > 0.05 and length_p < 0.001:
        warn(
            "unequal-lengths",
            "warning",
            f"Members and nonmembers differ in length (AUC of the length alone {auc:.3f}).",
        )
    return found
