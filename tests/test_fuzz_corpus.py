"""Every parser on what fuzzing has found, and on some new inputs each time.

The long form is `make fuzz`; what it finds goes into `tests/fuzz/corpus/TARGET/`.
"""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from auditor.cli import main
from tests.fuzz import __main__ as fuzz
from tests.fuzz import property
from tests.fuzz.mutations import MUTATIONS, mutated
from tests.fuzz.property import Broken, Hang, Target, check, place
from tests.fuzz.strategies import inputs
from tests.fuzz.targets import TARGETS

KEPT = [(name, content) for name in TARGETS for content in sorted((fuzz.CORPUS / name).glob("*"))]


def test_every_folder_of_the_corpus_is_that_of_a_target() -> None:
    assert {path.name for path in fuzz.CORPUS.iterdir()} <= TARGETS.keys()
    assert len(KEPT) == sum(len(list(path.iterdir())) for path in fuzz.CORPUS.iterdir())


@pytest.mark.parametrize(("name", "path"), KEPT, ids=lambda value: getattr(value, "name", value))
def test_what_was_found_is_taken_or_refused(name: str, path: Path) -> None:
    check(TARGETS[name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    taken = [check(TARGETS[name], seed) for seed in TARGETS[name].seeds()]
    assert any(taken)


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs_are_taken_or_refused(name: str) -> None:
    @given(inputs(name))
    @settings(
        max_examples=30,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def draw(data: bytes) -> None:
        check(TARGETS[name], data)

    draw()


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutation_is_the_same_for_the_same_draw(kind: str) -> None:
    target = next(one for one in TARGETS.values() if one.kind == kind)
    seed = target.seeds()[0]
    drawn = [mutated(seed, random.Random(number), target.kind) for number in range(40)]
    assert drawn == [mutated(seed, random.Random(number), target.kind) for number in range(40)]
    assert len(set(drawn)) > 20


def _loop(data: bytes) -> None:
    while True:
        pass


def _grow(data: bytes) -> None:
    # Written to, so that the pages are really there.
    bytearray(b"x" * (property.MOST_BYTES + 2**25))


def _write(data: bytes) -> None:
    (place().output / "left").write_bytes(data)
    fuzz.json.loads(data)


@pytest.mark.parametrize(
    ("run", "error"),
    [(_loop, Hang), (_grow, Broken), (_write, ValueError), (lambda data: data[9], IndexError)],
)
def test_the_property_is_one(
    run: object, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback, a hang and much memory are seen."""
    # Little, so that a busy machine is not taken for a hang while it fills it.
    monkeypatch.setattr(property, "MOST_BYTES", 2**27)
    stop_s = 2.0 if run is _loop else property.STOP_SECONDS
    with pytest.raises(error):
        check(Target(run, lambda: [b"x"], "json"), b"x", stop_s=stop_s)  # type: ignore[arg-type]
    (place().output / "left").unlink(missing_ok=True)


def test_a_first_input_may_be_slow_and_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported once is no hang; what takes long each time is."""
    monkeypatch.setattr(property, "SECONDS", 0.05)
    calls: list[float] = []

    def slow(data: bytes) -> None:
        calls.append(time.process_time())
        while time.process_time() < calls[-1] + 0.1 and (len(calls) == 1 or data == b"always"):
            pass

    target = Target(slow, lambda: [b"once"], "json")
    assert check(target, b"once")
    assert len(calls) == 2
    with pytest.raises(Hang):
        check(target, b"always")


COMMANDS = {
    "recipe": ("--recipe", ".yaml"),
    "records-jsonl": ("--members", ".jsonl"),
    "records-json": ("--members", ".json"),
    "records-parquet": ("--members", ".parquet"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_refuses_without_a_traceback(
    name: str, subject: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From end to end: exit code 2, one error, and no output folder."""
    flag, suffix = COMMANDS[name]
    given = {"--model": subject["model"], "--nonmembers": subject["nonmembers"]}
    given |= {"--members": subject["members"], "--output-path": str(tmp_path / "out")}
    for path in (path for found, path in KEPT if found == name):
        shutil.copyfile(path, tmp_path / f"given{suffix}")
        options = {**given, flag: str(tmp_path / f"given{suffix}"), "--display": "none"}
        code = main(["audit", *(part for pair in options.items() for part in pair)])
        told = capsys.readouterr().err
        assert code == 2, told
        assert told.startswith("error: ")
        assert {file.name for file in tmp_path.iterdir()} == {f"given{suffix}"}
