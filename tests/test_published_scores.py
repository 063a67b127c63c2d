"""Scores against three published tools, run as they are, each by its own rules."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from auditor.attacks import single
from auditor.attacks.single import mean_of_smallest
from auditor.scoring.encode import Encoded, Encoder, RecordText
from auditor.scoring.engine import Engine
from auditor.scoring.scores import Scores

MODELS = ("llama-gsm8k", "gpt2-mts", "toy-neox")
# One record at a time is never padded; "auto" pads records of many lengths together.
BATCHES: tuple[int | str, ...] = ("auto", 1)


class Scored(NamedTuple):
    scores: Scores
    encoded: list[Encoded]
    tokenizer: Any
    tools: dict[str, Any]
    labels: list[int]


@pytest.fixture(
    scope="module",
    params=[(m, b) for m in MODELS for b in BATCHES],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def scored(shared: Path, request: pytest.FixtureRequest) -> Scored:
    name, batch_size = request.param
    fixture = json.loads((shared / "fixtures" / f"scores-{name}.json").read_text())
    lines = (shared / "fixtures" / fixture["records"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    path = shared / "models" / name
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    encoded = Encoder(tokenizer, 512).encode([RecordText(row["text"]) for row in rows])
    engine = Engine(model, torch.device("cpu"), batch_size=batch_size)
    labels = [row.get("label", 0) for row in rows]
    return Scored(engine.score(encoded), encoded, tokenizer, fixture["tools"], labels)


def standardised(scores: Scores) -> np.ndarray:
    return (scores.logp - scores.mu) / scores.sigma


def without_last(scores: Scores) -> Scores:
    keep = np.ones(len(scores.logp), bool)
    keep[scores.offsets[1:] - 1] = False
    return replace(
        scores,
        offsets=np.concatenate([[0], np.cumsum(scores.n_tokens - 1)]),
        **{name: getattr(scores, name)[keep] for name in ("logp", "mu", "sigma", "hit")},
    )


def expected(scored: Scored, tool: str) -> dict[str, np.ndarray]:
    found = scored.tools[tool]
    return {
        name: np.array(values) * found["orientation"][name]
        for name, values in found["scores"].items()
    }


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-4, err_msg=name)


def test_mink_plus_plus(scored: Scored) -> None:
    scores = scored.scores
    ours = {"loss": single.loss(scores), "zlib": single.zlib(scores)}
    for k in (0.2, 0.5):
        ours[f"mink_{k}"] = mean_of_smallest(scores, scores.logp, k=k)
    for k in (0.2, 0.5, 1.0):
        ours[f"mink++_{k}"] = mean_of_smallest(scores, standardised(scores), k=k)
    assert_same(ours, expected(scored, "mink-plus-plus"))


def test_mimir(scored: Scored) -> None:
    attacks: dict[str, Callable[[Scores], np.ndarray]] = {
        "loss": single.loss,
        "zlib": single.zlib,
        "min_k": single.min_k,
        "min_k++": single.min_k_plus_plus,
    }
    ours = {name: attack(scored.scores) for name, attack in attacks.items()}
    assert_same(ours, expected(scored, "mimir"))


def test_open_unlearning(scored: Scored) -> None:
    """k = 0.4, the last token left out of Min-K%, zlib of the decoded labels, sigma^2 >= 1e-6."""
    scores = scored.scores
    labels = [
        scored.tokenizer.decode(record.ids[1:], skip_special_tokens=True)
        for record in scored.encoded
    ]
    sizes = np.array([len(zlib.compress(text.encode())) for text in labels])
    short = without_last(scores)
    sigma = np.sqrt(np.maximum(short.sigma.astype(np.float64) ** 2, 1e-6))
    ours = {
        "loss": single.loss(scores),
        "zlib": single.loss(scores) / sizes,
        "min_k": mean_of_smallest(short, short.logp, k=0.4),
        "min_k++": mean_of_smallest(short, (short.logp - short.mu) / sigma, k=0.4),
    }
    assert_same(ours, expected(scored, "open-unlearning"))


def test_auc_of_loss_is_scikit_learns(scored: Scored) -> None:
    if len(set(scored.labels)) < 2 or "auc" not in scored.tools["mimir"]:
        pytest.skip("the records of this model carry no labels: it is there for numerics only")
    auc = roc_auc_score(scored.labels, single.loss(scored.scores))
    assert auc == pytest.approx(scored.tools["mimir"]["auc"]["loss"], abs=1e-4)
