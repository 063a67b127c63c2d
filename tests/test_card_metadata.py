"""An audit's figures as the Hub's metadata: what is written is what huggingface_hub reads."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from auditor.card import CardError, write_card
from auditor.card.attackers import hub_id
from auditor.card.metadata import OWN_RECORDS, figures
from auditor.finished import read_result
from auditor.results import AuditResult, ModelIdentity
from tests.report_cases import invented_run
from tests.report_parts import identity

OTHER = """---
model-index:
- name: their name
  results:
  - task: {type: text-generation}  # theirs
    dataset: {type: d, name: D}
    metrics: [{type: accuracy, value: 0.5, args: {tool: another}}]
---
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_run(tmp_path_factory.mktemp("card") / "run", n=400, n_variants=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "other"
    return invented_run(folder, n=120, n_variants=1, seed=1, reference=False)


def card(folder: Path, readme: Path, *, eval_results: bool = False) -> None:
    write_card(folder, readme=readme, model_index=True, eval_results=eval_results)


def result_of(folder: Path) -> AuditResult:
    return read_result(folder / "audit.json")


def test_the_hub_reads_the_same_figures(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(OTHER)
    card(run, path, eval_results=True)
    data = ModelCard.load(path, ignore_metadata_errors=False).data
    result = result_of(run)
    theirs, *ours = data.eval_results
    assert data.model_name == "their name"
    assert (theirs.metric_type, theirs.metric_value) == ("accuracy", 0.5)
    assert OTHER.removesuffix("---\n") in path.read_text()
    wanted = figures(result)
    assert [one.metric_name for one in ours] == [one.name for one in wanted]
    assert len({one.name for one in wanted}) == len(wanted)
    for read, one in zip(ours, wanted, strict=True):
        assert read.metric_value == round(one.found.value, 6)
        assert read.metric_args["low"] == round(one.found.low, 6)
        assert read.metric_args["high"] == round(one.found.high, 6)
        assert read.metric_args["versions"] == one.versions
        assert read.metric_args["tool"] == "compleak-llm"
        assert read.dataset_revision == result.records.sha256
        assert read.dataset_args == {"n_members": 200, "n_nonmembers": 200}
    kinds = {(one.setting, one.metric) for one in wanted}
    assert kinds >= {("NR", "auc"), ("NR", "tpr@0.05"), ("SR", "auc gain"), ("MR", "auc")}
    entries = parse_eval_result_entries(
        yaml.safe_load((tmp_path / ".eval_results" / "compleak-llm.yaml").read_text())
    )
    assert [one.value for one in entries] == [one.metric_value for one in ours]
    assert {one.dataset_id for one in entries} == {OWN_RECORDS}
    assert all(one.name in entry.notes for one, entry in zip(wanted, entries, strict=True))


@pytest.mark.parametrize(
    ("index", "seen"),
    [
        ("[{name: a, results: []}, {name: b, results: []}]", "2 of them"),
        ("[{results: []}]", "KeyError: 'name'"),
        ("[{name: a, results: [{task: {}}]}]", "KeyError: 'type'"),
        ("words", "TypeError"),
    ],
)
def test_a_model_index_that_is_none(run: Path, tmp_path: Path, index: str, seen: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"---\nmodel-index: {index}\n---\n")
    before = path.read_bytes()
    with pytest.raises(CardError, match="model-index") as caught:
        card(run, path)
    assert seen in caught.value.seen
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_ours_among_theirs_in_one_result(run: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    metrics = "[{type: accuracy, value: 1}, {type: auc, value: 2, args: {tool: compleak-llm}}]"
    path.write_text(OTHER.replace("[{type: accuracy, value: 0.5, args: {tool: another}}]", metrics))
    for folder in (run, other):
        card(folder, path)
        found = ModelCard.load(path).data.eval_results
        assert [one.metric_value for one in found if not one.metric_args] == [1]
        ours = [one for one in found if (one.metric_args or {}).get("tool") == "compleak-llm"]
        assert len(ours) == len(figures(result_of(folder)))
        assert len(ours) + 1 == len(found)


def test_what_is_an_id_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit has seen whether it was a path; nothing is looked up when the card is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "na-me.1").mkdir(parents=True)

    def model(name: str, is_path: bool | None = False) -> ModelIdentity:
        return identity(name, mark="a").model_copy(update={"is_path": is_path})

    assert hub_id(model("org/na-me.1")) == "org/na-me.1"
    for name in ("/a/b", "./b", "b", "a/b/c", "a/b\n", "<a>/b", ""):
        assert hub_id(model(name)) is None
    assert hub_id(model("runs/model", True)) is None
    assert hub_id(model("runs/model", None)) is None
    assert hub_id(None) is None
