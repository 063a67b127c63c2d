"""What docs/ says is so: its commands parse, its links lead somewhere, its attack runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

import auditor
from auditor import cli, commands
from auditor.scoring.scores import Scores

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
STUDY = ROOT / "benchmarks" / "study" / "README.md"


def fenced(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def command_lines(page: Path) -> list[str]:
    joined = "\n".join(fenced(page, "sh")).replace("\\\n", " ")
    lines = [line.split(" #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line.startswith("compleak-llm") and "..." not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_commands(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is parsed by the program itself; only what they ask for is not carried out."""
    for module in (cli, commands):
        for name in [name for name in vars(module) if name.endswith("_and_show")]:
            monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr("auditor.plan.show_plan", lambda *_, **__: None)
    for line in command_lines(page):
        assert cli.main(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize("page", [*PAGES, *OTHERS, STUDY], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_attack_that_is_shown_runs() -> None:
    (shown,) = [
        block for block in fenced(ROOT / "docs" / "researcher.md", "python") if "def " in block
    ]
    place: dict[str, object] = {"np": np, "Scores": Scores, "Float64": np.ndarray}
    exec(shown, place)
    scores = Scores.__new__(Scores)
    object.__setattr__(scores, "logp", np.float32([-1.0, -3.0, -2.0, -0.5]))
    object.__setattr__(scores, "offsets", np.array([0, 2, 4]))
    assert place["lowest"](scores).tolist() == [-3.0, -2.0]  # type: ignore[operator]
    assert shown.strip() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_pipeline_is_yaml_and_its_commands_parse() -> None:
    (shown,) = fenced(ROOT / "docs" / "release-engineer.md", "yaml")
    steps = yaml.safe_load(shown)["jobs"]["gate"]["steps"]
    audits = [step["run"] for step in steps if "audit" in step.get("run", "")]
    assert audits
    assert all(shlex.split(line)[:2] == ["compleak-llm", "audit"] for line in audits)


def test_what_is_cited_is_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == auditor.__version__
    assert {"message", "title", "authors"} <= citation.keys()
    (bibtex,) = fenced(ROOT / "docs" / "researcher.md", "bibtex")
    assert f"version = {{{auditor.__version__}}}" in bibtex
    assert "2507.16872" in bibtex
