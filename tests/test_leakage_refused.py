"""What an audit of several versions refuses before any pass: one clear error, nothing written."""

from pathlib import Path
from typing import Any

import pytest

from auditor.cli import main
from tests.test_audit import flags

Given = dict[str, Any]


def refused(given: Given, output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    given = {key: value for key, value in given.items() if value is not None}
    assert main(["audit", *flags(given, output), *more]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not output.exists()
    return " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"settings": "NR,XR"}, ["unknown setting 'XR'", "available: MR, NR, SR"]),
        ({"supervision": "both"}, ["--supervision", "'crossfit' or 'shadow'", "'both'"]),
        ({"learners": "svm"}, ["--learners", "'logistic' or 'trees'", "'svm'"]),
        ({"learners": "trees"}, ["always among the learners", "--learners logistic,trees"]),
        ({"controls": "noise", "settings": "NR"}, ["the cross-fitted attack on pairs", "NR"]),
        ({"at_most": "auc=0.6", "settings": "NR,SR"}, ["the attack that holds many versions"]),
        ({"controls": "noize"}, ["unknown control 'noize'", "did you mean 'noise'"]),
        ({"membership": "coin"}, ["coin", "--membership", "randomized"]),
        ({"fail_on": "over"}, ["--fail-on and --release need a bound", "no --at-most"]),
        ({"release": "bnb-nf4"}, ["--fail-on and --release need a bound"]),
        ({"fail_on": "never", "at_most": "auc=0.6"}, ["--fail-on", "'never'"]),
        (
            {"release": "original,bnb-int8", "at_most": "auc=0.6"},
            ["unknown version of this audit 'bnb-int8'", "bnb-nf4"],
        ),
        ({"release": "bnb-nf5", "at_most": "auc=0.6"}, ["did you mean 'bnb-nf4'"]),
        ({"at_most": "auc=0.4"}, ["an AUC of 0.4, which must lie from 0.5 to 1"]),
        ({"at_most": "tpr=0.05"}, ["must be tpr=VALUE@fpr=RATE or auc=VALUE"]),
        (
            {"at_most": "tpr=0.05@fpr=0.01"},
            ["one that the nonmembers can support", "needs 1000 nonmembers; there are 60"],
        ),
        ({"folds": 40}, ["40 folds need at least 120 members", "60 members and 60 nonmembers"]),
        ({"folds": 1}, ["--folds"]),
        ({"repeats": 0}, ["--repeats"]),
        ({"delta": 1}, ["--delta"]),
        ({"supervision": "shadow"}, ["needs a shadow audit", "no --shadow"]),
        ({"shadow": "nowhere"}, ["nowhere must be the output folder of a finished audit"]),
        ({"shadow": "a", "supervision": "crossfit"}, ["shadow audits must be of use"]),
    ],
)
def test_what_cannot_be_asked(
    changes: Given,
    expected: list[str],
    subject: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = refused({**subject, **changes}, tmp_path / "run", capsys)
    for part in expected:
        assert part in printed
    # And so does a dry run, which is there to find that out.
    assert refused({**subject, **changes}, tmp_path / "run", capsys, "--dry-run") == printed
