"""The terminal's part about more than one version: NR, SR, MR, controls, exposure, advice."""

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from auditor.leakage.advice import described
from auditor.report.figures import interval, p_value
from auditor.results import AuditResult, Leakage, LeakageComparison, SettingResult

# Columns that the table needs with intervals beside their figures.
WIDE = 150
LESS = {
    "SR over NR": "the better of the two alone",
    "SR over original and reference": "the original alone",
    "MR over SR": "the best pair",
    "MR over original and reference": "the original alone",
    "variants over original": "the original alone",
    "compression over noise": "noise of the same norm",
}


def leakage_part(result: AuditResult, *, rate: str | None, width: int) -> list[RenderableType]:
    """What versions give away beside each other and together; nothing where it was not judged.

    Args:
        result: The audit.
        rate: The false positive rate of the table, as a key.
        width: Columns of the terminal.
    """
    leakage = result.leakage
    if leakage is None:
        return []
    parts: list[RenderableType] = []
    if any(one.supervision != "none" for one in leakage.settings):
        parts += [
            _table(leakage, supervision, rate=rate, width=width)
            for supervision in leakage.supervision
        ]
        level = f"{100 * result.confidence:g}%"
        parts.append(
            Text(
                f"learned attacks, intervals at {level}; p: of no gain, one-sided; * is left after "
                "Holm's correction",
                style="dim",
            )
        )
    parts.append(_facts(leakage))
    if leakage.releases is not None:
        parts.append(Text(leakage.releases.advice, style="bold"))
    return parts


def _table(leakage: Leakage, supervision: str, *, rate: str | None, width: int) -> Table:
    stacked = width < WIDE
    beside = any(one.with_reference for one in leakage.settings if one.supervision != "none")
    names = _versions(leakage)
    title = "shadow audits" if supervision == "shadow" else "what an attacker gets"
    holds = f"{title}, holding{' the reference and' if beside else ''}"
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(f"\n{holds}", overflow="fold")
    heads = ["AUC", "TPR" if rate is None else f"TPR@{100 * float(rate):g}%FPR, %", "gain in AUC"]
    for head in (*heads, "over", "p (Holm)"):
        table.add_column(f"\n{head}", justify="left" if head == "over" else "right")
    for one in leakage.settings:
        if one.supervision != supervision or one.with_reference != beside:
            continue
        for row, comparison in enumerate(_asked(leakage, one) or [None]):
            cells = _cells(one, comparison, rate=rate, stacked=stacked)
            if row:
                cells[:2] = ["", ""]
            name = f"{one.setting}  {described(one.versions, names)}" if not row else ""
            is_found = comparison is not None and "*" in cells[-1]
            style = "bold" if is_found else ""
            table.add_row(escape(name), *map(escape, cells), style=style)
    return table


def _versions(leakage: Leakage) -> list[str]:
    longest = max((one.versions for one in leakage.settings), key=len)
    return list(longest)


def _asked(leakage: Leakage, one: SettingResult) -> list[LeakageComparison]:
    """The questions about this attacker's AUC that belong into the table.

    With a reference, what is asked without one is in `audit.json`.
    """
    wanted = [
        found
        for found in leakage.comparisons
        if found.metric == "auc"
        and found.versions == one.versions
        and found.with_reference == one.with_reference
        and found.supervision == one.supervision
    ]
    if one.setting == "SR" and one.with_reference:
        wanted = [found for found in wanted if found.question != "SR over NR"]
    return wanted


def _cells(
    one: SettingResult, comparison: LeakageComparison | None, *, rate: str | None, stacked: bool
) -> list[str]:
    figures = one.figures
    cells = [
        interval(figures.auc),
        interval(figures.tpr_at_fpr.get(rate or ""), percent=True),
    ]
    if comparison is None:
        cells += ["–", "", "–"]
    else:
        is_left = comparison.p_adjusted is not None and comparison.p_adjusted < 0.05
        cells += [
            interval(comparison.difference, signed=True),
            LESS[comparison.question],
            p_value(comparison.p_adjusted) + (" *" if is_left else ""),
        ]
    return [cell.replace(" [", "\n[") for cell in cells] if stacked else cells


def _facts(leakage: Leakage) -> Text:
    """Controls, the best of all training-free attacks, exposed records: a line each."""
    text = Text()
    if leakage.controls:
        n_passed = sum(control.passed for control in leakage.controls)
        failed = n_passed < len(leakage.controls)
        text.append(
            f"controls: {n_passed} of {len(leakage.controls)} passed (labels drawn anew, the "
            "original in the place of a variant)\n",
            style="bold red" if failed else "dim",
        )
    exposed = leakage.exposed
    if exposed is not None and exposed.fpr is not None and exposed.n_newly is not None:
        text.append(
            f"exposed: {exposed.n_newly} members are found at {100 * exposed.fpr:g}% FPR with all "
            f"versions and not with the original alone; {exposed.expected_by_chance:.1f} would be "
            f"by chance, and {exposed.n_no_longer} are lost the other way (ids in audit.json)\n"
        )
    elif exposed is not None and exposed.absent:
        text.append(f"exposed records: {exposed.absent}\n", style="dim")
    for bound in leakage.epsilon:
        if bound.epsilon is not None:
            text.append(
                f"epsilon of the training is at least {bound.epsilon:.2f} at delta {bound.delta:g} "
                f"({bound.method}, {bound.attack}, {100 * bound.confidence:g}%)\n"
            )
    text.rstrip()
    return text
