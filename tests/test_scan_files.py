"""Files that do not belong in a checkpoint are named; none is opened that could bite."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from auditor import AuditResult
from auditor.report.terminal import show
from auditor.results import Artifact
from tests.test_scan import LETTERS, clean, folder, hits, ids, named, scan

__all__ = ["clean", "folder"]  # fixtures


MISPLACED = (
    *("pytorch_model.bin", "model.pt", "x.pth", "a/b.pkl", "model.ckpt", "optimizer.pt"),
    *("scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json", "d.zip"),
    *("events.out.tfevents.17.host", "data.csv", "d.jsonl", "n.ipynb", ".env", "train.py"),
    *("README.md~", "config.json.bak", "out.log", ".DS_Store", "id_rsa", "sub/optimizer.bin"),
)
PLACED = (
    *("README.md", "LICENSE", "merges.txt", "vocab.json", "special_tokens_map.json", "x.png"),
    *("generation_config.json", "chat_template.jinja", ".gitattributes", "handler.py", "NOTICE"),
    *("model.safetensors.index.json", "recipe.yaml", "added_tokens.json", "all_results.json"),
)


def test_files_that_do_not_belong_are_named_and_no_others(folder: Path) -> None:
    for name in (*MISPLACED, *PLACED):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    found = scan(folder)
    assert set(named(found)) == set(MISPLACED)
    order = [item.severity for item in found]
    assert order == sorted(order, key=["severe", "warning", "info"].index)
    assert {found[0].file, found[1].file} == {".env", "id_rsa"}


def test_folders_are_named_once_and_searched(folder: Path) -> None:
    for name in ("wandb/run-1/files/out.log", "runs/e.txt", "checkpoint-50/optimizer.pt", ".git/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(LETTERS[0])
    found = scan(folder)
    expected = {"wandb/", "runs/", "checkpoint-50/", "checkpoint-50/optimizer.pt", ".git/"}
    assert set(named(found)) == expected
    assert hits(found) == {"runs/e.txt": ids(0), "wandb/run-1/files/out.log": ids(0)}


def test_code_that_the_configuration_names_belongs(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "modeling.py").write_text("import torch\n")
    assert set(named(scan(folder))) == {"modeling.py"}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert named(scan(folder)) == {}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_pickles_are_never_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), folder / "training_args.bin")
    for name in ("odd", "weights.json", "a.pkl"):
        (folder / name).write_bytes(pickle.dumps([Bomb(), LETTERS[0]]))
    found = scan(folder)
    assert set(named(found)) == {"training_args.bin", "odd", "weights.json", "a.pkl"}
    assert hits(found) == {}
    assert not (tmp_path / "exploded").exists()


def test_links_and_what_is_no_file(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "0af1").write_text(LETTERS[0])
    (folder / "README.md").symlink_to(blobs / "0af1")
    (folder / "linked").symlink_to(blobs)
    (folder / "gone.json").symlink_to(blobs / "gone")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    found = scan(folder)
    assert hits(found) == {"README.md": ids(0)}
    assert set(named(found)) == {"linked/", "gone.json", "loop", "pipe"}


def test_names_of_files_are_made_printable(folder: Path) -> None:
    (folder / "a\x1b[2J\n\udcff.log").write_text("x")
    found = scan(folder)
    assert [item.file for item in found] == ["a\ufffd[2J\ufffd\ufffd.log"]
    assert found[0].model_dump_json()


def test_the_terminal_shows_findings_above_everything(done: AuditResult, folder: Path) -> None:
    (folder / "[red]README.md").write_text(LETTERS[0])
    for number in range(14):
        (folder / f"{number}.csv").write_text("a,b\n")
    result = done.model_copy(update={"artifacts": scan(folder)})
    file = io.StringIO()
    show(result, Console(file=file, width=100, color_system=None))
    text = file.getvalue()
    lines = text.splitlines()
    assert lines[0].startswith("╭─ published in clear")
    assert "model: [red]README.md: 1 record stands in it word for word (1 member, " in lines[1]
    assert text.count(".csv: a data file") == 12
    assert "and 2 more files" in text
    assert text.index("more files") < text.index("primary attack")
    assert max(map(len, lines)) <= 100


def test_findings_survive_json(done: AuditResult) -> None:
    item = Artifact(checkpoint="m", file="f", kind="file", message="x", severity="info")
    result = done.model_copy(update={"artifacts": [item]})
    assert AuditResult.model_validate(json.loads(result.model_dump_json())) == result
    assert list(AuditResult.model_fields).index("artifacts") < list(AuditResult.model_fields).index(
        "warnings"
    )
