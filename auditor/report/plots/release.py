"""The release picture: what each set of versions gives away against what it is good for.

    across   mean perplexity on nonmembers, the utility: further left is better
    up       TPR at the reported rate, or the AUC, of who holds the set: lower is better

Sets on the frontier are filled, the others are small and quiet; the larger a mark, the more
versions it stands for.
"""

import math
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from auditor.finished import Finished
from auditor.leakage.bounds import AUC, bound_in_words, fpr_of, metric_in_words
from auditor.report.plots.canvas import (
    DOTS,
    finish_ticks,
    name_axes,
    new_axes,
    new_figure,
    place_of,
    sample,
    shortened,
    text_width,
    tone,
    write,
)
from auditor.report.plots.drawing import Drawing, Width
from auditor.report.plots.labels import Box, Wanted, place
from auditor.report.plots.sets import Picture, Point, Role, find_picture

LAYOUT: dict[Width, tuple[float, float, float, float]] = {
    # left, top, width and height of the axes, in pixels
    "wide": (54, 64, 652, 330),
    "narrow": (46, 86, 282, 270),
}
HEIGHT: dict[Width, float] = {"wide": 444, "narrow": 406}
MOST_QUIET = 400
# Up to so many sets all answer to the pointer, above only those of the frontier and named ones.
MOST_NOTED = 64
MOST_INTERVALS = 8
QUIET = 4.0
LOGARITHMIC = 3.0  # how many times the smallest perplexity the largest must be
LABEL_ROOM: dict[Width, float] = {"wide": 300, "narrow": 168}
ROLES: tuple[Role, ...] = ("advised", "gate", "original", "all", "single")


def draw_release(finished: Finished) -> list[Drawing]:
    """The release picture, wide and narrow; nothing where there is nothing to show.

    Call it inside `plain_style`.
    """
    picture = find_picture(finished)
    if picture is None or not picture.points:
        return []
    return [_drawn(picture, width) for width in ("wide", "narrow")]


def _drawn(picture: Picture, width: Width) -> Drawing:
    left, top, across, down = LAYOUT[width]
    height = HEIGHT[width]
    if not picture.n_versions:  # there is no legend
        top, height = top - 28, height - 28
    figure = new_figure(width, height)
    axes = new_axes(figure, left=left, top=top, width=across, height=down)
    named = [point for point in picture.points if point.roles]
    _frame(axes, picture, named)
    up = metric_in_words(picture.metric)
    if width == "wide":
        up += " of who holds the set" if picture.n_versions else " of each version alone"
    kind = "mean perplexity" if picture.n_versions else "perplexity"
    name_axes(axes, across=f"{kind} on nonmembers: lower is better", up=f"{up}: lower is better")
    notes = _marks(axes, picture, named)
    _levels(axes, picture)
    _names(figure, axes, picture, named, width)
    _legend(figure, picture, width)
    return Drawing(
        name="release",
        title="What can be published together" if picture.n_versions else "Each version alone",
        description=_described(picture),
        figure=figure,
        notes=notes,
        width=width,
    )


def _frame(axes: Axes, picture: Picture, named: list[Point]) -> None:
    """Axes around all sets, the intervals that are drawn, chance and the bound."""
    xs = [point.perplexity for point in picture.points]
    low, high = min(xs), max(xs)
    if high > LOGARITHMIC * low:
        reach = (high / low) ** 0.06
        axes.set(xscale="log", xlim=(low / reach, high * reach))
        powers = [factor * 10.0**place for place in range(9) for factor in (1, 2, 5)]
        shown = [x for x in powers if low / reach <= x <= high * reach]
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        reach = 0.06 * (high - low) or 0.05 * high
        axes.set_xlim(low - reach, high + reach)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    ys = [y for point in picture.points for y in [point.leakage.value] if y is not None]
    ys += [
        y
        for point in with_intervals(named)
        for y in (point.leakage.low, point.leakage.high)
        if y is not None
    ]
    ys += [chance(picture.metric)]
    if picture.bound is not None:
        ys.append(picture.bound.at_most)
    if picture.metric != AUC:
        ys.append(0.0)
    edge = 0.06 * (max(ys) - min(ys))
    bottom = min(ys) - (edge if picture.metric == AUC else 0.0)
    axes.set_ylim(bottom, max(ys) + edge)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _level(y, picture.metric)))
    finish_ticks(axes)


def chance(metric: str) -> float:
    """What an attacker reaches who knows nothing."""
    return 0.5 if metric == AUC else fpr_of(metric)


def _level(value: float, metric: str) -> str:
    return f"{value:.3g}" if metric == AUC else f"{100 * value:.3g}%"


def _size(point: Point) -> float:
    """Diameter of a mark, by the number of versions: from 6 to 12 pixels."""
    return 6.0 + 6.0 * math.sqrt(min(1.0, point.n_versions / 12))


def thinned(points: list[Point]) -> list[Point]:
    """At most 400 of the sets that are not on the frontier, those at the edges among them."""
    if len(points) <= MOST_QUIET:
        return points
    xs = np.array([point.perplexity for point in points])
    ys = np.array([point.leakage.value or 0.0 for point in points])
    edges = {int(place) for values in (xs, ys) for place in (values.argmin(), values.argmax())}
    spread = np.linspace(0, len(points) - 1, MOST_QUIET - len(edges)).round().astype(int).tolist()
    return [points[place] for place in sorted({*edges, *spread})]


def with_intervals(named: list[Point]) -> list[Point]:
    """The sets whose interval is drawn: all that have a name, or else those that are decided on."""
    if len(named) <= MOST_INTERVALS:
        return named
    return [point for point in named if point.roles != {"single"}]


def _marks(axes: Axes, picture: Picture, named: list[Point]) -> dict[str, str]:
    """Marks of all sets; returns the notes."""
    quiet = [point for point in picture.points if not (point.on_frontier or point.roles)]
    few = len(picture.points) <= MOST_NOTED
    notes: dict[str, str] = {}
    if not few:
        shown = thinned(quiet)
        axes.plot(
            [point.perplexity for point in shown],
            [point.leakage.value or 0.0 for point in shown],
            linestyle="none",
            marker="o",
            markersize=QUIET,
            markerfacecolor="none",
            markeredgecolor=tone("soft"),
            markeredgewidth=0.7,
            alpha=0.6,
            zorder=2,
        )
    for point in with_intervals(named):
        low, high = point.leakage.low, point.leakage.high
        if low is not None and high is not None:
            colour = tone("original" if "original" in point.roles else "soft")
            axes.vlines([point.perplexity], low, high, color=colour, linewidth=0.9, alpha=0.55)
    for at, point in enumerate(picture.points):
        if few or point.on_frontier or point.roles:
            gid = f"set-{at}"
            notes[gid] = point.note
            _mark(axes, point, gid, is_alone=picture.n_versions == 0)
    return notes


def _mark(axes: Axes, point: Point, gid: str, *, is_alone: bool) -> None:
    """One set: filled on the frontier; a ring around the advised one, a frame around the gate's."""
    is_original = "original" in point.roles
    colour = tone("original" if is_original else "variant")
    filled = point.on_frontier or is_alone
    y = point.leakage.value or 0.0
    rings = (("advised", "o", "good", 9.0, 1.8), ("gate", "s", "ink", 7.5, 1.1))
    for role, shape, ring, more, weight in rings:
        if role in point.roles:
            axes.plot(
                [point.perplexity],
                [y],
                linestyle="none",
                marker=shape,
                markersize=_size(point) + more,
                markerfacecolor="none",
                markeredgecolor=tone(ring),
                markeredgewidth=weight,
                zorder=6,
            )
    axes.plot(
        [point.perplexity],
        [y],
        linestyle="none",
        marker="D" if is_original else "o",
        markersize=_size(point) if filled or point.roles else QUIET + 0.15 * point.n_versions,
        markerfacecolor=colour if filled else tone("paper"),
        markeredgecolor=tone("paper") if filled else colour if point.roles else tone("soft"),
        markeredgewidth=1.0,
        zorder=8 if is_original else 5 if point.on_frontier else 4 if point.roles else 3,
        gid=gid,
    )


def lower_edge(picture: Picture, right: float) -> list[tuple[float, float]]:
    """Corners of the lower left edge: no set has both less perplexity and less leakage.

    It runs through sets of the frontier; the others of it are there for holding more versions.

    Args:
        picture: The sets.
        right: Where it ends.
    """
    ordered = sorted((point.perplexity, point.leakage.value or 0.0) for point in picture.points)
    corners = [ordered[0]]
    for x, y in ordered[1:]:
        if y < corners[-1][1]:
            corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (right, corners[-1][1])]


def _levels(axes: Axes, picture: Picture) -> None:
    """Chance, the bound where there is one, and the lower left edge of all sets."""
    axes.axhline(chance(picture.metric), color=tone("soft"), linewidth=0.9, dashes=(2, 2))
    if picture.bound is not None:
        axes.axhline(picture.bound.at_most, color=tone("bad"), linewidth=1.4, dashes=(6, 3))
    if picture.n_versions:
        xs, ys = zip(*lower_edge(picture, max(axes.get_xlim())), strict=True)
        axes.plot(xs, ys, color=tone("variant"), linewidth=1.1, alpha=0.7, zorder=2.5)


def _names(figure: Figure, axes: Axes, picture: Picture, named: list[Point], width: Width) -> None:
    """Names of levels and of the sets that stand for something, none on another."""
    left, top, across, down = place_of(axes)
    height = figure.get_size_inches()[1] * DOTS

    def pixels(x: float, y: float) -> tuple[float, float]:
        right, up = axes.transData.transform((x, y))
        return float(right), height - float(up)

    covered = _written_levels(figure, axes, picture)
    for point in picture.points:
        x, y = pixels(point.perplexity, point.leakage.value or 0.0)
        r = _reach(point) if point.on_frontier or point.roles else 3.0
        covered.append(Box(x - r, y - r, x + r, y + r))
    # Thin lines may be crossed where there is no other place.
    quiet = []
    for point in with_intervals(named):
        ends = [pixels(point.perplexity, y or 0.0) for y in (point.leakage.low, point.leakage.high)]
        quiet.append(_around(*ends))
    if picture.n_versions:
        corners = [pixels(x, y) for x, y in lower_edge(picture, max(axes.get_xlim()))]
        quiet += [_around(start, end) for start, end in pairwise(corners)]
    order = sorted(named, key=lambda point: min(ROLES.index(role) for role in point.roles))
    wanted = [
        Wanted(
            _label(point, picture, width),
            *pixels(point.perplexity, point.leakage.value or 0.0),
            _reach(point),
            bold="single" not in point.roles,
        )
        for point in order
    ]
    within = Box(max(left, 4), top - 4, left + across + 6, top + down - 2)
    for found in place(wanted, within=within, covered=covered, quiet=quiet):
        if found.lead is not None:
            (x0, y0), (x1, y1) = found.lead
            sample(figure, [x0, x1], [y0, y1], color=tone("soft"), linewidth=0.7)
        write(figure, (found.box.left + 2, found.base), found.wanted.text, bold=found.wanted.bold)


def _around(start: tuple[float, float], end: tuple[float, float]) -> Box:
    """A level or upright line with a little room."""
    xs, ys = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return Box(xs[0] - 1.5, ys[0] - 1.5, xs[1] + 1.5, ys[1] + 1.5)


def _reach(point: Point) -> float:
    ring = 4.5 if "advised" in point.roles else 3.8 if "gate" in point.roles else 0.0
    return _size(point) / 2 + ring + 1


def _label(point: Point, picture: Picture, width: Width) -> str:
    """What stands beside a mark."""
    words = "original alone" if "original" in point.roles and picture.n_versions else point.name
    if "advised" in point.roles:
        words = f"advised: {words}"
    elif "gate" in point.roles:
        words = f"to be released: {words}"
    elif "all" in point.roles and picture.no_increase and width == "wide":
        words = f"{words}: no increase shown"
    return shortened(words, LABEL_ROOM[width], bold="single" not in point.roles)


def _written_levels(figure: Figure, axes: Axes, picture: Picture) -> list[Box]:
    """The names of chance and of the bound at the right end of their lines; what they cover."""
    left, top, across, down = place_of(axes)
    low, high = axes.get_ylim()
    levels = [(chance(picture.metric), "chance", "soft")]
    if picture.bound is not None:
        words = f"bound: {bound_in_words(picture.bound)}"
        levels.append((picture.bound.at_most, words, "bad"))
    covered: list[Box] = []
    for level, words, colour in levels:
        line = top + down * (1 - (level - low) / (high - low))
        length = text_width(words)
        box = Box(left + across - length - 4, line - 15, left + across + 2, line)
        if any(box.meets(other) for other in covered):
            box = box._replace(top=line, bottom=line + 15)
        write(figure, (left + across, box.bottom - 4), words, colour=colour, align="right")
        covered += [box, Box(left, line - 1, left + across, line + 1)]
    return covered


def _legend(figure: Figure, picture: Picture, width: Width) -> None:
    """What the marks say, above the axes."""
    if not picture.n_versions:
        return
    at, line = 10.0, 16.0
    entries = [
        ("line", "variant", "variant", "on the frontier"),
        ("o", "paper", "soft", "other sets"),
    ]
    if any("advised" in point.roles for point in picture.points):
        entries.append(("ring", "none", "good", "advised"))
    if any("gate" in point.roles for point in picture.points):
        entries.append(("s", "none", "ink", "to be released"))
    entries.append(("sizes", "variant", "variant", f"1 to {picture.n_versions} versions"))
    for shape, face, edge, words in entries:
        room = 22 + (18 if shape == "sizes" else 0) + text_width(words) + 18
        if at + room > (712 if width == "wide" else 340):
            at, line = 10.0, line + 18
        _swatch(figure, shape, (face, edge), (at, line - 3.5))
        start = at + (38 if shape == "sizes" else 20)
        write(figure, (start, line), words, colour="soft")
        at += room


def _swatch(figure: Figure, shape: str, colours: tuple[str, str], at: tuple[float, float]) -> None:
    if shape == "line":
        xs, ys = [at[0] - 2, at[0] + 14], [at[1], at[1]]
        sample(figure, xs, ys, color=tone("variant"), linewidth=1.1, alpha=0.7)
    face, edge = ("none" if name == "none" else tone(name) for name in colours)
    marks = [(6.0, 8.0 if face != tone("paper") else QUIET)]
    if shape == "sizes":
        marks = [(3.0, 6.0), (13.0, 8.5), (26.0, 11.0)]
    elif shape in ("ring", "s"):
        marks = [(7.0, 11.0)]
    for right, size in marks:
        sample(
            figure,
            [at[0] + right],
            [at[1]],
            linestyle="none",
            marker="s" if shape == "s" else "o",
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=edge,
            markeredgewidth=1.8 if shape == "ring" else 1.0,
        )


def _described(picture: Picture) -> str:
    named = [point for point in picture.points if point.roles & {"original", "all", "advised"}]
    found = "; ".join(point.note for point in (named or picture.points)[:4])
    what = f"{len(picture.points)} sets of versions" if picture.n_versions else "Each version alone"
    metric = metric_in_words(picture.metric)
    text = f"{what}, {metric} against mean perplexity on nonmembers. {found}."
    return f"{text} {picture.advice}".strip()
