"""Is it compression, or a second noisy view? The question of `--controls noise`, answered."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score

from auditor import AuditConfig, AuditResult, audit
from auditor.compress import noise as module
from auditor.compress.noise import noise_name
from auditor.demo.letters import letters
from auditor.leakage.attackers import Attackers
from auditor.leakage.blocks import read_blocks
from auditor.leakage.folds import draw_folds
from auditor.leakage.questions import Answering, answer, questions
from auditor.leakage.settings import Levels
from auditor.plan import show_plan
from auditor.release import judge_run
from auditor.run import open_run
from auditor.store import VariantStore, plan_shards
from tests.conftest import N, needs, write_records
from tests.leakage_cases import Case, make_attackers, make_case
from tests.tiny import save, tiny_model

QUESTION = "compression over noise"
VARIANTS = ["cluster:k=8", "prune-magnitude:sparsity=0.5"]
NOISES = [noise_name(name) for name in VARIANTS]


@pytest.fixture(scope="module")
def asked(subject: dict[str, Any]) -> dict[str, Any]:
    return {
        **subject,
        "reference": None,
        "variants": ",".join(VARIANTS),
        "controls": "noise",
        "learners": "logistic",
        "repeats": 1,
    }


@pytest.fixture(scope="module")
def answered(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    output = tmp_path_factory.mktemp("answered") / "run"
    return audit(AuditConfig.model_validate({**asked, "output_path": str(output)}))


def output_of(result: AuditResult) -> Path:
    return Path(result.config["output_path"])


def learned_auc(result: AuditResult, other: str) -> float:
    """The AUC of an attacker on the original and one other version, from stored scores alone."""
    run = open_run(output_of(result))
    stores = {
        name: VariantStore.opened(
            output_of(result) / "tokens" / result.stored[name],
            name,
            shards=plan_shards(run.n_tokens),
            record_ids=run.ids,
        )
        for name in ("original", other)
    }
    blocks = read_blocks(stores, [("original", other)], n_records=len(run))
    folds = draw_folds(run.is_member, run.groups, n_folds=5, n_repeats=1, seed=0)
    attackers = Attackers(blocks, run.is_member, folds, order=list(stores), trees=False)
    signal = attackers.learned(attackers.holding(stores)).signal
    return float(roc_auc_score(run.is_member, signal))


def test_the_question_is_answered(answered: AuditResult) -> None:
    assert answered.leakage is not None
    found = [one for one in answered.leakage.comparisons if one.question == QUESTION]
    wanted = [(name, metric) for name in VARIANTS for metric in ("auc", "tpr@0.01", "tpr@0.2")]
    assert [(one.versions[1], one.metric) for one in found] == wanted
    for one in found:
        variant = one.versions[1]
        assert one.versions == ["original", variant]
        assert one.against_versions == ["original", noise_name(variant)]
        assert (one.attack, one.against) == ("paired", "paired")
        assert one.supervision == "crossfit"
        assert not one.with_reference
        assert one.family == ("primary" if one.metric == "auc" else "secondary")
        if one.metric == "auc":
            expected = learned_auc(answered, variant) - learned_auc(answered, noise_name(variant))
            assert one.difference.value == pytest.approx(expected, abs=1e-12)
            assert one.p_adjusted is not None


def test_noise_is_in_nothing_else(answered: AuditResult, asked: dict[str, Any]) -> None:
    leakage = answered.leakage
    assert leakage is not None
    assert leakage.releases is not None
    assert leakage.best is not None
    text = answered.model_dump_json(exclude={"leakage", "timings", "stored", "config"})
    assert "noise(" not in text
    others = [one for one in leakage.comparisons if one.question != QUESTION]
    rest = leakage.model_copy(update={"comparisons": others})
    assert "noise(" not in rest.model_dump_json()
    assert {name for one in leakage.releases.sets for name in one.versions} == {
        "original",
        *VARIANTS,
    }
    # What else is found is what is found without the control; only Holm's family is larger.
    given = {**asked, "controls": "", "output_path": answered.config["output_path"]}
    plain = audit(AuditConfig.model_validate(given)).leakage
    assert plain is not None
    again = [one.model_copy(update={"p_adjusted": None}) for one in plain.comparisons]
    assert again == [one.model_copy(update={"p_adjusted": None}) for one in others]
    same = {"comparisons": []}
    assert plain.model_copy(update=same) == leakage.model_copy(update=same)


def test_beside_a_reference_it_is_asked_twice(
    subject: dict[str, Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    """Of LLM.int8, which rounds activations too, the weights are imitated."""
    needs("bnb-int8")
    given = {**asked, "reference": subject["reference"], "variants": "bnb-int8", "settings": "SR"}
    result = audit(AuditConfig.model_validate({**given, "output_path": str(tmp_path / "run")}))
    assert result.leakage is not None
    found = [one for one in result.leakage.comparisons if one.question == QUESTION]
    assert {one.against_versions[1] for one in found} == {"noise(bnb-int8)"}
    assert [(one.with_reference, one.family) for one in found if one.metric == "auc"] == [
        (False, "primary"),
        (True, "secondary"),
    ]
    stored = VariantStore.opened(
        tmp_path / "run" / "tokens" / result.stored["noise(bnb-int8)"],
        "noise(bnb-int8)",
        shards=plan_shards(open_run(tmp_path / "run").n_tokens),
        record_ids=open_run(tmp_path / "run").ids,
    ).manifest()
    made, imitated = stored and stored.receipt, result.variant("bnb-int8").receipt
    assert made is not None
    assert imitated is not None
    # In bfloat16 the noise is rounded with the weights that it is added to.
    assert 0 < made.relative_error == pytest.approx(imitated.relative_error, rel=1e-3)


def test_a_finished_audit_with_noise_can_be_read(
    asked: dict[str, Any], answered: AuditResult, tmp_path: Path
) -> None:
    given = {**asked, "output_path": answered.config["output_path"]}
    result = audit(AuditConfig.model_validate(given))
    assert sum(step.n_forward_passes for step in result.timings.variants) == 0
    run = open_run(output_of(result))
    assert list(run.signals) == list(run.stores) == ["original", *VARIANTS]
    table = pq.read_table(output_of(result) / "scores.parquet").to_pandas()
    assert list(dict.fromkeys(table["variant"])) == ["original", *VARIANTS, *NOISES]
    noisy = table[table["variant"].isin(NOISES)]
    assert len(noisy) == 2 * 2 * N
    assert np.isfinite(noisy["loss"]).all()
    # What is learned of pairs and releases is not said of noise.
    assert noisy[["gap", "ez-gap", "single", "paired"]].isna().all(axis=None)
    releases = judge_run(output_of(result), out=tmp_path / "releases.json")
    assert result.leakage is not None
    assert releases == result.leakage.releases


def test_a_shadow_has_no_noise_to_learn_from(
    asked: dict[str, Any], answered: AuditResult, tmp_path: Path
) -> None:
    """The question is answered by those who are trained on the audit's own records."""
    texts = [text[:60] for text in letters(2 * N, seed=11)]
    shadow = {
        **asked,
        "model": str(save(tiny_model("llama", seed=5), tmp_path / "m", dtype=torch.bfloat16)),
        "members": str(write_records(tmp_path / "members.jsonl", texts[:N])),
        "nonmembers": str(write_records(tmp_path / "nonmembers.jsonl", texts[N:])),
        "controls": "",
        "attacks": "loss",
        "output_path": str(tmp_path / "shadow"),
    }
    audit(AuditConfig.model_validate(shadow))
    given = {**asked, "shadow": shadow["output_path"], "output_path": output_of(answered)}
    result = audit(AuditConfig.model_validate({k: str(v) for k, v in given.items() if v}))
    assert result.leakage is not None
    assert result.leakage.supervision == ["crossfit", "shadow"]
    how = {one.supervision for one in result.leakage.comparisons if one.question == QUESTION}
    assert how == {"crossfit"}
    assert "shadow" in {one.supervision for one in result.leakage.comparisons}


def test_noise_that_breaks_the_model_does_no_harm(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._add_noise

    def poisoned(weight: torch.Tensor, error: float, *, seed: int) -> None:
        real(weight, error, seed=seed)
        weight.view(-1)[0] = torch.nan

    monkeypatch.setattr(module, "_add_noise", poisoned)
    given = {**asked, "output_path": str(tmp_path / "run"), "settings": "NR,SR"}
    result = audit(AuditConfig.model_validate(given))
    assert [one.status for one in result.variants] == ["ok"] * 3
    assert result.leakage is not None
    assert QUESTION not in {one.question for one in result.leakage.comparisons}
    assert "SR over NR" in {one.question for one in result.leakage.comparisons}
    said = [warned for warned in result.warnings if warned.code == "no-noise"]
    assert [warned.severity for warned in said] == ["info", "info"]
    for warned, name in zip(said, NOISES, strict=True):
        assert warned.message.startswith(f"There is no {name}: ")
        assert "finite" in warned.message
    assert list(open_run(tmp_path / "run").signals) == ["original", *VARIANTS]


@pytest.mark.usefixtures("poisoned_pruning")
def test_why_there_is_no_noise(asked: dict[str, Any], tmp_path: Path) -> None:
    result = audit(AuditConfig.model_validate({**asked, "output_path": str(tmp_path / "run")}))
    (said,) = (warned for warned in result.warnings if warned.code == "no-noise")
    assert said.severity == "info"
    assert said.message == (
        f"There is no {NOISES[1]}: noise needs a compression error of {VARIANTS[1]} to imitate: "
        "it is broken."
    )
    assert result.leakage is not None
    answers = [one for one in result.leakage.comparisons if one.question == QUESTION]
    assert {one.versions[1] for one in answers} == {VARIANTS[0]}


def test_the_plan_counts_the_passes(asked: dict[str, Any], tmp_path: Path) -> None:
    def plan(controls: str) -> str:
        out = io.StringIO()
        given = {**asked, "controls": controls, "output_path": str(tmp_path / "run")}
        show_plan(AuditConfig.model_validate(given), Console(file=out, width=200))
        return out.getvalue()

    assert "3, one per version" in plan("")
    assert "5, one per version" in plan("noise")
    assert "3, one per version" in plan("retrain")


@pytest.mark.parametrize("leak", [0.25, 0.0])
def test_only_what_noise_does_not_show_is_a_finding(leak: float) -> None:
    """A variant that gives away more than noise is found, one that is noise itself is not."""
    case = make_case(np.random.default_rng(0), 800, variant_leak=leak)
    noise = make_case(np.random.default_rng(0), 800, n_variants=2).versions["variant 1"]
    held = Case(case.is_member, {**case.versions, "noise(variant 0)": noise})
    attackers = make_attackers(held)
    attackers.order = attackers.order[:2]
    asked = questions(
        attackers.order,
        settings=("NR", "SR", "MR"),
        with_reference=False,
        noises={"variant 0": "noise(variant 0)"},
    )
    (one,) = (one for one in asked if one.question == QUESTION)
    levels = Levels(fprs=(0.05,), confidence=0.95, draws=200, seed=0)
    by_metric = {one.metric: one for one in answer([one], Answering(attackers, levels))}
    auc = by_metric["auc"]
    assert auc.p_value is not None
    assert auc.difference.value is not None
    assert auc.difference.low is not None
    if leak:
        assert auc.p_value < 1e-6
        assert auc.difference.low > 0
    else:
        assert auc.p_value > 0.05
        assert auc.difference.low < 0
