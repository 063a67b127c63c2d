"""Reading target.json: which records, third set and base a target itself names for its audit.

    {"audit": {"members": "members.jsonl", "nonmembers": "nonmembers.jsonl", ...}, ...}

The file comes with a model, from whoever made it. So it is read as data of a bounded size, what it
names as records must lie in its own folder, and nothing that it names is fetched.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from auditor.compress.hub import cached_snapshot, holds_weights
from auditor.compress.inside import is_inside, is_own_file
from auditor.config import Source
from auditor.errors import ConfigError, first_line
from auditor.report.progress import Tell

FILE = "target.json"
# What training writes is a few thousand bytes.
MOST_BYTES = 2**20
KNOWN_VERSION = 1
BY_HAND = "mend it, or give --members and --nonmembers, which it then is not asked for"

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
COLUMNS = ("text_column", "messages_column", "prompt_column", "completion_column")


class AuditPart(BaseModel):
    """What target.json says of how its target is audited; keys that are not known are left alone.

    Paths are relative to the file's folder.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    members: Name
    nonmembers: Name
    calibration: Name | None = None
    reference: Name | None = None
    membership: Literal["given", "randomized"] = "given"
    max_length: Annotated[int, Field(ge=2, le=10**9)] | None = None
    text_column: Column | None = None
    messages_column: Column | None = None
    prompt_column: Column | None = None
    completion_column: Column | None = None


class Described(NamedTuple):
    """A target.json that was read.

    Attributes:
        path: The file.
        part: What it says of its target's audit.
    """

    path: Path
    part: AuditPart


def find_described(folder: Path) -> Described | None:
    """The target.json that speaks of a model: in its folder, or the one above that names it.

    Args:
        folder: The model's folder, or the adapter's.

    Raises:
        ConfigError: There is one, and it is damaged.
    """
    if (folder / FILE).is_file():
        content = _read(folder / FILE)
        if "audit" in content:
            return Described(folder / FILE, _part(folder / FILE, content))
    # Of `.` and `x/..` the path alone does not tell the name.
    own = folder if folder.name not in ("", "..") else folder.resolve()
    above = own.parent / FILE
    try:
        content = _read(above) if above.is_file() else {}
    except ConfigError:  # whatever it is, it need not be about this model
        return None
    part = content.get("audit")
    if isinstance(part, dict) and part.get("model") == own.name:
        return Described(above, _part(above, content))
    return None


def fields_of(described: Described, given: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Fields of `AuditConfig` that a target.json gives and nobody gave by hand.

    Args:
        described: The file.
        given: What was given by hand, by field; it stays.
        tell: Told what is taken from the file, and what is not.

    Raises:
        ConfigError: Records that it names are not there, or lie elsewhere.
    """
    path, part = described
    found: dict[str, Any] = {
        "members": _source(path, "members", part.members),
        "nonmembers": _source(path, "nonmembers", part.nonmembers),
    }
    said = [f"{part.members} and {part.nonmembers}"]
    if part.calibration is not None and "calibration" not in given:
        found["calibration"] = _source(path, "calibration", part.calibration)
        said.append(f"third set {part.calibration}")
    left_out = None
    if part.reference is not None and "reference" not in given:
        reference = _reference(path.parent, part.reference)
        if reference is None:
            left_out = part.reference
        else:
            found["reference"] = reference
            said.append(f"reference {reference}")
    if "membership" not in given:
        found["membership"] = part.membership
        said.append(f"membership {part.membership}")
    if part.max_length is not None and "max_length" not in _lengths_of(given):
        found["max_length"] = part.max_length
        said.append(f"at most {part.max_length:,} tokens")
    for name in COLUMNS:
        column = getattr(part, name)
        if column is not None and name not in given:
            found[name] = column
            said.append(f"{name.replace('_', ' ')} {column}")
    tell(f"from {path}: {', '.join(said)}")
    if left_out is not None:
        tell(
            f"the base that {path} names, {left_out}, is not here: there is no reference "
            "(--reference gives one)"
        )
    return found


def _lengths_of(given: Mapping[str, Any]) -> set[str]:
    return {*given, *(given.get("model_args") or {})} & {"max_length"}


def _read(path: Path) -> dict[str, Any]:
    """The content of a target.json.

    Raises:
        ConfigError: It is no JSON of a bounded size, or holds no keys and values.
    """

    def damaged(seen: str) -> ConfigError:
        return ConfigError(f"{path} must be a {FILE} as training writes it", seen=seen, fix=BY_HAND)

    if not is_own_file(path, path.parent):
        raise damaged("a link to a file elsewhere")
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise damaged(f"more than {MOST_BYTES:,} bytes")
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(first_line(error)) from None
    if not isinstance(content, dict):
        raise damaged(f"a {type(content).__name__} instead of keys and values")
    return content


def _part(path: Path, content: dict[str, Any]) -> AuditPart:
    version = content.get("schema_version", KNOWN_VERSION)
    if version != KNOWN_VERSION or isinstance(version, bool):
        raise ConfigError(
            f"{path} must be of version {KNOWN_VERSION}",
            seen=f"schema_version {str(version)[:20]}",
            fix="take the version of compleak-llm that made it, or give --members and --nonmembers",
        )
    try:
        return AuditPart.model_validate(content["audit"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(["audit", *(str(step) for step in first["loc"])])
        raise ConfigError(
            f"{path} must name the records of its target",
            seen=f"{place}: {str(first['msg'])[:200].lower()}",
            fix=BY_HAND,
        ) from None


def _source(path: Path, key: str, name: str) -> Source:
    """A file of records beside target.json.

    Raises:
        ConfigError: It is not there, or leads elsewhere.
    """
    place = path.parent / name
    seen = None
    try:
        if not is_inside(name):
            seen = "a path that leads out of the folder"
        elif not place.is_file():
            seen = "no such file"
        elif not is_own_file(place, path.parent):
            seen = "a link to a file elsewhere"
    except (OSError, ValueError) as error:  # names that no file can have
        seen = first_line(error)
    if seen is not None:
        raise ConfigError(
            f"the {key} that {path} names must be a file beside it",
            seen=f"{name}: {seen}",
            fix="put it back, or give --members and --nonmembers by hand",
        )
    return Source(path=str(place))


def _reference(folder: Path, name: str) -> str | None:
    """The base, where it is here: a folder with a configuration, or an id that is whole here."""
    try:
        place = folder / Path(name).expanduser()
        if (place / "config.json").is_file():
            return str(place)
    except (OSError, ValueError, RuntimeError):  # names that no folder can have
        return None
    snapshot = cached_snapshot(name)
    return name if snapshot is not None and holds_weights(snapshot) else None
