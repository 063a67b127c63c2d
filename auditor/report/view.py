"""What the page shows, as plain values: everything is decided here and nothing in the template.

`auditor.report.page` renders it. The parts have modules of their own:

    view_head       what was audited, warnings, the answer and its key figures, releases
    view_table      every figure and every comparison
    view_records    exposed records, and records token by token
    view_receipts   what was really done to every variant
    view_method     how it was done
    view_page       all of it together, with the drawings
"""

from dataclasses import dataclass, field
from unicodedata import category

from auditor.report.figures import ABSENT, Shown, is_finding, justified, p_value
from auditor.report.plain import JOINERS
from auditor.results import Estimate

# Shown for what a browser would not show, or would act upon.
UNSEEN = "\ufffd"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What is shown.
        interval: Its interval; shown below it.
        value: Its number in full, for sorting and copying; None where it is text or absent.
        low: Lower end of its interval, in full.
        high: Upper end.
        note: Why it is absent.
        mark: A word for its colour, such as "bad"; the text says the same.
    """

    text: str
    interval: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        kind: text; word, which is kept on one line; number; or estimate: a number with an
            interval, three columns when copied.
    """

    title: str
    kind: str = "text"

    @property
    def sorts_as(self) -> str:
        """How it is sorted and copied: text, number or estimate."""
        return "text" if self.kind == "word" else self.kind


@dataclass(frozen=True)
class Row:
    """One row of a table, the first cell its heading.

    Attributes:
        cells: As many as there are columns.
        is_found: Whether it is a finding after correction.
        is_essential: Whether it is shown before anything is chosen.
        setting: NR, SR, MR, or empty.
        versions: The places of the versions that it is about, for choosing variants.
    """

    cells: list[Cell]
    is_found: bool = False
    is_essential: bool = True
    setting: str = ""
    versions: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        name: Its id in the page.
        caption: What it shows.
        columns: Its columns.
        rows: Its rows.
        notes: What its reader must know, below it.
    """

    name: str
    caption: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fact:
    """A name and what is known under it."""

    name: str
    text: str


def readable(text: str) -> str:
    """A text whose every character can be seen and turns no other; lines stay lines.

    Other than `printable`, nothing is lost without a trace: tokens are shown as they are.
    """
    if text.isprintable():
        return text
    return "".join(letter if _can_be_seen(letter) else UNSEEN for letter in text)


def _can_be_seen(letter: str) -> bool:
    # Spaces of other widths are called not printable, and are harmless.
    return letter.isprintable() or letter in JOINERS + "\n\t" or category(letter) == "Zs"


def text_cell(text: str, *, mark: str = "", note: str = "") -> Cell:
    """A cell of words."""
    return Cell(text, mark=mark, note=note)


def number_cell(value: float | None, text: str | None = None, *, mark: str = "") -> Cell:
    """A cell of one number: a count with thousands apart, or as it is given."""
    if value is None:
        return Cell(ABSENT)
    return Cell(f"{value:,}" if text is None else text, value=value, mark=mark)


def estimate_cell(
    found: Estimate | None, *, percent: bool = False, signed: bool = False, absent: str = ""
) -> Cell:
    """A cell of a figure with its interval; absent, it says why."""
    shown: Shown = justified(found, percent=percent, signed=signed)
    if found is None or found.value is None:
        return Cell(ABSENT, note=(found.absent or absent) if found else absent)
    return Cell(shown.value, shown.interval, found.value, found.low, found.high)


def p_cell(value: float | None, *, level: float | None = None) -> Cell:
    """A cell of a p-value; with a level, a star where it is a finding."""
    is_found = level is not None and is_finding(value, level)
    return Cell(p_value(value) + (" *" if is_found else ""), value=value)


def rate_in_words(rate: str) -> str:
    """A rate's key as a percentage: "0.01" -> "1%"."""
    return f"{100 * float(rate):g}%"


def metric_title(metric: str) -> str:
    """`tpr@0.01` as "TPR at 1% FPR, %", the unit of its column with it."""
    if metric == "auc":
        return "AUC"
    return f"TPR at {rate_in_words(metric.removeprefix('tpr@'))} FPR, %"


def plural(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun: "1 record", "2,000 records"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
