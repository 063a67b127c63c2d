"""Audits with invented tests, for the answer that is read from them."""

from collections.abc import Sequence
from typing import Any

from auditor.results import (
    AttackResult,
    AuditResult,
    BlindBaseline,
    Comparison,
    Control,
    Estimate,
    Leakage,
    LeakageComparison,
    Part,
    Releases,
    VariantResult,
    Warned,
)
from auditor.results.leakage import Question

NAMES = ("bnb-nf4", "gptq", "prune-magnitude:sparsity=0.7", "cluster", "hqq")
ADVICE = "No difference is shown between publishing all 3 versions and the original alone: 1 and 2."


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    """A figure; its interval is 0.02 to either side where none is given."""
    ends = (low, high)
    if value is not None and ends == (None, None):
        ends = (value - 0.02, value + 0.02)
    return Estimate(
        value=value, low=ends[0], high=ends[1], n_members=300, n_nonmembers=300, method=""
    )


def figures(auc: Estimate, tpr: Estimate | None = None) -> AttackResult:
    """An attack's figures."""
    return AttackResult(
        auc=auc,
        tpr_at_fpr={"0.01": tpr} if tpr is not None else {},
        balanced_accuracy=estimate(0.5),
    )


def difference(variant: str, found: Estimate, p_value: float | None) -> Comparison:
    """A variant's primary comparison."""
    return Comparison(
        variant=variant,
        attack="ez",
        metric="auc",
        difference=found,
        p_value=p_value,
        p_adjusted=p_value,
        family="primary",
    )


def gain(
    question: Question, versions: Sequence[str], found: Estimate, p_value: float | None
) -> LeakageComparison:
    """A primary question about several versions."""
    return LeakageComparison(
        question=question,
        attack="combined" if question.startswith("MR") else "paired",
        versions=list(versions),
        against="single",
        against_versions=["original"],
        with_reference=question.endswith("reference"),
        supervision="crossfit",
        metric="auc",
        difference=found,
        p_value=p_value,
        p_adjusted=p_value,
        family="primary",
    )


def leakage(
    gains: Sequence[LeakageComparison], *, advice: str | None = ADVICE, passed: bool = True
) -> Leakage:
    """What is known of several versions: the gains, one control, the advice."""
    control = Control(
        name="permuted-labels",
        attack="paired",
        versions=["original", NAMES[0]],
        figure=estimate(0.5 if passed else 0.61),
        expected=0.5,
        confidence=0.99,
        passed=passed,
    )
    releases = Releases(
        with_reference=False,
        metric="auc",
        search="every set",
        sets=[],
        parts=[Part(version=name, auc=0.0, tpr_at_fpr={}) for name in ("original", *NAMES[:2])],
        advice=advice or "",
    )
    return Leakage(
        supervision=["crossfit"],
        settings=[],
        comparisons=list(gains),
        controls=[control],
        releases=releases if advice is not None else None,
    )


def audit_of(
    base: AuditResult,
    differences: Sequence[Comparison],
    *,
    original: AttackResult | None = None,
    aucs: dict[str, float] | None = None,
    together: Leakage | None = None,
    warnings: Sequence[Warned] = (),
    told_apart: bool = False,
    **changed: Any,
) -> AuditResult:
    """An audit with these tests; every variant leaks unless `aucs` says otherwise."""
    alone = original or figures(estimate(0.72, 0.70, 0.74), estimate(0.08, 0.06, 0.10))
    first = base.variants[0].model_copy(update={"attacks": {"ez": alone}})
    variants = [first]
    for item in differences:
        auc = (aucs or {}).get(item.variant, 0.72)
        variants.append(
            VariantResult(
                variant=item.variant,
                canonical=item.variant,
                status="ok",
                perplexity=14.9,
                perplexity_ratio=1.49,
                attacks={"ez": figures(estimate(auc, auc - 0.03, auc + 0.03))},
            )
        )
    blind = BlindBaseline(
        auc=estimate(0.71, 0.68, 0.74) if told_apart else estimate(0.5),
        tpr_at_fpr={},
        n_features=10,
        told_apart=told_apart,
    )
    update = {
        "variants": variants,
        "comparisons": list(differences),
        "leakage": together,
        "warnings": list(warnings),
        "artifacts": [],
        "blind": blind,
        "primary_attack": "ez",
        "confidence": 0.95,
        **changed,
    }
    return base.model_copy(update=update)
