"""The data sets that a model's card names: their train split as members, their test split as not.

A card is a claim of whoever wrote it, and it may be wrong or made to mislead. So its data sets are
read from the model's own folder or from the hub's cache alone; what only a card names is never
downloaded. And the results say that membership was taken from a card.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from auditor.bounded_yaml import YAML_ERRORS
from auditor.bounded_yaml import load as load_yaml
from auditor.compress.hub import HUB_ID, cached_snapshot
from auditor.compress.inside import is_inside, is_own_file
from auditor.config import RECORDS_MUST, Source
from auditor.errors import CompleakError, ConfigError, first_line
from auditor.sources import SAVED, splits_of

CARD = "README.md"
# Records a side, where nobody says how many: a card's data set may have millions.
LIMIT = 1000
TRAIN = "train"
OTHERS = ("test", "validation")
MOST_BYTES = 2**20
MOST_SETS = 20
MOST_FILES = 10_000
MOST_LETTERS = 300
# Files of a data set in which `datasets` looks for the paths of its data.
STATE = "state.json"
SETTINGS = (CARD, ".huggingface.yaml")


class CardData(NamedTuple):
    """Lists that a card gives.

    Attributes:
        name: The data set, as the card names it.
        members: Its train split.
        nonmembers: Its test split, or its validation split where there is none.
    """

    name: str
    members: Source
    nonmembers: Source


def from_card(model: str, folder: Path) -> CardData:
    """The lists from the first data set that a model's card names and that can be had here.

    Args:
        model: The model, as errors call it.
        folder: Where it lies.

    Raises:
        ConfigError: The card names none, or none of them can be had.
    """
    names = named_in(folder / CARD)
    none = f"none of them; no target.json beside {model} that names any"
    if not names:
        raise ConfigError(
            RECORDS_MUST,
            seen=f"{none}, and its card names no data set",
            fix="for example: --members members.jsonl --nonmembers nonmembers.jsonl",
        )
    problems = []
    for name in names:
        try:
            return _lists_of(name, folder)
        except (CompleakError, OSError, *YAML_ERRORS) as error:
            problems.append(f"{name} ({_problem(error)})")
    first = _local(names[0], folder) or names[0]
    raise ConfigError(
        RECORDS_MUST,
        seen=f"{none}, and no data set that its card names can be taken: {'; '.join(problems)}",
        fix=f"for example: --members {first},split=train --nonmembers {first},split=test",
    )


def named_in(card: Path) -> list[str]:
    """The data sets that a card's front matter names; none where there is no card.

    Raises:
        ConfigError: It cannot be read.
    """
    found = _front_matter(card).get("datasets")
    names = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    usable = (name for name in names if isinstance(name, str) and 0 < len(name) <= MOST_LETTERS)
    return list(islice(dict.fromkeys(usable), MOST_SETS))


def _front_matter(card: Path) -> dict[str, Any]:
    from auditor.card.readme import front_matter, lines_of

    if not card.is_file():
        return {}
    try:
        # The hub's cache keeps the card's content beside the snapshot.
        if not is_own_file(card, card.parent):
            raise ValueError("a link to a file elsewhere")
        with card.open("rb") as file:
            raw = file.read(MOST_BYTES)
        lines = lines_of(raw.decode("utf-8", errors="replace"))
        place = front_matter(card, lines)
        content = load_yaml("".join(lines[place.first : place.last])) if place else None
    except (CompleakError, OSError, *YAML_ERRORS) as error:
        seen = error.seen if isinstance(error, CompleakError) else first_line(error)
        raise ConfigError(
            f"the front matter of {card} must be readable, because no records were given",
            seen=seen,
            fix="mend it, or give --members and --nonmembers",
        ) from None
    return content if isinstance(content, dict) else {}


def _lists_of(name: str, folder: Path) -> CardData:
    """Both sides of one data set.

    Raises:
        ValueError: It is not here, or must not be read.
        RecordsError: It cannot be read, or has no train split.
    """
    place = _local(name, folder)
    if place is not None:
        root = folder
    else:
        snapshot = cached_snapshot(name, kind="dataset") if HUB_ID.fullmatch(name) else None
        if snapshot is None:
            raise ValueError("neither in the model's folder nor in the hub's cache")
        place = root = snapshot
    _must_keep_to_itself(place, root)
    members = Source(path=str(place), split=TRAIN)
    splits = splits_of(members)
    other = next((split for split in OTHERS if split in splits), None)
    if other is None:
        raise ValueError(f"no split {' or '.join(OTHERS)} beside {TRAIN}: {', '.join(splits)}")
    return CardData(name, members, Source(path=str(place), split=other))


def _local(name: str, folder: Path) -> Path | None:
    """A data set's folder below the model's, or None."""
    try:
        return folder / name if is_inside(name) and (folder / name).is_dir() else None
    except (OSError, ValueError):  # names that no folder can have
        return None


def _must_keep_to_itself(place: Path, root: Path) -> None:
    """A data set may name its files in its own card: none of them may lie elsewhere.

    Raises:
        ValueError: A file leads elsewhere, or there are too many to look at.
    """
    every = list(islice(place.rglob("*"), MOST_FILES + 1))
    # A linked folder is not looked into here, and would be read by whoever names a file in it.
    if odd := next((path for path in every if path.is_symlink() and path.is_dir()), None):
        raise ValueError(f"{odd.name} is a link to a folder")
    files = [path for path in every if path.is_file()]
    if len(every) > MOST_FILES:
        raise ValueError(f"more than {MOST_FILES:,} files")
    if odd := next((path for path in files if not is_own_file(path, root)), None):
        raise ValueError(f"{odd.name} is a link to a file elsewhere")
    for name in SETTINGS:
        for text in _paths(_settings(place / name).get("configs")):
            if not is_inside(text) or "://" in text or "::" in text:
                raise ValueError(f"its {name} names data elsewhere: {text[:100]}")
    for path in files:
        if path.name in (*SAVED, STATE):
            for text in _saved_paths(json.loads(path.read_bytes()[:MOST_BYTES])):
                if not is_inside(text):
                    raise ValueError(f"its {path.name} names data elsewhere: {text[:100]}")


def _settings(path: Path) -> dict[str, Any]:
    if path.name == CARD or not path.is_file():
        return _front_matter(path)
    content = load_yaml(path.read_bytes()[:MOST_BYTES].decode("utf-8", errors="replace"))
    return content if isinstance(content, dict) else {}


def _paths(value: object, key: str = "") -> Iterator[str]:
    """Strings below `data_files` and `data_dir`, but for the names of splits."""
    if isinstance(value, dict):
        for name, part in value.items():
            inner = key or (str(name) if name in ("data_files", "data_dir") else "")
            if not (key and name == "split"):
                yield from _paths(part, inner)
    elif isinstance(value, list):
        for part in value:
            yield from _paths(part, key)
    elif isinstance(value, str) and key:
        yield value


def _saved_paths(content: object) -> Iterator[str]:
    """What a saved data set's own files name as splits and as files."""
    if not isinstance(content, dict):
        return
    splits, files = content.get("splits"), content.get("_data_files")
    yield from (str(split) for split in splits or ()) if isinstance(splits, list) else ()
    for file in files if isinstance(files, list) else ():
        yield str(file.get("filename")) if isinstance(file, dict) else str(file)


def _problem(error: Exception) -> str:
    """What is wrong with a data set, in a few words."""
    if isinstance(error, CompleakError):
        return error.seen + (f": {error.fix}" if "splits:" in error.fix else "")
    return first_line(error)
