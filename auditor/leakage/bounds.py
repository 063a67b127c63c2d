"""What a release may give away at most: how it is written, when it can be judged, how it is judged.

auc=0.6              the AUC of the attacker who holds the release is at most 0.6
tpr=0.05@fpr=0.01    he finds at most 5% of the members at a false positive rate of 1%
"""

import re
from collections.abc import Sequence

from auditor.errors import ConfigError
from auditor.results import Bound, Estimate
from auditor.results.leakage import Verdict
from auditor.stats.figures import rate_name
from auditor.stats.sides import too_few_nonmembers

AUC = "auc"
TPR = "tpr@"
SPELLINGS = re.compile(r"auc=(?P<auc>[^@]+)|tpr=(?P<tpr>[^@]+)@\s*fpr=(?P<fpr>[^@]+)")
HEADLINE_FPR = 0.01


def parse_bound(text: str) -> Bound:
    """The bound that is spelled `tpr=0.05@fpr=0.01` or `auc=0.6`.

    Raises:
        ConfigError: It is spelled otherwise, or a value is out of range.
    """
    found = SPELLINGS.fullmatch(text.strip())
    if found is None:
        raise _not_a_bound(text, "neither of the two")
    if found["auc"] is not None:
        auc = _number(found["auc"], text)
        if not 0.5 <= auc <= 1:
            raise _not_a_bound(text, f"an AUC of {auc:g}, which must lie from 0.5 to 1")
        return Bound(metric=AUC, at_most=auc)
    tpr, fpr = _number(found["tpr"], text), _number(found["fpr"], text)
    if not 0 < tpr <= 1:
        raise _not_a_bound(text, f"a TPR of {tpr:g}, which must lie above 0 and up to 1")
    if not 0 < fpr < 1:
        raise _not_a_bound(text, f"an FPR of {fpr:g}, which must lie between 0 and 1")
    return Bound(metric=metric_at(fpr), at_most=tpr)


def spell_bound(bound: Bound) -> str:
    """The bound as `parse_bound` reads it."""
    at_most = format(bound.at_most, ".10g")
    if bound.metric == AUC:
        return f"auc={at_most}"
    return f"tpr={at_most}@fpr={rate_name(fpr_of(bound.metric))}"


def check_supported(bound: Bound, n_nonmembers: int) -> None:
    """Refuse a bound on a TPR that so few nonmembers cannot support.

    Raises:
        ConfigError: There are fewer than 10 / FPR; the error has the count that is needed.
    """
    if bound.metric == AUC:
        return
    if reason := too_few_nonmembers(fpr_of(bound.metric), n_nonmembers):
        raise ConfigError(
            "a bound on a TPR must be one that the nonmembers can support",
            seen=f"{spell_bound(bound)}: {reason}",
            fix="give more nonmembers, or bound the TPR at a higher FPR, or the AUC",
        )


def verdict_of(estimate: Estimate, bound: Bound) -> Verdict:
    """Under where the whole interval lies at or below the bound, over where it lies above."""
    if estimate.low is None or estimate.high is None:
        return "undecided"
    if estimate.high <= bound.at_most:
        return "under"
    return "over" if estimate.low > bound.at_most else "undecided"


def metric_at(fpr: float) -> str:
    """The name of a TPR in results: 0.01 -> "tpr@0.01"."""
    return f"{TPR}{rate_name(fpr)}"


def fpr_of(metric: str) -> float:
    """The false positive rate of a metric that is a TPR."""
    return float(metric.removeprefix(TPR))


def reported_rate(fprs: Sequence[float], n_nonmembers: int) -> float | None:
    """The rate to speak about: 1%, or else the lowest of these that the nonmembers support."""
    present = sorted(fpr for fpr in fprs if too_few_nonmembers(fpr, n_nonmembers) is None)
    if HEADLINE_FPR in present:
        return HEADLINE_FPR
    return present[0] if present else None


def metric_in_words(metric: str) -> str:
    """`tpr@0.01` as "TPR at 1% FPR"."""
    return "AUC" if metric == AUC else f"TPR at {100 * fpr_of(metric):g}% FPR"


def figure_in_words(value: float, metric: str) -> str:
    """An AUC with three digits, a TPR in percent."""
    return f"{value:.3f}" if metric == AUC else f"{100 * value:.1f}%"


def estimate_in_words(estimate: Estimate, metric: str) -> str:
    """A figure with its interval: "8.1% [6.4%, 9.9%]"."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate.absent or "absent"
    value, low, high = (
        figure_in_words(x, metric) for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def bound_in_words(bound: Bound) -> str:
    """What was allowed, with every digit that was given: "at most 5%"."""
    if bound.metric == AUC:
        return f"at most {bound.at_most:g}"
    return f"at most {100 * bound.at_most:.10g}%"


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _not_a_bound(whole, f"{text!r}, which is no number") from None


def _not_a_bound(text: str, seen: str) -> ConfigError:
    return ConfigError(
        "a bound must be tpr=VALUE@fpr=RATE or auc=VALUE",
        seen=f"{text!r}: {seen}",
        fix="for example tpr=0.05@fpr=0.01: at most 5% of the members found at 1% FPR",
    )
