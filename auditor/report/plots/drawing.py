"""A figure with what its reader needs beside it, and the three forms in which it leaves."""

from dataclasses import dataclass, field
from typing import Literal

from matplotlib.figure import Figure

# wide: 720 CSS pixels, for a desk and for paper; narrow: 340, for a phone and for small multiples.
Width = Literal["wide", "narrow"]


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: Stem of its files, kebab-case, the same for the same audit; safe as a file name.
        title: What it shows, as a heading; not drawn into the figure.
        description: One or two sentences for who does not see it, with its main numbers.
        figure: The figure, in the colours of the light page.
        notes: The text shown over a mark, by the mark's gid.
        width: The width that it was laid out for.
    """

    name: str
    title: str
    description: str
    figure: Figure
    notes: dict[str, str] = field(default_factory=dict)
    width: Width = "wide"
