"""GPTQ's packed folders, and what making them leaves behind: nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from auditor.compress import gptq
from auditor.compress.checkpoint import Checkpoint
from auditor.compress.quiet import quietly
from tests.conftest import needs
from tests.families import CATALOGUE, make, saved_catalogue, tiny_calibration
from tests.test_gptq import distance, logits, packed, probe

# What a program loads that knows nothing of this one.
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, GPTQConfig
folder, ids, out = sys.argv[1:4]
found = []
for more in {}, {"quantization_config": GPTQConfig(bits=4, backend="auto")}:
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float32, **more
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.load(ids)).logits
    found.append([logits, {type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}])
torch.save(found, out)
"""
# Makes a variant where nothing may be said, written or compiled.
MAKE = """
import os, sys, logging, tempfile, torch
from auditor.compress.checkpoint import load_model, open_checkpoint
from tests.families import CPU, make
root, other = map(open_checkpoint, sys.argv[1:3])
ids = torch.arange(1, 21)[None]
with torch.inference_mode():
    before = load_model(other, CPU)(input_ids=ids).logits
state = lambda: (dict(os.environ), logging.getLogger().handlers[:], logging.getLogger().level)
import datasets, huggingface_hub.constants as hub
made_by_tokenicer = os.path.join(tempfile.gettempdir(), "tokenicer_hf_home")
folders = lambda: (datasets.config.HF_CACHE_HOME, hub.HF_HOME, os.path.exists(made_by_tokenicer))
was = state(), folders()
made = make(root, "gptq:group_size=32")
assert "gptqmodel" in sys.modules
assert was == (state(), folders())
with torch.inference_mode():
    made.model(input_ids=ids)
    after = load_model(other, CPU)(input_ids=ids).logits
assert torch.equal(before, after)
"""


@pytest.fixture(autouse=True)
def installed() -> None:
    needs("gptq")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_catalogue(tmp_path_factory.mktemp("catalogue"))


def loaded_again(folder: Path) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    with quietly():
        model: PreTrainedModel = loader.from_pretrained(
            folder, device_map="cpu", dtype=torch.float32
        )
        gptq.without_compiler(model)
    return model


@pytest.mark.parametrize("family", CATALOGUE)
def test_written_and_loaded_again_it_is_the_same(
    family: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made = make(checkpoints[family], "gptq:bits=3,group_size=32")
    expected = logits(made.model)
    made.model.save_pretrained(tmp_path / "packed")
    if made.dense is None:
        assert torch.equal(logits(loaded_again(tmp_path / "packed")), expected)
        return
    assert family.startswith("gpt2")
    assert gptq.PLAIN in made.receipt.notes
    with pytest.raises(AttributeError):  # once it is loaded, plain weights are no longer needed
        loaded_again(tmp_path / "packed")
    made.dense().save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    again = loaded_again(tmp_path / "plain")
    assert not packed(again)
    assert distance(logits(again), expected) < 1e-6


def test_nothing_that_is_written_holds_the_calibration(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    windows = tiny_calibration().windows
    made = make(checkpoints["llama"], "gptq:group_size=32")
    made.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["dataset"] is None
    assert config["tokenizer"] is None
    assert config["backend"] == gptq.BACKEND
    first, second = windows[0, :2]
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert not re.search(rf"\b{first}\b\W+\b{second}\b", content.decode())
    text = repr(vars(made.model.config)) + repr(vars(made.model.config.quantization_config))
    assert not re.search(rf"\b{first}\b\W+\b{second}\b", text)


@pytest.mark.slow
def test_a_program_that_knows_transformers_alone_loads_the_same(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made = make(checkpoints["llama-bias"], "gptq:group_size=32")
    expected = logits(made.model)  # written after a forward pass
    made.model.save_pretrained(tmp_path / "packed")
    torch.save(probe(), tmp_path / "ids.pt")
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1", "HF_HOME": str(tmp_path)}
    files = [str(tmp_path / name) for name in ("packed", "ids.pt", "out.pt")]
    command = [sys.executable, "-c", LOAD, *files]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
    (found, kinds), (by_default, _) = torch.load(tmp_path / "out.pt")
    assert kinds == {"TorchLinear"}
    assert distance(found, expected) < 1e-6
    # Why the kernel is named: the one that the library would take rounds to bfloat16.
    assert 1e-3 < distance(by_default, expected) < 0.05


@pytest.mark.slow
def test_not_a_word_is_said_no_file_left_no_compiler_started_and_no_other_model_changed(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    here = Path(__file__).resolve().parents[1]
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "HF_HOME", "PATH", "cwd")}
    for place in places.values():
        place.mkdir()
    folders = [str(checkpoints[name].path) for name in ("llama-bias", "opt")]
    environment = {name: str(place) for name, place in places.items()} | {"PYTHONPATH": str(here)}
    done = subprocess.run(
        [sys.executable, "-c", MAKE, *folders],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=places["cwd"],
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    left = [path for place in places.values() for path in place.rglob("*") if path.is_file()]
    assert not left
