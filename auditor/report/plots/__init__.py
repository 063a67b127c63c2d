"""The figures of a report and a card: drawn once, shown inside the page and written as files."""

from typing import NamedTuple

from auditor.finished import Finished
from auditor.report.plots.canvas import plain_style
from auditor.report.plots.curves import Curves
from auditor.report.plots.drawing import Drawing, png, svg
from auditor.report.plots.forest import draw_forest
from auditor.report.plots.release import draw_release
from auditor.report.plots.roc import draw_roc, draw_roc_of, roc_drawing
from auditor.report.plots.signals import draw_signals

__all__ = ["Drawings", "draw", "files", "roc_drawing"]


class Drawings(NamedTuple):
    """All figures of an audit.

    Attributes:
        release: Leakage against utility, wide and narrow; empty where there is nothing to draw.
        roc: ROC curves, wide.
        roc_narrow: The same, narrow.
        roc_of: By variant, narrow.
        forest: Paired differences, wide and narrow; empty where nothing was compared.
        signals: By version, narrow.
    """

    release: list[Drawing]
    roc: Drawing
    roc_narrow: Drawing
    roc_of: dict[str, Drawing]
    forest: list[Drawing]
    signals: dict[str, Drawing]


def draw(finished: Finished) -> Drawings:
    """Draw all figures; equal audits give equal figures."""
    with plain_style():
        curves = Curves(finished)
        return Drawings(
            release=draw_release(finished),
            roc=draw_roc(curves, width="wide"),
            roc_narrow=draw_roc(curves, width="narrow"),
            roc_of={
                name: draw_roc_of(curves, name, at=at)
                for at, name in enumerate(finished.signals)
                if name in curves.sources.variants
            },
            forest=draw_forest(finished),
            signals=draw_signals(finished),
        )


def files(drawings: Drawings) -> dict[str, bytes]:
    """Every figure in its widest form as PNG and SVG, by file name."""
    chosen = [
        *drawings.release[:1],
        drawings.roc,
        *drawings.roc_of.values(),
        *drawings.forest[:1],
        *drawings.signals.values(),
    ]
    return {
        name: content
        for drawing in chosen
        for name, content in (
            (f"{drawing.name}.png", png(drawing)),
            (f"{drawing.name}.svg", svg(drawing)),
        )
    }
