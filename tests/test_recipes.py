"""Every recipe that comes along: read, listed, overridden by flags, and run to its end."""

import gc
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from auditor import recipes
from auditor.cli import main
from auditor.compress import COMPRESSORS
from auditor.demo.letters import letters
from auditor.run import read_result
from auditor.study.recipe import is_study, read_study
from tests.conftest import needs, write_records
from tests.published_formats import write_gguf, write_gptq
from tests.tiny import save, tiny_model

FILES = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
# Learned attacks need 50 records a side. Where there are fewer they are left out, and most recipes
# differ in nothing but their variants.
N, FEW = 50, 24
LEARNED = {"gate", "quick", "single-gpu"}
# A folder need not be there to be named.
NEEDS_ADAPTER = {"adapter"}
NAMES = sorted(recipes.names())
AUDITS = [name for name in NAMES if not is_study(name)]
# What these need has tests of its own: test_launched.py, test_scale.py, test_adapter.py.
ELSEWHERE = {"multi-gpu": "eight GPUs", "multi-node": "several machines", "adapter": "an adapter"}
# As little of everything as an audit takes; flags win over a recipe's own keys.
SMALL = {
    "min_records": FEW,
    "bootstrap": 100,
    "folds": 2,
    "repeats": 1,
    "learners": "logistic",
    "fpr": "0.2",
    "calibration_samples": 4,
    "calibration_tokens": 32,
}
Given = dict[str, Any]


def files(name: str) -> dict[str, str]:
    """What a recipe must be given."""
    return {**FILES, "adapter": "l"} if name in NEEDS_ADAPTER else dict(FILES)


def flags(given: Given) -> list[str]:
    """The flags that say the same."""
    found = []
    for name, value in given.items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What is imported is not searched for garbage again after every version of every recipe."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A tiny model whose inputs every recipe's groups divide, two lists and a third set."""
    folder = tmp_path_factory.mktemp("recipes")
    texts = [text[:60] for text in letters(3 * N, seed=3)]
    model = tiny_model("llama", hidden_size=128, intermediate_size=128, num_hidden_layers=1)
    return {
        "model": str(save(model, folder / "model")),
        "members": str(write_records(folder / "members.jsonl", texts[:N])),
        "nonmembers": str(write_records(folder / "nonmembers.jsonl", texts[N : 2 * N])),
        "calibration": str(write_records(folder / "third.jsonl", texts[2 * N :])),
    }


def _published(given: Given, folder: Path) -> Given:
    write_gptq(Path(given["model"]), folder / "M-GPTQ")
    (folder / "gguf").mkdir()
    write_gguf(Path(given["model"]), folder / "gguf" / "M.gguf")
    return {"variants": f"checkpoint:{folder / 'M-GPTQ'},checkpoint:{folder / 'gguf' / 'M.gguf'}"}


# What a recipe is given beside the records: what only a flag can say, or what few records need.
BESIDE: dict[str, Callable[[Given, Path], Given]] = {
    "published": _published,
    "gate": lambda *_: {"at_most": "auc=0.99"},
}


@pytest.mark.parametrize("name", [name for name in AUDITS if name not in ELSEWHERE])
def test_a_recipe_runs_to_its_end(name: str, given: Given, tmp_path: Path) -> None:
    beside = {"limit": N if name in LEARNED else FEW}
    if name in BESIDE:
        beside |= BESIDE[name](given, tmp_path)
    settled = recipes.configure({**given, **SMALL, **beside}, recipe=name)
    for spec in settled.variant_specs:
        needs(spec.label)
    out = tmp_path / "out"
    arguments = flags({**given, **SMALL, **beside, "output_path": out, "display": "none"})
    assert main(["audit", "--recipe", name, *arguments]) == 0
    result = read_result(out / "audit.json")
    assert [v.canonical for v in result.variants] == [s.canonical for s in settled.variant_specs]
    assert all(version.attacks for version in result.variants if version.status == "ok")
    assert result.variants[0].status == "ok"
    assert (result.leakage is not None and bool(result.leakage.settings)) or name not in LEARNED
    # A flag beside the recipe has won, and what no flag named is the recipe's.
    assert (result.config["limit"], result.config["fpr"]) == (beside["limit"], [0.2])
    own = recipes.configure(dict(FILES), recipe=name).model_dump(mode="json")
    for key in recipes.load(name).keys() - SMALL.keys() - beside.keys():
        assert result.config[key] == own[key]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_read_and_says_what_it_is(name: str) -> None:
    path = recipes.folder() / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    assert 20 < len(comment[0]) <= 110, "the first line is what `list recipes` shows"
    assert any(f"--recipe {name}" in line for line in comment), "a command that runs it"
    if is_study(name):
        assert read_study(name, {}).targets
        return
    settled = recipes.configure(files(name), recipe=name)
    for spec in settled.variant_specs:
        assert spec.id in COMPRESSORS
    # Records are nobody's but the user's.
    assert not recipes.load(name).keys() & {"members", "nonmembers", "data", "model", "reference"}


def test_the_list_shows_each_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "recipes"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, line in recipes.names().items():
        assert f"{name} {line.split()[0]}" in shown, name
        assert line.split()[-1] in shown, name


def test_any_key_is_overridden_and_a_path_is_as_good_as_a_name(tmp_path: Path) -> None:
    named = recipes.configure(dict(FILES), recipe="gate")
    copy = tmp_path / "mine.yaml"
    copy.write_bytes((recipes.folder() / "gate.yaml").read_bytes())
    assert recipes.configure(dict(FILES), recipe=str(copy)) == named
    own = {"variants": "cluster:k=4", "at_most": "auc=0.7", "fail_on": "over"}
    settled = recipes.configure({**FILES, **own}, recipe="gate")
    assert settled.variants == ("original", "cluster:k=4")
    assert (settled.at_most, settled.fail_on) == ("auc=0.7", "over")
    for name in AUDITS:
        for key, value in recipes.load(name).items():
            needed = {"at_most": "auc=0.6"} if key == "fail_on" else {}
            given = {**files(name), **needed, key: value}
            other = recipes.configure(given, recipe="pruning").model_dump()[key]
            assert other == recipes.configure(files(name), recipe=name).model_dump()[key], key


def test_a_recipe_needs_no_records_where_the_model_names_them(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "target"
    shutil.copytree(given["model"], folder)
    for name in ("members", "nonmembers"):
        shutil.copy(given[name], folder / f"{name}.jsonl")
    part = {"members": "members.jsonl", "nonmembers": "nonmembers.jsonl"}
    (folder / "target.json").write_text(json.dumps({"schema_version": 1, "audit": part}))
    plan = ["audit", "--recipe", "pruning", "--model", str(folder), "--dry-run"]
    assert main([*plan, "--output-path", str(tmp_path / "out")]) == 0
    assert re.search(rf"{N} members, {N} nonmembers", capsys.readouterr().out)
