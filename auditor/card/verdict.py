"""What the tests say of one compressed version, in plain sentences, never stronger than they."""

import math
from typing import NamedTuple

from auditor.card.attackers import Alone, alone, is_found, together
from auditor.report.answer import answer
from auditor.report.claims import Claims, read_claims
from auditor.report.figures import justified
from auditor.report.leakage import LESS
from auditor.results import AuditResult, Estimate, VariantResult


class Verdict(NamedTuple):
    """The answer for one version.

    Attributes:
        headline: One short sentence.
        sentences: What it rests on.
    """

    headline: str
    sentences: list[str]


def of_variant(result: AuditResult, variant: VariantResult) -> Verdict:
    """Whether a version gives away more than the original: by itself, and beside it.

    A change is claimed where the whole audit claims it.
    """
    blind = result.blind is not None and result.blind.told_apart
    controls = result.leakage.controls if result.leakage is not None else []
    if blind or not all(control.passed for control in controls):
        whole = answer(result)
        return Verdict(whole.headline, whole.sentences)
    claims = read_claims(result)
    original, row = alone(result, variant.variant)
    sentences = [
        *_figures(result, original, row),
        *_excluded(result, claims, row),
        *_beside(result, claims, variant.variant),
    ]
    return Verdict(_headline(claims, row), sentences)


def _headline(claims: Claims, row: Alone) -> str:
    name, test = row.version.variant, row.difference
    if test is None or test.difference.value is None:
        return f"Whether {name} gives away more than the original was not tested."
    for word, changes in (("more", claims.more), ("less", claims.less)):
        if claims.is_firm and any(change.versions == (name,) for change in changes):
            return f"Alone, {name} gives away {word} about the training data than the original."
    return f"Alone, {name} is not shown to give away more or less than the original."


def _figures(result: AuditResult, original: Alone, row: Alone) -> list[str]:
    before, found = (one.version.attacks.get(result.primary_attack) for one in (original, row))
    if before is None or found is None or found.auc.value is None:
        return []
    return [
        f"The attack named before the run ({result.primary_attack}) has an AUC of "
        f"{_spelled(found.auc)} on it and of {_spelled(before.auc)} on the original; guessing "
        "has 0.5."
    ]


def _excluded(result: AuditResult, claims: Claims, row: Alone) -> list[str]:
    """The difference, and where none is claimed how much of a rise can be excluded."""
    test = row.difference
    if test is None or test.difference.value is None:
        return []
    said = f"The difference is {_spelled(test.difference, signed=True)}"
    claimed = claims.is_firm and any(
        change.versions == (test.variant,) for change in (*claims.more, *claims.less)
    )
    if not claimed and is_found(result, test):
        return [f"{said}, which is not left once all questions of the audit are counted together."]
    high = test.difference.high
    if claimed or high is None or high <= 0:
        return [f"{said}."]
    level = f"{100 * result.confidence:g}%"
    most = math.ceil(1000 * high) / 1000
    return [f"{said}: a rise of more than {most:.3f} can be excluded at {level} confidence."]


def _beside(result: AuditResult, claims: Claims, name: str) -> list[str]:
    """Whether holding it beside the original adds to what one of them gives away."""
    said = []
    for rows in together(result, name):
        pair = next((row for row in rows if len(row.setting.versions) == 2), None)
        gain = pair.gain if pair is not None else None
        if gain is None or gain.difference.value is None:
            continue
        changes = claims.gains.get(gain.question, [])
        held = tuple(gain.versions)
        # Under two supervisions the same is asked twice: a claim comes with its own figure.
        change = next((one for one in changes if one.versions == held), None)
        difference = gain.difference
        learns = "is not shown to learn more"
        if claims.is_firm and change is not None:
            learns, difference = "learns more", change.difference
        elif (difference.low or 0.0) > 0:
            learns += ", once all questions of the audit are counted"
        who = "Whoever holds it beside the original"
        if result.reference is not None:
            who += " and the reference" if gain.with_reference else ", without the reference,"
        by = f"a gain in AUC of {_spelled(difference, signed=True)}"
        said.append(f"{who} {learns}: {by} over {LESS[gain.question]}.")
    return said or ["Whether the two together give away more than one of them was not tested."]


def _spelled(found: Estimate, *, signed: bool = False) -> str:
    return " ".join(justified(found, signed=signed)).strip()
