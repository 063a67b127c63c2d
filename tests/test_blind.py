"""The blind baseline finds what is planted in the lists, and nothing where there is nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auditor.blind import Blind, blind_baseline
from auditor.config import AuditConfig
from auditor.demo.letters import letters
from auditor.records import read_records
from auditor.scoring.encode import Encoder
from tests.tiny import byte_tokenizer

N = 200


def run(tmp_path: Path, members: list[str], nonmembers: list[str], **changes: Any) -> Blind:
    for name, texts in (("m", members), ("n", nonmembers)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    config = AuditConfig.model_validate(
        {
            "model": "m",
            "members": str(tmp_path / "m.jsonl"),
            "nonmembers": str(tmp_path / "n.jsonl"),
            "bootstrap": 100,
            **changes,
        }
    )
    return blind_baseline(read_records(config, Encoder(byte_tokenizer(), 10_000)), config)


@pytest.mark.parametrize(
    "plant",
    [
        lambda text: text.replace("Dr ", "Prof "),
        lambda text: text + " " + text[:40],
        lambda text: text.replace(".", " ."),
    ],
    ids=["word", "length", "punctuation"],
)
def test_a_planted_difference_is_found(plant: Any, tmp_path: Path) -> None:
    texts = letters(2 * N, seed=1)
    found = run(tmp_path, [plant(text) for text in texts[:N]], texts[N:])
    assert found.result.told_apart
    assert found.result.auc.value is not None
    assert found.result.auc.value > 0.8
    assert [warned.severity for warned in found.warnings] == ["severe"]


def test_exchangeable_sides_are_not_told_apart(tmp_path: Path) -> None:
    """Over many splits the AUC is centred at one half, and few intervals lie above it."""
    texts = letters(2 * 100, seed=2)
    values, alarms = [], 0
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(texts))
        shuffled = [texts[i] for i in order]
        found = run(tmp_path, shuffled[:100], shuffled[100:], seed=seed)
        values.append(found.result.auc.value)
        alarms += found.result.told_apart
    spread = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - 0.5) < 3 * spread + 0.01
    assert alarms <= 3


def test_real_random_split(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "llama-gsm8k"
    sides = [
        [json.loads(line)["text"] for line in (folder / name).read_text().splitlines()[:600]]
        for name in ("members.jsonl", "nonmembers.jsonl")
    ]
    assert not run(tmp_path, *sides).result.told_apart
