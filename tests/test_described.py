"""target.json: an audit of the model alone finds its records, and the file leads it nowhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from auditor import AuditConfig, audit
from auditor.cli import main
from auditor.config import Source
from auditor.errors import ConfigError
from auditor.report.origin import origin
from auditor.targets.described import MOST_BYTES
from auditor.targets.lists import Listed, with_records

NAMES = ("members", "nonmembers", "calibration")
PART = {
    "members": "members.jsonl",
    "nonmembers": "nonmembers.jsonl",
    "calibration": "calibration.jsonl",
    "reference": "../base",
    "membership": "randomized",
}


def describe(folder: Path, content: Any, *, lists: bool = True) -> Path:
    """A folder with lists and a target.json that holds `content`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES if lists else ():
        (folder / f"{name}.jsonl").write_text('{"text": "a"}\n')
    (folder / "target.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def target(tmp_path: Path, **part: Any) -> Path:
    """A target with its base beside it."""
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "config.json").write_text("{}")
    return describe(tmp_path / "model", {"schema_version": 1, "audit": {**PART, **part}})


def settled(model: Path | str, told: list[str] | None = None, **given: Any) -> Listed:
    tell = (lambda _: None) if told is None else told.append
    return with_records(AuditConfig.model_validate({"model": str(model), **given}), tell)


def refusal(model: Path, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settled(model, **given)
    return str(caught.value)


def test_everything_is_taken_from_the_file_and_said(tmp_path: Path) -> None:
    folder, told = target(tmp_path, max_length=77, text_column="words"), []
    found = settled(folder, told)
    config = found.config
    assert found.source == "target.json"
    assert config.members == Source(path=str(folder / "members.jsonl"))
    assert config.nonmembers == Source(path=str(folder / "nonmembers.jsonl"))
    assert config.calibration == Source(path=str(folder / "calibration.jsonl"))
    assert Path(config.reference or "").resolve() == (tmp_path / "base").resolve()
    assert (config.membership, config.max_length, config.text_column) == ("randomized", 77, "words")
    assert config.limit is None
    for word in ("members.jsonl", "calibration.jsonl", "base", "randomized", "77", "words"):
        assert word in told[0], word


def test_what_is_given_by_hand_wins(tmp_path: Path) -> None:
    folder = target(tmp_path, max_length=77, prompt_column="q")
    own = {
        "calibration": "mine.jsonl",
        "reference": "mine",
        "membership": "given",
        "max_length": 5,
        "prompt_column": "mine",
        "limit": 3,
    }
    given = AuditConfig.model_validate({"model": str(folder), **own})
    config = with_records(given).config
    for name in own:
        assert getattr(config, name) == getattr(given, name), name
    # To say that there is none is to give it by hand too.
    assert settled(folder, reference=None).config.reference is None
    assert settled(folder, model_args="max_length=5").config.max_length is None


def test_lists_that_are_given_are_not_joined_with_those_of_the_file(tmp_path: Path) -> None:
    folder = target(tmp_path)
    for given in ({"members": "m.jsonl", "nonmembers": "n.jsonl"}, {"data": "d.csv"}):
        found = settled(folder, **given)
        assert found.source == "given"
        # The coin was thrown for other records, and the third set is not known to be one here.
        assert (found.config.membership, found.config.reference) == ("given", None)
        assert found.config.calibration is None
    with pytest.raises(ConfigError, match="together, or from --data alone"):
        settled(folder, members="m.jsonl")


def test_a_base_that_is_gone_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("../nowhere", str(tmp_path / "gone"), "owner/no-such-model", "a" * 4000, "~no/x"):
        told: list[str] = []
        found = settled(target(tmp_path, reference=name), told)
        assert found.config.reference is None
        assert "is not here: there is no reference" in told[1]


def test_the_folder_above_speaks_of_the_model_that_it_names(tmp_path: Path) -> None:
    describe(tmp_path, {"audit": {**PART, "model": "model", "reference": "base"}})
    (tmp_path / "model").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    config = settled(tmp_path / "model").config
    assert config.members == Source(path=str(tmp_path / "members.jsonl"))
    assert config.reference == str(tmp_path / "base")
    assert "no target.json" in refusal(tmp_path / "base")
    # A file of that name may be anybody's there.
    (tmp_path / "target.json").write_text("{ not json")
    assert "no target.json" in refusal(tmp_path / "model")


def test_the_models_folder_may_be_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(tmp_path, {"audit": {**PART, "model": "model"}})
    (tmp_path / "model").mkdir()
    for place, name in ((tmp_path, "model"), (tmp_path / "model", ".")):
        monkeypatch.chdir(place)
        members = settled(name).config.members
        assert members is not None
        assert Path(members.path).resolve() == (tmp_path / "members.jsonl").resolve()


def test_an_adapters_folder_is_asked_before_its_bases(tmp_path: Path) -> None:
    base = target(tmp_path)
    adapter = describe(tmp_path / "adapter", {"audit": {**PART, "reference": None}})
    members = settled(base, adapter=str(adapter)).config.members
    assert members == Source(path=str(adapter / "members.jsonl"))
    (adapter / "target.json").unlink()
    members = settled(base, adapter=str(adapter)).config.members
    assert members == Source(path=str(base / "members.jsonl"))


DAMAGED: dict[str, tuple[Any, str]] = {
    "no json": ('{"audit": {', "must be a target.json as training writes it"),
    "no utf-8": ('{"audit": "\udcff"}', "must be a target.json"),
    "deep": ("[" * 100_000, "must be a target.json"),
    "a list": ([1], "a list instead of keys and values"),
    "too large": (f'{{"audit": "{"x" * MOST_BYTES}"}}', "more than 1,048,576 bytes"),
    "another version": ({"schema_version": 2, "audit": PART}, "must be of version 1"),
    "true as version": ({"schema_version": True, "audit": PART}, "must be of version 1"),
    "a text": ({"audit": "all"}, "must name the records"),
    "one side": ({"audit": {"members": "members.jsonl"}}, "audit.nonmembers: field required"),
    "a number": ({"audit": {**PART, "members": 3}}, "audit.members: input should be a valid str"),
    "a coin": ({"audit": {**PART, "membership": "maybe"}}, "audit.membership"),
    "true as length": ({"audit": {**PART, "max_length": True}}, "audit.max_length"),
    "a huge length": ({"audit": {**PART, "max_length": 10**12}}, "audit.max_length"),
    "gone": ({"audit": {**PART, "members": "gone.jsonl"}}, "no such file"),
    "a folder": ({"audit": {**PART, "members": "."}}, "no such file"),
    "upwards": ({"audit": {**PART, "nonmembers": "../base/config.json"}}, "leads out"),
    "absolute": ({"audit": {**PART, "calibration": "/etc/passwd"}}, "leads out"),
    "a nul": ({"audit": {**PART, "members": "a\0b"}}, "leads out"),
    "long": ({"audit": {**PART, "members": "a" * 4000}}, "members that"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_error(kind: str, tmp_path: Path) -> None:
    content, expected = DAMAGED[kind]
    folder = tmp_path / "model"
    describe(folder, "{}" if isinstance(content, str) else content)
    if isinstance(content, str):
        (folder / "target.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    message = refusal(folder)
    assert expected in message
    assert "--members and --nonmembers" in message, "what to do"
    assert len(message) < 9000


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = target(tmp_path)
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "private"}\n')
    (folder / "members.jsonl").unlink()
    (folder / "members.jsonl").symlink_to(secret)
    assert "a link to a file elsewhere" in refusal(folder)
    shutil.copy(folder / "target.json", tmp_path / "elsewhere.json")
    (folder / "target.json").unlink()
    (folder / "target.json").symlink_to(tmp_path / "elsewhere.json")
    assert "a link to a file elsewhere" in refusal(folder)


def test_the_file_allows_nothing(tmp_path: Path) -> None:
    folder = target(tmp_path, trust_remote_code=True, allow_pickle=True, fail_on="over", model="x")
    config = settled(folder).config
    assert not config.trust_remote_code
    assert not config.allow_pickle
    assert config.model == str(folder)


def test_a_file_without_records_says_nothing(tmp_path: Path) -> None:
    folder = describe(tmp_path / "model", {"made_with": {}})
    assert "no target.json beside" in refusal(folder)


def test_nothing_at_all_shows_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    assert main(["audit", "--model", str(tmp_path / "model")]) == 2
    printed = capsys.readouterr().err
    assert "--members and --nonmembers together, or from --data alone" in printed
    assert "no target.json beside" in printed
    assert "its card names no data set" in printed
    assert "--members members.jsonl --nonmembers nonmembers.jsonl" in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "model").iterdir())


def test_a_model_alone_is_audited(subject: dict[str, Any], tmp_path: Path) -> None:
    """From Python and by command, with the very scores of the same audit given by hand."""
    folder = tmp_path / "model"
    shutil.copytree(subject["model"], folder)
    for name in ("members", "nonmembers"):
        shutil.copy(subject[name], folder / f"{name}.jsonl")
    part = {**PART, "calibration": None, "reference": subject["reference"]}
    describe(folder, {"schema_version": 1, "audit": part}, lists=False)
    small = {"bootstrap": 100, "learners": "logistic", "folds": 2, "repeats": 1, "fpr": "0.2"}
    out = tmp_path / "alone"
    before = sorted(path.name for path in folder.iterdir())
    alone = audit(
        AuditConfig.model_validate({"model": str(folder), **small, "output_path": out.as_posix()})
    )
    assert alone.records.source == "target.json"
    assert alone.config["membership"] == "randomized"
    assert alone.reference is not None
    assert sorted(path.name for path in folder.iterdir()) == before
    found = json.loads((out / "audit.json").read_text())
    assert found["config"]["members"]["path"] == str(folder / "members.jsonl")
    by_hand = audit(
        AuditConfig.model_validate(
            {
                "model": str(folder),
                "members": str(folder / "members.jsonl"),
                "nonmembers": str(folder / "nonmembers.jsonl"),
                "reference": subject["reference"],
                "membership": "randomized",
                **small,
                "output_path": str(tmp_path / "by_hand"),
            }
        )
    )
    assert by_hand.records.source == "given"
    assert by_hand.variants[0].attacks == alone.variants[0].attacks
    assert "named by target.json" in origin(alone)
    assert not origin(by_hand)
