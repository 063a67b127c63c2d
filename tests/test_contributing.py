"""CONTRIBUTING.md is followed to the letter: its attack and its compressor, in a real audit."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import Field

from auditor import AuditConfig, audit
from auditor.attacks import ATTACKS, Attack, single
from auditor.cli import main
from auditor.compress import COMPRESSORS, Compressor, checkpoint, matrices, measure
from auditor.compress.options import Options

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def code_blocks(heading: str) -> list[str]:
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def line_of(block: str, name: str, **names: Any) -> Any:
    return eval(f"{{{block}}}", names)[name]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    function, line = code_blocks("Adding an attack")
    exec(function, vars(single))
    monkeypatch.setitem(ATTACKS, "lowest", line_of(line, "lowest", Attack=Attack))

    options, function, line = code_blocks("Adding a compressor")
    space: dict[str, Any] = {"Options": Options, "Field": Field, "__name__": "options"}
    exec(options, space)
    module = ModuleType("auditor.compress.round")
    vars(module).update({**vars(matrices), **vars(measure), **vars(checkpoint), **space})
    exec(function, vars(module))
    monkeypatch.setitem(sys.modules, "auditor.compress.round", module)
    names = {"Compressor": Compressor, "RoundOptions": space["RoundOptions"]}
    monkeypatch.setitem(COMPRESSORS, "round", line_of(line, "round", **names))


@pytest.mark.usefixtures("added")
def test_both_are_found_everywhere(
    subject: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "attacks"]) == 0
    assert re.search(r"^lowest +NR +The smallest", capsys.readouterr().out, flags=re.MULTILINE)
    assert main(["list", "variants"]) == 0
    assert re.search(r"^round +weights rounded", capsys.readouterr().out, flags=re.MULTILINE)
    given = {**subject, "variants": "round:digits=3", "attacks": "lowest", "primary": "lowest"}
    result = audit(AuditConfig.model_validate({**given, "output_path": str(tmp_path)}))
    rounded = result.variant("round:digits=3")
    assert rounded.receipt is not None
    assert rounded.receipt.bits_per_weight == 4.0
    assert rounded.receipt.n_changed > 0
    assert rounded.attacks["lowest"].auc.value is not None
    assert [item.variant for item in result.comparisons if item.family == "primary"] == [
        "round:digits=3"
    ]
    assert main(["audit", "--model", "m", "--variants", "round:digits=9"]) == 2
    assert "Binary digits after the point." in capsys.readouterr().err
