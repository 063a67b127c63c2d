"""The cache as a run and a user meet it: several processes, audits, `compress`, `cache`."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from auditor import AuditConfig, audit
from auditor.calibration import read_calibrations
from auditor.cli import main
from auditor.compress import cluster, entries
from auditor.compress import kept as kept_module
from auditor.compress.checkpoint import load_tokenizer, open_checkpoint
from auditor.compress.entries import MANIFEST, Entry
from auditor.demo.letters import letters
from auditor.scoring import pipeline
from tests.cache_cases import (
    VARIANT,
    cached,
    digest,
    stop_while_writing,
    wait_for,
    want,
)
from tests.conftest import needs, write_records
from tests.families import make
from tests.forks import CONTEXT
from tests.test_audit import comparable
from tests.test_pipeline import shards
from tests.tiny import save, tiny_model

CACHED = "prune-wanda:sparsity=0.5,prune-sparsegpt:pattern=2:4,cluster:k=8,gptq:group_size=32"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("gpt2"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPLEAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def entry_of(root: Path) -> Entry:
    (entry,) = entries.entries(root)
    return entry


# -- several processes, and killed ones ------------------------------------------------------------


def test_processes_that_ask_at_once_make_it_once(model: Path, root: Path, tmp_path: Path) -> None:
    asked = [
        CONTEXT.Process(target=want, args=(root, model, tmp_path, number, 0.5))
        for number in range(3)
    ]
    for process in asked:
        process.start()
    (tmp_path / "go").touch()
    for process in asked:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("making-*"))) == 1
    found = [path.read_text().split() for path in tmp_path.glob("done-*")]
    assert sorted(told for _, told in found) == ["False", "True", "True"]
    assert {one for one, _ in found} == {digest(make(open_checkpoint(str(model)), VARIANT).model)}


def test_the_lock_ends_with_its_block(root: Path) -> None:
    entry = entries.Entry(root, "gptq-0123456789abcdef")
    program = "from auditor.compress.entries import Entry; from pathlib import Path; "
    program += f"print(Entry(Path({str(root)!r}), {entry.name!r}).locked_now() is not None)"

    another = partial(subprocess.check_output, [sys.executable, "-c", program], text=True)
    with entry.locked(lambda: None):
        assert another() == "False\n"
    assert another() == "True\n"


@pytest.mark.parametrize("moment", ["making", "writing"])
def test_a_maker_that_is_killed_leaves_the_lock_and_nothing_that_counts(
    moment: str, model: Path, root: Path, tmp_path: Path
) -> None:
    if moment == "making":
        (tmp_path / "go").touch()
        target, args = want, (root, model, tmp_path, 0, 600.0)
    else:
        target, args = stop_while_writing, (root, model, tmp_path)
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    wait_for(tmp_path / ("making-0" if moment == "making" else "writing"))
    entry = entry_of(root)
    assert entry.locked_now() is None
    assert entry.part.is_dir() == (moment == "writing")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    made = cached(root, model)
    assert not made.from_cache
    assert digest(made.model) == digest(make(open_checkpoint(str(model)), VARIANT).model)
    assert {path.name for path in root.iterdir()} == {entry.name, entry.lock.name}
    assert cached(root, model).from_cache


def test_an_error_of_the_compressor_is_the_users_and_leaves_nothing(
    model: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "of the compressor's own")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "make", fail)
        with pytest.raises(OSError, match="of the compressor's own"):
            cached(root, model)
    assert not entry_of(root).folder.exists()
    assert not cached(root, model).from_cache


# -- audits --------------------------------------------------------------------------------------


def run(subject: dict[str, Any], output: Path, **more: Any) -> list[bool]:
    """Audit, and say of each version whether it came from the cache."""
    given = {**subject, "variants": CACHED, "reference": None, "settings": "NR", **more}
    given |= {"calibration_samples": 8, "calibration_tokens": 32, "output_path": str(output)}
    result = audit(AuditConfig.model_validate(given))
    return [timing.from_cache for timing in result.timings.variants]


@pytest.fixture
def third(tmp_path: Path) -> Path:
    return write_records(tmp_path / "third.jsonl", letters(40, seed=8))


def test_scores_and_results_are_the_same_with_and_without(
    subject: dict[str, Any],
    third: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs("gptq")
    subject = {**subject, "calibration": str(third)}
    assert run(subject, tmp_path / "cold") == [False] * 5
    assert run(subject, tmp_path / "warm") == [False, True, True, True, True]
    warm = json.loads((tmp_path / "warm" / "audit.json").read_text())
    times = {one["variant"]: one for one in warm["timings"]["variants"]}
    for variant in warm["variants"][1:]:
        timing = times[variant["variant"]]
        assert 0 <= timing["compress_s"] < timing["load_s"]
        assert variant["receipt"]["compress_s"] > 0
    monkeypatch.setenv("COMPLEAK_CACHE", "off")
    assert run(subject, tmp_path / "off") == [False] * 5
    expected = shards(tmp_path / "off")
    assert len(expected) >= 5
    for name in ("cold", "warm"):
        assert shards(tmp_path / name) == expected
        assert comparable(tmp_path / name) == comparable(tmp_path / "off")


def test_no_text_and_no_id_of_one_lies_in_the_cache(
    subject: dict[str, Any], third: Path, root: Path, tmp_path: Path
) -> None:
    needs("gptq")
    given = {**subject, "calibration": str(third), "limit": 55, "fpr": "0.2"}
    run(given, tmp_path / "run", variants="gptq:group_size=32,prune-wanda:sparsity=0.5")
    config = AuditConfig.model_validate(
        {**given, "variants": "gptq", "calibration_samples": 8, "calibration_tokens": 32}
    )
    tokenizer = load_tokenizer(open_checkpoint(config.model))
    (used,) = read_calibrations(config, config.variant_specs, tokenizer, context=64).values()
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) == 6
    content = b"".join(path.read_bytes() for path in files)
    pieces = {text[i : i + 12] for text in used.texts for i in range(0, len(text) - 12, 4)}
    for source in ("members", "nonmembers"):
        for line in Path(given[source]).read_text().splitlines():
            text = json.loads(line)["text"]
            pieces |= {text[i : i + 12] for i in range(0, len(text) - 12, 4)}
    assert len(pieces) > 500
    assert not [piece for piece in pieces if piece.encode() in content]
    assert not [one for one in used.use.ids if one.encode() in content]
    ids = ", ".join(str(i) for i in used.windows[0, :4]).encode()
    assert ids not in content
    assert str(third).encode() not in content


def test_a_version_made_ahead_beside_the_kept_original_is_kept_too(
    subject: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"variants": "cluster:k=8,prune-magnitude:sparsity=0.5,cluster:k=4,cluster:k=2"}
    with monkeypatch.context() as patched:
        patched.setattr(kept_module, "PAYS_ON", ("cpu",))
        patched.setattr(pipeline, "AHEAD_ON", ("cpu",))
        makings: list[int] = []
        real = cluster.make

        def counted(*args: Any, **kwargs: Any) -> Any:
            makings.append(1)
            return real(*args, **kwargs)

        patched.setattr(cluster, "make", counted)
        run(subject, tmp_path / "ahead", **named)
        assert len(makings) == 3
        warm = run(subject, tmp_path / "warm", **named)
        assert warm == [False, True, False, True, True]
        assert len(makings) == 3
    monkeypatch.setenv("COMPLEAK_CACHE", "off")
    run(subject, tmp_path / "off", **named)
    for name in ("ahead", "warm"):
        assert shards(tmp_path / name) == shards(tmp_path / "off")


def test_a_cache_that_cannot_be_written_is_said_on_screen_and_stops_nothing(
    subject: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPLEAK_CACHE", str(tmp_path / "file" / "cache"))
    given = {**subject, "variants": "cluster:k=8,cluster:k=4", "settings": "NR", "bootstrap": 100}
    given |= {"output_path": str(tmp_path / "run"), "display": "plain"}
    given.pop("reference")
    assert main(["audit", *(x for k, v in given.items() for x in (f"--{k}", str(v)))]) == 0
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "COMPLEAK_CACHE" in said
    assert "cannot be written" not in (tmp_path / "run" / "audit.json").read_text()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_compress_writes_is_the_same_from_the_cache(
    family: str, third: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("gptq")
    model = save(tiny_model(family), tmp_path / "model")

    def written(name: str) -> dict[str, bytes]:
        flags = {"model": model, "variant": "gptq:group_size=32", "out": tmp_path / name}
        flags |= {"calibration": third, "calibration_samples": 8, "calibration_tokens": 32}
        assert main(["compress", *(x for k, v in flags.items() for x in (f"--{k}", str(v)))]) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    cold, warm = written("cold"), written("warm")
    assert capsys.readouterr().err.count("taken from the cache") == 1
    assert cold == warm


# -- `cache` ---------------------------------------------------------------------------------------


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["cache", *arguments]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def age(entry: Entry, days: float) -> None:
    then = time.time() - 86_400 * days
    os.utime(entry.folder / MANIFEST, (then, then))


def test_list_shows_what_is_kept(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said_by(capsys, "list") == [f"{root}: nothing is kept"]
    for variant in (VARIANT, "cluster:k=4"):
        cached(root, model, variant)
    first, _ = entries.entries(root)
    age(first, 40)
    folder, head, *rows = said_by(capsys, "list")
    assert folder == str(root)
    assert head.split() == ["variant", "model", "size", "made", "last", "used"]
    assert [row.split()[:4] for row in rows] == [
        [name, str(model), "0.4", "MiB"] for name in ("cluster:k=4", VARIANT)
    ]
    assert rows[0].split()[4:6] == rows[1].split()[4:6]  # made
    assert rows[0].split()[6:] != rows[1].split()[6:]  # last used
    cached(root, model, "cluster:k=4")
    again = said_by(capsys, "list")
    assert again[2].split()[6:] != rows[0].split()[6:]


def test_names_in_a_manifest_do_nothing_to_the_terminal(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(root, model)
    path = entry_of(root).folder / MANIFEST
    found = entries.Manifest.model_validate_json(path.read_text())
    odd = found.model_copy(update={"model": "\x1b[2Jm\x07[bold]x[/nope]", "made_at": "\x1b[1A?"})
    path.write_text(odd.model_copy(update={"sha256": odd.digest()}).model_dump_json())
    printed = "\n".join(said_by(capsys, "list"))
    assert "[2Jm[bold]x[/nope]" in printed
    assert not {"\x1b", "\x07"} & set(printed)
    printed = "\n".join(said_by(capsys, "prune", "--all"))
    assert "removed cluster:k=8 of [2Jm[bold]x[/nope]" in printed
    assert not {"\x1b", "\x07"} & set(printed)


def test_prune_takes_what_is_old_damaged_or_half_written_and_nothing_else(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = ["cluster:k=4", "cluster:k=5", "cluster:k=6", "cluster:k=7"]
    for variant in variants:
        cached(root, model, variant)
    young, old, damaged, gone = entries.entries(root)
    age(young, 29)
    age(old, 31)
    (damaged.folder / MANIFEST).write_text("{")
    gone.folder.rename(gone.part)
    (root / "of-the-user").mkdir()
    (root / "of-the-user-0123456789abcdef.txt").touch()
    n_bytes = sum(
        path.stat().st_size
        for folder in (old.folder, damaged.folder, gone.part)
        for path in folder.iterdir()
    )
    *lines, total = said_by(capsys, "prune")
    assert lines == [
        f"removed cluster:k=5 of {model}, 0.4 MiB",
        f"removed {damaged.name}, 0.4 MiB",
        f"removed {gone.name}, half-written, 0.4 MiB",
    ]
    assert total == f"{root}: 3 removed, {n_bytes:,} bytes"
    left = {young.name, young.lock.name, "of-the-user", "of-the-user-0123456789abcdef.txt"}
    assert {path.name for path in root.iterdir()} == left
    assert cached(root, model, "cluster:k=4").from_cache
    assert said_by(capsys, "prune", "--older-than", "0.5")[-1].endswith("0 removed, 0 bytes")
    assert said_by(capsys, "prune", "--all")[0].startswith("removed cluster:k=4")
    assert said_by(capsys, "list") == [f"{root}: nothing is kept"]


def test_prune_leaves_what_another_process_is_making(
    model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = CONTEXT.Process(target=stop_while_writing, args=(root, model, tmp_path))
    process.start()
    wait_for(tmp_path / "writing")
    entry = entry_of(root)
    try:
        assert said_by(capsys, "prune", "--all") == [
            f"left {entry.name}: another process holds it",
            f"{root}: 0 removed, 0 bytes",
        ]
        assert entry.part.is_dir()
        assert "not whole" in said_by(capsys, "list")[-1]
    finally:
        process.kill()
        process.join(10)
    assert "half-written" in said_by(capsys, "prune")[0]
    assert list(root.iterdir()) == []


def test_a_folder_that_holds_something_of_the_users_is_not_removed(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(root, model)
    (entry_of(root).folder / "notes.txt").write_text("mine")
    cached(root, model, "cluster:k=4")
    assert main(["cache", "prune", "--all"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: the cache must hold nothing but")
    # The others go all the same.
    assert "removed cluster:k=4" in printed.out
    assert (entry_of(root).folder / "notes.txt").read_text() == "mine"
    # It is in the way of the entry, and stops nothing.
    assert not cached(root, model).from_cache


@pytest.mark.parametrize("command", ["list", "prune"])
def test_a_cache_that_is_off_or_is_none(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMPLEAK_CACHE", "off")
    assert said_by(capsys, command) == ["there is no cache: COMPLEAK_CACHE is off"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPLEAK_CACHE", str(tmp_path / "file"))
    assert main(["cache", command]) == 2
    assert "must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["-1", "nan"])
def test_days_must_be_days(days: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "prune", "--older-than", days]) == 2
    assert "--older-than" in capsys.readouterr().err
    assert main(["cache", "prune", "--older-than", "1e300"]) == 0
