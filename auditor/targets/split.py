"""Who is a member: a coin for each record, near-duplicates on one side.

The coin is a hash of the seed and of the record's id, so that a record's side hangs neither on the
order of the data nor on what else lies in it. Records that are near-duplicates of each other share
the coin of the one with the smallest id: a member's twin among the nonmembers would make a target
leak less than it does.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.artifacts.passages import Passages
from auditor.calibration import SHARE
from auditor.errors import RecordsError
from auditor.grams import GramSample
from auditor.records import record_id
from auditor.rows import RowReader
from auditor.scoring.encode import Encoded, Encoder, RecordText
from auditor.sources import open_source
from auditor.targets.config import TrainConfig

# Fewer say nothing: half of them are members, and intervals would be as wide as the question.
FEWEST = 200
SIDES = ("members", "nonmembers", "validation")


@dataclass(frozen=True)
class Pool:
    """The records that can be members, each once, in the order of the data.

    Attributes:
        ids: 16 hex digits each.
        texts: As they were read.
        encoded: As the model sees them; the same as an audit scores.
        groups: int64, shape (n,): near-duplicates have the same number.
        n_read: Rows that were read.
        n_copies: Rows that were left out as copies of an earlier one.
        n_unusable: Rows without anything to learn.
    """

    ids: list[str]
    texts: list[RecordText]
    encoded: list[Encoded]
    groups: npt.NDArray[np.int64]
    n_read: int
    n_copies: int
    n_unusable: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """Over the ids and what is learned of them, in order, hex.

        Ids are of normalised text, which white space and the end of a prompt are no part of.
        """
        learned = hashlib.sha256("".join(self.ids).encode())
        for one in self.encoded:
            learned.update(np.array([len(one.ids), one.first, *one.ids], dtype=np.int64).tobytes())
        return learned.hexdigest()


class Split(NamedTuple):
    """One target's part of the pool: row numbers of its three sides, ascending."""

    members: npt.NDArray[np.int64]
    nonmembers: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def read_pool(config: TrainConfig, encoder: Encoder) -> Pool:
    """Read the data, and leave out copies and what holds nothing to learn.

    Raises:
        RecordsError: It cannot be read, or fewer than `FEWEST` records are left.
    """
    reader = RowReader(config, encoder.tokenizer)
    ids: list[str] = []
    texts: list[RecordText] = []
    seen: set[str] = set()
    grams = GramSample()
    n_read = n_copies = 0
    for text in _texts(config, reader):
        n_read += 1
        own = record_id(text)
        if own in seen:
            n_copies += 1
            continue
        seen.add(own)
        ids.append(own)
        texts.append(text)
    encoded = encoder.encode(texts)
    usable = [i for i, one in enumerate(encoded) if one.n_scored and texts[i].text.strip()]
    n_unusable = len(texts) - len(usable)
    if len(usable) < FEWEST:
        left = [f"{n_copies:,} copies left out"] if n_copies else []
        left += [f"{n_unusable:,} with nothing to learn"] if n_unusable else []
        raise RecordsError(
            f"a target needs at least {FEWEST} different records",
            seen=f"{len(usable):,} of {n_read:,} rows" + (f" ({', '.join(left)})" if left else ""),
            fix="give more data: half of it becomes members",
        )
    for i in usable:
        grams.add(texts[i].words)
    return Pool(
        ids=[ids[i] for i in usable],
        texts=[texts[i] for i in usable],
        encoded=[encoded[i] for i in usable],
        groups=grams.groups(np.ones(len(usable), dtype=np.bool_)),
        n_read=n_read,
        n_copies=n_copies,
        n_unusable=n_unusable,
    )


def _texts(config: TrainConfig, reader: RowReader) -> Iterator[RecordText]:
    for number, placed in enumerate(open_source(config.data).stream()):
        if config.limit is not None and number >= config.limit:
            return
        yield reader.text(placed)


def coin(seed: int, purpose: str, record: str) -> float:
    """A number in [0, 1) that hangs on these three alone, evenly over records."""
    drawn = hashlib.blake2b(f"{seed}:{purpose}:{record}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") / 2**64


def draw(pool: Pool, *, seed: int, n_targets: int, validation_share: float) -> list[Split]:
    """The parts of the pool of several targets, no record in two of them, each part split.

    Args:
        pool: All records.
        seed: Of the coins.
        n_targets: The target and its shadows.
        validation_share: Share of the third split.

    Raises:
        RecordsError: A part has too few records.
    """
    smallest: dict[int, str] = {}
    for group, own in zip(pool.groups.tolist(), pool.ids, strict=True):
        smallest[group] = min(own, smallest.get(group, own))
    parts: list[dict[str, list[int]]] = [{side: [] for side in SIDES} for _ in range(n_targets)]
    for row, group in enumerate(pool.groups.tolist()):
        first = smallest[group]
        part = parts[int(n_targets * coin(seed, "target", first))]
        if coin(seed, "validation", first) < validation_share:
            part["validation"].append(row)
        elif coin(seed, "member", first) < 0.5:
            part["members"].append(row)
        else:
            part["nonmembers"].append(row)
    found = []
    for number, part in enumerate(parts):
        n = sum(map(len, part.values()))
        if n < FEWEST * 0.8 or not all(part.values()):
            who = "the target" if number == 0 else f"shadow {number}"
            raise RecordsError(
                f"every target needs about {FEWEST} records that hang together in small groups",
                seen=f"{n:,} for {who}: "
                + ", ".join(f"{len(rows):,} {side}" for side, rows in part.items())
                + f" ({len(smallest):,} groups of near-duplicates in {len(pool):,} records)",
                fix="give more data, or fewer --shadows",
            )
        found.append(Split(*(np.array(part[side], dtype=np.int64) for side in SIDES)))
    return found


def kept_apart(pool: Pool, split: Split) -> Split:
    """The split without what in its third part holds a record of the others nearly whole.

    Compressors are calibrated on the third part, and an audit refuses to calibrate on such texts
    (`auditor.calibration`): short records may stand in a longer one that is no near-duplicate.
    """
    passages: Passages = Passages()
    for row in split.validation.tolist():
        passages.add(row, pool.texts[row].words)
    others = np.concatenate([split.members, split.nonmembers]).tolist()
    (hits,) = passages.search((row, pool.texts[row].words) for row in others)
    found = {hit.file for hit in hits if hit.share >= SHARE}
    left = [row for row in split.validation.tolist() if row not in found]
    if not left:
        raise RecordsError(
            "the third split must hold texts in which no other record stands nearly whole",
            seen=f"one stands in each of its {len(split.validation):,}, such as a greeting that is "
            "a record by itself",
            fix="take such short records out of the data",
        )
    return split._replace(validation=np.array(left, dtype=np.int64))


def is_coin_per_record(pool: Pool, split: Split) -> bool:
    """Whether no two members or nonmembers of a target hang on one coin."""
    rows = np.concatenate([split.members, split.nonmembers])
    return len(np.unique(pool.groups[rows])) == len(rows)


def canary_texts(tokenizer: object, n: int, *, seed: int, n_tokens: int = 32) -> Sequence[str]:
    """Invented records of random tokens, all different; nothing in them can be guessed.

    Args:
        tokenizer: Of the model; tokens that are no text by themselves are not drawn.
        n: How many.
        seed: Of the draw.
        n_tokens: Tokens that are drawn for each.
    """
    vocabulary = _words(tokenizer)
    rng = np.random.default_rng([seed, 1])
    found: dict[str, None] = {}
    while len(found) < n:
        drawn = rng.choice(vocabulary, size=n_tokens)
        found.setdefault(" ".join("".join(drawn).split()))
    return list(found)


def _words(tokenizer: object) -> npt.NDArray[np.str_]:
    """Tokens as text, without special ones and those that are a part of a letter."""
    known: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    special = set(tokenizer.all_special_ids)  # type: ignore[attr-defined]
    ids = sorted(number for number in known.values() if number not in special)
    texts = tokenizer.batch_decode([[number] for number in ids])  # type: ignore[attr-defined]
    return np.array([text for text in texts if text.strip() and "\ufffd" not in text])
