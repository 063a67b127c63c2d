"""The example card is what the program writes from the audit beside it, to the byte."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from auditor.cli import main
from auditor.finished import read_finished
from auditor.recipes import configure

EXAMPLE = Path(__file__).parent.parent / "model_cards" / "example"


def commands() -> list[list[str]]:
    """The commands in the part that was written by hand."""
    by_hand = (
        (EXAMPLE / "README.md").read_text(encoding="utf-8").split("<!-- compleak-llm:begin")[0]
    )
    blocks = re.findall(r"```sh\n(.*?)```", by_hand, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("compleak-llm")]


def tree(folder: Path) -> dict[str, Any]:
    """Every file's bytes; of a picture its pixels, since processors pack them differently."""
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path)).tobytes()
        if path.suffix == ".png"
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example in a project root of its own."""
    shutil.copytree(EXAMPLE, tmp_path / "model_cards" / "example")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model_cards" / "example"


def test_writing_it_again_changes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(copy)
    assert main(commands()[-1][1:]) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert tree(copy) == before


def test_written_from_nothing_it_is_the_same(copy: Path) -> None:
    """What an earlier version left cannot hide in it: the section, figure and figures are new."""
    before = tree(copy)
    readme = copy / "README.md"
    text = readme.read_text(encoding="utf-8")
    by_hand = text[: text.index("<!-- compleak-llm:begin")].rstrip("\n") + "\n"
    start, end = by_hand.index("model-index:"), by_hand.index("\n---\n", 4)
    readme.write_text(by_hand[:start].rstrip("\n") + by_hand[end:], encoding="utf-8")
    (copy / "compleak-llm-roc.png").unlink()
    assert main(commands()[-1][1:]) == 0
    assert tree(copy) == before


def test_the_audit_is_that_of_its_command() -> None:
    audit, first, again = commands()
    assert [audit[1], first[1], again[1]] == ["audit", "card", "card"]
    given = dict(zip(audit[2::2], audit[3::2], strict=True))
    flags = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items()}
    assert read_finished(EXAMPLE / "audit").config == configure(flags)
    assert first[3:] == again[3:]


def test_the_hub_reads_its_figures(copy: Path) -> None:
    card = ModelCard.load(copy / "README.md")
    found = {
        (one.metric_type, one.metric_args["setting"], tuple(one.metric_args["versions"])): one
        for one in card.data.eval_results
        if one.metric_args["setting"] == "NR"
    }
    for version in read_finished(copy / "audit").result.variants:
        auc = version.attacks["ez"].auc
        entry = found["auc", "NR", (version.variant,)]
        assert entry.metric_value == pytest.approx(auc.value, abs=1e-6)
        assert entry.metric_args["low"] == pytest.approx(auc.low, abs=1e-6)
