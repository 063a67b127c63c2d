"""Forest plot: by how much each attacker beats who holds less, on the same records.

Per variant what it gives away alone (NR) and beside the original (SR), then all versions together
(MR). A filled mark, a star and bold figures say the same: left after Holm's correction.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from auditor.finished import Finished
from auditor.report.figures import interval, is_finding, p_value
from auditor.report.leakage import LESS
from auditor.report.plots.canvas import (
    BODY,
    HAIR,
    SMALL,
    finish_ticks,
    new_axes,
    new_figure,
    plain,
    shortened,
    text_width,
    tone,
    write,
)
from auditor.report.plots.curves import Kind
from auditor.report.plots.drawing import Drawing, Width
from auditor.report.plots.words import sides
from auditor.results import AuditResult, Comparison, Estimate, LeakageComparison

KINDS: dict[str, Kind] = {"NR": "variant", "SR": "pair", "MR": "together"}
MARKS = {"NR": "o", "SR": "D", "MR": "s"}
SIZES = {"NR": 7.5, "SR": 6.4, "MR": 6.8}
# Base lines: from a heading to its first row, from row to row, and to the next heading.
STEPS: dict[Width, tuple[float, float, float]] = {"wide": (21, 20, 30), "narrow": (20, 33, 40)}
HEAD, FOOT = 40.0, 62.0
REFERENCE_HELD = " (R)"
LABELS, FIGURES = 262, 254  # columns of the wide form, in pixels


class Row(NamedTuple):
    """One difference.

    Attributes:
        setting: NR, SR or MR.
        label: Who is compared with whom.
        found: The difference, with its interval.
        p_adjusted: After Holm.
        is_left: Whether it is left after Holm.
    """

    setting: str
    label: str
    found: Estimate
    p_adjusted: float | None
    is_left: bool


class Block(NamedTuple):
    """The rows of one variant, or of all versions together."""

    heading: str
    rows: list[Row]


def draw_forest(finished: Finished) -> list[Drawing]:
    """The forest plot, wide and narrow; nothing where nothing was compared.

    Call it inside `plain_style`.
    """
    blocks = find_blocks(finished.result)
    if not blocks:
        return []
    return [_drawn(blocks, finished, width) for width in ("wide", "narrow")]


def find_blocks(result: AuditResult) -> list[Block]:
    """The differences to show, those that were named before the run."""
    asked = _asked(result)
    blocks = []
    for variant in result.variants[1:]:
        name = variant.variant
        rows = [
            _alone(item, result)
            for item in result.comparisons
            if (item.variant, item.attack, item.metric) == (name, result.primary_attack, "auc")
        ]
        rows += [
            _question(item, "SR", f"pair over {_less(item)}", result)
            for item in asked
            if item.versions[1:] == [name] and item.question in _SR
        ]
        rows = [row for row in rows if row.found.value is not None]
        if rows:
            blocks.append(Block(plain(name), rows))
    together = [
        _question(item, "MR", f"{_held(item)} over {_less(item)}", result)
        for item in asked
        if item.question in _MR and item.difference.value is not None
    ]
    return [*blocks, Block("all versions together", together)] if together else blocks


_SR = ("SR over NR", "SR over original and reference", "compression over noise")
_SECONDARY = ("variants over original", "compression over noise")
_MR = ("MR over SR", "MR over original and reference", "variants over original")


def _asked(result: AuditResult) -> list[LeakageComparison]:
    """Questions about the AUC under the first supervision: all of it that can make a claim.

    What is asked a second time without the reference, where there is one, is in the table.
    """
    leakage = result.leakage
    if leakage is None or not leakage.supervision:
        return []
    main = leakage.supervision[0]
    found = [
        item for item in leakage.comparisons if item.metric == "auc" and item.supervision == main
    ]
    beside = any(item.with_reference for item in found)
    return [
        item
        for item in found
        if item.family == "primary"
        or (item.with_reference == beside and item.question in _SECONDARY)
    ]


def _alone(item: Comparison, result: AuditResult) -> Row:
    label = "alone over the original alone"
    return Row(
        "NR",
        label,
        item.difference,
        item.p_adjusted,
        is_finding(item.p_adjusted, result.confidence),
    )


def _question(item: LeakageComparison, setting: str, label: str, result: AuditResult) -> Row:
    is_left = is_finding(item.p_adjusted, result.confidence)
    label += REFERENCE_HELD if item.with_reference else ""
    return Row(setting, label, item.difference, item.p_adjusted, is_left)


def _less(item: LeakageComparison) -> str:
    """What must be beaten, in few words."""
    return "the better alone" if item.question == "SR over NR" else LESS[item.question]


def _held(item: LeakageComparison) -> str:
    only = item.question == "variants over original"
    return "all variants" if only else f"all {len(item.versions)} versions"


def _drawn(blocks: Sequence[Block], finished: Finished, width: Width) -> Drawing:
    places, bottom = _places(blocks, width)
    notes_below = _footnotes(finished.result, width)
    figure = new_figure(width, bottom + FOOT + 14 * len(notes_below))
    left, across = (LABELS, 720 - LABELS - FIGURES) if width == "wide" else (26, 288)
    axes = new_axes(
        figure, left=left, top=HEAD - 16, width=across, height=bottom - HEAD + 26, grid=False
    )
    _frame(axes, [row.found for block in blocks for row in block.rows], HEAD - 16, bottom + 10)
    _grid(axes, [rows for _, rows in places], width)
    _headings(figure, width, finished.result)
    notes: dict[str, str] = {}
    for block, (at, rows) in zip(blocks, places, strict=True):
        room = 700 if width == "wide" else 320
        heading = shortened(block.heading, room, size=BODY, bold=True)
        write(figure, (8, at), heading, size=BODY, bold=True)
        for row, line in zip(block.rows, rows, strict=True):
            gid = f"difference-{len(notes)}"
            notes[gid] = _note(block, row)
            middle = line - 3.5 if width == "wide" else line + 12.5
            _interval(axes, row, middle, gid)
            _labels(figure, row, line, width)
    for place, text in enumerate(notes_below):
        write(figure, (8, bottom + FOOT + 14 * place), text, colour="soft")
    return Drawing(
        name="forest",
        title="Differences on the same records",
        description=_described(blocks, finished.result),
        figure=figure,
        notes=notes,
        width=width,
    )


def _places(blocks: Sequence[Block], width: Width) -> tuple[list[tuple[float, list[float]]], float]:
    """Base lines of each block's heading and rows, in pixels from the top; and where they end."""
    to_row, between, to_heading = STEPS[width]
    at, places = HEAD + 12, []
    for block in blocks:
        rows = [at + to_row + between * place for place in range(len(block.rows))]
        places.append((at, rows))
        at = rows[-1] + to_heading
    last = places[-1][1][-1]
    return places, last + (0 if width == "wide" else 14)


def _frame(axes: Axes, found: Sequence[Estimate], top: float, bottom: float) -> None:
    """A straight axis around every interval and 0; up and down are pixels."""
    ends = [x for one in found for x in (one.low, one.high, one.value) if x is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    edge = 0.05 * (high - low) or 0.01
    axes.set(xlim=(low - edge, high + edge), ylim=(bottom, top))
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(x)))
    finish_ticks(axes)


def _grid(axes: Axes, rows: Sequence[Sequence[float]], width: Width) -> None:
    """Hairlines and the line of no difference beside the intervals, never through a word."""
    strips = [(lines[0] - 14, lines[-1] + 6) for lines in rows]
    if width == "narrow":
        strips = [(line + 5, line + 20) for lines in rows for line in lines]
    left, right = axes.get_xlim()
    ticks = [x for x in axes.xaxis.get_majorticklocs() if left <= x <= right]
    for top, bottom in strips:
        axes.vlines(ticks, top, bottom, color=tone("line"), linewidth=HAIR, zorder=1)
        axes.vlines([0.0], top, bottom, color=tone("soft"), linewidth=1.1, zorder=2)


def _number(found: Estimate) -> str:
    """A difference with its interval, in the signs of print; 0 has none."""
    return (
        interval(found, signed=True)
        .replace("-0.000", "0.000")
        .replace("+0.000", "0.000")
        .replace("-", "\N{MINUS SIGN}")
    )


def _signed(value: float) -> str:
    text = f"{value:+.3f}".rstrip("0").rstrip(".")
    return "0" if text in ("+0", "-0", "+", "-") else text.replace("-", "\N{MINUS SIGN}")


def _headings(figure: Figure, width: Width, result: AuditResult) -> None:
    level = f"{100 * result.confidence:g}%"
    if width == "wide":
        write(figure, (LABELS, 15), "difference in AUC", colour="soft")
        write(figure, (624, 15), f"with its {level} interval", colour="soft", align="right")
        write(figure, (712, 15), "p (Holm)", colour="soft", align="right")
    else:
        write(figure, (14, 15), f"difference in AUC, interval at {level}", colour="soft")


def _interval(axes: Axes, row: Row, middle: float, gid: str) -> None:
    """A whisker, and a mark that is filled where the difference is left."""
    colour, found = tone(KINDS[row.setting]), row.found
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [middle, middle], color=colour, linewidth=1.5, zorder=3)
    axes.plot(
        [found.value or 0.0],
        [middle],
        linestyle="none",
        marker=MARKS[row.setting],
        markersize=SIZES[row.setting],
        markerfacecolor=colour if row.is_left else tone("paper"),
        markeredgecolor=colour,
        markeredgewidth=1.5,
        zorder=4,
        gid=gid,
    )


def _labels(figure: Figure, row: Row, line: float, width: Width) -> None:
    """Who is compared with whom at the left, figures at the right."""
    star = " *" if row.is_left else ""
    write(figure, (8 if width == "wide" else 14, line), row.setting, bold=True, colour="soft")
    start = 34 if width == "wide" else 38
    if width == "wide":
        label = shortened(row.label, LABELS - start - 8)
        write(figure, (start, line), label, bold=False)
        number = _number(row.found)
        write(figure, (624, line), number, bold=row.is_left, align="right")
        p_text = p_value(row.p_adjusted)
        write(figure, (702, line), p_text, bold=row.is_left, align="right")
        if star:
            write(figure, (705, line), "*", bold=True)
        return
    number = _number(row.found).partition(" ")[0] + star
    room = 326 - start - text_width(number, SMALL, bold=row.is_left) - 8
    write(figure, (start, line), shortened(row.label, room))
    write(figure, (326, line), number, bold=row.is_left, align="right")


def _note(block: Block, row: Row) -> str:
    kept = "left" if row.is_left else "not left"
    counts = sides(row.found.n_members, row.found.n_nonmembers)
    label = row.label.replace(REFERENCE_HELD, ", both with the reference")
    return (
        f"{block.heading}: {row.setting} {label}: difference in AUC "
        f"{_number(row.found)}, p {p_value(row.p_adjusted)}, {kept} after Holm's "
        f"correction; {counts}"
    )


def _footnotes(result: AuditResult, width: Width) -> list[str]:
    lines = ["filled and *: left after Holm's correction", "NR: p two-sided"]
    asked = _asked(result)
    if asked:
        lines[1] += ", SR and MR: one-sided, of no gain"
    if any(item.with_reference for item in asked):
        lines.append(f"{REFERENCE_HELD.strip()}: both attackers hold the reference too")
    return ["; ".join(lines[:2]), *lines[2:]] if width == "wide" else lines


def _described(blocks: Sequence[Block], result: AuditResult) -> str:
    rows = [(block, row) for block in blocks for row in block.rows]
    left = [(block, row) for block, row in rows if row.is_left]
    level = f"{100 * result.confidence:g}%"
    found = "; ".join(
        f"{block.heading}, {row.setting} {row.label}: {_number(row.found)}" for block, row in left
    )
    what = f"{len(left)} of {len(rows)} are left after Holm's correction"
    return f"Differences in AUC with intervals at {level}; {what}{': ' + found if found else ''}."
