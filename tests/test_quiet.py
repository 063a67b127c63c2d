"""Libraries say nothing, and leave nothing behind in the process."""

import logging
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from auditor.compress.quiet import hush, quietly
from tests.tiny import save, tiny_model


def speak() -> None:
    print("printed")
    print("printed", file=sys.stderr)
    warnings.warn("warned", stacklevel=1)
    logging.getLogger("a.library").critical("logged")


def test_nothing_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with quietly():
        speak()
    assert capfd.readouterr() == ("", "")
    print("heard")
    with pytest.warns(UserWarning, match="warned"):
        speak()
    assert capfd.readouterr().out == "heard\nprinted\n"


def test_a_stream_that_was_kept_can_be_written_to(capfd: pytest.CaptureFixture[str]) -> None:
    with quietly():
        handler = logging.StreamHandler()  # takes sys.stderr as it is now
    handler.emit(logging.LogRecord("x", logging.ERROR, "", 0, "later", None, None))
    assert capfd.readouterr() == ("", "")


def test_the_process_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "as it was")
    monkeypatch.setenv("DROPPED", "there")
    variables, root, filters = dict(os.environ), logging.getLogger(), list(warnings.filters)
    handlers, level = list(root.handlers), root.level
    with pytest.raises(ValueError, match="from within"), quietly(GIVEN="1", KEPT="2"):
        assert (os.environ["GIVEN"], os.environ["KEPT"]) == ("1", "2")
        os.environ["ADDED"] = "x"
        del os.environ["DROPPED"]
        logging.basicConfig(level=logging.DEBUG, force=True)
        warnings.simplefilter("always")
        raise ValueError("from within")
    assert dict(os.environ) == variables
    assert (root.handlers, root.level) == (handlers, level)
    assert warnings.filters == filters
    assert root.manager.disable == logging.NOTSET


def test_blocks_within_blocks(capfd: pytest.CaptureFixture[str]) -> None:
    with quietly(OUTER="1"):
        with quietly(INNER="1"):
            speak()
        assert "INNER" not in os.environ
        assert os.environ["OUTER"] == "1"
        speak()
    assert "OUTER" not in os.environ
    assert capfd.readouterr() == ("", "")


def test_a_level_that_was_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in ((logging.DEBUG, logging.DEBUG), (logging.NOTSET, logging.ERROR)):
        for name in ("torchao", "torch.utils._pytree"):
            monkeypatch.setattr(logging.getLogger(name), "level", given)
        hush()
        assert logging.getLogger("torchao").level == expected


IMPORTS = (
    "import auditor.cli",
    "from auditor import audit",
    "import auditor.compress.checkpoint",
    "import auditor.demo.target",
)


@pytest.mark.slow
@pytest.mark.parametrize("first", IMPORTS)
def test_every_way_in_is_silent(first: str) -> None:
    """In a fresh process, where transformers imports torchao and hqq if they are installed."""
    program = f"""
{first}
import sys
from transformers import LlamaForCausalLM
from importlib.util import find_spec
import auditor.compress.quiet
if find_spec("torchao"):
    assert "torchao.quantization" in sys.modules
"""
    assert run(program) == (0, "", "")


@pytest.mark.slow
def test_a_loud_library() -> None:
    """Sets variables and the root logger, prints a banner, warns, and logs, all on its import."""
    if find_spec("gptqmodel") is None:
        pytest.skip("needs gptqmodel")
    program = """
import logging, os
from auditor.compress.quiet import quietly
from transformers import LlamaForCausalLM
before = dict(os.environ)
with quietly():
    import gptqmodel
assert dict(os.environ) == before
assert logging.getLogger().handlers == []
"""
    assert run(program) == (0, "", "")


@pytest.mark.slow
def test_making_is_silent(tmp_path: Path) -> None:
    """Without a word, a file, a variable, another precision of products, or the network."""
    variants = [v for v in ("int8", "int8-dynamic", "int4", "fp8") if find_spec("torchao")]
    variants += [v for v in ("hqq", "hqq:bits=3") if find_spec("hqq")]
    models = [str(save(tiny_model(name), tmp_path / name)) for name in ("llama", "gpt2")]
    (tmp_path / "here").mkdir()
    program = f"""
import os, socket
def refuse(*args, **kwargs):
    raise SystemExit("the network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from auditor.compress import parse_variant
from auditor.compress.checkpoint import Placement, load_model, open_checkpoint
from auditor.compress.make import compress
checkpoints, placement = [*map(open_checkpoint, {models})], Placement("cpu", torch.float32)
for checkpoint in checkpoints:
    load_model(checkpoint, placement)
before, precision = dict(os.environ), torch.get_float32_matmul_precision()
os.chdir({str(tmp_path / "here")!r})
for checkpoint in checkpoints:
    for variant in {variants}:
        made = compress(checkpoint, parse_variant(variant), placement)
        with torch.inference_mode():
            made.model(input_ids=torch.ones(1, 5, dtype=torch.long))
        if made.dense is not None:
            made.dense()
assert dict(os.environ) == before
assert torch.get_float32_matmul_precision() == precision
"""
    assert run(program) == (0, "", "")
    assert not list((tmp_path / "here").iterdir())


def run(program: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    return done.returncode, done.stdout, done.stderr
