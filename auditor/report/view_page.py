"""The whole page as plain values, in the order in which it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from auditor.finished import Finished
from auditor.report.command import repeat_command
from auditor.report.plots.drawing import Drawing, inline
from auditor.report.view import Grid, readable
from auditor.report.view_head import (
    AnswerView,
    Head,
    Notice,
    ReleasesView,
    answer_view,
    head,
    notices,
    releases_view,
)
from auditor.report.view_method import MethodView, method_view
from auditor.report.view_receipts import ReceiptsView, receipts_view
from auditor.report.view_records import ExposedView, TokensView, exposed_view, tokens_view
from auditor.report.view_table import comparisons_grid, figures_grid, places

if TYPE_CHECKING:
    from auditor.report.plots import Drawings


@dataclass(frozen=True)
class Picture:
    """A figure in the forms that it has.

    Attributes:
        title: What it shows.
        caption: How it is read.
        wide: For a desk and for paper.
        narrow: For a phone.
    """

    title: str
    caption: str
    wide: Markup
    narrow: Markup


LESS = "further down is less leakage, further left better text. Lines are intervals of the leakage."
SETS = f"Each point is a set of versions published together; {LESS}"
ALONE = f"Each point is one version; {LESS}"
ROC = (
    "How many members are found (up) at how many false alarms (right), both on logarithmic axes "
    "from one nonmember on. On the diagonal an attacker guesses."
)
FOREST = (
    "Every difference is taken on the same records. An interval that crosses zero shows no "
    "difference; what is filled is left after Holm's correction."
)


@dataclass(frozen=True)
class Multiple:
    """One of many small figures.

    Attributes:
        title: The version that it is about.
        svg: The figure.
        versions: The place of that version; empty for the original, which is never hidden.
    """

    title: str
    svg: Markup
    versions: str


@dataclass(frozen=True)
class Page:
    """The page.

    Attributes:
        title: In the browser's tab and in a PDF.
        head: What was audited.
        notices: What must be known first.
        answer: The answer.
        release: The release picture; None where nothing was drawn.
        releases: The sets to choose from; None where none were judged.
        roc: ROC curves.
        roc_of: One small figure for every variant.
        forest: Differences to the original; None where nothing was drawn.
        figures: Every attacker's figures.
        comparisons: Every paired comparison.
        signals: One small figure for every version.
        exposed: Newly exposed members; None where nobody looked for them.
        tokens: Records token by token; None where no text may be shown.
        receipts: What was really done.
        method: How it was done.
        command: The command that repeats it.
        versions: Names of all versions, the original first.
        sections: Ids and titles of the sections that are there.
    """

    title: str
    head: Head
    notices: list[Notice]
    answer: AnswerView
    release: Picture | None
    releases: ReleasesView | None
    roc: Picture
    roc_of: list[Multiple]
    forest: Picture | None
    figures: Grid
    comparisons: Grid
    signals: list[Multiple]
    exposed: ExposedView | None
    tokens: TokensView | None
    receipts: ReceiptsView
    method: MethodView
    command: str
    versions: list[str]
    sections: list[tuple[str, str]]


def page_view(finished: Finished, drawings: "Drawings") -> Page:
    """Everything that the page shows.

    Args:
        finished: A finished audit.
        drawings: Its figures.
    """
    result = finished.result
    top = head(result)
    releases = releases_view(result)
    release = _picture(drawings.release, SETS if releases is not None else ALONE)
    forest = _picture(drawings.forest, FOREST)
    tokens = tokens_view(result)
    sections = [
        ("answer", "Answer", True),
        (
            "release",
            "Leakage and utility" if releases is None else "What to publish",
            release is not None or releases is not None,
        ),
        ("roc", "ROC curves", True),
        ("differences", "Differences", forest is not None),
        ("numbers", "All numbers", True),
        ("records", "Records", True),
        ("tokens", "Token by token", tokens is not None),
        ("receipts", "Receipts", True),
        ("method", "How it was done", True),
    ]
    wide, narrow = drawings.roc, drawings.roc_narrow
    return Page(
        title=f"compleak-llm: {readable(top.name)}",
        head=top,
        notices=notices(result),
        answer=answer_view(result),
        release=release,
        releases=releases,
        roc=Picture(wide.title, ROC, _svg(wide), _svg(narrow)),
        roc_of=_multiples(finished, drawings.roc_of),
        forest=forest,
        figures=figures_grid(result),
        comparisons=comparisons_grid(result),
        signals=_multiples(finished, drawings.signals),
        exposed=exposed_view(result),
        tokens=tokens,
        receipts=receipts_view(result),
        method=method_view(result),
        command=repeat_command(result),
        versions=[readable(variant.variant) for variant in result.variants],
        sections=[(name, title) for name, title, is_there in sections if is_there],
    )


def _picture(drawings: Sequence[Drawing], caption: str) -> Picture | None:
    if not drawings:
        return None
    wide, narrow = drawings
    return Picture(wide.title, caption, _svg(wide), _svg(narrow))


def _multiples(finished: Finished, drawings: Mapping[str, Drawing]) -> list[Multiple]:
    return [
        Multiple(
            name,
            _svg(drawing),
            "" if name == finished.original else places(finished.result, [name]),
        )
        for name, drawing in drawings.items()
    ]


def _svg(drawing: Drawing) -> Markup:
    """The figure as markup: `inline` writes a tree, in which all that came from data is text."""
    return Markup(inline(drawing))
