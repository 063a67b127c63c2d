"""The terminal table that an audit ends in: a line per version, and what must be known first."""

import shlex
import textwrap

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from auditor.compress.receipt import Receipt
from auditor.report.answer import answer
from auditor.report.figures import headline_rate, interval, is_finding, p_value
from auditor.report.harmless import Harmless
from auditor.report.leakage import leakage_part
from auditor.report.origin import origin
from auditor.results import Artifact, AuditResult, Comparison, VariantResult, Warned

STYLE = {"severe": "bold red", "warning": "yellow", "info": "dim"}
# Columns that the table needs on one line a version, and with intervals under their figures.
WIDE = 172
STACKED = 138
NOTHING = "nothing"
REPAIRED = "library-repaired"
PROSE = 100  # columns of a line of prose
MAX_FILES = 12  # lines for files in a checkpoint; the worst come first


def render(result: AuditResult, *, width: int = 140) -> RenderableType:
    """What is shown at the end of an audit.

    Args:
        result: The audit.
        width: Columns of the terminal; below 138 a version is a block of lines, and above
            where its name is long.
    """
    parts = [*_artifacts(result), *_warnings(result), _heading(result)]
    parts.append(_versions(result, width))
    parts += leakage_part(result, rate=headline_rate(result), width=width)
    parts += [_answer(result, width), _footer(result)]
    return Group(*parts)


def show(result: AuditResult, console: Console | None = None) -> None:
    """Print `render` to a console, standard output when left out."""
    console = console or Console()
    console.print(Harmless(render(result, width=console.width)))


def _versions(result: AuditResult, width: int) -> RenderableType:
    """A line per version, its intervals beside their figures or under them, or a block."""
    for least, stacked in ((WIDE, False), (STACKED, True)):
        table = _wide(result, stacked=stacked)
        # Nothing is wrapped in it: with long names it may need more than most do.
        if width >= max(least, Console(width=10 * width).measure(table).maximum):
            return table
    return _narrow(result)


def what_was_done(receipt: Receipt | None) -> str:
    """What was compressed, from the receipt's counts."""
    if receipt is None or not receipt.compressed:
        return NOTHING
    share = 100 * receipt.n_compressed / max(1, receipt.n_parameters)
    done = f"{share:.0f}% to {receipt.bits_per_weight:.1f} bits"
    # Quantizing leaves some zeros too; only where they are the point are they worth a word.
    zeros = receipt.sparsity if receipt.sparsity >= 0.2 else 0.0
    return f"{done}, {100 * zeros:.0f}% zeros" if zeros else done


def _artifacts(result: AuditResult) -> list[RenderableType]:
    """What lies in the checkpoints: texts in a panel above everything, then a line per file."""
    texts = [item for item in result.artifacts if item.kind != "file"]
    files = [item for item in result.artifacts if item.kind == "file"]
    shown: list[RenderableType] = []
    if texts:
        lines = Text("\n").join(Text(_artifact(item)) for item in texts)
        title = "published in clear"
        shown.append(Panel(lines, title=title, style=STYLE["severe"], title_align="left"))
    shown += [Text(_artifact(item), style=STYLE[item.severity]) for item in files[:MAX_FILES]]
    if len(files) > MAX_FILES:
        rest = f"and {len(files) - MAX_FILES:,} more files that do not belong: see audit.json"
        shown.append(Text(rest, style=STYLE["warning"]))
    return shown


def _artifact(item: Artifact) -> str:
    return f"{item.checkpoint}: {item.file}: {item.message}"


def _warnings(result: AuditResult) -> list[RenderableType]:
    """The warnings, worst first; what a library had to be mended for only by name."""
    mended = [item.message.partition(": ")[0] for item in result.warnings if item.code == REPAIRED]
    shown = [_warning(item) for item in result.warnings if item.code != REPAIRED]
    if mended:
        names = ", ".join(dict.fromkeys(mended))
        note = f"info: {names}: the library computes wrongly here and was mended; see the receipts"
        shown.append(Text(note, style=STYLE["info"]))
    return shown


def _warning(item: Warned) -> RenderableType:
    if item.severity == "severe":
        return Panel(Text(item.message), title="warning", style=STYLE["severe"], title_align="left")
    return Text(f"{item.severity}: {item.message}", style=STYLE[item.severity])


def _heading(result: AuditResult) -> Text:
    members, nonmembers = result.records.members, result.records.nonmembers
    text = Text()
    text.append(f"\n{result.model.name}", style="bold")
    text.append(
        f"  {members.n_audited:,} members, {nonmembers.n_audited:,} nonmembers"
        f"  primary attack: {result.primary_attack}"
    )
    if said := origin(result):
        text.append(f"\n{said}")
    if result.blind is not None:
        text.append(f"\nblind baseline (never sees the model): AUC {interval(result.blind.auc)}")
    return text.append("\n")


def _columns(result: AuditResult) -> tuple[str, str | None]:
    rate = headline_rate(result)
    return f"{100 * result.confidence:g}%", rate


def _difference(result: AuditResult, variant: str, metric: str) -> Comparison | None:
    for item in result.comparisons:
        wanted = (item.variant, item.attack, item.metric)
        if wanted == (variant, result.primary_attack, metric):
            return item
    return None


def _cells(result: AuditResult, variant: VariantResult, rate: str | None) -> list[tuple[str, str]]:
    """Name and text of every figure of one version."""
    found = variant.attacks.get(result.primary_attack)
    auc = _difference(result, variant.variant, "auc")
    tpr = _difference(result, variant.variant, f"tpr@{rate}")
    mark = " *" if _is_significant(result, variant.variant) else ""
    title = "TPR" if rate is None else f"TPR@{100 * float(rate):g}%FPR, %"
    return [
        ("perplexity", f"{variant.perplexity:.2f}" if variant.perplexity else "–"),
        ("AUC", interval(found.auc if found else None)),
        (title, interval(found.tpr_at_fpr.get(rate or "") if found else None, percent=True)),
        ("AUC − original", interval(auc.difference if auc else None, signed=True)),
        ("p (Holm)", p_value(auc.p_adjusted if auc else None) + mark),
        ("TPR − original", interval(tpr.difference if tpr else None, percent=True, signed=True)),
    ]


def _wide(result: AuditResult, *, stacked: bool) -> Table:
    level, rate = _columns(result)
    table = Table(title=None, header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("variant", no_wrap=True)
    table.add_column("compressed", no_wrap=True)
    rows = [_cells(result, variant, rate) for variant in result.variants]
    # A column that has nothing to say in any row is left out.
    kept = [at for at in range(len(rows[0])) if any(row[at][1] != "–" for row in rows)]
    for at in kept:
        table.add_column(rows[0][at][0], justify="right", no_wrap=True)
    for variant, row in zip(result.variants, rows, strict=True):
        if variant.status != "ok":
            table.add_row(escape(variant.variant), f"[red]{variant.status}[/red]")
            continue
        cells = [row[at][1] for at in kept]
        done = what_was_done(variant.receipt)
        if stacked:
            cells = [cell.replace(" [", "\n[") for cell in cells]
            done = done.replace(", ", ",\n")
        style = "bold" if _is_significant(result, variant.variant) else ""
        cells = [escape(cell) for cell in cells]
        table.add_row(escape(variant.variant), done, *cells, style=style)
    table.caption = f"intervals at {level}; * differs from the original after Holm's correction"
    table.caption_justify = "left"
    return table


def _narrow(result: AuditResult) -> Group:
    level, rate = _columns(result)
    parts: list[RenderableType] = []
    for variant in result.variants:
        head = Text(variant.variant, style="bold")
        done = what_was_done(variant.receipt)
        head.append(f"  {'not compressed' if done == NOTHING else done}", style="dim")
        parts.append(head)
        if variant.status != "ok":
            parts.append(Text(f"  {variant.status}: {variant.reason}", style="red"))
            continue
        grid = Table.grid(padding=(0, 2))
        for name, text in _cells(result, variant, rate):
            if text != "–":
                grid.add_row(f"  {name}", text)
        parts.append(grid)
    parts.append(Text(f"intervals at {level}; * differs from the original after Holm", style="dim"))
    return Group(*parts)


def _is_significant(result: AuditResult, variant: str) -> bool:
    item = _difference(result, variant, "auc")
    return item is not None and is_finding(item.p_adjusted, result.confidence)


def _answer(result: AuditResult, width: int) -> Text:
    """The answer in plain sentences: last, where the eye is when an audit ends."""
    found = answer(result)
    text = Text("\n" + _wrapped(found.headline, width), style="bold")
    for sentence in found.sentences:
        text.append("\n" + _wrapped(sentence, width, indent="  "), style="not bold")
    return text.append("\n")


def _wrapped(text: str, width: int, *, indent: str = "") -> str:
    """Lines as long as can be read; no name is broken at its hyphens."""
    return textwrap.fill(
        text,
        min(width, PROSE),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _footer(result: AuditResult) -> Text:
    text = Text()
    original = result.variants[0].attacks.get(result.primary_attack)
    absent = [item.absent for item in (original.tpr_at_fpr if original else {}).values()]
    for reason in filter(None, absent):
        text.append(f"left out: {reason}\n", style="dim")
    for name, reason in result.attacks_left_out.items():
        text.append(f"{name} was left out: it {reason}\n", style="dim")
    output = result.config.get("output_path", "")
    together = ", exposure.parquet" if result.leakage is not None else ""
    files = f"audit.json, scores.parquet{together}, tokens/"
    text.append(f"results in {output}: {files}\n", style="dim")
    text.append(f"compleak-llm report {shlex.quote(str(output))}", style="bold")
    text.append(" makes the page to look at", style="dim")
    return text
