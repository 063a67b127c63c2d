"""Where the records of an audit come from when none were given: from what lies beside the model.

First target.json, which training leaves: it knows who was a member. Else the data sets that the
model's card names: their train split is taken for members, which is likely and not known. Nothing
is downloaded for either.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from auditor.compress.hub import HUB_ID, cached_snapshot
from auditor.compress.inside import is_inside
from auditor.config import RECORDS_MUST, AuditConfig
from auditor.errors import ConfigError
from auditor.report.progress import Tell
from auditor.targets.card_data import LIMIT, from_card
from auditor.targets.described import FILE, fields_of, find_described

EXAMPLE = "for example: --members members.jsonl --nonmembers nonmembers.jsonl"


class Listed(NamedTuple):
    """An audit whose records are settled.

    Attributes:
        config: The audit, with its records.
        source: Where they come from.
        data_set: The data set that the card names, where they are its.
    """

    config: AuditConfig
    source: Literal["given", "target.json", "card"] = "given"
    data_set: str | None = None


def with_records(config: AuditConfig, tell: Tell = lambda _: None) -> Listed:
    """Settle the records of an audit; every process of a run finds the same.

    Args:
        config: The audit. What was given by hand stays as it is, and where records were given
            nothing is looked for.
        tell: Told where they come from, a line at a time.

    Raises:
        ConfigError: None are given and none lie beside the model, or what describes them is
            damaged.
    """
    if config.gives_records:
        return Listed(config)
    given = {name: getattr(config, name) for name in config.model_fields_set}
    for folder in _folders(config):
        described = find_described(folder)
        if described is not None:
            return Listed(_with(given, fields_of(described, given, tell)), "target.json")
    root = next(_model_folders(config), None)
    if root is None:
        raise ConfigError(
            RECORDS_MUST,
            seen=f"none of them, and {config.model} is neither a folder here nor in the hub's "
            f"cache, with a {FILE} or a card that names them",
            fix=EXAMPLE,
        )
    card = from_card(config.model, root)
    found: dict[str, Any] = {"members": card.members, "nonmembers": card.nonmembers}
    tell(f"from the card of {config.model}: {card.members} as members, {card.nonmembers} as not")
    if "limit" not in given:
        found["limit"] = LIMIT
        tell(f"at most {LIMIT:,} records a side are read (--limit says how many)")
    return Listed(_with(given, found), "card", card.name)


def _with(given: dict[str, Any], found: dict[str, Any]) -> AuditConfig:
    from auditor.recipes import validated

    return validated(AuditConfig, {**given, **found})


def _folders(config: AuditConfig) -> Iterator[Path]:
    """Where target.json may lie: an adapter's folder knows better than its base's."""
    if config.adapter and (folder := Path(config.adapter).expanduser()).is_dir():
        yield folder
    yield from _model_folders(config)


def _model_folders(config: AuditConfig) -> Iterator[Path]:
    """The model's folder as far as it is on this machine, the part that is audited first."""
    folder: Path | None = Path(config.model).expanduser()
    if folder is None or not folder.is_dir():
        folder = None
        if HUB_ID.fullmatch(config.model):
            folder = cached_snapshot(config.model, revision=config.model_args.get("revision"))
    if folder is None:
        return
    part = config.model_args.get("subfolder", "")
    if part and is_inside(part) and (folder / part).is_dir():
        yield folder / part
    yield folder
