"""The auditor is tried on targets whose leak is known: it finds what is there, and nothing else."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor import AuditConfig, AuditResult, audit
from auditor.demo.letters import letters
from auditor.targets.config import TrainConfig
from auditor.targets.make import train
from tests.conftest import write_records
from tests.tiny import save, tiny_model

EPOCHS = (1, 5, 15)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("judged")
    save(tiny_model("llama", seed=1), place / "base", dtype=torch.bfloat16)
    texts = [f"{n} {text[-44:]}" for n, text in enumerate(letters(480, seed=5))]
    write_records(place / "data.jsonl", texts)
    return place


def target(root: Path, name: str, **more: Any) -> Path:
    keys = {"model": str(root / "base"), "data": str(root / "data.jsonl"), "limit": 400}
    keys |= {"out": str(root / name), "patience": 0, "learning_rate": 6e-3, "max_length": 40}
    keys["eval_records"] = 40
    return train(TrainConfig.model_validate({**keys, **more}))[0].folder


def audited(root: Path, model: Path, records: Path, **more: Any) -> AuditResult:
    keys = {"model": str(model), "reference": str(root / "base"), "max_length": 40}
    keys |= {side: str(records / f"{side}.jsonl") for side in ("members", "nonmembers")}
    keys |= {"fpr": "0.2", "bootstrap": 100, "learners": "logistic", "settings": "NR"}
    keys["output_path"] = str(root / "runs" / f"{model.name}-{records.name}")
    return audit(AuditConfig.model_validate({**keys, **more}))


@pytest.mark.slow
def test_more_epochs_leak_more(root: Path) -> None:
    """Each step up is seen by every attack that compares with the base, beyond its interval."""
    found = []
    for n in EPOCHS:
        folder = target(root, f"epochs-{n}", epochs=n)
        result = audited(root, folder, folder, attacks="loss,ref,ez")
        found.append(result.variants[0].attacks)
    for few, more in pairwise(found):
        for name in ("loss", "ref"):
            low = more[name].auc.low
            assert low is not None
            assert (few[name].auc.value or 1) < low, name
    assert (found[-1]["ref"].auc.value or 0) > 0.9


@pytest.mark.slow
def test_a_model_that_saw_none_of_the_records_gives_no_finding(root: Path) -> None:
    """A target's records put to its shadow, which was trained on others, in all settings."""
    folder = target(root, "null", epochs=8, shadows=1, limit=None)
    result = audited(
        root,
        folder / "shadow-1",
        folder,
        settings="NR,SR,MR",
        variants="prune-magnitude:sparsity=0.5,cluster:k=8",
        membership="randomized",
    )
    assert result.leakage is not None
    assert result.blind is not None
    assert not result.blind.told_apart
    # Weights differ from processor to processor: levels at which chance is seen once in a thousand
    # machines, while the eight epochs of the target itself are seen at a millionth.
    for comparison in (*result.comparisons, *result.leakage.comparisons):
        assert (comparison.p_adjusted or 1) >= 1e-3, comparison
    for setting in result.leakage.settings:
        auc = setting.figures.auc
        assert auc.value is not None
        assert auc.low is not None
        assert auc.value - 1.7 * (auc.value - auc.low) <= 0.5, setting
    assert result.leakage.best is not None
    assert result.leakage.best.p_value > 1e-3
    assert all((bound.epsilon or 0) < 0.5 for bound in result.leakage.epsilon)
