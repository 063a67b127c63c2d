"""What lies beside a model and names its records: target.json, and the card's front matter."""

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from auditor.config import AuditConfig
from auditor.errors import ConfigError
from auditor.targets.card_data import from_card, named_in
from auditor.targets.lists import with_records
from tests.fuzz.property import place

PART: dict[str, Any] = {
    "members": "members.jsonl",
    "nonmembers": "nonmembers.jsonl",
    "calibration": "validation.jsonl",
    "reference": "base",
    "membership": "randomized",
    "max_length": 512,
}
CARD = "---\nlicense: mit\ndatasets:\n- owner/data\n- data\nbase_model: owner/base\n---\n# Model\n"


@cache
def _folder(name: str) -> Path:
    folder = place().inputs / name
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text("{}")
    for side in ("members", "nonmembers", "validation"):
        (folder / f"{side}.jsonl").write_text('{"text": "a"}\n')
    return folder


def described(data: bytes) -> None:
    """A target.json; what it names as records must lie beside it."""
    folder = _folder("described")
    (folder / "target.json").write_bytes(data)
    config = with_records(AuditConfig(model=str(folder))).config
    for source in (config.members, config.nonmembers, config.calibration):
        assert source is None or folder.resolve() in Path(source.path).resolve().parents
    assert not config.trust_remote_code
    assert not config.allow_pickle
    again = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
    assert AuditConfig.model_validate(again) == config


def card(data: bytes) -> None:
    """A card; none of the data sets that it names is here, which is one error."""
    folder = _folder("carded")
    (folder / "README.md").write_bytes(data)
    if named_in(folder / "README.md"):
        with suppress(ConfigError):
            from_card("it", folder)


def descriptions() -> list[bytes]:
    """As training writes it, as the demo does, and one with every key."""
    whole = {**PART, "text_column": "text", "prompt_column": "p", "completion_column": "c"}
    found = [
        {"schema_version": 1, "method": "full", "audit": PART, "epochs": [{"epoch": 1}]},
        {"schema_version": 1, "audit": {**PART, "model": "model", "membership": "given"}},
        {"audit": {**whole, "messages_column": "m", "max_length": None}},
    ]
    return [json.dumps(one).encode() for one in found]


def cards() -> list[bytes]:
    """Cards that name data sets, in the two ways there are."""
    return [CARD.encode(), CARD.replace("\n- owner/data\n- data", " owner/data").encode()]
