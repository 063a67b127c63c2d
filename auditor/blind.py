"""The blind baseline: can members and nonmembers be told apart without looking at the model?

If they can, an audit measures the lists as much as the model (Meeus et al. 2024; Duan et al.
2024). A bag of words, of letters, the lengths and the size after zlib, in a logistic regression
that is only ever asked about records that it was not trained on.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import compress

import numpy as np
import numpy.typing as npt

from auditor.config import AuditConfig
from auditor.results import BlindBaseline, Warned

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from auditor.records import Records
    from auditor.scoring.scores import Float64

FOLDS = 5
MOST = 5000
# DeLong's interval takes the signal as given; that the folds share their training records makes
# the AUC spread more: measured on exchangeable letters, 1.5 times as much at 150 a side and 1.2
# times at 500. At 95% one exchangeable split in ten would raise the alarm.
ALARM = 0.99
WORD_FEATURES = 2**16
LETTER_FEATURES = 2**16


@dataclass(frozen=True)
class Blind:
    """What the baseline found.

    Attributes:
        result: Its figures.
        signal: Its out-of-fold signal, shape (n,), NaN for records that were not drawn.
        warnings: What the reader must know about the lists.
    """

    result: BlindBaseline
    signal: "Float64"
    warnings: list[Warned]


def blind_baseline(records: "Records", config: AuditConfig) -> Blind:
    """Cross-fit the baseline on the records, at most 5,000 a side drawn by the seed.

    Raises:
        RecordsError: A source has changed since it was read.
    """
    from auditor.stats.figures import rate_name
    from auditor.stats.roc import auc_estimate, tpr_estimate

    rng = np.random.default_rng(config.seed)
    chosen = np.sort(
        np.concatenate(
            [
                rng.permutation(np.flatnonzero(side))[:MOST]
                for side in (records.is_member, ~records.is_member)
            ]
        )
    )
    label = records.is_member[chosen]
    features = _features(records, chosen)
    signal = out_of_fold(features, label, seed=config.seed)
    members, nonmembers = signal[label], signal[~label]
    auc = auc_estimate(members, nonmembers, confidence=config.confidence)
    alarm = auc_estimate(members, nonmembers, confidence=ALARM)
    told_apart = alarm.low is not None and alarm.low > 0.5
    result = BlindBaseline(
        auc=auc,
        tpr_at_fpr={
            rate_name(fpr): tpr_estimate(
                members,
                nonmembers,
                fpr=fpr,
                confidence=config.confidence,
                draws=config.bootstrap,
                seed=config.seed,
            )
            for fpr in config.fpr
        },
        n_features=features.shape[1],
        told_apart=told_apart,
    )
    of_all = np.full(len(records), np.nan)
    of_all[chosen] = signal
    return Blind(result, of_all, [_warning(result)] if told_apart else [])


def _features(records: "Records", chosen: npt.NDArray[np.int64]) -> "csr_matrix":
    """Hashed words and letters, the log lengths and zlib size, a row per record, read in blocks."""
    from scipy.sparse import csr_matrix, hstack, vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(
        n_features=WORD_FEATURES, alternate_sign=False, token_pattern=r"(?u)\b\w+\b|[^\w\s]"
    )
    letters = HashingVectorizer(
        n_features=LETTER_FEATURES, alternate_sign=False, analyzer="char", ngram_range=(2, 3)
    )
    blocks = []
    for part in np.array_split(chosen, max(1, len(chosen) // 1024)):
        texts = [text.words for text in records.texts(part)]
        lengths = np.array(
            [
                (
                    np.log1p(len(t)),
                    np.log1p(len(t.split())),
                    np.log(len(compress(t.encode("utf-8", "replace")))),
                )
                for t in texts
            ]
        )
        row = [words.transform(texts), letters.transform(texts), csr_matrix(lengths)]
        blocks.append(hstack(row, format="csr"))
    return csr_matrix(vstack(blocks, format="csr"))


def out_of_fold(features: "csr_matrix", label: npt.NDArray[np.bool_], *, seed: int) -> "Float64":
    """Log-odds of membership of every record by a model that was not trained on it.

    Args:
        features: Shape (n, f).
        label: Shape (n,).
        seed: Of the folds.

    Returns:
        float64, shape (n,). Each fold's log-odds are centred by its own mean over the held-out
        records: a training fold that lacks a few members of one side leans to the other, and that
        lean, pooled over folds, would push the AUC of pure noise below 0.5.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    signal = np.zeros(len(label))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(features, label):
        # liblinear in its dual form: many more features than records.
        model = make_pipeline(
            MaxAbsScaler(),
            LogisticRegression(C=0.1, solver="liblinear", dual=True, random_state=seed),
        )
        model.fit(features[train], label[train])
        odds = model.decision_function(features[test])
        signal[test] = odds - odds.mean()
    return signal


def _warning(result: BlindBaseline) -> Warned:
    auc = result.auc
    return Warned(
        code="told-apart",
        severity="severe",
        message=(
            f"Members and nonmembers can be told apart without the model: the blind baseline has "
            f"an AUC of {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]. The figures below measure "
            "the two lists as much as the model; draw both sides from one shuffled pool."
        ),
    )
