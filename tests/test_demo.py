"""The demo: exchangeable letters, a target that is whole or made again, and the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from transformers import AutoModelForCausalLM, AutoTokenizer

from auditor import AuditConfig
from auditor.cli import main
from auditor.demo import demo_config
from auditor.demo.letters import letters
from auditor.demo.target import Size, make_target
from auditor.run import read_result
from auditor.targets.lists import with_records

TINY = Size(
    n_base=40, n_members=60, n_nonmembers=60, vocabulary=300, width=32, layers=1, epochs=1,
    base_epochs=1,
)  # fmt: skip


def test_letters_are_the_same_for_a_seed_and_all_different() -> None:
    assert letters(50, seed=1) == letters(500, seed=1)[:50]
    assert letters(50, seed=1) != letters(50, seed=2)
    many = letters(5000, seed=3)
    assert len(set(many)) == 5000
    for letter in many:
        assert not re.search(r"[{}<>]|  ", letter)
        assert 20 < len(letter.split()) < 90
        assert re.search(r"\d{3}-555-01\d\d", letter), "numbers reserved for fiction only"


def test_two_halves_cannot_be_told_apart() -> None:
    texts = letters(2000, seed=4)
    label = np.random.default_rng(0).permutation(np.repeat([0, 1], 1000))
    words = CountVectorizer().fit_transform(texts)
    model = LogisticRegression(C=0.01, max_iter=500)
    signal_ = cross_val_predict(model, words, label, cv=5, method="decision_function")
    assert abs(roc_auc_score(label, signal_) - 0.5) < 4 * 0.0129


def test_a_target_is_made_once(tmp_path: Path) -> None:
    target = make_target(tmp_path / "target", seed=1, size=TINY)
    for path in (target.model, target.reference):
        model = AutoModelForCausalLM.from_pretrained(path)
        ids = AutoTokenizer.from_pretrained(path)("Dear Doctor,", return_tensors="pt")
        assert model(**ids).logits.isfinite().all()
    assert len(target.members.read_text().splitlines()) == 60
    # The model alone is enough for an audit.
    alone = with_records(AuditConfig(model=str(target.model))).config
    assert alone == demo_config(tmp_path).model_copy(
        update={"variants": ("original",), "output_path": alone.output_path}
    )
    # A target of an earlier version said no more than how it was made.
    about = json.loads((target.folder / "target.json").read_text())
    (target.folder / "target.json").write_text(json.dumps({"made_with": about["made_with"]}))
    before = (target.model / "model.safetensors").stat().st_mtime_ns
    make_target(tmp_path / "target", seed=1, size=TINY)
    assert (target.model / "model.safetensors").stat().st_mtime_ns == before
    assert with_records(AuditConfig(model=str(target.model))).source == "target.json"
    make_target(tmp_path / "target", seed=2, size=TINY)
    assert (target.model / "model.safetensors").stat().st_mtime_ns != before


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    files = [
        (make_target(tmp_path / name, seed=1, size=TINY).model / "model.safetensors").read_bytes()
        for name in "ab"
    ]
    assert files[0] == files[1]


def test_a_killed_training_is_not_taken_for_a_target(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from auditor.demo.target import *;"
        "make_target(Path(sys.argv[1]), size=Size(n_base=4000, base_epochs=50))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "t")])
    deadline = time.monotonic() + 60
    while not (tmp_path / "t" / "nonmembers.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert not (tmp_path / "t" / "target.json").exists()
    target = make_target(tmp_path / "t", seed=0, size=TINY)
    assert len(target.members.read_text().splitlines()) == 60


def test_a_folder_that_is_not_the_demos_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "target" / "work.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert main(["demo", "--output-path", str(tmp_path)]) == 2
    assert "must be empty" in capsys.readouterr().err
    assert kept.read_text() == "mine"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("auditor.demo.target.Size", lambda: TINY)
    run = ["demo", "--output-path", str(tmp_path), "--variants", "bnb-nf4", "--display", "plain"]
    assert main(run) == 0
    assert "bnb-nf4" in capsys.readouterr().out
    result = read_result(tmp_path / "audit.json")
    assert [variant.variant for variant in result.variants] == ["original", "bnb-nf4"]
    assert result.primary_attack == "ez"
    assert main(["demo", "--output-path", str(tmp_path), "--variants", "bnb-nf5"]) == 2
