"""A figure with what its reader needs beside it, and the three forms in which it leaves.

    png      a file, twice as many dots as CSS pixels, on paper
    svg      a file, in the colours of the light page, on paper; its text is text
    inline   an element of the page, in the page's colours, whose marks answer to the pointer

The two SVG forms are matplotlib's own output, cleaned: ids that nothing refers to, numbers beyond
a hundredth of a pixel and fonts that a reader's machine lacks are left out.
"""

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from auditor.report.plots.canvas import DOTS, SPOT, plain, plain_style
from auditor.report.plots.palette import PALETTE

# wide: 720 CSS pixels, for a desk and for paper; narrow: 340, for a phone and for small multiples.
Width = Literal["wide", "narrow"]
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
# What matplotlib says in a style sheet, which inside a page would hold for the whole page.
ROOT_STYLE = f"font-family: {FONTS}; stroke-linejoin: round; stroke-linecap: butt"
NUMBERED = ("d", "x", "y", "width", "height", "transform", "points")
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
REFERENCE = re.compile(r"url\(#([^)]+)\)")
VARIABLES = {tone.light: f"var(--{name})" for name, tone in PALETTE.items()}


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


def png(drawing: Drawing) -> bytes:
    """The figure as a PNG, two dots to a CSS pixel; the same bytes for the same audit."""
    hidden = _spots(drawing.figure)
    written = io.BytesIO()
    try:
        with plain_style():
            FigureCanvasAgg(drawing.figure).print_figure(
                written, format="png", dpi=2 * DOTS, metadata={"Software": None}
            )
    finally:
        for artist in hidden:
            artist.set_visible(True)
    return written.getvalue()


def svg(drawing: Drawing) -> bytes:
    """The figure as an SVG file that stands by itself; the same bytes for the same audit."""
    root = _tree(drawing, unseen=False)
    root.set("xmlns", SVG)
    width, height = root.get("viewBox", "0 0 0 0").split()[2:]
    root.set("width", width)
    root.set("height", height)
    _label(root, drawing, prefix=drawing.name)
    text = ET.tostring(root, encoding="unicode", short_empty_elements=True)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


def inline(drawing: Drawing) -> str:
    """The figure as an element of a page that defines the palette's colours as CSS variables.

    A mark with a note has the class `mark`, a title and the note in `data-note`; marks that are
    not seen have the class `spot` too, and their colour in `color`.
    """
    prefix = f"{drawing.name}-{drawing.width}"
    root = _tree(drawing, unseen=True)
    root.set("class", f"figure {drawing.width}")
    _mark(root, drawing.notes)
    _prefix(root, prefix, set(drawing.notes))
    _label(root, drawing, prefix=prefix)
    for element in root.iter():
        if style := element.get("style"):
            element.set("style", COLOUR.sub(lambda m: VARIABLES.get(m[0], m[0]), style))
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _spots(figure: Figure) -> list[Artist]:
    """Hide what only answers to the pointer; returns what was hidden."""
    found = [
        artist
        for artist in figure.findobj(include_self=False)
        if str(artist.get_gid() or "").startswith(SPOT)
    ]
    for artist in found:
        artist.set_visible(False)
    return found


def _tree(drawing: Drawing, *, unseen: bool) -> ET.Element:
    """The SVG of matplotlib, cleaned, without namespaces.

    Args:
        drawing: The figure.
        unseen: Whether to keep what is not seen: for a page, whose background is its own.
    """
    root = ET.fromstring(_rendered(drawing.figure))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if (target := element.attrib.pop(f"{{{XLINK}}}href", None)) is not None:
            element.set("href", target)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("style", ROOT_STYLE)
    for parent in list(root.iter()):
        for child in list(parent):
            is_sheet = child.tag == "defs" and all(inner.tag == "style" for inner in child)
            is_spot = child.get("id", "").startswith(SPOT) and not unseen
            # The figure's background comes first of all patches.
            is_paper = child.get("id") == "patch_1" and unseen
            if child.tag == "metadata" or (is_sheet and len(child)) or is_spot or is_paper:
                parent.remove(child)
    keep = set(drawing.notes)
    for element in root.iter():
        _clean(element)
    _drop_ids(root, keep)
    return root


@lru_cache(maxsize=64)
def _rendered(figure: Figure) -> str:
    """What matplotlib writes; file and page need it both, and it is most of the work."""
    written = io.StringIO()
    with plain_style():
        FigureCanvasSVG(figure).print_figure(
            written, format="svg", dpi=DOTS, metadata={"Date": None, "Creator": None}
        )
    return written.getvalue()


def _clean(element: ET.Element) -> None:
    """Short numbers, and no font or line break where the root says it already."""
    element.text = element.text if element.tag == "text" else None
    element.tail = None
    for name in NUMBERED:
        if (value := element.get(name)) is not None:
            shorter = NUMBER.sub(lambda found: _short(found[0]), value)
            element.set(name, " ".join(shorter.split()))
    style = element.get("style")
    if style is not None and element.tag != "svg":
        parts = [part.strip() for part in style.split(";")]
        element.set("style", "; ".join(p for p in parts if p and not p.startswith("font-family")))


def _short(number: str) -> str:
    return format(round(float(number), 2), "g") if "e" in number else _trimmed(number)


def _trimmed(number: str) -> str:
    text = f"{float(number):.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _drop_ids(root: ET.Element, keep: set[str]) -> None:
    """Leave out ids that nothing refers to and that no note belongs to."""
    used = set(keep)
    for element in root.iter():
        used.update(target[1:] for target in [element.get("href", "")] if target)
        used.update(REFERENCE.findall(element.get("clip-path", "")))
        used.update(REFERENCE.findall(element.get("style", "")))
    for element in root.iter():
        if element.get("id") is not None and element.get("id") not in used:
            del element.attrib["id"]


def _mark(root: ET.Element, notes: dict[str, str]) -> None:
    """Give every mark its note; a mark that is not seen becomes one circle."""
    # A marker is defined where it stands first, and later ones of its shape point there.
    shapes = {f"#{path.get('id')}": path.get("d", "0") for path in root.iter("path")}
    for element in root.iter():
        gid = element.get("id", "")
        if gid not in notes:
            continue
        note = plain(notes[gid])
        classes = "mark"
        if gid.startswith(SPOT):
            classes = "mark spot"
            _as_circle(element, shapes)
        element.set("class", classes)
        element.set("data-note", note)
        title = ET.Element("title")
        title.text = note
        element.insert(0, title)


def _as_circle(element: ET.Element, shapes: dict[str, str]) -> None:
    """One circle in the place of a marker's definition and its use."""
    use = element.find(".//use")
    if use is None:
        return
    outline = shapes.get(use.get("href", ""), "0")
    reach = max(abs(float(number)) for number in re.findall(r"-?[\d.]+", outline))
    fill = COLOUR.search(use.get("style", ""))
    for child in list(element):
        element.remove(child)
    element.tag = "circle"
    element.set("cx", use.get("x", "0"))
    element.set("cy", use.get("y", "0"))
    element.set("r", _trimmed(str(reach)))
    colour = f"color: {fill[0]}; " if fill else ""
    element.set("style", f"{colour}fill: transparent")


def _prefix(root: ET.Element, prefix: str, gids: set[str]) -> None:
    """Make every id one of this figure alone; a gid stays in it, a hash becomes a number."""
    names: dict[str, str] = {}
    for element in root.iter():
        if (own := element.get("id")) is not None:
            names[own] = f"{prefix}-{own if own in gids else len(names)}"
            element.set("id", names[own])
    for element in root.iter():
        if target := element.get("href"):
            element.set("href", f"#{names.get(target[1:], target[1:])}")
        for name in ("clip-path", "style"):
            if (value := element.get(name)) and "url(" in value:
                element.set(name, REFERENCE.sub(lambda m: f"url(#{names.get(m[1], m[1])})", value))


def _label(root: ET.Element, drawing: Drawing, *, prefix: str) -> None:
    """A name and a description for who does not see the figure."""
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    for tag, text in (("desc", drawing.description), ("title", drawing.title)):
        element = ET.Element(tag, {"id": f"{prefix}-{tag}"})
        element.text = plain(text)
        root.insert(0, element)
