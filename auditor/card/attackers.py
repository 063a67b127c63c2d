"""Which of an audit's figures a card shows: each version alone, beside the original, together."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from auditor.errors import ConfigError, unknown
from auditor.report.figures import is_finding
from auditor.report.view_table import main_question
from auditor.results import (
    AuditResult,
    Comparison,
    Leakage,
    LeakageComparison,
    ModelIdentity,
    SettingResult,
    VariantResult,
)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Alone(NamedTuple):
    """One version by itself, under the attack that was named before the run.

    Attributes:
        version: The version.
        difference: Its AUC against the original's; None for the original, and where absent.
    """

    version: VariantResult
    difference: Comparison | None


class Together(NamedTuple):
    """One attacker who holds several versions, or the original as what he is measured by.

    Attributes:
        setting: What he holds and finds.
        gain: What he gains over who holds less; None where it was not asked.
    """

    setting: SettingResult
    gain: LeakageComparison | None


def is_found(result: AuditResult, test: Comparison | LeakageComparison | None) -> bool:
    """Whether a difference is left after Holm's correction."""
    return test is not None and is_finding(test.p_adjusted, result.confidence)


def the_variant(result: AuditResult, name: str) -> VariantResult:
    """The compressed version that a card is for.

    Raises:
        ConfigError: The audit has none of that name, or it is the original or broken.
    """
    original, *variants = result.variants
    if name in (original.variant, original.canonical):
        raise ConfigError(
            "--variant must be a compressed version",
            seen=f"{name}, the original",
            fix="leave --variant out: the card of the original speaks of all versions",
        )
    try:
        found = result.variant(name)
    except KeyError:
        raise unknown("version of this audit", name, [one.variant for one in variants]) from None
    if found.status != "ok":
        raise ConfigError(
            "--variant must be a version that works",
            seen=f"{found.variant} is broken: {found.reason}",
            fix="a broken version is not for publishing",
        )
    return found


def alone(result: AuditResult, variant: str | None = None) -> list[Alone]:
    """Every version by itself, the original first; with a variant only the two."""
    tests = {
        test.variant: test
        for test in result.comparisons
        if test.attack == result.primary_attack and test.metric == "auc"
    }
    return [
        Alone(version, tests.get(version.variant))
        for at, version in enumerate(result.variants)
        if not at or variant in (None, version.variant)
    ]


def together(result: AuditResult, variant: str | None = None) -> list[list[Together]]:
    """Who holds the original, each pair, all versions; with a variant only the first two.

    Learned attacks where there are any, by one kind of supervision: those without the reference,
    then, where there is one, those with it. Inside such a group rows can be compared.
    """
    if result.leakage is None:
        return []
    settings = _one_kind(result.leakage)
    groups = [
        _rows(result, [one for one in settings if one.with_reference == reference], variant)
        for reference in (False, True)
    ]
    return [rows for rows in groups if rows]


def _one_kind(leakage: Leakage) -> list[SettingResult]:
    for supervision in ("crossfit", "shadow"):
        if found := [one for one in leakage.settings if one.supervision == supervision]:
            return found
    # Without learning, the plain difference of two losses, and the mean of all ranks.
    return [one for one in leakage.settings if one.attack in ("gap", "mean-rank")]


def _rows(
    result: AuditResult, settings: Sequence[SettingResult], variant: str | None
) -> list[Together]:
    original = result.variants[0].variant
    rows: list[Together] = []
    for one in settings:
        held = set(one.versions)
        wanted = one.setting != "NR" or held == {original}
        if variant is not None:
            wanted = wanted and held in ({original}, {original, variant})
        # Of a single variant, all versions together are the pair.
        learned = one.supervision != "none"
        again = learned and any(set(row.setting.versions) == held for row in rows)
        if wanted and not again:
            rows.append(Together(one, main_question(result, one)))
    return rows


def model_name(result: AuditResult) -> str:
    """The model by the name that its readers know: its id, or the last part of its path."""
    return hub_id(result.model) or last_part(result.model.name)


def last_part(path: str) -> str:
    """The last part of a path; what stands above it is the auditor's own affair."""
    return Path(path).name or path


def hub_id(model: ModelIdentity | None) -> str | None:
    """The model's id on the Hub; None where it was a path, or its name cannot be an id.

    The audit says which it was: what lies here while the card is written says nothing.
    """
    if model is None or model.is_path is not False or not HUB_ID.fullmatch(model.name):
        return None
    return model.name
