"""Lessons: the members of an audit as token ids, for versions that are trained on them.

Training after compression (`recover=`) takes the very tokens that are scored: cut as they are cut,
and of a prompt with its completion the completion alone is learned.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from auditor.compress import VariantSpec
from auditor.report.progress import Tell
from auditor.scoring.encode import Encoded, Encoder, RecordText

if TYPE_CHECKING:
    from auditor.records import Records

BLOCK = 256


@dataclass(frozen=True)
class Lessons:
    """What is learned, and by which order and dropout.

    Attributes:
        rows: The members that have a token to learn.
        seed: Of order and dropout.
        sha256: Over the token ids and where learning begins in each, in order, hex.
        tell: Told a line at a time how training goes.
    """

    rows: tuple[Encoded, ...] = field(repr=False)
    seed: int
    sha256: str
    tell: Tell = lambda _: None


def recovers(specs: Iterable[VariantSpec]) -> bool:
    """Whether any of these versions is trained on the members."""
    return any(spec.recovery for spec in specs)


def lessons(
    texts: Iterable[RecordText], encoder: Encoder, *, seed: int, tell: Tell = lambda _: None
) -> Lessons:
    """Encode what is to be learned.

    Args:
        texts: The members.
        encoder: The audited model's tokenizer, and the length that records are cut to.
        seed: Of order and dropout.
        tell: Told how training goes.
    """
    left, found = iter(texts), list[Encoded]()
    while block := list(islice(left, BLOCK)):
        found += [record for record in encoder.encode(block) if len(record.ids) > record.first]
    digest = hashlib.sha256()
    for record in found:
        numbers = (len(record.ids), record.first, *record.ids)
        digest.update(np.array(numbers, dtype="<i8").tobytes())
    return Lessons(tuple(found), seed, digest.hexdigest(), tell)


def members_of(records: "Records") -> Iterator[RecordText]:
    """The texts of the members, in the audit's order."""
    places = np.flatnonzero(records.is_member)
    for start in range(0, len(places), BLOCK):
        yield from records.texts(places[start : start + BLOCK])
