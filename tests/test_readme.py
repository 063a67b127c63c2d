"""What README.md says is so: its commands parse, its lists are whole, its tree is the tree."""

import re
import shlex
from pathlib import Path

import pytest

from auditor import cli, commands
from auditor.attacks import ATTACKS
from auditor.compress import COMPRESSORS
from auditor.recipes import configure
from auditor.study.recipe import is_study, read_study

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in joined.splitlines() if line.strip()]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_commands_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is parsed by the program itself; only what they ask for is not carried out."""
    seen = []
    for module in (cli, commands):
        for name in [name for name in vars(module) if name.endswith("_and_show")]:
            monkeypatch.setattr(module, name, lambda *given, **_: seen.append(given))
    monkeypatch.setattr("auditor.demo.target.make_target", lambda *_, **__: None)
    lines = [line for line in shell_lines() if line.startswith("compleak-llm")]
    assert len(lines) >= 2
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    # The demo ends in a report of its own.
    assert len(seen) == len(lines) + sum(line.split()[1] == "demo" for line in lines)


def test_every_attack_and_variant_is_listed() -> None:
    for name in (*ATTACKS, *COMPRESSORS):
        assert f"`{name}`" in TEXT, name


def test_the_tree_names_what_is_there() -> None:
    tree = TEXT.split("## The code")[1].split("```")[1]
    named = re.findall(r"^  (\S+)", tree, flags=re.MULTILINE)
    assert named
    for name in named:
        assert (ROOT / "auditor" / name).exists(), name
    for name in re.findall(r"^(\w+)/", tree, flags=re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_recipes_that_are_named_exist() -> None:
    files = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
    for name in re.findall(r"--recipe ([\w-]+)", TEXT):
        assert read_study(name, {}) if is_study(name) else configure(files, recipe=name)


def test_nothing_is_left_to_fill_in() -> None:
    for path in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert set(re.findall(r"[A-Z]{4,}_[A-Z]{4,}", text)) <= {"COMPLEAK_CACHE"}
