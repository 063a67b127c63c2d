"""Calibration: the texts that GPTQ, Wanda and SparseGPT look at, as windows of tokens.

What a compressor looks at leaks into what it makes. So the texts must be neither members nor
nonmembers: they are given, or lie as a third set beside the records, or the audit stops. An audit
may calibrate on members all the same, to ask what that gives away, and then says so.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from auditor.compress import VariantSpec
from auditor.compress.receipt import CalibrationUse
from auditor.config import Shared, Source
from auditor.errors import ConfigError, RecordsError
from auditor.rows import RowReader
from auditor.scoring.encode import Encoder, RecordText
from auditor.sources import open_source, splits_of

if TYPE_CHECKING:
    from auditor.records import Records

# Texts of a source that are looked at: enough for any compressor, and no whole corpus in memory.
MOST = 20_000
MEMBERS_SOURCE = "members of the audit"
BESIDE = "calibration.jsonl"
# Splits that are neither what is trained on nor what is tested on, in the order of preference.
THIRD_SPLITS = ("calibration", "validation", "valid", "dev", "unused")
# A record of which this share stands in a calibration text word for word is in it.
SHARE = 0.5
NO_LIMIT = 2**31

# Streams (id, text) of every record of the audit, again at every call.
Known = Callable[[], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class Calibration:
    """Windows of tokens, all of one length, without padding.

    Attributes:
        windows: int64, shape (n_samples, n_tokens).
        use: Where they come from, as the receipt says it.
        texts: The texts that they were cut from; to be searched for in what is written, never to be
            written themselves.
    """

    windows: npt.NDArray[np.int64]
    use: CalibrationUse
    texts: tuple[str, ...] = field(repr=False)


def kinds_of(specs: Iterable[VariantSpec]) -> set[str]:
    """The kinds of calibration texts that variants ask for: "given", "members", or none."""
    return {spec.calibration for spec in specs if spec.calibration is not None}


def read_calibrations(
    config: Shared,
    specs: Sequence[VariantSpec],
    tokenizer: Any,  # noqa: ANN401
    *,
    context: int,
    records: "Records | None" = None,
    known: Known = lambda: (),
) -> dict[str, Calibration]:
    """The calibration texts of an audit, by kind; nothing is read where no variant asks for any.

    Args:
        config: Where they are, how many windows, how long.
        specs: The variants.
        tokenizer: The audited model's.
        context: Tokens that it takes at most.
        records: The records of the audit, for variants that are calibrated on members.
        known: Every record of the audit; a calibration text must be none of them.

    Raises:
        ConfigError: There are no texts, or members are asked for without leave.
        RecordsError: Too few tokens, or texts that are members or nonmembers.
    """
    found: dict[str, Calibration] = {}
    kinds = kinds_of(specs)
    name = next((spec.label for spec in specs if spec.calibration is not None), "")
    cutter = _Cutter(config, tokenizer, min(config.calibration_tokens, context))
    if "members" in kinds:
        if not config.allow_calibration_on_members or records is None:
            raise ConfigError(
                "calibration=members needs the members of an audit and "
                "--allow-calibration-on-members",
                seen="no such leave" if records is not None else "no members",
                fix="give that flag to ask what calibration leaks, or leave the option out",
            )
        found["members"] = cutter.cut(MEMBERS_SOURCE, _members(records))
    if "given" in kinds:
        source = config.calibration or third_set(config)
        if source is None:
            raise ConfigError(
                f"{name} needs calibration texts that are neither members nor nonmembers",
                seen=f"no --calibration, and no third set beside the records: no {BESIDE}, and no "
                f"split named {', '.join(THIRD_SPLITS)}",
                fix="give --calibration FILE with texts of the same kind that are in neither list",
            )
        reader = RowReader(config, tokenizer)
        rows = [reader.text(placed) for placed in islice(open_source(source).stream(), MOST)]
        found["given"] = cutter.cut(str(source), iter(rows))
        if not config.allow_calibration_on_members:
            _must_be_others(str(source), rows, found["given"], known)
    return found


def third_set(config: Shared) -> Source | None:
    """A set beside the records that is neither members nor nonmembers, or None."""
    given = [source for source in (config.members, config.nonmembers) if source is not None]
    places = [Path(config.model), *(Path(source.path).parent for source in given)]
    for place in (path.expanduser() for path in places):
        if (place / BESIDE).is_file():
            return Source(path=str(place / BESIDE))
    members, others = config.members, config.nonmembers
    if members is None or others is None or members.path != others.path:
        return None
    splits = splits_of(members)
    for split in THIRD_SPLITS:
        if split in splits and split not in (members.split, others.split):
            return members.model_copy(update={"split": split})
    return None


def _members(records: "Records") -> Iterator[RecordText]:
    members = np.flatnonzero(records.is_member)
    for part in np.array_split(members, max(1, len(members) // 256)):
        yield from records.texts(part)


class _Cutter:
    """Cuts windows of one length out of texts, in an order that the seed decides.

    The texts are joined with the end-of-text token between, as compressors' own scripts do it: most
    records are shorter than a window, and padding would be calibrated on.
    """

    def __init__(self, config: Shared, tokenizer: Any, length: int) -> None:  # noqa: ANN401
        self._config, self._length = config, length
        self._encoder = Encoder(tokenizer, NO_LIMIT)
        self._end: int | None = getattr(tokenizer, "eos_token_id", None)

    def cut(self, source: str, texts: Iterator[RecordText]) -> Calibration:
        """Windows from the first texts in the seed's order that hold enough tokens.

        Raises:
            RecordsError: All texts together hold too few.
        """
        config, length = self._config, self._length
        rows = [text for text in islice(texts, MOST) if text.text.strip()]
        order = np.random.default_rng(config.seed).permutation(len(rows))
        wanted = config.calibration_samples * length
        stream: list[int] = []
        used: list[RecordText] = []
        for start in range(0, len(order), 64):
            if len(stream) >= wanted:
                break
            batch = [rows[row] for row in order[start : start + 64]]
            for text, encoded in zip(batch, self._encoder.encode(batch), strict=True):
                if len(stream) >= wanted:
                    break
                stream += encoded.ids
                if self._end is not None and encoded.ids[-1:] != [self._end]:
                    stream.append(self._end)
                used.append(text)
        if len(stream) < wanted:
            fits = len(stream) // length
            raise RecordsError(
                f"calibration needs {config.calibration_samples} x {length} = {wanted:,} tokens",
                seen=f"{len(stream):,} tokens in {len(used):,} texts of {source}",
                fix="give more texts, or "
                + (f"--calibration-samples {fits}" if fits else "lower --calibration-tokens too"),
            )
        windows = np.array(stream[:wanted], dtype=np.int64).reshape(-1, length)
        return Calibration(windows, self._use(source, windows, used), tuple(map(_whole, used)))

    def _use(
        self, source: str, windows: npt.NDArray[np.int64], used: list[RecordText]
    ) -> CalibrationUse:
        from auditor.records import record_id

        return CalibrationUse(
            source=source,
            n_records=len(used),
            n_samples=len(windows),
            n_tokens=windows.size,
            sha256=hashlib.sha256(windows.tobytes()).hexdigest(),
            ids=[record_id(text) for text in used],
        )


def _whole(text: RecordText) -> str:
    return text.words if text.prompt else text.text


def _must_be_others(source: str, rows: list[RecordText], used: Calibration, known: Known) -> None:
    """Refuse calibration texts that are records of the audit, word for word or nearly."""
    from auditor.artifacts.passages import Passages
    from auditor.records import record_id

    own = {record_id(text) for text in rows}
    passages = Passages()
    for number, text in enumerate(used.texts):
        passages.add(number, text)
    same: set[str] = set()

    def stream() -> Iterator[tuple[str, str]]:
        for identity, text in known():
            if identity in own:
                same.add(identity)
            yield identity, text

    (hits,) = passages.search(stream())
    near = {hit.key for hit in hits if hit.share >= SHARE}
    if shared := sorted(same | near):
        raise RecordsError(
            "calibration texts must be neither members nor nonmembers",
            seen=f"{len(shared)} records of the audit are in {source}, {len(same)} of them whole: "
            f"{', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}",
            fix="take them out, or give --allow-calibration-on-members to ask what that leaks",
        )
