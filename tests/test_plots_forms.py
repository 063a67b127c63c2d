"""PNG, SVG and the page's SVG: the same bytes, text as text, ids and colours of the page."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from auditor.finished import Finished, read_finished
from auditor.report.plots import Drawings, draw, files
from auditor.report.plots.canvas import SPOT, WIDTHS, plain, plain_style, shortened, text_width
from auditor.report.plots.drawing import Drawing, inline, png, svg
from auditor.report.plots.palette import PALETTE
from auditor.report.plots.words import slug
from tests.report_cases import invented_run

DRAWN = ("svg", "g", "defs", "path", "use", "text", "title", "desc", "circle", "clipPath", "rect")
# What another user's settings might be; each of these would change a figure.
HOSTILE_SETTINGS = """
backend: svg
font.size: 31
font.family: monospace
text.usetex: True
text.parse_math: True
lines.linewidth: 9
axes.facecolor: red
savefig.facecolor: green
savefig.bbox: tight
savefig.dpi: 17
svg.fonttype: path
path.sketch: 3, 100, 2
axes.labelcolor: orange
xtick.labelsize: 30
"""
SCRIPT = """
import hashlib, sys
from pathlib import Path
from auditor.finished import read_finished
from auditor.report.plots import draw, files
from auditor.report.plots.drawing import inline
drawings = draw(read_finished(Path(sys.argv[1])))
for name, content in files(drawings).items():
    print(name, hashlib.sha256(content).hexdigest())
print("page", hashlib.sha256("".join(map(inline, drawings.release)).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_run(tmp_path_factory.mktemp("forms") / "run", n_variants=2, n=200, hostile=True)


@pytest.fixture(scope="module")
def finished(run: Path) -> Finished:
    return read_finished(run)


@pytest.fixture(scope="module")
def drawings(finished: Finished) -> Drawings:
    return draw(finished)


def all_of(drawings: Drawings) -> list[Drawing]:
    return [
        *drawings.release,
        drawings.roc,
        drawings.roc_narrow,
        *drawings.roc_of.values(),
        *drawings.forest,
        *drawings.signals.values(),
    ]


def test_files_are_the_same_bytes_in_another_process_with_other_settings(
    run: Path, drawings: Drawings, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text(HOSTILE_SETTINGS, encoding="utf-8")
    # The list of the machine's fonts takes seconds to make, and no figure looks into it.
    for found_fonts in Path(matplotlib.get_cachedir()).glob("fontlist*.json"):
        shutil.copy(found_fonts, tmp_path)
    changed = {"MPLCONFIGDIR": str(tmp_path), "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(run)],
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
        check=True,
    )
    there = dict(line.rsplit(" ", 1) for line in found.stdout.splitlines())
    page = "".join(map(inline, drawings.release)).encode()
    here = {name: hashlib.sha256(content).hexdigest() for name, content in files(drawings).items()}
    assert there == {**here, "page": hashlib.sha256(page).hexdigest()}


def test_file_names_are_safe_and_each_figure_has_both_forms(drawings: Drawings) -> None:
    names = {*files(drawings)}
    stems = {name.rsplit(".", 1)[0] for name in names}
    assert names == {f"{stem}.{form}" for stem in stems for form in ("png", "svg")}
    assert {"release", "roc", "forest"} < stems
    assert len(stems) == 3 + len(drawings.roc_of) + len(drawings.signals)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*[a-z0-9]", stem) for stem in stems)


def test_a_png_has_two_dots_to_a_pixel_and_stands_on_paper(drawings: Drawings) -> None:
    for drawing in (drawings.roc, drawings.roc_narrow):
        picture = Image.open(io.BytesIO(png(drawing))).convert("RGB")
        height = round(drawing.figure.get_size_inches()[1] * 144)
        assert picture.size == (2 * WIDTHS[drawing.width], height)
        assert picture.getpixel((1, 1)) == (255, 255, 255)
        assert len(picture.getcolors(1 << 20) or []) > 30


def test_marks_that_are_not_seen_are_in_no_file_and_still_on_the_page(drawings: Drawings) -> None:
    (first, *_) = (gid for gid in drawings.roc.notes if gid.startswith(SPOT))
    png(drawings.roc)
    assert SPOT.encode() not in svg(drawings.roc)
    assert f"roc-wide-{first}" in inline(drawings.roc)


def test_an_svg_file_stands_by_itself(drawings: Drawings) -> None:
    for drawing in all_of(drawings):
        text = svg(drawing).decode()
        root = ET.fromstring(text)
        assert root.get("width") == str(WIDTHS[drawing.width])
        assert "<metadata" not in text and "DejaVu" not in text and "<style" not in text
        assert "system-ui" in (root.get("style") or "")
        paper = [one for one in root.iter() if "fill: #ffffff" in one.get("style", "")]
        assert paper, "it has a ground"


def test_names_of_an_attacker_are_text(finished: Finished, drawings: Drawings) -> None:
    hostile = plain(list(finished.signals)[1])
    assert "<img" in hostile and "<script>" in hostile
    seen = ""
    for drawing in all_of(drawings):
        for text in (svg(drawing).decode(), inline(drawing)):
            root = ET.fromstring(text)
            assert {one.tag.rpartition("}")[2] for one in root.iter()} <= {*DRAWN}
            assert not [name for one in root.iter() for name in one.attrib if name.startswith("on")]
            assert "<img" not in text and "<script" not in text
            seen += "\n".join(one.text or "" for one in root.iter() if one.tag.endswith("text"))
            assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    assert hostile in seen


@pytest.mark.parametrize(
    "name",
    [
        "$\\frac{",
        "a$b$c",
        "^_{}\\",
        "\ud800x\x00\u202e\u2028",
        "語🦊 نموذج",
        "v" * 400,
        "  ",
        "%s{0}",
    ],
)
def test_any_name_is_drawn_and_nothing_is_math(finished: Finished, name: str) -> None:
    original, _, *rest = finished.signals
    old = list(finished.signals)[1]
    signals = {name if key == old else key: found for key, found in finished.signals.items()}
    text = finished.result.model_dump_json().replace(_quoted(old), _quoted("@name@"))
    result = type(finished.result).model_validate_json(text)
    variants = [
        one.model_copy(update={"variant": name}) if one.variant == "@name@" else one
        for one in result.variants
    ]
    comparisons = [
        one.model_copy(update={"variant": name}) if one.variant == "@name@" else one
        for one in result.comparisons
    ]
    result = result.model_copy(update={"variants": variants, "comparisons": comparisons})
    result = result.model_copy(update={"leakage": None})
    drawn = draw(replace(finished, signals=signals, result=result))
    words = ""
    for drawing in (*drawn.release, *drawn.forest, drawn.roc_of.get(name, drawn.roc)):
        assert png(drawing)
        ET.fromstring(svg(drawing))
        root = ET.fromstring(inline(drawing))
        words += "\n".join(one.text or "" for one in root.iter("text"))
    assert plain(name)[:6] in words
    assert original in words and rest is not None


def _quoted(name: str) -> str:
    """A name as it stands in JSON."""
    return f'"{name}"'.replace("\\", "\\\\") if name == "@name@" else json_of(name)


def json_of(name: str) -> str:
    from pydantic_core import to_json

    return to_json(name).decode()


def test_the_pages_form_has_its_colours_its_size_and_ids_of_its_own(drawings: Drawings) -> None:
    ids: list[str] = []
    for drawing in all_of(drawings):
        text = inline(drawing)
        root = ET.fromstring(text)
        assert root.get("role") == "img" and "width" not in root.attrib
        assert (root.get("viewBox") or "").startswith(f"0 0 {WIDTHS[drawing.width]} ")
        used = {*re.findall(r"var\(--([a-z]+)\)", text)}
        assert "ink" in used and used <= {*PALETTE}
        assert not re.search(
            r"#[0-9a-fA-F]{3,8}\b", "".join(one.get("style", "") for one in root.iter())
        )
        own = [one.attrib["id"] for one in root.iter() if "id" in one.attrib]
        assert all(name.startswith(f"{drawing.name}-{drawing.width}-") for name in own)
        referred = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
        assert {*referred, *(root.get("aria-labelledby") or "").split()} <= {*own}
        ids += own
    assert len(ids) == len({*ids})


def test_every_note_belongs_to_a_mark_of_the_page(drawings: Drawings) -> None:
    for drawing in all_of(drawings):
        root = ET.fromstring(inline(drawing))
        marks = {
            one.get("id"): one for one in root.iter() if "mark" in one.get("class", "").split()
        }
        prefix = f"{drawing.name}-{drawing.width}-"
        assert {*marks} == {prefix + gid for gid in drawing.notes}
        for gid, note in drawing.notes.items():
            mark = marks[prefix + gid]
            assert mark.get("data-note") == plain(note)
            assert mark[0].tag == "title" and mark[0].text == plain(note)
            is_spot = gid.startswith(SPOT)
            assert (mark.tag == "circle") == is_spot == ("spot" in mark.get("class", "").split())


def test_title_and_description_name_the_figure(drawings: Drawings) -> None:
    root = ET.fromstring(inline(drawings.roc))
    assert [one.tag for one in root[:2]] == ["title", "desc"]
    assert [one.text for one in root[:2]] == [drawings.roc.title, plain(drawings.roc.description)]


@given(st.text(max_size=60), st.floats(20, 200))
def test_shortened_text_fits_and_controls_nothing(text: str, room: float) -> None:
    with plain_style():
        found = shortened(text, room)
        assert text_width(found) <= max(room, text_width("…"))
        fits = text_width(plain(text)) <= room
    assert not [char for char in found if unicodedata.category(char) in ("Cc", "Cf", "Cs")]
    if fits:
        assert found == plain(text)


@given(st.text(max_size=80))
def test_a_slug_is_a_safe_part_of_a_file_name(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", slug(text))
    assert len(slug(text)) <= 40
