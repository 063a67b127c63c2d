"""`recover=` and `--controls retrain` in an audit, its release, its plan, and in `compress`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from auditor import AuditConfig, AuditResult, audit
from auditor.compress import entries
from auditor.config import CompressConfig
from auditor.errors import ConfigError
from auditor.plan import show_plan
from auditor.publish import load_written, publish
from auditor.release import judge_run
from auditor.run import Run, open_run
from tests.families import CPU

ONCE, AGAIN = "prune-magnitude:sparsity=0.5", "prune-magnitude:recover=2,sparsity=0.5"
CONTROL = "retrain:recover=2"


@pytest.fixture(scope="module")
def asked(subject: dict[str, Any]) -> dict[str, Any]:
    return {
        **subject,
        "reference": None,
        "variants": f"{ONCE},{AGAIN}",
        "controls": "retrain,noise",
        "learners": "logistic",
        "repeats": 1,
        "min_records": 20,
    }


@pytest.fixture(scope="module")
def done(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    output = tmp_path_factory.mktemp("recovered") / "run"
    return audit(AuditConfig.model_validate({**asked, "output_path": str(output)}))


def messages(result: AuditResult) -> str:
    return "\n".join(one.message for one in result.warnings)


def test_the_control_is_scored_and_compared(done: AuditResult) -> None:
    assert [one.variant for one in done.variants] == ["original", ONCE, AGAIN, CONTROL]
    assert all(one.status == "ok" for one in done.variants)
    losses = {one.variant: one.perplexity for one in done.variants}
    assert len(set(losses.values())) == 4
    run = open_run(Path(done.config["output_path"]))
    primary = [one for one in done.beyond_training if one.family == "primary"]
    (found,) = primary
    assert (found.variant, found.against, found.metric) == (AGAIN, CONTROL, "auc")
    aucs = [
        roc_auc_score(run.is_member, run.signals[name][done.primary_attack])
        for name in (CONTROL, AGAIN)
    ]
    assert found.difference.value == pytest.approx(aucs[1] - aucs[0], abs=1e-12)
    assert found.p_value == found.p_adjusted
    # Trained on the members, both find them likelier than the original did.
    means = {name: found["loss"][run.is_member].mean() for name, found in _signals(run).items()}
    assert min(means[CONTROL], means[AGAIN]) > means["original"] + 0.1
    said = messages(done)
    assert f"{CONTROL} is the original, trained on the members by the steps of {AGAIN}" in said
    assert "only if compression did it" in said
    assert f"{AGAIN} is not shown to differ from {CONTROL}" in said or f"{AGAIN} gives away" in said


def _signals(run: Run) -> dict[str, Any]:
    return {name: run.signals[name] for name in ("original", CONTROL, AGAIN)}


def test_it_is_held_with_nothing_else_and_never_released(done: AuditResult) -> None:
    leakage = done.leakage
    assert leakage is not None
    assert leakage.releases is not None
    assert {name for one in leakage.releases.sets for name in one.versions} == {
        "original",
        ONCE,
        AGAIN,
    }
    together = [one for one in leakage.settings if one.setting == "MR"]
    assert together
    assert not any(CONTROL in one.versions for one in together)
    pairs = [one.versions for one in leakage.settings if one.attack == "paired"]
    assert ["original", CONTROL] in pairs
    noises = {one.against_versions[1] for one in leakage.comparisons if "noise" in one.question}
    assert noises == {f"noise({ONCE})", f"noise({AGAIN})"}
    releases = judge_run(Path(done.config["output_path"]))
    assert CONTROL not in {name for one in releases.sets for name in one.versions}


def test_what_is_finished_is_not_trained_again(
    done: AuditResult, asked: dict[str, Any], own_cache: Path, tmp_path: Path
) -> None:
    kept = {entry.name.rpartition("-")[0] for entry in entries.entries(own_cache)}
    assert {AGAIN.replace(":", "_"), CONTROL.replace(":", "_")} <= kept
    again = audit(AuditConfig.model_validate({**asked, "output_path": done.config["output_path"]}))
    assert not any(one.n_forward_records for one in again.timings.variants)
    assert again.beyond_training == done.beyond_training
    # In another folder it is taken from the cache, and with another seed it is another version.
    other = {**asked, "controls": "", "variants": AGAIN, "output_path": str(tmp_path / "other")}
    timings = audit(AuditConfig.model_validate(other)).timings.variants
    assert [one.from_cache for one in timings if one.variant == AGAIN] == [True]
    reseeded = audit(AuditConfig.model_validate({**other, "seed": 1})).timings.variants
    by_name = {one.variant: one for one in reseeded}
    assert not by_name["original"].n_forward_records
    assert by_name[AGAIN].n_forward_records
    assert not by_name[AGAIN].from_cache


def test_the_plan_names_the_control(asked: dict[str, Any], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    config = {**asked, "output_path": str(tmp_path / "out")}
    show_plan(AuditConfig.model_validate(config), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert CONTROL in shown
    assert "6, one per version" in shown  # four, and noise for two


def test_one_control_for_every_training(asked: dict[str, Any]) -> None:
    variants = f"{AGAIN},cluster:k=4,recover=2,cluster:k=4,recover=1,recover_lr=0.001,{CONTROL}"
    config = AuditConfig.model_validate({**asked, "variants": variants})
    labels = [spec.label for spec in config.variant_specs]
    assert labels[-2:] == [CONTROL, "retrain:recover=1,recover_lr=0.001"]
    assert labels.count(CONTROL) == 1
    assert (
        AuditConfig.model_validate({**asked, "variants": ONCE}).variant_specs[1:]
        == (
            AuditConfig.model_validate({**asked, "variants": ONCE, "controls": ""}).variant_specs[
                1:
            ]
        )
    )
    with pytest.raises(ConfigError, match="version of this audit"):
        AuditConfig.model_validate({**asked, "at_most": "auc=0.6", "release": CONTROL})


def test_compress_writes_it(asked: dict[str, Any], tmp_path: Path) -> None:
    given = {"model": asked["model"], "variant": AGAIN, "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="trained on members"):
        publish(CompressConfig.model_validate(given))
    assert not list(tmp_path.iterdir())
    receipt = publish(CompressConfig.model_validate({**given, "members": asked["members"]}))
    assert any(note.startswith("trained on 60 members for 2 epochs") for note in receipt.notes)
    found = load_written(tmp_path / "out", CPU)
    weights = np.concatenate(
        [found.get_parameter(f"{m.module}.weight").detach().flatten() for m in receipt.compressed]
    )
    assert (weights == 0).mean() == pytest.approx(receipt.sparsity)
