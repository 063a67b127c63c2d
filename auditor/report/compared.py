"""The terminal table of `compare`: version by version, before, after and the difference."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from auditor.report.figures import interval, is_finding, p_value
from auditor.report.harmless import Harmless
from auditor.report.terminal import STYLE
from auditor.results import AttackResult, Estimate
from auditor.results.compared import ComparedRuns, ComparedVersion, RunComparison

# Columns that the table needs with every interval beside its figure; below, they stand under it.
WIDE = 100
GAP = 2
MAX_SECONDARY = 12  # lines of the secondary comparisons; the surest come first


class Line(NamedTuple):
    """One line of a version's table, as text."""

    metric: str
    before: str
    after: str
    difference: str
    p: str


TITLES = Line("", "before", "after", "after − before", "p (Holm)")


def render(result: ComparedRuns, *, width: int = 140) -> RenderableType:
    """What is shown of a comparison.

    Args:
        result: The comparison.
        width: Columns of the terminal; below 100 intervals stand under their figures.
    """
    blocks = [(version, list(_lines(result, version))) for version in result.versions]
    if width < WIDE:
        blocks = [(version, [_stacked(line) for line in lines]) for version, lines in blocks]
    widths = [
        max(len(part) for line in column for part in line.split("\n"))
        for column in zip(TITLES, *(line for _, lines in blocks for line in lines), strict=True)
    ]
    parts: list[RenderableType] = [
        *_notes(result),
        _heading(result),
        _grid([TITLES], widths, "bold"),
    ]
    for version, lines in blocks:
        parts += [Text(version.variant, style="bold"), _grid(lines, widths)]
    level = f"{100 * result.confidence:g}%"
    parts.append(Text(f"intervals at {level}; * differs after Holm's correction", style="dim"))
    parts += [*_secondary(result, width), *_left_out(result)]
    return Group(*parts)


def show(result: ComparedRuns, console: Console | None = None) -> None:
    """Print `render` to a console, standard output when left out."""
    console = console or Console()
    console.print(Harmless(render(result, width=console.width)))


def _notes(result: ComparedRuns) -> list[RenderableType]:
    return [Text(f"{x.severity}: {x.message}", style=STYLE[x.severity]) for x in result.notes]


def _heading(result: ComparedRuns) -> Text:
    text = Text("\n")
    longest = max(len(audit.folder) for audit in (result.before, result.after))
    for title, audit in (("before", result.before), ("after", result.after)):
        text.append(f"{title:<8}")
        text.append(audit.folder.ljust(longest), style="bold")
        text.append(f"  {audit.model.name}\n")
    text.append(
        f"{result.n_members:,} members, {result.n_nonmembers:,} nonmembers"
        f"  primary attack: {result.primary_attack}\n"
    )
    return text


def _grid(lines: list[Line], widths: list[int], style: str = "") -> Table:
    """Lines in columns of given widths, so that all versions stand in the same columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for at, width in enumerate(widths):
        table.add_column(width=width, no_wrap=True, justify="right" if at else "left", style=style)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


def _stacked(line: Line) -> Line:
    return Line(*(cell.replace(" [", "\n[") for cell in line))


def _lines(result: ComparedRuns, version: ComparedVersion) -> Iterator[Line]:
    """Perplexity, then AUC and every TPR of the primary attack, without those that are absent."""
    perplexities = [version.perplexity_before, version.perplexity_after]
    shown = [f"{value:.2f}" if value else "–" for value in perplexities]
    yield Line("  perplexity", shown[0], shown[1], "", "")
    for item in result.comparisons:
        if (item.variant, item.attack) != (version.variant, result.primary_attack):
            continue
        if item.difference.value is None:
            continue
        before, after = (
            _figure(side[item.attack], item.metric) for side in (version.before, version.after)
        )
        percent = item.metric != "auc"
        yield Line(
            f"  {_metric(item.metric)}",
            interval(before, percent=percent),
            interval(after, percent=percent),
            interval(item.difference, percent=percent, signed=True),
            p_value(item.p_adjusted) + (" *" if _differs(result, item) else "  "),
        )


def _figure(found: AttackResult, metric: str) -> Estimate:
    return found.auc if metric == "auc" else found.tpr_at_fpr[metric.removeprefix("tpr@")]


def _metric(metric: str) -> str:
    """`tpr@0.01` as `TPR@1%FPR, %`."""
    if metric == "auc":
        return "AUC"
    return f"TPR@{100 * float(metric.removeprefix('tpr@')):g}%FPR, %"


def _differs(result: ComparedRuns, item: RunComparison) -> bool:
    return is_finding(item.p_adjusted, result.confidence)


def _secondary(result: ComparedRuns, width: int) -> list[RenderableType]:
    """The secondary comparisons of other attacks that differ; of those that do not, the count."""
    tested = [x for x in result.comparisons if x.family == "secondary" and x.p_value is not None]
    found = sorted((x for x in tested if _differs(result, x)), key=lambda x: x.p_adjusted or 0.0)
    text = Text(f"\n{len(found):,} of {len(tested):,} secondary comparisons differ", style="bold")
    shown: list[RenderableType] = [text]
    if found:
        shown.append(_findings(found[:MAX_SECONDARY], width))
    if len(found) > MAX_SECONDARY:
        shown.append(Text(f"  and {len(found) - MAX_SECONDARY:,} more: see --out", style="dim"))
    return shown


def _findings(found: Sequence[RunComparison], width: int) -> Table:
    """A line for each, or two where one is too short for what is in it."""
    rows = [
        (
            f"  {item.variant}",
            item.attack,
            _metric(item.metric),
            interval(item.difference, percent=item.metric != "auc", signed=True),
            f"p {p_value(item.p_adjusted)}",
        )
        for item in found
    ]
    needed = sum(max(map(len, column)) + GAP for column in zip(*rows, strict=True))
    table = Table.grid(padding=(0, GAP, 0, 0))
    for row in rows:
        stacked = ["  ".join(row[:3]) + "\n    " + "  ".join(row[3:])]
        table.add_row(*(Text(cell) for cell in (stacked if needed > width else row)))
    return table


def _left_out(result: ComparedRuns) -> list[RenderableType]:
    absent = {x.difference.absent for x in result.comparisons if x.attack == result.primary_attack}
    reasons = [*sorted(filter(None, absent)), *(f"{k}: {v}" for k, v in result.left_out.items())]
    return [Text(f"left out: {reason}", style="dim") for reason in reasons]
