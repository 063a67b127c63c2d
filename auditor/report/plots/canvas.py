"""What all figures share: sizes in CSS pixels, type, axes, and text that came from anywhere.

A figure is 72 dots to the inch, so that a point, a pixel of the page and a unit of the SVG are the
same. Letters are measured in matplotlib's own DejaVu Sans, which is wider than what browsers put
in its place: what does not overlap here does not overlap there.
"""

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from auditor.report.plots.palette import PALETTE

if TYPE_CHECKING:
    from auditor.report.plots.drawing import Width

DOTS = 72
WIDTHS: "dict[Width, int]" = {"wide": 720, "narrow": 340}
BODY, SMALL = 11.0, 10.0
HAIR = 0.7
# Gids of what is not seen but answers to the pointer begin with this; see `drawing`.
SPOT = "spot-"
# Removed from every text: control, format and lone surrogate characters, separators of lines and
# paragraphs, and what Unicode leaves undefined, some of which XML forbids.
REMOVED = ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co")
ELLIPSIS = "…"


@contextmanager
def plain_style() -> Iterator[None]:
    """What matplotlib itself does, whatever the user's `matplotlibrc` says; no math.

    A letter that DejaVu Sans lacks is a box in the PNG and itself in the SVG: no warning is due.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "text.parse_math": False,
                "text.usetex": False,
                "svg.fonttype": "none",
                "svg.hashsalt": "compleak-llm",
                "svg.id": None,
                "font.family": ["DejaVu Sans"],
                "path.simplify": False,
                "axes.unicode_minus": True,
                "hatch.linewidth": HAIR,
            }
        )
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def tone(name: str) -> str:
    """A colour of the light page by its name in the palette."""
    return PALETTE[name].light


def plain(text: str) -> str:
    """Text on one line, without characters that control what stands around them."""
    kept = [
        " " if char.isspace() else char
        for char in text
        if char in "\t\n\r" or unicodedata.category(char) not in REMOVED
    ]
    return " ".join("".join(kept).split())


@lru_cache(maxsize=2)
def font(*, bold: bool = False) -> FontProperties:
    """DejaVu Sans from matplotlib's own files, not from the machine's."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return FontProperties(
        family="DejaVu Sans", weight="bold" if bold else "normal", fname=str(path)
    )


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = SMALL, *, bold: bool = False) -> float:
    """Width of a line in pixels."""
    found = font(bold=bold).copy()
    found.set_size(size)
    return float(text_to_path.get_text_width_height_descent(text, found, ismath=False)[0])


def shortened(text: str, room: float, *, size: float = SMALL, bold: bool = False) -> str:
    """Text that fits into so many pixels, with its middle left out where it must."""
    text = plain(text)
    if text_width(text, size, bold=bold) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        kept = (low + high + 1) // 2
        if text_width(_without_middle(text, kept), size, bold=bold) <= room:
            low = kept
        else:
            high = kept - 1
    return _without_middle(text, low)


def _without_middle(text: str, kept: int) -> str:
    """So many characters of a text, the half of them from its end."""
    tail = kept // 2
    return text[: kept - tail] + ELLIPSIS + (text[len(text) - tail :] if tail else "")


def new_figure(width: "Width", height: float) -> Figure:
    """An empty figure, so many pixels high, on paper."""
    size = WIDTHS[width] / DOTS, height / DOTS
    return Figure(figsize=size, dpi=DOTS, facecolor=tone("paper"), edgecolor="none")


def new_axes(
    figure: Figure, *, left: float, top: float, width: float, height: float, grid: bool = True
) -> Axes:
    """Axes at a place in pixels from the top left: a hairline grid across, a base line, no box."""
    across, down = figure.get_size_inches() * DOTS
    place = (left / across, 1 - (top + height) / down, width / across, height / down)
    axes = figure.add_axes(place, facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=tone("line"), linewidth=1.0)
    axes.tick_params(which="both", length=0, pad=5, labelcolor=tone("soft"), labelsize=SMALL)
    if grid:
        axes.grid(visible=True, axis="y", color=tone("line"), linewidth=HAIR)
    axes.set_axisbelow(True)
    return axes


def finish_ticks(axes: Axes) -> None:
    """Give the tick labels the bundled face; call it when ticks are set."""
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        styled(label, SMALL)


def name_axes(axes: Axes, *, across: str, up: str) -> None:
    """What the axes show: below them in the middle, and above them at the left, level."""
    left, top, width, height = place_of(axes)
    figure = axes.get_figure(root=True)
    if figure is not None:
        write(figure, (left + width / 2, top + height + 36), across, colour="soft", align="center")
        write(figure, (max(8.0, left - 38), top - 12), up, colour="soft")


def place_of(axes: Axes) -> tuple[float, float, float, float]:
    """Left, top, width and height of axes in pixels from the top left."""
    figure, box = axes.get_figure(root=True), axes.get_position()
    across, down = (72.0, 72.0) if figure is None else figure.get_size_inches() * DOTS
    return box.x0 * across, (1 - box.y1) * down, box.width * across, box.height * down


def styled(text: Text, size: float, *, bold: bool = False) -> Text:
    """A text in the bundled face."""
    face = font(bold=bold).copy()
    face.set_size(size)
    text.set_fontproperties(face)
    return text


def write(
    figure: Figure,
    at: tuple[float, float],
    text: str,
    *,
    size: float = SMALL,
    bold: bool = False,
    colour: str = "ink",
    align: str = "left",
    gid: str | None = None,
) -> Text:
    """Text into a figure, its base line at a place in pixels from the top left."""
    across, down = figure.get_size_inches() * DOTS
    found = figure.text(
        at[0] / across,
        1 - at[1] / down,
        plain(text),
        color=tone(colour),
        ha=align,
        va="baseline",
        gid=gid,
    )
    return styled(found, size, bold=bold)


def sample(
    figure: Figure,
    xs: Sequence[float],
    ys: Sequence[float],
    **how: Any,  # noqa: ANN401
) -> Line2D:
    """A line or marks in a figure, in pixels from the top left: the samples of a legend."""
    across, down = figure.get_size_inches() * DOTS
    line = Line2D(
        [x / across for x in xs],
        [1 - y / down for y in ys],
        transform=figure.transFigure,
        **how,
    )
    figure.add_artist(line)
    return line


def spot(axes: Axes, x: float, y: float, *, gid: str, colour: str, size: float = 15.0) -> None:
    """A place that is not seen and answers to the pointer; its gid begins with `SPOT`.

    Args:
        axes: Where.
        x: In data.
        y: In data.
        gid: Its gid, without the beginning.
        colour: Of the palette: what shows there when it is pointed at.
        size: Its diameter in pixels.
    """
    axes.plot(
        [x],
        [y],
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor=tone(colour),
        markeredgecolor="none",
        # Not 0: what is not painted leaves no mark in the SVG either.
        alpha=0.002,
        gid=SPOT + gid,
        zorder=9,
    )
