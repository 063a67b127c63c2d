"""The report: one self-contained HTML page, printed to PDF where a Chromium is found.

    report.html     style, script and figures inside; no request to anywhere
    report.md       the same in short, for a pull request
    report.pdf      the page as it prints
    figures/        the figures as PNG and SVG, beside a page or a Markdown text

All three are functions of `audit.json` and `scores.parquet`, and all is rendered before a byte is
written. A policy inside the page forbids what is not in it: only the style and the script with the
hashes that it names are used, and nothing is fetched.
"""

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from auditor.errors import ConfigError, StoreError
from auditor.finished import Finished, read_finished
from auditor.placing import place
from auditor.report.plots.palette import PALETTE
from auditor.report.view import readable
from auditor.report.view_page import page_view
from auditor.report.view_records import SIDE_STEPS, STEPS, TokensView

if TYPE_CHECKING:
    from auditor.report.plots import Drawings

Kind = Literal["html", "md", "pdf"]
# What a report must not take the place of.
OF_THE_AUDIT = ("audit.json", "scores.parquet", "exposure.parquet")
FIGURES = "figures"
# Signs after which a long name may go on in the next line; between letters, so that no number
# and no character reference is parted.
LONG = re.compile(r"((?<=[\w\]])[:,=/_](?=[A-Za-z]))")
# How much of a colour the strongest step of a scale has; ink on it keeps a contrast of 4.5:1.
STRONGEST = 55


def render_page(finished: Finished, drawings: "Drawings") -> str:
    """The page of a finished audit; the same bytes for the same audit.

    Args:
        finished: The audit.
        drawings: Its figures, from `auditor.report.plots.draw`.
    """
    page = page_view(finished, drawings)
    style = _tones() + _source("report.css") + (_token_style(page.tokens) if page.tokens else "")
    script = _source("report.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            names=json.dumps(page.versions),
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
        )
    )


def write_report(folder: Path, *, kind: Kind, out: Path | None = None) -> list[Path]:
    """Write the report of a finished audit.

    Args:
        folder: The audit's output folder.
        kind: html, md or pdf.
        out: Where to write it, or a folder to write it into; beside `audit.json` when left out.

    Returns:
        What was written, the report first.

    Raises:
        StoreError: The audit has not finished, or its files or the report's cannot be read or
            written.
        ConfigError: There is no Chromium to print with, or it failed.
    """
    from auditor.report.plots import draw
    from auditor.report.plots import files as figure_files

    finished = read_finished(folder)
    path = out if out is not None else folder
    if path.is_dir():
        path = path / f"report.{kind}"
    if path.resolve() in [(folder / name).resolve() for name in OF_THE_AUDIT]:
        raise ConfigError(
            "--out must not be a file of the audit itself",
            seen=str(path),
            fix=f"choose another name, such as report.{kind}",
        )
    drawings = draw(finished)
    figures = figure_files(drawings) if kind != "pdf" else {}
    content = _content(finished, drawings, kind)
    contents = {path.parent / FIGURES / name: data for name, data in figures.items()}
    # The report last: it never speaks of figures that are not there.
    try:
        place({**contents, path: content}, private=[path] if _is_private(finished, kind) else [])
    except StoreError as error:
        fix = "choose another place with --out, or free this one; every file is as it was"
        raise StoreError(error.must, seen=error.seen, fix=fix) from error
    return [path, *contents]


def _is_private(finished: Finished, kind: Kind) -> bool:
    """Whether a report speaks of single records: the page lists ids, and with texts their tokens.

    The one in Markdown counts records and names none.
    """
    result, records = finished.result, finished.result.records
    exposed = result.leakage.exposed if result.leakage is not None else None
    ids = [*records.members.left_out_ids, *records.nonmembers.left_out_ids]
    ids += exposed.ids if exposed is not None else []
    return kind != "md" and bool(ids or result.token_views)


def _content(finished: Finished, drawings: "Drawings", kind: Kind) -> bytes:
    if kind == "md":
        from auditor.report.markdown import render_markdown

        return render_markdown(finished).encode("utf-8")
    page = render_page(finished, drawings)
    if kind == "pdf":
        from auditor.report.browser import print_pdf

        return print_pdf(page)
    return page.encode("utf-8")


@cache
def _environment() -> Environment:
    """Templates in which everything that is not marked as markup is text that can be read."""

    def shown(value: object) -> object:
        if isinstance(value, str) and not isinstance(value, Markup):
            return readable(value)
        return value

    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def breakable(text: str) -> Markup:
    """A text as markup with places where a line may end: names of variants and paths are long."""
    return Markup(LONG.sub(r"\1<wbr>", str(escape(readable(text)))))


@cache
def _source(name: str) -> str:
    return (resources("auditor.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What a browser may do with the page: use this style and this script, and fetch nothing.

    Figures carry their colours in style attributes, which no hash can name.
    """
    return (
        f"default-src 'none'; style-src {_hash(style)}; style-src-attr 'unsafe-inline'; "
        f"script-src {_hash(script)}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _tones() -> str:
    """The palette as variables, light first, dark where the reader's system is, light on paper."""
    light = "".join(f"--{name}:{tone.light};" for name, tone in PALETTE.items())
    dark = "".join(f"--{name}:{tone.dark};" for name, tone in PALETTE.items())
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _token_style(tokens: TokensView) -> str:
    """Which classes colour a token under which choice."""
    rules = []
    for step in range(STEPS + 1):
        share = round(STRONGEST * (1 - step / STEPS))
        rules.append(_mixed(f"s{step}", "member", share))
    for step in range(-SIDE_STEPS, SIDE_STEPS + 1):
        share = round(STRONGEST * abs(step) / SIDE_STEPS)
        rules.append(_mixed(f"e{step}", "member" if step > 0 else "nonmember", share))
    for track in tokens.tracks:
        letter, steps = ("s", range(STEPS + 1))
        if track.kind == "difference":
            letter, steps = "e", range(-SIDE_STEPS, SIDE_STEPS + 1)
        rules += [
            f"#tokens:has(#track-{track.key}:checked) .{track.key}-{step}"
            f"{{background:var(--{letter}{step})}}"
            for step in steps
        ]
    return "\n".join(rules)


def _mixed(name: str, colour: str, share: int) -> str:
    mixed = f"color-mix(in srgb,var(--{colour}) {share}%,var(--paper))"
    return f"#tokens{{--{name}:{mixed}}}.swatch.{name}{{background:var(--{name})}}"
