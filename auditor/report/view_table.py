"""The page's two tables of everything: every attacker's figures, and every paired comparison."""

from collections.abc import Sequence

from auditor.attacks import ATTACKS
from auditor.leakage.advice import described, listed
from auditor.report.figures import is_finding
from auditor.report.leakage import LESS
from auditor.report.view import (
    Cell,
    Column,
    Grid,
    Row,
    estimate_cell,
    metric_title,
    number_cell,
    p_cell,
    text_cell,
)
from auditor.results import (
    AttackResult,
    AuditResult,
    Comparison,
    Leakage,
    LeakageComparison,
    SettingResult,
)
from auditor.results.figures import BeyondTraining

SUPERVISION = {"none": "none", "crossfit": "cross-fitted", "shadow": "shadow audits"}
NO_MODEL = "no model: the records alone"


def figures_grid(result: AuditResult) -> Grid:
    """One row for every version and attack, every setting, and the blind baseline."""
    rates, notes = _rates(result)
    rows = [
        *_blind(result, rates),
        *_alone(result, rates),
        *(_setting(result, one, rates) for one in _settings(result)),
    ]
    columns = [
        Column("Holds"),
        Column("Setting", "word"),
        Column("Attack", "word"),
        Column("AUC", "estimate"),
        *(Column(metric_title(f"tpr@{rate}"), "estimate") for rate in rates),
        Column("Difference in AUC", "estimate"),
        Column("Compared with"),
        Column("p (Holm)", "number"),
        Column("Trained", "word"),
        Column("Reference", "word"),
        Column("Balanced accuracy, %", "estimate"),
        Column("Members", "number"),
        Column("Nonmembers", "number"),
    ]
    level = f"{100 * result.confidence:g}%"
    notes.insert(
        0,
        f"Intervals at {level}. * is left after Holm's correction over its family. NR: one "
        "version. SR: the original and one variant. MR: several versions. Differences to the "
        "original are tested in both directions; gains of an attacker who holds more, in one.",
    )
    return Grid("figures", "Every attacker and what he finds", columns, rows, notes)


def comparisons_grid(result: AuditResult) -> Grid:
    """Every paired comparison that has a figure."""
    rows = [_compared(result, item) for item in result.comparisons if _has_figure(item)]
    rows += [_compared(result, item) for item in result.beyond_training if _has_figure(item)]
    leakage = result.leakage
    if leakage is not None:
        rows += [_asked(result, item) for item in leakage.comparisons if _has_figure(item)]
    columns = [
        Column("Holds"),
        Column("Setting", "word"),
        Column("Attack", "word"),
        Column("Trained", "word"),
        Column("Reference", "word"),
        Column("Compared with"),
        Column("Metric", "word"),
        Column("Difference", "estimate"),
        Column("p", "number"),
        Column("p (Holm)", "number"),
        Column("Family", "word"),
    ]
    every: list[Comparison | LeakageComparison] = [*result.comparisons, *result.beyond_training]
    every += leakage.comparisons if leakage is not None else []
    absent = {item.difference.absent for item in every}
    notes = [
        "Differences of AUC as they are, of TPR in percentage points when read, as a share when "
        "copied. Primary comparisons were named before the run; Holm's correction runs over "
        "each family by itself.",
        *(f"Left out: {reason}." for reason in sorted(filter(None, absent))),
    ]
    return Grid("comparisons", "Every paired comparison", columns, rows, notes)


def places(result: AuditResult, versions: Sequence[str]) -> str:
    """The places of some versions among all, the original being 0."""
    names = [variant.variant for variant in result.variants]
    return " ".join(str(names.index(name)) for name in versions if name in names)


def holds(result: AuditResult, versions: Sequence[str]) -> str:
    """The versions that an attacker holds, as short as it can be said."""
    if len(versions) < 3:
        return listed(versions)
    names = dict.fromkeys(name for one in _settings(result) for name in one.versions)
    return described(versions, list(names))


def main_question(result: AuditResult, one: SettingResult) -> LeakageComparison | None:
    """Of the questions about an attacker's AUC, the one that his row is judged by.

    That is the primary one; beside a reference, what he adds to original and reference. Every
    other stands in the table of comparisons.
    """
    asked = [
        item
        for item in (result.leakage.comparisons if result.leakage else [])
        if item.metric == "auc"
        and item.attack == one.attack
        and item.versions == one.versions
        and item.with_reference == one.with_reference
        and item.supervision == one.supervision
    ]
    if not asked:
        return None
    return min(
        asked,
        key=lambda item: (item.family != "primary", item.question == "compression over noise"),
    )


def _settings(result: AuditResult) -> list[SettingResult]:
    return result.leakage.settings if result.leakage is not None else []


def _rates(result: AuditResult) -> tuple[list[str], list[str]]:
    """The rates that any row has a TPR at, and why others have none."""
    found = [figures for variant in result.variants for figures in variant.attacks.values()]
    found += [one.figures for one in _settings(result)]
    rates = list(dict.fromkeys(rate for figures in found for rate in figures.tpr_at_fpr))
    estimates = {
        rate: [figures.tpr_at_fpr[rate] for figures in found if rate in figures.tpr_at_fpr]
        for rate in rates
    }
    kept = [rate for rate in rates if any(one.value is not None for one in estimates[rate])]
    reasons = {one.absent for rate in rates if rate not in kept for one in estimates[rate]}
    return kept, [f"Left out: {reason}." for reason in sorted(filter(None, reasons))]


def _figures(found: AttackResult, rates: Sequence[str], between: list[Cell]) -> list[Cell]:
    """The figures of an attacker, in the table's order.

    Args:
        found: His figures.
        rates: The rates that are shown.
        between: What stands between: his difference, and how he attacks.
    """
    return [
        estimate_cell(found.auc),
        *(estimate_cell(found.tpr_at_fpr.get(rate), percent=True) for rate in rates),
        *between,
        estimate_cell(found.balanced_accuracy, percent=True),
        number_cell(found.auc.n_members),
        number_cell(found.auc.n_nonmembers),
    ]


def _blind(result: AuditResult, rates: Sequence[str]) -> list[Row]:
    blind = result.blind
    if blind is None:
        return []
    cells = [
        text_cell(NO_MODEL),
        text_cell("–"),
        text_cell("blind baseline"),
        estimate_cell(blind.auc),
        *(estimate_cell(blind.tpr_at_fpr.get(rate), percent=True) for rate in rates),
        *_no_difference(),
        text_cell(SUPERVISION["crossfit"]),
        text_cell("no"),
        estimate_cell(None, absent="not measured for the blind baseline"),
        number_cell(blind.auc.n_members),
        number_cell(blind.auc.n_nonmembers),
    ]
    return [Row(cells)]


def _no_difference() -> list[Cell]:
    return [estimate_cell(None), text_cell("–"), p_cell(None)]


def _alone(result: AuditResult, rates: Sequence[str]) -> list[Row]:
    """The training-free attacks on every version by itself."""
    differences = {(x.variant, x.attack): x for x in result.comparisons if x.metric == "auc"}
    rows = []
    for variant in result.variants:
        for attack, figures in variant.attacks.items():
            found = differences.get((variant.variant, attack))
            between = [
                *(_difference(result, found) if found else _no_difference()),
                text_cell(SUPERVISION["none"]),
                text_cell(_has_reference(attack)),
            ]
            broken = "" if variant.status == "ok" else " (broken)"
            cells = [
                text_cell(f"{variant.variant}{broken}"),
                text_cell("NR"),
                text_cell(attack),
                *_figures(figures, rates, between),
            ]
            rows.append(
                Row(
                    cells,
                    is_found=bool(found and is_finding(found.p_adjusted, result.confidence)),
                    is_essential=attack == result.primary_attack,
                    setting="NR",
                    versions=places(result, [variant.variant]),
                )
            )
    return rows


def _has_reference(attack: str) -> str:
    return "yes" if attack in ATTACKS and ATTACKS[attack].needs_reference else "no"


def _difference(result: AuditResult, found: Comparison) -> list[Cell]:
    return [
        estimate_cell(found.difference, signed=True),
        text_cell("the original, same attack"),
        p_cell(found.p_adjusted, level=result.confidence),
    ]


def _setting(result: AuditResult, one: SettingResult, rates: Sequence[str]) -> Row:
    found = main_question(result, one)
    gain = _no_difference()
    if found is not None:
        gain = [
            estimate_cell(found.difference, signed=True),
            text_cell(_against(found)),
            p_cell(found.p_adjusted, level=result.confidence),
        ]
    cells = [
        text_cell(holds(result, one.versions)),
        text_cell(one.setting),
        text_cell(one.attack),
        *_figures(
            one.figures,
            rates,
            [
                *gain,
                text_cell(SUPERVISION[one.supervision]),
                text_cell("yes" if one.with_reference else "no"),
            ],
        ),
    ]
    return Row(
        cells,
        is_found=found is not None and is_finding(found.p_adjusted, result.confidence),
        is_essential=_is_essential(result.leakage, one),
        setting=one.setting,
        versions=places(result, one.versions),
    )


def _is_essential(leakage: Leakage | None, one: SettingResult) -> bool:
    """Learned attackers who hold the most of what there is; without any, all training-free ones."""
    if leakage is None or not any(item.supervision != "none" for item in leakage.settings):
        return True
    same = [item for item in leakage.settings if item.supervision == one.supervision]
    most = any(item.with_reference for item in same)
    return one.supervision != "none" and one.with_reference == most


def _against(found: LeakageComparison) -> str:
    beside = ", with the reference" if found.with_reference else ""
    return LESS[found.question] + beside


def _has_figure(item: Comparison | LeakageComparison) -> bool:
    return item.difference.value is not None


def _compared(result: AuditResult, item: Comparison) -> Row:
    against = item.against if isinstance(item, BeyondTraining) else "the original"
    return _comparison(
        result,
        item,
        [
            text_cell(item.variant),
            text_cell("NR"),
            text_cell(item.attack),
            text_cell(SUPERVISION["none"]),
            text_cell(_has_reference(item.attack)),
            text_cell(f"{against}, same attack"),
        ],
        setting="NR",
        versions=[item.variant],
    )


def _asked(result: AuditResult, item: LeakageComparison) -> Row:
    # What is asked of an attacker who holds the variants without the original is about MR.
    setting = "SR" if item.question in SR else "MR"
    return _comparison(
        result,
        item,
        [
            text_cell(holds(result, item.versions)),
            text_cell(setting),
            text_cell(item.attack),
            text_cell(SUPERVISION[item.supervision]),
            text_cell("yes" if item.with_reference else "no"),
            text_cell(_against(item)),
        ],
        setting=setting,
        versions=item.versions,
    )


SR = ("SR over NR", "SR over original and reference", "compression over noise")


def _comparison(
    result: AuditResult,
    item: Comparison | LeakageComparison,
    first: list[Cell],
    *,
    setting: str,
    versions: Sequence[str],
) -> Row:
    percent = item.metric != "auc"
    cells = [
        *first,
        text_cell(metric_title(item.metric).removesuffix(", %")),
        estimate_cell(item.difference, percent=percent, signed=True),
        p_cell(item.p_value),
        p_cell(item.p_adjusted, level=result.confidence),
        text_cell(item.family),
    ]
    return Row(
        cells,
        is_found=is_finding(item.p_adjusted, result.confidence),
        is_essential=item.family == "primary",
        setting=setting,
        versions=places(result, versions),
    )
