"""Labels beside marks: each where it covers nothing, or nowhere.

Greedy, the most wanted first: of places around its mark, the nearest that is free. A label that
finds none is left out; its mark answers to the pointer still.
"""

from collections.abc import Sequence
from typing import NamedTuple

from auditor.report.plots.canvas import SMALL, text_width

# Distances from the edge of a mark, in pixels, and directions in the order of preference.
DISTANCES = (4.0, 9.0, 16.0, 24.0, 32.0, 42.0, 54.0)
DIRECTIONS = ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))
Lead = tuple[tuple[float, float], tuple[float, float]]
# From here on a thin line leads from the label to its mark.
LEAD = 12.0
CAP, DESCENT = 0.76, 0.24  # height above and below the base line, of the size of the type


class Box(NamedTuple):
    """A rectangle in pixels from the top left."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether they share a point of their inside."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, other: "Box") -> bool:
        """Whether the other lies within."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )


class Wanted(NamedTuple):
    """A label that is wanted.

    Attributes:
        text: What it says.
        x: Middle of its mark, in pixels from the left.
        y: In pixels from the top.
        reach: Half the size of its mark.
        bold: Its weight.
    """

    text: str
    x: float
    y: float
    reach: float
    bold: bool = False


class Placed(NamedTuple):
    """A label that has found its place.

    Attributes:
        wanted: The label.
        box: Where it stands.
        base: Its base line, in pixels from the top.
        lead: From where to where a line leads to the mark, or None where it is near.
    """

    wanted: Wanted
    box: Box
    base: float
    lead: Lead | None


def place(
    wanted: Sequence[Wanted], *, within: Box, covered: Sequence[Box], quiet: Sequence[Box] = ()
) -> list[Placed]:
    """Labels in the order in which they are wanted, none on another or on what is covered.

    Args:
        wanted: The labels, the most wanted first.
        within: Where all must stand.
        covered: What must stay free.
        quiet: What may be covered where there is no other place.
    """
    placed: list[Placed] = []
    for one in wanted:
        taken = [*covered, *(box for other in placed for box in (other.box, *_along(other.lead)))]
        for also in (quiet, ()):
            found = _free(one, within, [*taken, *also], [other.box for other in placed])
            if found is not None:
                placed.append(found)
                break
    return placed


def _free(one: Wanted, within: Box, taken: Sequence[Box], labels: Sequence[Box]) -> Placed | None:
    """The nearest place that is free, whose line runs through no other label."""
    width = text_width(one.text, SMALL, bold=one.bold)
    for distance in DISTANCES:
        for across, down in DIRECTIONS:
            box, base = _at(one, width, distance, across, down)
            if not within.holds(box) or any(box.meets(other) for other in taken):
                continue
            lead = _lead(one, box, distance)
            if not any(step.meets(other) for step in _along(lead) for other in labels):
                return Placed(one, box, base, lead)
    return None


def _along(lead: Lead | None) -> list[Box]:
    """What a line covers, in small boxes."""
    if lead is None:
        return []
    (x0, y0), (x1, y1) = lead
    n = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 3))
    steps = [(x0 + (x1 - x0) * k / n, y0 + (y1 - y0) * k / n) for k in range(n + 1)]
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in steps]


def _at(one: Wanted, width: float, distance: float, across: int, down: int) -> tuple[Box, float]:
    """The box of a label in a direction, so far from its mark, and its base line."""
    # A step aside in both directions is as far as one in a single direction.
    away = (one.reach + distance) * (0.75 if across and down else 1.0)
    height = SMALL * (CAP + DESCENT)
    left = one.x + across * away - (width if across < 0 else 0 if across else width / 2)
    middle = one.y + down * (away + height / 2)
    top = middle - height / 2
    return Box(left - 2, top - 1, left + width + 2, top + height + 1), top + SMALL * CAP


def _lead(one: Wanted, box: Box, distance: float) -> Lead | None:
    if distance < LEAD:
        return None
    near = (min(max(one.x, box.left + 2), box.right - 2), min(max(one.y, box.top), box.bottom))
    length = ((near[0] - one.x) ** 2 + (near[1] - one.y) ** 2) ** 0.5
    share = one.reach / max(length, one.reach)
    start = (one.x + share * (near[0] - one.x), one.y + share * (near[1] - one.y))
    return start, near
