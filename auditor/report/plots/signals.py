"""How the primary attack's signal is spread over members and nonmembers, version by version.

All versions share their axes, so that they can be laid beside each other.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from auditor.finished import Finished
from auditor.report.figures import interval
from auditor.report.plots.canvas import (
    finish_ticks,
    name_axes,
    new_axes,
    new_figure,
    plain,
    sample,
    tone,
    write,
)
from auditor.report.plots.drawing import Drawing
from auditor.report.plots.words import sides, slug
from auditor.scoring.scores import Float64

BINS = 8, 36  # at least and at most
# A signal that is never negative and reaches so many times its smallest values is drawn in powers.
SKEWED = 30.0
MOST_TICKS = 5
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# Outside of these percentiles of all versions and sides, records stand in the outermost bins.
ENDS = (0.5, 99.5)
HEIGHT, TOP = 244.0, 70.0
AXES = (38.0, 128.0, 290.0)  # left, height and width in pixels


class Spread(NamedTuple):
    """One version's signal in bins.

    Attributes:
        members: float64, shape (b,): share of the members in each bin.
        nonmembers: float64, shape (b,).
        median_member: Median of the members.
        median_nonmember: Median of the nonmembers.
        n_members: Members.
        n_nonmembers: Nonmembers.
    """

    members: Float64
    nonmembers: Float64
    median_member: float
    median_nonmember: float
    n_members: int
    n_nonmembers: int


class Spreads(NamedTuple):
    """All versions in the same bins.

    Attributes:
        attack: The attack's id.
        edges: float64, shape (b + 1,).
        in_powers: Whether the bins are evenly wide on a logarithmic axis.
        of: By version.
    """

    attack: str
    edges: Float64
    in_powers: bool
    of: dict[str, Spread]


def find_spreads(finished: Finished) -> Spreads | None:
    """The primary attack's signal of every version; None where no version has it."""
    attack, is_member = finished.result.primary_attack, finished.is_member
    signals = {name: found[attack] for name, found in finished.signals.items() if attack in found}
    if not signals:
        return None
    n_least = min(int(is_member.sum()), int((~is_member).sum()))
    edges, in_powers = _edges(list(signals.values()), n_least)
    spreads = {}
    for name, signal in signals.items():
        members, nonmembers = signal[is_member], signal[~is_member]
        spreads[name] = Spread(
            members=_shares(members, edges),
            nonmembers=_shares(nonmembers, edges),
            median_member=float(np.median(members)),
            median_nonmember=float(np.median(nonmembers)),
            n_members=len(members),
            n_nonmembers=len(nonmembers),
        )
    return Spreads(attack, edges, in_powers, spreads)


def _edges(signals: list[Float64], n: int) -> tuple[Float64, bool]:
    """Bins over what all but the outermost records of every version reach; whether in powers.

    Args:
        signals: Of every version.
        n: Records of the smaller side: the more, the finer.
    """
    bins = int(np.clip(round(2.5 * n ** (1 / 3)), *BINS))
    ends = np.array([np.percentile(signal, ENDS) for signal in signals])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    # A ratio such as that of `ez` has a long tail: on a straight axis it would be one peak.
    if min(float(signal.min()) for signal in signals) >= 0 and high > 0:
        least = [signal[signal > 0] for signal in signals if (signal > 0).any()]
        low_above = min(float(np.percentile(signal, ENDS[0])) for signal in least)
        if high > SKEWED * low_above:
            edges = np.geomspace(max(low_above, high * 1e-4), high, bins + 1)
            return edges.astype(np.float64), True
    if not high > low:
        reach = max(abs(low), 1.0) * 1e-3
        low, high = low - reach, high + reach
    return np.linspace(low, high, bins + 1).astype(np.float64), False


def _shares(signal: Float64, edges: Float64) -> Float64:
    """Share of the records in each bin; the outermost bins hold what lies beyond."""
    inside = np.clip(signal, edges[0], edges[-1])
    counts, _ = np.histogram(inside, bins=edges)
    return np.asarray(counts / max(1, len(signal)), dtype=np.float64)


def draw_signals(finished: Finished) -> dict[str, Drawing]:
    """A small figure per version; call it inside `plain_style`."""
    spreads = find_spreads(finished)
    if spreads is None:
        return {}
    most = max(float(np.max([one.members, one.nonmembers])) for one in spreads.of.values())
    return {
        name: _drawn(finished, spreads, name, at=at, most=most)
        for at, name in enumerate(spreads.of)
    }


def _drawn(finished: Finished, spreads: Spreads, name: str, *, at: int, most: float) -> Drawing:
    found, words = spreads.of[name], plain(name)
    figure = new_figure("narrow", HEIGHT)
    left, height, width = AXES
    axes = new_axes(figure, left=left, top=TOP, width=width, height=height)
    _frame(axes, spreads, most)
    name_axes(axes, across=f"signal of {spreads.attack}: larger, more like a member", up="")
    notes = {}
    rows = (
        ("member", "members", found.members, found.median_member, found.n_members),
        ("nonmember", "nonmembers", found.nonmembers, found.median_nonmember, found.n_nonmembers),
    )
    for place, (colour, word, shares, median, n) in enumerate(rows):
        _steps(axes, spreads.edges, shares, colour)
        gid = f"median-{colour}"
        _median(axes, median, colour, gid)
        notes[gid] = f"{words}: median of {n:,} {word}: {_figure(median)}"
        line = 16 + 16 * place
        _swatch(figure, colour, line)
        write(figure, (44, line), f"{n:,} {word}")
        write(figure, (328, line), f"median {_figure(median)}", colour="soft", align="right")
    write(figure, (10, TOP - 12), "share of each side", colour="soft")
    result = finished.result.variant(name).attacks.get(spreads.attack)
    auc = f", AUC {interval(result.auc)}" if result is not None else ""
    return Drawing(
        name=f"signals-{at}-{slug(name)}",
        title=f"Signal of {spreads.attack}: {words}",
        description=(
            f"Distribution of {spreads.attack} under {words}: median {found.median_member:.3g} of "
            f"members, {found.median_nonmember:.3g} of nonmembers{auc}; "
            f"{sides(found.n_members, found.n_nonmembers)}. The outermost bins hold what lies "
            "beyond."
        ),
        figure=figure,
        notes=notes,
        width="narrow",
    )


def _frame(axes: Axes, spreads: Spreads, most: float) -> None:
    low, high = float(spreads.edges[0]), float(spreads.edges[-1])
    if spreads.in_powers:
        reach = (high / low) ** 0.012
        axes.set(xscale="log", xlim=(low / reach, high * reach))
        axes.xaxis.set_major_locator(FixedLocator(_powers(low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        reach = 0.012 * (high - low)
        axes.set_xlim(low - reach, high + reach)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylim(0, 1.08 * most)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _on_axis(x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
    finish_ticks(axes)


def _powers(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: as many of the powers of ten, and three times them, as fit."""
    inside: list[float] = []
    for factors, every in (((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 6)):
        places = range(-300, 300, every)
        inside = [x for place in places for f in factors if low <= (x := f * 10.0**place) <= high]
        if len(inside) <= MOST_TICKS:
            break
    return inside


def _on_axis(value: float) -> str:
    """A tick's number; powers of ten from 10⁴ on, and three times them, in the short form."""
    if abs(value) < 1e4:
        return _minus(f"{value:g}")
    digits, _, power = f"{value:.6e}".partition("e")
    factor = float(digits)
    raised = f"10{str(int(power)).translate(RAISED)}"
    return raised if factor == 1 else _minus(f"{factor:g}·{raised}")


def _figure(value: float) -> str:
    return _minus(f"{value:#.3g}".rstrip("."))


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _steps(axes: Axes, edges: Float64, shares: Float64, colour: str) -> None:
    """Members are filled and framed by a line, nonmembers only framed, by dashes."""
    is_member = colour == "member"
    axes.stairs(
        shares,
        edges,
        fill=is_member,
        facecolor=tone(colour) if is_member else "none",
        edgecolor="none" if is_member else tone(colour),
        alpha=0.28 if is_member else None,
        linewidth=0 if is_member else 1.4,
        linestyle="solid" if is_member else (0, (3.5, 1.6)),
        zorder=2 if is_member else 4,
    )
    if is_member:
        axes.stairs(shares, edges, edgecolor=tone(colour), linewidth=1.3, zorder=3)


def _median(axes: Axes, median: float, colour: str, gid: str) -> None:
    """A tick that hangs from the top, filled for members."""
    low, high = axes.get_xlim()
    place, top = float(np.clip(median, low, high)), axes.get_ylim()[1]
    is_member = colour == "member"
    axes.plot(
        [place, place],
        [0, top],
        color=tone(colour),
        linewidth=1.1,
        linestyle="solid" if is_member else (0, (3.5, 1.6)),
        zorder=5,
    )
    axes.plot(
        [place],
        [top],
        linestyle="none",
        marker="v",
        markersize=8,
        markerfacecolor=tone(colour) if is_member else tone("paper"),
        markeredgecolor=tone(colour),
        markeredgewidth=1.3,
        clip_on=False,
        zorder=6,
        gid=gid,
    )


def _swatch(figure: Figure, colour: str, line: float) -> None:
    """A sample of a side's steps."""
    low, high = line - 0.5, line - 8.5
    is_member = colour == "member"
    if is_member:
        sample(
            figure,
            [12, 34],
            [line - 4.5] * 2,
            color=tone(colour),
            linewidth=8,
            alpha=0.28,
            solid_capstyle="butt",
        )
    sample(
        figure,
        [12, 12, 34, 34],
        [low, high, high, low],
        color=tone(colour),
        linewidth=1.3,
        linestyle="solid" if is_member else (0, (3.5, 1.6)),
    )
