"""The terminal's part about more than one version: NR, SR, MR, controls, exposure, advice."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from auditor.leakage.advice import described, listed
from auditor.report.figures import interval, is_finding, p_value
from auditor.results import AuditResult, Leakage, LeakageComparison, SettingResult

GAP = 2
ABSENT = "–"
LESS = {
    "SR over NR": "the better of the two alone",
    "SR over original and reference": "the original alone",
    "MR over SR": "the best pair",
    "MR over original and reference": "the original alone",
    "variants over original": "the original alone",
    "compression over noise": "noise of the same norm",
}
# Characters that "over" needs where it stands on two lines.
LESS_WIDTH = 13
TITLES = {
    "crossfit": "what an attacker gets, holding",
    "shadow": "what an attacker gets who learned on shadow audits, holding",
    "none": "what an attacker gets without learning, holding",
}
WITHOUT = {
    "crossfit": "without the reference",
    "shadow": "without the reference, learned on shadow audits",
}


class Line(NamedTuple):
    """One attacker beside one question about him, as text.

    Attributes:
        name: His setting, and his attack where there are several; empty for his second question.
        holds: The versions that he holds; empty like the name.
        figures: Title and text of each figure.
        is_found: Whether the answer is left after Holm's correction.
    """

    name: str
    holds: str
    figures: dict[str, str]
    is_found: bool


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
    for supervision in leakage.supervision or ["none"]:
        beside = _holds_reference(leakage, supervision)
        lines = _lines(result, leakage, supervision, rate=rate, beside=beside)
        if lines:
            title = TITLES[supervision] + (" the reference and:" if beside else ":")
            parts += [Text(f"\n{title}", style="bold"), _shown(lines, width)]
        found = (
            _found(_lines(result, leakage, supervision, rate=rate, beside=False)) if beside else []
        )
        if found:
            title = f"\nwhere a gain is found {WITHOUT[supervision]}, holding:"
            parts += [Text(title, style="bold"), _shown(found, width)]
    if parts:
        parts.append(Text(_legend(result, leakage), style="dim"))
    facts = _facts(leakage)
    if facts:
        parts.append(facts)
    return parts


def _found(lines: Sequence[Line]) -> list[Line]:
    """The attackers whose gain is a finding, each with all his lines."""
    blocks: list[list[Line]] = []
    for line in lines:
        blocks += [[line]] if line.name else []
        if not line.name:
            blocks[-1].append(line)
    return [line for block in blocks if any(one.is_found for one in block) for line in block]


def _holds_reference(leakage: Leakage, supervision: str) -> bool:
    """Whether the attackers to show hold the reference; what others find is in `audit.json`."""
    if supervision == "none":
        return False
    return any(one.with_reference for one in leakage.settings if one.supervision == supervision)


def _lines(
    result: AuditResult, leakage: Leakage, supervision: str, *, rate: str | None, beside: bool
) -> list[Line]:
    lines = []
    names = list(dict.fromkeys(name for one in leakage.settings for name in one.versions))
    for one in leakage.settings:
        if one.supervision != supervision:
            continue
        if supervision != "none" and one.with_reference != beside:
            continue
        # A pair is named one by one; of three versions it would else be all but the third.
        holds = described(one.versions, names) if one.setting == "MR" else listed(one.versions)
        name: str = one.setting
        if supervision == "none":
            name = f"{one.setting}  {one.attack}"
            holds += ", with the reference" if one.with_reference else ""
        own = {"AUC": interval(one.figures.auc)}
        if rate is not None:
            title = f"TPR@{100 * float(rate):g}%FPR, %"
            own[title] = interval(one.figures.tpr_at_fpr.get(rate), percent=True)
        asked = _asked(leakage, one)
        gains = [_gain(found, level=result.confidence) for found in asked] or [({}, False)]
        for at, (gain, is_found) in enumerate(gains):
            first = (name, holds, {**own, **gain}) if not at else ("", "", gain)
            lines.append(Line(*first, is_found))
    return lines


def _asked(leakage: Leakage, one: SettingResult) -> list[LeakageComparison]:
    """The questions about this attacker's AUC that belong into the table.

    With a reference, what is asked without one is in `audit.json`.
    """
    wanted = [
        found
        for found in leakage.comparisons
        if found.metric == "auc"
        and found.attack == one.attack
        and found.versions == one.versions
        and found.with_reference == one.with_reference
        and found.supervision == one.supervision
    ]
    if one.setting == "SR" and one.with_reference:
        wanted = [found for found in wanted if found.question != "SR over NR"]
    return wanted


def _gain(found: LeakageComparison, *, level: float) -> tuple[dict[str, str], bool]:
    """The answer to a question, and whether it is a finding."""
    is_found = is_finding(found.p_adjusted, level)
    return {
        "gain in AUC": interval(found.difference, signed=True),
        "over": LESS[found.question],
        "p (Holm)": p_value(found.p_adjusted) + (" *" if is_found else ""),
    }, is_found


def _shown(lines: Sequence[Line], width: int) -> RenderableType:
    """A table with intervals beside their figures, or under them, or a block per attacker."""
    # A figure that is absent for all attackers is left out.
    titles = dict.fromkeys(
        title for line in lines for title, text in line.figures.items() if text != ABSENT
    )
    whole = max(len(line.holds) for line in lines)
    word = max(len(part) for line in lines for part in line.holds.split())
    # Where a figure takes two lines, what is held may take two as well; no name is broken.
    for stacked, needed in ((False, whole), (True, word)):
        rows = [[_cell(line, title, stacked=stacked) for title in titles] for line in lines]
        widths = [
            max(len(part) for cell in column for part in cell.split("\n"))
            for column in zip(titles, *rows, strict=True)
        ]
        room = width - sum(widths) - GAP * len(widths) - _name_width(lines) - GAP
        if room >= needed:
            return _table(lines, list(titles), rows, room=room)
    return _blocks(lines, list(titles), width)


def _name_width(lines: Sequence[Line]) -> int:
    return max(len(line.name) for line in lines)


def _cell(line: Line, title: str, *, stacked: bool) -> str:
    text = line.figures.get(title, "")
    if not stacked:
        return text
    if title == "over":
        return textwrap.fill(text, LESS_WIDTH)
    return text.replace(" [", "\n[")


def _table(
    lines: Sequence[Line], titles: Sequence[str], rows: Sequence[Sequence[str]], *, room: int
) -> Table:
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, GAP, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for title in titles:
        table.add_column(title, justify="left" if title == "over" else "right", no_wrap=True)
    for line, row in zip(lines, rows, strict=True):
        holds = textwrap.fill(line.holds, room, subsequent_indent="  ", break_on_hyphens=False)
        cells = map(Text, (line.name, holds, *row))
        table.add_row(*cells, style="bold" if line.is_found else "")
    return table


def _blocks(lines: Sequence[Line], titles: Sequence[str], width: int) -> Group:
    """A line for every figure; what is gained, over whom and how surely on one."""
    parts: list[RenderableType] = []
    labels = max(len(title) for title in titles if title not in ("over", "p (Holm)"))
    for line in lines:
        style = "bold" if line.is_found else ""
        if line.name:
            parts.append(Text(f"{line.name}  {line.holds}", style="bold"))
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(width=labels + GAP)
        grid.add_column()
        for title, text in line.figures.items():
            if title == "gain in AUC":
                over = f"over {line.figures['over']}, p {line.figures['p (Holm)']}"
                fits = len(text) + len(over) < width - labels - 2 * GAP
                gain = f"{text} {over}" if fits else f"{text}\n{over}"
                grid.add_row(Text(f"  {title}"), Text(gain), style=style)
            elif title not in ("over", "p (Holm)") and text != ABSENT:
                grid.add_row(Text(f"  {title}"), Text(text))
        parts.append(grid)
    return Group(*parts)


def _legend(result: AuditResult, leakage: Leakage) -> str:
    level = f"intervals at {100 * result.confidence:g}%"
    if not leakage.supervision:
        return f"training-free attacks, {level}"
    return f"learned attacks, {level}; p: of no gain, one-sided, after Holm's correction; * is left"


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
    best = leakage.best
    if best is not None:
        names = list(dict.fromkeys(x for one in leakage.settings for x in one.versions))
        on = described(best.versions, names) if len(best.versions) > 2 else listed(best.versions)
        text.append(
            f"best of {best.n_candidates} training-free signals: {best.attack} on {on}, "
            f"AUC {best.auc:.3f}; p {p_value(best.p_value)} with its selection paid for\n",
            style="dim",
        )
    floor = next((one for one in leakage.settings if one.attack == "mean-rank"), None)
    if floor is not None:
        text.append(
            f"without training: mean rank over all versions, AUC {interval(floor.figures.auc)}\n",
            style="dim",
        )
    exposed = leakage.exposed
    if exposed is not None and exposed.fpr is not None and exposed.n_newly is not None:
        text.append(
            f"exposed: {exposed.n_newly} members are found at {100 * exposed.fpr:g}% FPR with all "
            f"versions and not with the original alone, {exposed.n_no_longer} the other way round; "
            f"{exposed.expected_by_chance:.1f} would be by chance, p {p_value(exposed.p_value)} "
            "(ids in audit.json)\n"
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
