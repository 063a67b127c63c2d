"""Learned attacks under a true null and with a planted effect: size, coverage, power.

200 trials each, of 100 members and 100 nonmembers, hardly more than learned attacks need. A bound
is the nominal level and three binomial standard errors, where nothing else is said.
"""

from typing import NamedTuple

import numpy as np
import pytest

from auditor.leakage.learners import one_thread
from auditor.leakage.questions import Answering, answer, questions
from auditor.leakage.settings import Levels, holdings, learned_by, result_of
from tests.leakage_cases import make_attackers, make_case

TRIALS = 200
FPR = 0.1
LEVELS = Levels(fprs=(FPR,), confidence=0.95, draws=300, seed=0)
EVERY = ("NR", "SR", "MR")
ERROR = 3 * np.sqrt(0.05 * 0.95 / TRIALS)
NAMES = ("SR over NR", "MR over SR", "variants over original")


class Trial(NamedTuple):
    """What one audit found.

    Attributes:
        figures: Of each attacker, his AUC with its interval, shape (a, 3).
        rates: The same of his TPR at 10% FPR.
        questions: Of each question, difference of AUCs with interval and p-value, shape (q, 4).
        of_rates: The same of the differences of TPRs.
    """

    figures: np.ndarray
    rates: np.ndarray
    questions: np.ndarray
    of_rates: np.ndarray


def trial(seed: int, leak: float, variant_leak: float) -> Trial:
    rng = np.random.default_rng(seed)
    case = make_case(rng, 200, n_variants=2, leak=leak, variant_leak=variant_leak)
    with one_thread():
        attackers = make_attackers(case, seed=seed)
        figures, rates = [], []
        for held in holdings(attackers, settings=EVERY, with_reference=False):
            found = result_of(
                learned_by(attackers, held),
                case.is_member,
                overlap=attackers.folds.overlap,
                levels=LEVELS,
            )
            auc, tpr = found.figures.auc, found.figures.tpr_at_fpr["0.1"]
            figures.append((auc.value, auc.low, auc.high))
            rates.append((tpr.value, tpr.low, tpr.high))
        asked = questions(attackers.order, settings=EVERY, with_reference=False, noises={})
        answers = [
            (one.difference.value, one.difference.low, one.difference.high, one.p_value)
            for one in answer(asked, Answering(attackers, LEVELS))
        ]
    return Trial(
        np.array(figures), np.array(rates), np.array(answers[::2]), np.array(answers[1::2])
    )


def trials(n: int, *, leak: float = 0.0, variant_leak: float = 0.0) -> Trial:
    """Shapes (n, a, 3) and (n, q, 4), two of each."""
    from joblib import Parallel, delayed

    found = Parallel(n_jobs=-1)(delayed(trial)(seed, leak, variant_leak) for seed in range(n))
    return Trial(*(np.stack(column) for column in zip(*found, strict=True)))


def covered(found: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    return ((found[..., 1] <= truth) & (truth <= found[..., 2])).mean(axis=0)


@pytest.mark.slow
def test_where_nothing_leaks_nothing_is_found() -> None:
    """Labels that know nothing of the scores. DeLong's intervals alone would cover .71 to .81."""
    found = trials(TRIALS)
    cover = covered(found.figures, 0.5)
    assert (cover >= 0.95 - ERROR).all()
    # The upper end reaches 0.5 at least, so that only one side can be missed: .97 to .99.
    assert (cover <= 0.995).all()
    for asked in (found.questions, found.of_rates):
        rejected = (asked[..., 3] <= 0.05).mean(axis=0)
        assert (rejected <= 0.05 + ERROR).all(), rejected
    # The difference of two rules that are both nothing but accident: measured .91 to .96.
    assert (covered(found.questions, 0.0) >= 0.89).all()
    cover = covered(found.rates, FPR)
    assert (cover >= 0.95 - ERROR).all(), cover
    # Of pure noise no attacker's AUC is far from a half on average.
    assert np.abs(found.figures[..., 0].mean(axis=0) - 0.5).max() < 0.015


@pytest.mark.slow
def test_noise_that_knows_no_label_is_no_leak_of_compression() -> None:
    """The original leaks; variants are the original and noise: neither SR nor MR may gain."""
    found = trials(TRIALS, leak=0.3)
    for asked in (found.questions, found.of_rates):
        rejected = (asked[..., 3] <= 0.05).mean(axis=0)
        assert (rejected <= 0.05 + ERROR).all(), rejected
    # What an interval speaks of is the AUC of rules learned from so many records: its mean.
    truth = found.figures[..., 0].mean(axis=0)
    assert (truth > 0.6).all()
    cover = covered(found.figures, truth)
    assert (np.abs(cover - 0.95) <= ERROR).all(), cover
    cover = covered(found.rates, found.rates[..., 0].mean(axis=0))
    assert (cover >= 0.95 - ERROR).all(), cover
    differences = covered(found.questions, found.questions[..., 0].mean(axis=0))
    assert (differences >= 0.95 - ERROR).all(), differences


@pytest.mark.slow
def test_a_move_that_knows_the_label_is_found() -> None:
    """A member's tokens gain by being compressed, and the original leaks nothing."""
    found = trials(40, variant_leak=0.15)
    asked = dict(zip(("first", "second", *NAMES[1:]), range(4), strict=True))
    power = (found.questions[..., 3] <= 0.05).mean(axis=0)
    assert (power[[asked["first"], asked["second"]]] >= 0.9).all(), power
