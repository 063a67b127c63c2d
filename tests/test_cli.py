"""The command line as a user meets it: help, lists, plans, and one clear error for bad input."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from auditor import AuditConfig, recipes
from auditor.attacks import ATTACKS
from auditor.cli import main
from auditor.compress import COMPRESSORS, parse_variant, parse_variants, split_list
from auditor.config import CompressConfig, Shared
from auditor.errors import ConfigError

FILES = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    return printed


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = "import sys; from auditor.cli import main; main(['audit', '-h']); print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--output-path" in found.stdout
    assert "here it is the checkpoint" in " ".join(found.stdout.replace("│", " ").split())
    modules = set(found.stdout.splitlines()[-1].split())
    assert not modules & {"torch", "transformers", "bitsandbytes", "sklearn", "pandas", "datasets"}


@pytest.mark.parametrize(
    ("command", "config"), [("audit", AuditConfig), ("compress", CompressConfig)]
)
def test_every_option_has_a_flag_and_a_sentence_of_help(command: str, config: type[Shared]) -> None:
    # In a process of its own: the command line keeps the width at which it printed first. At this
    # one no name of a flag is broken over two lines.
    printed = subprocess.run(
        [sys.executable, "-m", "auditor", command, "--help"],
        env={**os.environ, "COLUMNS": "140"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    for name, field in config.model_fields.items():
        assert f"--{name.replace('_', '-')}" in printed
        assert field.description


@pytest.mark.parametrize("spelling", ["--output-path", "--output_path"])
def test_both_spellings(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, "audit", spelling, "x", "--model", "nowhere", "--limit", "0")
    assert "--limit" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["audit", "--limmit", "3"], "--limit"),
        (["audit"], "--model must be given"),
        (["audit", "--model", "m"], "--members and --nonmembers together"),
        (["audit", "--model", "m", "--members", "a"], "--members and --nonmembers together"),
        (["audit", "--model", "m", "--members", "a", "--data", "c"], "or from --data alone"),
        (["audit", "--variants", "bnb-nf5", "--model", "m"], "did you mean 'bnb-nf4'"),
        (["audit", "--variants", "prune-magnitude", "--model", "m"], "sparsity must be given"),
        (["audit", "--variants", "prune-magnitude:sparsity=1.2", "--model", "m"], "sparsity=1.2"),
        (["audit", "--variants", "prune-magnitude:sparsty=.5", "--model", "m"], "'sparsity'"),
        (["audit", "--variants", "bnb-nf4:x=1", "--model", "m"], "unknown option of bnb-nf4"),
        (["audit", "--variants", "original:x=1", "--model", "m"], "(it has none)"),
        (["audit", "--attacks", "min-kk", "--model", "m"], "did you mean 'min-k'"),
        (["audit", "--fpr", "0.01,2", "--model", "m"], "between 0 and 1"),
        (["audit", "--batch-size", "zero", "--model", "m"], "--batch-size"),
        (["audit", "--model-args", "dtyp=float32", "--model", "m"], "did you mean 'dtype'"),
        (["audit", "--recipe", "quik"], "did you mean 'quick'"),
        (["audit", "--recipe", "no/such.yaml"], "does not exist"),
        (["audit", "--dtype", "float8", "--model", "m"], "dtype"),
        (["lst"], "list"),
    ],
)
def test_bad_input_gets_one_clear_error(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_of(capsys, *arguments)


def test_a_recipe_is_overridden_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: a\nmembers: x.jsonl\nnonmembers: y.jsonl\nlimit: 5\nvariants: bnb-nf4")
    config = recipes.configure({"limit": 7}, recipe=str(path))
    assert (config.model, config.limit, config.variants) == ("a", 7, ("original", "bnb-nf4"))
    assert recipes.configure({"data": "z.csv"}, recipe=str(path)).members is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model: [", "readable YAML"),
        ("- a\n- b\n", "keys and values"),
        ("modle: m\n", "did you mean 'model'"),
        ("model: m\nvariants: [nf4]\n", "did you mean 'bnb-nf4'"),
    ],
)
def test_a_bad_recipe(
    tmp_path: Path, content: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    assert expected in error_of(capsys, "audit", "--recipe", str(path))


@pytest.mark.parametrize(
    ("what", "names"),
    [("attacks", ATTACKS), ("variants", COMPRESSORS), ("recipes", recipes.names())],
)
def test_lists(what: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    printed = capsys.readouterr().out.splitlines()
    first_words = {line.split()[0] for line in printed if line[:1].strip()}
    assert set(names) <= first_words


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["schema_version"]["const"] == "1"

    def undescribed(node: dict[str, Any]) -> list[str]:
        properties = node.get("properties", {})
        return [key for key, value in properties.items() if "description" not in value]

    for name, node in {"AuditResult": schema, **schema["$defs"]}.items():
        assert undescribed(node) == [], name


def test_variant_strings() -> None:
    assert split_list(["a,b:x=1,y=2", "c"]) == ["a", "b:x=1,y=2", "c"]
    spec = parse_variant("prune_magnitude:scope=layer,sparsity=0.50")
    assert spec.label == "prune-magnitude:sparsity=0.5"
    assert spec.canonical == "prune-magnitude:pattern=unstructured,scope=layer,sparsity=0.5"
    both = parse_variants(["bnb-nf4,bnb-nf4:double_quant=false", "bnb-nf4:double-quant=true"])
    assert [spec.label for spec in both] == ["bnb-nf4", "bnb-nf4:double_quant=true"]
    with pytest.raises(ConfigError, match="given once"):
        parse_variant("prune-magnitude:sparsity=0.5,sparsity=0.6")
    with pytest.raises(ConfigError, match="key=value"):
        parse_variant("prune-magnitude:0.5")


def test_the_same_configuration_from_flags_recipe_and_python(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: m\nmembers: {path: a.jsonl}\nnonmembers: b.jsonl\nfpr: [0.05, 0.01]\n"
        "variants: [bnb-nf4, 'prune-magnitude:sparsity=0.5']\nbatch-size: 8\n"
    )
    from_recipe = recipes.configure({}, recipe=str(path))
    flags = {"fpr": "0.01,0.05", "variants": "bnb-nf4,prune-magnitude:sparsity=0.5"}
    from_flags = recipes.configure({**FILES, **flags, "batch_size": "8"})
    in_python = AuditConfig.model_validate(
        {**FILES, "variants": ["bnb-nf4", "prune-magnitude:sparsity=0.5"]}
        | {"fpr": (0.01, 0.05), "batch_size": 8}
    )
    assert from_recipe == from_flags == in_python


def test_python_m_auditor_gives_the_exit_code() -> None:
    begin = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", "auditor", "audit", "--model", "m"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert time.monotonic() - begin < 30
