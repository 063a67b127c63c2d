"""The terminal table of releases: which sets of versions to choose from, and what each adds."""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from auditor.leakage.advice import described
from auditor.leakage.bounds import AUC, bound_in_words, estimate_in_words, metric_in_words
from auditor.leakage.sets import Figures
from auditor.report.figures import interval
from auditor.results import Bound, Release, Releases

MAX_ROWS = 15
# Rows where no set is shown to stay within the bound: those that give away least.
MAX_LEAST = 5
# Columns that the table needs with the AUC beside the ranking metric, and with intervals beside
# their figures; below, they stand under them.
WITH_AUC = 120
WIDE = 84
GAP = 2
STYLE = {"under": "green", "over": "red", "undecided": "yellow"}


def releases_table(releases: Releases, *, width: int) -> RenderableType:
    """What a release team decides from.

    With a bound: the sets that are shown to stay within it, best utility first. Without: the
    frontier of utility and leakage, and all versions together.

    Args:
        releases: The result.
        width: Columns of the terminal.
    """
    names = [part.version for part in releases.parts]
    rows = shown_sets(releases, len(names))
    parts: list[RenderableType] = [_heading(releases, names)]
    if releases.gate is not None and releases.bound is not None:
        parts.append(_gate_line(releases.gate, releases.bound, names))
    parts += [_sets(releases, rows, names, width=width), *_counts(releases, rows)]
    parts += [_parts(releases), Text(f"\n{releases.advice}", style="bold")]
    return Group(*parts)


def _heading(releases: Releases, names: Sequence[str]) -> Text:
    n_sets = len(releases.sets)
    text = Text("\nreleases", style="bold")
    holds = ", the attacker holds the reference too" if releases.with_reference else ""
    text.append(f"  {len(names)} versions, {n_sets} sets judged{holds}", style="not bold")
    if releases.search == "beam":
        note = "\nmore than 8 variants: sets are found by a beam search, parts by drawn orders"
        text.append(note, style="not bold dim")
    for name, reason in releases.left_out.items():
        text.append(f"\nleft out: {name}: {reason}", style="not bold yellow")
    return text


def _gate_line(gate: Release, bound: Bound, names: Sequence[str]) -> Text:
    """The release that was to be judged, and how it was."""
    found = estimate_in_words(_figures(gate).of(bound.metric), bound.metric)
    text = Text(f"to be released: {described(gate.versions, names)}: ")
    text.append(f"{metric_in_words(bound.metric)} {found}, {bound_in_words(bound)}: ")
    return text.append(str(gate.verdict), style=f"bold {STYLE[str(gate.verdict)]}")


def shown_sets(releases: Releases, n_versions: int) -> list[Release]:
    """The sets to show, best utility first."""
    if releases.bound is not None:
        under = [release for release in releases.sets if release.verdict == "under"]
        if under:
            return under[:MAX_ROWS]
        least = sorted(releases.sets, key=lambda release: _leakage(release, releases.metric))
        return [release for release in releases.sets if release in least[:MAX_LEAST]]
    chosen = [release for release in releases.sets if len(release.versions) == n_versions]
    chosen += [release for release in _by_turns(releases) if release not in chosen]
    return [release for release in releases.sets if release in chosen[:MAX_ROWS]]


def _by_turns(releases: Releases) -> list[Release]:
    """The frontier: of every size the set that gives away least, then the next of every size."""
    sizes: dict[int, list[Release]] = {}
    for release in releases.sets:
        if release.on_frontier:
            sizes.setdefault(len(release.versions), []).append(release)
    for of_size in sizes.values():
        of_size.sort(key=lambda release: _leakage(release, releases.metric))
    return [found for turn in zip_longest(*sizes.values()) for found in turn if found is not None]


def _sets(
    releases: Releases, rows: Sequence[Release], names: Sequence[str], *, width: int
) -> Table:
    metrics = [releases.metric]
    if width >= WITH_AUC and releases.metric != AUC:
        metrics.append(AUC)
    titles = ["perplexity\nworst", "perplexity\nmean", *(_title(metric) for metric in metrics)]
    cells = [
        [f"{release.perplexity_worst:.2f}", f"{release.perplexity_mean:.2f}"]
        + [interval(_figures(release).of(metric), percent=metric != AUC) for metric in metrics]
        for release in rows
    ]
    if width < WIDE:
        cells = [[cell.replace(" [", "\n[") for cell in row] for row in cells]
    if releases.bound is not None:
        titles.append("verdict")
        cells = [[*row, str(release.verdict)] for row, release in zip(cells, rows, strict=True)]
    needed = [
        max(len(line) for cell in column for line in cell.split("\n"))
        for column in zip(titles, *cells, strict=True)
    ]
    room = max(12, width - sum(needed) - GAP * len(needed))
    table = Table(box=None, header_style="bold", padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column("published together", overflow="fold", vertical="top")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True, vertical="top")
    for release, row in zip(rows, cells, strict=True):
        style = STYLE[release.verdict] if release.verdict else ""
        *figures, last = (Text(cell) for cell in row)
        last.stylize(style)
        table.add_row(Text(_wrapped(described(release.versions, names), room)), *figures, last)
    return table


def _wrapped(text: str, room: int) -> str:
    """A set of versions in lines; those after the first are indented."""
    return textwrap.fill(text, room, subsequent_indent="  ", break_on_hyphens=False)


def _counts(releases: Releases, rows: Sequence[Release]) -> list[RenderableType]:
    """How many sets are not shown."""
    if releases.bound is None:
        n_frontier = sum(release.on_frontier for release in releases.sets)
        n_hidden = n_frontier - sum(release.on_frontier for release in rows)
        note = "no other set of as many versions or more has lower perplexity and gives away less"
        text = f"frontier: {note}"
        if n_hidden > 0:
            text += f"; {n_hidden} more in audit.json"
        return [Text(text, style="dim")]
    verdicts = [release.verdict for release in releases.sets]
    counts = {name: verdicts.count(name) for name in ("under", "undecided", "over")}
    text = f"of {len(verdicts)} sets: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    hidden = counts["under"] - len(rows)
    if hidden > 0:
        text += f"; {hidden} more that are under in audit.json"
    if not counts["under"]:
        text += "; shown are those that give away least"
    return [Text(text, style="dim")]


def _parts(releases: Releases) -> RenderableType:
    """The Shapley parts, and their sum."""
    rates = list(releases.parts[0].tpr_at_fpr)
    table = Table(box=None, header_style="bold", padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column("\nwhat each adds", overflow="fold")
    table.add_column("AUC\n− 0.5", justify="right", no_wrap=True)
    for rate in rates:
        title = f"TPR − FPR\nat {100 * float(rate):g}%, %"
        table.add_column(title, justify="right", no_wrap=True)
    rows = [(part.version, [part.auc, *part.tpr_at_fpr.values()]) for part in releases.parts]
    totals = [sum(values) for values in zip(*(row for _, row in rows), strict=True)]
    for name, (first, *others) in (*rows, ("all together, above chance", totals)):
        cells = [f"{first:+.3f}", *(f"{100 * value:+.1f}" for value in others)]
        table.add_row(Text(name), *cells)
    return Group(Text(), table)


def _figures(release: Release) -> Figures:
    return Figures(release.auc, release.tpr_at_fpr)


def _leakage(release: Release, metric: str) -> float:
    return _figures(release).of(metric).value or 0.0


def _title(metric: str) -> str:
    return "AUC" if metric == AUC else f"{metric_in_words(metric)}, %"
