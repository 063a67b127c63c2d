"""ROC curves on logarithmic axes, from one nonmember on: what each attacker finds at few alarms.

The largest figure has the original, the variant and the pair that leak most, all versions together
and the baseline that sees no model; a small one for each variant has what concerns it.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from auditor.finished import Finished
from auditor.report.figures import headline_rate, interval
from auditor.report.plots.canvas import (
    BODY,
    SPOT,
    WIDTHS,
    finish_ticks,
    name_axes,
    new_axes,
    new_figure,
    plain,
    plain_style,
    sample,
    shortened,
    spot,
    tone,
    write,
)
from auditor.report.plots.curves import Curves, Kind, Source, most_leaking
from auditor.report.plots.drawing import Drawing, Width
from auditor.report.plots.words import by_rate, estimate_at, percent, rate_in_percent, sides, slug
from auditor.stats.curves import Curve

# Rates at which a curve answers to the pointer.
ROUND = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LINES: dict[Kind, tuple[float, tuple[float, ...] | None]] = {
    "original": (1.9, None),
    "variant": (1.6, (7.0, 2.2)),
    "pair": (1.6, (7.0, 2.0, 1.6, 2.0)),
    "together": (2.1, (3.2, 1.6)),
    "blind": (1.5, (1.2, 1.8)),
}
MARKS: dict[Kind, str] = {
    "original": "o",
    "variant": "^",
    "pair": "D",
    "together": "s",
    "blind": "X",
}
SIZES: dict[Kind, float] = {
    "original": 7.0,
    "variant": 7.5,
    "pair": 6.2,
    "together": 6.5,
    "blind": 7.0,
}
BAND = 0.13


class Entry(NamedTuple):
    """One curve of a figure.

    Attributes:
        source: What is drawn.
        title: What it stands for, in the legend and before every note.
        more: What else the legend says of it.
        band: Whether its band is drawn.
    """

    source: Source
    title: str
    more: tuple[str, ...] = ()
    band: bool = False


def roc_drawing(finished: Finished, *, width: Width) -> Drawing:
    """The ROC curves of the whole audit."""
    with plain_style():
        return draw_roc(Curves(finished), width=width)


def draw_roc(curves: Curves, *, width: Width) -> Drawing:
    """The ROC curves of the whole audit; call it inside `plain_style`."""
    entries = _whole(curves)
    layout = _wide if width == "wide" else _narrow
    figure, axes = layout(entries, curves)
    notes = _plot(axes, entries, curves)
    return Drawing(
        name="roc",
        title="ROC curves",
        description=_described(entries, curves),
        figure=figure,
        notes=notes,
        width=width,
    )


def draw_roc_of(curves: Curves, variant: str, *, at: int) -> Drawing:
    """The ROC curves that concern one variant; call it inside `plain_style`.

    Args:
        curves: All curves.
        variant: Its name.
        at: Its place among the versions, for the name of the file.
    """
    entries = _of_variant(curves, variant)
    height = 24 + 206 + 52 + 17 * (len(entries) + 1) + 4
    figure = new_figure("narrow", height)
    axes = new_axes(figure, left=46, top=24, width=282, height=206)
    top = 24 + 206 + 62
    for place, entry in enumerate(entries):
        line = top + 17 * place
        _swatch(figure, entry.source.kind, 10, line - 3.5)
        write(figure, (48, line), entry.title)
        auc = f"AUC {interval(entry.source.auc)}"
        write(figure, (328, line), auc, colour="soft", align="right")
    line = top + 17 * len(entries)
    sample(figure, [10, 38], [line - 3.5, line - 3.5], color=tone("soft"), linewidth=0.9)
    write(figure, (48, line), "chance", colour="soft")
    notes = _plot(axes, entries, curves)
    return Drawing(
        name=f"roc-{at}-{slug(variant)}",
        title=f"ROC curves: {plain(variant)}",
        description=_described(entries, curves),
        figure=figure,
        notes=notes,
        width="narrow",
    )


def _whole(curves: Curves) -> list[Entry]:
    sources = curves.sources
    entries = []
    if sources.original is not None:
        entries.append(Entry(sources.original, "original", band=True))
    for found, of, word in (
        (most_leaking(sources.variants), sources.variants, "variant"),
        (most_leaking(sources.pairs), sources.pairs, "pair"),
    ):
        if found is None:
            continue
        last = plain(found.versions[-1])
        name = last if word == "variant" else f"original + {last}"
        title = f"most leaking {word}" if len(of) > 1 else word
        choice = (f"largest AUC of {len(of)}",) if len(of) > 1 else ()
        entries.append(Entry(found, title, (name, *choice), band=word == "variant"))
    if sources.together is not None:
        n_versions = len(sources.together.versions)
        entries.append(Entry(sources.together, f"all {n_versions} versions together", band=True))
    if sources.blind is not None:
        entries.append(Entry(sources.blind, "blind baseline", ("sees the texts, no model",)))
    return entries


def _of_variant(curves: Curves, variant: str) -> list[Entry]:
    sources = curves.sources
    found = [
        (sources.original, "original", True),
        (sources.variants.get(variant), "this variant", True),
        (sources.pairs.get(variant), "original + this variant", False),
        (sources.together, "all versions", False),
    ]
    return [Entry(source, title, (), band) for source, title, band in found if source is not None]


def _wide(entries: list[Entry], curves: Curves) -> tuple[Figure, Axes]:
    """Axes at the left, a legend in a column at the right."""
    blocks = [_legend_lines(entry, curves) for entry in entries]
    needed = 24 + sum(20 + 14 * len(lines) + 9 for lines in blocks) + 30 + 14 * 2
    height = max(436, needed)
    figure = new_figure("wide", height)
    axes = new_axes(figure, left=54, top=28, width=398, height=height - 28 - 48)
    top = _legend(figure, entries, blocks, left=482, top=26)
    sample(figure, [482, 510], [top - 3.5, top - 3.5], color=tone("soft"), linewidth=0.9)
    write(figure, (520, top), "chance", colour="soft")
    for place, line in enumerate(_footnotes(curves)):
        write(figure, (482, top + 24 + 14 * place), line, colour="soft")
    return figure, axes


def _narrow(entries: list[Entry], curves: Curves) -> tuple[Figure, Axes]:
    """Axes above, the legend below."""
    blocks = [_legend_lines(entry, curves) for entry in entries]
    needed = sum(20 + 14 * len(lines) + 6 for lines in blocks) + 30 + 14 * 2
    figure = new_figure("narrow", 26 + 250 + 64 + needed)
    axes = new_axes(figure, left=46, top=26, width=282, height=250)
    top = _legend(figure, entries, blocks, left=10, top=26 + 250 + 64)
    sample(figure, [10, 38], [top - 3.5, top - 3.5], color=tone("soft"), linewidth=0.9)
    write(figure, (48, top), "chance", colour="soft")
    for place, line in enumerate(_footnotes(curves)):
        write(figure, (10, top + 22 + 14 * place), line, colour="soft")
    return figure, axes


def _legend(
    figure: Figure, entries: list[Entry], blocks: list[list[str]], *, left: float, top: float
) -> float:
    """The entries one under another; returns the base line of what comes next."""
    room = WIDTHS["wide"] - 8 - left - 38 if left > WIDTHS["narrow"] else WIDTHS["narrow"] - 58
    for entry, lines in zip(entries, blocks, strict=True):
        _swatch(figure, entry.source.kind, left, top - 3.5)
        title = shortened(entry.title, room, size=BODY, bold=True)
        write(figure, (left + 38, top), title, size=BODY, bold=True)
        for line in lines:
            top += 14
            write(figure, (left + 38, top), shortened(line, room), colour="soft")
        top += 23
    return top


def _swatch(figure: Figure, kind: Kind, left: float, middle: float) -> None:
    weight, dashes = LINES[kind]
    line = sample(figure, [left, left + 28], [middle, middle], color=tone(kind), linewidth=weight)
    if dashes is not None:
        line.set_dashes(dashes)
    _marked(sample(figure, [left + 14], [middle], linestyle="none"), kind)


def _legend_lines(entry: Entry, curves: Curves) -> list[str]:
    """What the legend says under an entry's title."""
    rate = headline_rate(curves.finished.result)
    lines = [*entry.more, f"AUC {interval(entry.source.auc)}"]
    found = entry.source.tpr_at_fpr.get(rate or "")
    if rate is not None and found is not None and found.value is not None:
        lines.append(f"TPR {estimate_at(found)} at {by_rate(rate)}")
    return lines


def _footnotes(curves: Curves) -> list[str]:
    level = f"{100 * curves.finished.result.confidence:g}%"
    original = curves.sources.original
    lines = [f"{level} intervals; bands where above 0"]
    return [*lines, f"attack: {_attack(original)}"] if original is not None else lines


def _attack(source: Source) -> str:
    if source.attack.startswith("single"):
        beside = ", with the reference" if source.attack.endswith("-ref") else ""
        return f"learned{beside}"
    return source.attack


def _plot(axes: Axes, entries: list[Entry], curves: Curves) -> dict[str, str]:
    """Curves, bands, marks at the rate that is reported; returns the notes."""
    n_nonmembers = int((~curves.finished.is_member).sum())
    floor = 0.8 / n_nonmembers
    _frame(axes, floor)
    axes.plot([floor, 1], [floor, 1], color=tone("soft"), linewidth=0.9, zorder=2)
    rate = headline_rate(curves.finished.result)
    notes: dict[str, str] = {}
    for entry in entries:
        kind, curve = entry.source.kind, curves.of(entry.source)
        weight, dashes = LINES[kind]
        # A logarithmic axis has no place for 0: it is drawn below the axis' end.
        tpr = np.maximum(curve.tpr, floor / 10)
        if entry.band:
            _band(axes, curve, kind)
        (line,) = axes.plot(
            curve.fpr, tpr, color=tone(kind), linewidth=weight, label=kind, zorder=4
        )
        if dashes is not None:
            line.set_dashes(dashes)
        notes |= _spots(axes, entry, curve, floor)
        notes |= _headline(axes, entry, rate, floor)
    return notes


def _band(axes: Axes, curve: Curve, kind: Kind) -> None:
    """The band, from the rate on at which its lower end leaves 0.

    Before, so few nonmembers decide that the band would be a wall down to the end of the axis.
    """
    begin = int(np.argmax(curve.low > 0))
    x, low, high = (values[begin:] for values in (curve.fpr, curve.low, curve.high))
    axes.fill_between(x, low, high, color=tone(kind), alpha=BAND, linewidth=0, zorder=1)


def _spots(axes: Axes, entry: Entry, curve: Curve, floor: float) -> dict[str, str]:
    """Places on a curve that answer to the pointer, near round rates."""
    notes = {}
    places = {
        int(np.searchsorted(curve.fpr, rate * (1 + 1e-9), side="right")) - 1 for rate in ROUND
    }
    for at in sorted(place for place in places if place >= 0 and curve.tpr[place] > floor):
        gid = f"{entry.source.kind}-{at}"
        spot(axes, curve.fpr[at], curve.tpr[at], gid=gid, colour=entry.source.kind)
        reach = f"[{percent(curve.low[at])}, {percent(curve.high[at])}]"
        notes[SPOT + gid] = (
            f"{entry.title}: TPR {percent(curve.tpr[at])} {reach} "
            f"at {rate_in_percent(curve.fpr[at])} FPR; {sides(curve.n_members, curve.n_nonmembers)}"
        )
    return notes


def _headline(axes: Axes, entry: Entry, rate: str | None, floor: float) -> dict[str, str]:
    """The mark at the reported rate."""
    found = entry.source.tpr_at_fpr.get(rate or "")
    if rate is None or found is None or found.value is None:
        return {}
    if found.value < floor:
        return {}
    gid = f"{entry.source.kind}-at-{rate.replace('.', '-')}"
    (mark,) = axes.plot([float(rate)], [found.value], linestyle="none", gid=gid, zorder=10)
    _marked(mark, entry.source.kind)
    counts = sides(found.n_members, found.n_nonmembers)
    return {gid: f"{entry.title}: TPR {estimate_at(found)} at {by_rate(rate)}; {counts}"}


def _marked(mark: Line2D, kind: Kind) -> None:
    mark.set(
        marker=MARKS[kind],
        markersize=SIZES[kind],
        markerfacecolor=tone(kind),
        markeredgecolor=tone("paper"),
        markeredgewidth=1.0,
    )


def _frame(axes: Axes, floor: float) -> None:
    """Logarithmic axes in percent."""
    axes.set(xscale="log", yscale="log", xlim=(floor, 1.12), ylim=(floor, 1.12))
    ticks = [rate for rate in (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0) if rate >= floor]
    if len(ticks) < 3:
        ticks = [rate for rate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if rate >= floor]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FixedFormatter([f"{100 * rate:g}%" for rate in ticks]))
    finish_ticks(axes)
    name_axes(
        axes,
        across="false positive rate: nonmembers taken for members",
        up="true positive rate: members found",
    )


def _described(entries: list[Entry], curves: Curves) -> str:
    """The main numbers, for who does not see the figure."""
    parts = []
    for entry in entries:
        name = f" ({entry.more[0]})" if entry.more else ""
        parts.append(f"{entry.title}{name}: AUC {interval(entry.source.auc)}")
    n_members = int(curves.finished.is_member.sum())
    counts = sides(n_members, len(curves.finished) - n_members)
    return (
        "True positive rate against false positive rate, both axes logarithmic, "
        f"{counts}. {'; '.join(parts)}."
    )
