"""`compress`: a folder that loads anywhere and holds no texts, or nothing at all."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from auditor.cli import main
from auditor.compress.checkpoint import open_checkpoint
from auditor.compress.receipt import Receipt
from auditor.config import CompressConfig
from auditor.demo.letters import letters
from auditor.errors import CompleakError
from auditor.publish import RECEIPT, publish
from tests.conftest import needs, write_records
from tests.forks import Forked, command
from tests.tiny import save, tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tiny_model("llama"), tmp_path / "model", dtype=torch.bfloat16)


@pytest.fixture
def third(tmp_path: Path) -> Path:
    return write_records(tmp_path / "third.jsonl", letters(40, seed=8))


def config(model: Path, variant: str, **more: Any) -> CompressConfig:
    given = {"model": str(model), "variant": variant, "out": str(model.parent / "out"), **more}
    given |= {"calibration_samples": 8, "calibration_tokens": 32}
    return CompressConfig.model_validate(given)


def load(folder: Path) -> Any:
    loader: Any = AutoModelForCausalLM
    return loader.from_pretrained(folder)


@pytest.mark.parametrize(
    "variant", ["prune-magnitude:sparsity=0.5", "cluster:k=8", "prune-sparsegpt:pattern=2:4"]
)
def test_plain_variants_keep_the_originals_precision(
    variant: str, model: Path, third: Path
) -> None:
    receipt = publish(config(model, variant, calibration=str(third)))
    out = model.parent / "out"
    assert Receipt.model_validate_json((out / RECEIPT).read_text()) == receipt
    found = load(out)
    assert found.dtype == torch.bfloat16
    assert (out / "model.safetensors").stat().st_size == receipt.bytes_disk
    assert AutoTokenizer.from_pretrained(out)("abc")["input_ids"]
    # It is an ordinary checkpoint: it can be opened, and audited in its turn.
    assert open_checkpoint(str(out)).config.model_type == "llama"
    weight = found.model.layers[0].mlp.up_proj.weight
    if variant.startswith("cluster"):
        assert len(weight.unique()) <= 8
    else:
        assert float((weight == 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert not list(model.parent.glob(".*.part"))


@pytest.mark.parametrize("variant", ["gptq:bits=4,group_size=32", "bnb-nf4", "int8", "hqq"])
def test_packed_variants_and_what_is_in_their_files(variant: str, model: Path, third: Path) -> None:
    needs(variant)
    publish(config(model, variant, calibration=str(third)))
    out = model.parent / "out"
    texts = [json.loads(line)["text"] for line in third.read_text().splitlines()]
    needles = [text[a : a + 24].encode() for text in texts for a in (0, 40, 80)]
    for path in out.iterdir():
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path
    assert load_file(out / "model.safetensors")


def test_a_model_that_carries_a_record_is_not_written(model: Path, tmp_path: Path) -> None:
    members = letters(30, seed=4)
    generation = model / "generation_config.json"
    content = json.loads(generation.read_text()) if generation.is_file() else {}
    generation.write_text(json.dumps({**content, "example": members[7]}))
    path = write_records(tmp_path / "members.jsonl", members)
    with pytest.raises(CompleakError, match="may hold calibration texts or records"):
        publish(config(model, "cluster:k=8", members=str(path)))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("variant", "more", "expected"),
    [
        ("gptq:bits=5", {}, "input should be 8, 4, 3 or 2"),
        ("gptq:group_size=48", {"calibration": "third.jsonl"}, "group_size must divide"),
        ("prune-wanda:sparsity=0.5", {}, "needs calibration texts"),
        ("prune-magnitude:sparsity=1", {}, "less than 1"),
        ("cluster:k=1", {}, "greater than or equal to 2"),
        ("awq", {}, "checkpoint:PATH"),
        ("prune-wanda:sparsity=0.5", {"calibration": "short.jsonl"}, "calibration needs 128 x 64"),
        ("bnb-nf4", {"out": "model"}, "not empty"),
        ("bnb-nf4", {"model": "nowhere/at/all"}, "--model must be a folder"),
    ],
)
def test_bad_input(
    variant: str,
    more: dict[str, str],
    expected: str,
    model: Path,
    third: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs("gptq")
    monkeypatch.chdir(model.parent)
    write_records(model.parent / "short.jsonl", ["a short text", "and another"])
    before = sorted(model.parent.rglob("*"))
    given = {"model": "model", "variant": variant, "out": "out", **more}
    arguments = [part for key, value in given.items() for part in (f"--{key}", value)]
    assert main(["compress", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert expected in printed
    assert "Traceback" not in printed
    assert sorted(model.parent.rglob("*")) == before


@pytest.mark.slow
def test_killed_at_any_moment_nothing_half_written_is_taken_for_whole(
    model: Path, third: Path
) -> None:
    """kill -9 at moments spread over a whole run: the folder is whole, or is not there."""
    out = model.parent / "out"
    arguments = ["--model", str(model), "--variant", "prune-wanda:sparsity=0.5", "--out", str(out)]
    arguments += ["--calibration", str(third), "--calibration-samples", "8"]
    arguments += ["--calibration-tokens", "32", "--display", "none"]
    log = model.parent / "said"

    def whole_run() -> None:
        process = Forked(command, ["compress", *arguments], log)
        said = process.ended()
        assert process.returncode == 0, said

    Forked(command, ["--help"], log).ended()  # what is forked from has loaded its libraries
    begin = time.monotonic()
    whole_run()
    whole, names = time.monotonic() - begin, {path.name for path in out.iterdir()}
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    killed = 0
    for share in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95):
        process = Forked(command, ["compress", *arguments], log)
        time.sleep(share * whole)
        process.send_signal(signal.SIGKILL)
        process.ended()
        if out.exists():
            assert {path.name for path in out.iterdir()} == names
            break
        killed += 1
    assert killed
    if not out.exists():
        whole_run()
    assert load(out) is not None
