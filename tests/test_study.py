"""A study: trained, audited and told by one recipe; what is finished is left alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from auditor.cli import main
from auditor.demo.letters import letters
from auditor.errors import CompleakError, ConfigError
from auditor.recipes import folder
from auditor.results.figures import Estimate
from auditor.study.recipe import (
    audit_config,
    is_study,
    read_study,
    target_folder,
    train_config,
)
from auditor.study.run import finished
from auditor.study.tables import KINDS, is_control, is_recovered, markdown, told
from tests.conftest import write_records
from tests.tiny import save, tiny_model

RECIPE = "compleak-lm"
SPARSE = "prune-magnitude:sparsity=0.5"
RECOVERED = "prune-magnitude:recover=1,sparsity=0.5"


def recipe_of(root: Path, **more: Any) -> Path:
    keys = {
        "study": "A small study",
        "train": {"epochs": 2, "patience": 0, "max_length": 32, "learning_rate": 3e-3},
        "targets": {
            "first": {"model": str(root / "llama"), "data": str(root / "data.jsonl")},
            "second": {"model": str(root / "llama"), "data": str(root / "data.jsonl"), "seed": 1},
        },
        "audit": {
            "variants": [SPARSE, RECOVERED],
            "controls": ["retrain"],
            "learners": ["logistic"],
            "repeats": 1,
            "bootstrap": 100,
            "releases": False,
            "fpr": [0.2],
        },
        "quick": {"targets": ["first"], "audit": {"variants": [SPARSE]}},
        "output_path": str(root / "out"),
        **more,
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    save(tiny_model("llama", seed=1), place / "llama", dtype=torch.bfloat16)
    texts = [f"{n} {text[:44]}" for n, text in enumerate(letters(260, seed=3))]
    write_records(place / "data.jsonl", texts)
    recipe_of(place)
    return place


@pytest.mark.slow
def test_it_is_done_once_and_told_in_tables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", "--recipe", str(root / "study.yaml"), "--display", "plain"]
    assert main(command) == 0
    page = root / "out" / "README.md"
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(page)
    for name in ("first", "second"):
        assert f"## {name}" in text
        assert (root / "out" / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    for version in (SPARSE, RECOVERED, "retrain:recover=1"):
        assert f"`{version}`" in text, version
    assert "of 2 comparisons with the original" in text
    assert "no compression, trained further (control)" in text
    assert "Against the original trained further by the same steps: of 2 versions" in text
    # Twice as many epochs on the members, with or without compression before the second half.
    made = {path: path.stat().st_mtime_ns for path in (root / "out" / "results").iterdir()}
    assert len(made) == 8
    shutil.rmtree(root / "out" / "figures")
    page.unlink()
    assert main(command) == 0
    assert "finished before" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == text
    assert {path: path.stat().st_mtime_ns for path in made} == made
    # Results are of a target, and another one in its place has none.
    study = read_study(str(root / "study.yaml"), {})
    assert finished(study) == ["first", "second"]
    target = target_folder(study, "first") / "target.json"
    target.write_text(target.read_text().replace('"kept_epoch": 2', '"kept_epoch": 1'))
    assert finished(study) == ["second"]


def test_quick_is_less_and_goes_elsewhere(root: Path) -> None:
    study = read_study(str(root / "study.yaml"), {}, quick=True)
    assert list(study.targets) == ["first"]
    assert study.output_path == f"{root / 'out'}-quick"
    given = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
    assert audit_config(study, "first", given).variants == ("original", SPARSE)
    by_hand = read_study(str(root / "study.yaml"), {"bootstrap": 300})
    assert audit_config(by_hand, "first", given).bootstrap == 300
    assert train_config(by_hand, "second").seed == 1


@pytest.mark.parametrize(
    ("more", "given", "must"),
    [
        ({"targets": {"a": {"model": "m"}}}, {}, "--data must be given"),
        ({"train": {"epoch": 3}}, {}, "epoch"),
        ({"audit": {"variant": ["bnb-nf4"]}}, {}, "option of the audits of first"),
        ({"audit": {"members": "x.jsonl"}}, {}, "option of the audits of first"),
        ({"train": {"trust_remote_code": True}}, {}, "must not open this machine"),
        ({"quick": {"targets": ["third"]}}, {}, "target of study.yaml"),
        ({"targets": 3}, {}, "must be a study"),
        ({}, {"model": "m"}, "--model is settled by the study"),
        ({}, {"members": "m.jsonl"}, "--members is settled by the study"),
    ],
)
def test_what_cannot_be(
    more: dict[str, Any], given: dict[str, Any], must: str, root: Path, tmp_path: Path
) -> None:
    shutil.copyfile(root / "data.jsonl", tmp_path / "data.jsonl")
    with pytest.raises(CompleakError) as error:
        read_study(str(recipe_of(tmp_path, **more)), given, quick="quick" in more)
    assert must in str(error.value)


def test_quick_is_for_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--recipe", "quick", "--quick", "--model", "m"]) == 2
    assert "--quick is for a study" in capsys.readouterr().err
    assert not is_study("quick")
    assert not is_study(None)


def test_the_study_that_comes_with_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_study(RECIPE)
    for quick in (False, True):
        study = read_study(RECIPE, {}, quick=quick)
        made = [train_config(study, name) for name in study.targets]
        assert quick or {one.method for one in made} == {"full", "lora"}
        assert quick or len({(one.model, one.data.path) for one in made}) == 2
    given = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
    full = read_study(RECIPE, {})
    for name in full.targets:
        versions = audit_config(full, name, given).variants
        for kind in KINDS[:5]:
            assert any(map(kind.holds, versions)), (name, kind.title)
        assert any(map(is_recovered, versions))
    assert main(["audit", "--recipe", RECIPE, "--dry-run"]) == 0
    assert "llama-gsm8k-full" in capsys.readouterr().out
    assert (folder() / f"{RECIPE}.yaml").is_file()


def test_every_version_is_of_one_kind() -> None:
    for version, title in (
        ("bnb-int8:threshold=0.0", "8 bits"),
        ("gptq:bits=8,group_size=64", "8 bits"),
        ("gptq:group_size=64", "4 bits"),
        ("gptq:bits=3,group_size=64", "3 bits"),
        ("prune-magnitude:pattern=2:4", "pruning"),
        ("prune-magnitude:pattern=2:4,recover=1", "pruning, then"),
        ("cluster:k=8", "clustering"),
        ("cluster:k=8,recover=0.5", "clustering, then"),
        ("retrain:recover=1", "no compression"),
        ("unmerged:bnb-nf4", "adapter"),
    ):
        (kind,) = [kind for kind in KINDS if kind.holds(version)]
        assert kind.title.startswith(title), version
    assert is_control("retrain:recover=1")
    assert not is_control("cluster:k=8,recover=1")


def test_what_is_told() -> None:
    def of(value: float | None) -> Estimate:
        return Estimate(value=value, n_members=1, n_nonmembers=1, method="")

    assert told(of(0.1), 0.01) == "↑"
    assert told(of(-0.1), 0.01) == "↓"
    assert told(of(0.1), 0.05) == told(of(0.1), None) == told(of(None), 0.01) == "·"
    assert markdown(("a|b", "c"), [("1", "2")]) == "| a\\|b | c |\n| --- | ---: |\n| 1 | 2 |"
    assert issubclass(ConfigError, CompleakError)
