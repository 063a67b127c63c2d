"""The privacy section of a model card, as Markdown."""

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import auditor
from auditor.card.attackers import (
    Alone,
    Together,
    alone,
    is_found,
    last_part,
    model_name,
    together,
)
from auditor.card.verdict import of_variant
from auditor.report.answer import answer
from auditor.report.command import repeat_command
from auditor.report.figures import headline_rate, justified
from auditor.report.leakage import LESS
from auditor.report.markdown import Markdown, escape, fenced
from auditor.report.origin import origin
from auditor.report.plain import printable
from auditor.report.plots.drawing import Drawing
from auditor.report.terminal import REPAIRED, what_was_done
from auditor.report.view_table import holds
from auditor.results import AuditResult, Estimate, VariantResult

FIGURE = "compleak-llm-roc.png"
TEMPLATE = "privacy_section.md.j2"
# Width of a narrow figure in CSS pixels; its file has twice as many dots.
NARROW = 340
NO_BREAK = "\u00a0"


def render_section(
    result: AuditResult, *, drawing: Drawing, variant: VariantResult | None, base: str | None
) -> str:
    """The section between the markers, with line feeds.

    Args:
        result: The audit.
        drawing: The ROC figure, whose file is `FIGURE` beside the README.
        variant: The version that the card is for; None for the card of the original, which
            speaks of all versions.
        base: The original's id on the Hub, where the card names one.
    """
    chosen = variant.variant if variant else None
    found = answer(result) if variant is None else of_variant(result, variant)
    groups = together(result, chosen)
    supervision = groups[0][0].setting.supervision if groups else "none"
    template = _templates().get_template(TEMPLATE)
    return template.render(
        name=model_name(result),
        base=_link(base) if base else model_name(result),
        headline=found.headline,
        sentences=found.sentences,
        severe=_warnings(result, severe=True),
        notes=_warnings(result, severe=False),
        variant=variant,
        reference=last_part(result.reference.name) if result.reference else None,
        origin=origin(result),
        n_members=f"{result.records.members.n_audited:,}",
        n_nonmembers=f"{result.records.nonmembers.n_audited:,}",
        level=f"{100 * result.confidence:g}",
        primary=result.primary_attack,
        rate=_rate(result),
        alone=[_alone(result, row) for row in alone(result, chosen)],
        groups=[_group(result, rows) for rows in groups],
        learned=supervision != "none",
        shadow=supervision == "shadow",
        figure=_figure(drawing),
        receipt=_receipt(result, variant) if variant else None,
        absent=_absent(result),
        command=fenced(repeat_command(result)),
        version=result.versions.get("compleak-llm", auditor.__version__),
        model_sha256=result.model.sha256[:16],
        records_sha256=result.records.sha256[:16],
    )


def folder() -> Path:
    """Where the templates lie: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent.parent / "_model_cards"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "model_cards"


@cache
def _templates() -> Environment:
    # Not HTML: `finalize` escapes for Markdown what a template puts in.
    environment = Environment(
        loader=FileSystemLoader(folder()),
        undefined=StrictUndefined,
        autoescape=False,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment


def _escaped(value: Any) -> str:  # noqa: ANN401 - whatever a template puts in
    return value if isinstance(value, Markdown) else escape(str(value))


def _size(n_bytes: int) -> Markdown:
    """Bytes as a person reads them, in the Hub's units; number and unit stay on one line."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return Markdown(f"{n_bytes / factor:.1f}{NO_BREAK}{unit}")
    return Markdown(f"{n_bytes / 1e3:.0f}{NO_BREAK}kB")


def _rate(result: AuditResult) -> dict[str, Any] | None:
    """The false positive rate that TPRs are given at, in the words of the tables."""
    key = headline_rate(result)
    if key is None:
        return None
    return {"key": key, "percent": f"{100 * float(key):g}%", "of": f"{1 / float(key):,.0f}"}


def _warnings(result: AuditResult, *, severe: bool) -> list[str]:
    """What must be known first; texts that lie in a checkpoint are above all statistics."""
    files = [
        (item.severity == "severe" or item.kind != "file", f"{item.file}: {item.message}")
        for item in result.artifacts
    ]
    texts = [
        (item.severity == "severe", item.message)
        for item in result.warnings
        if item.severity != "info" and item.code != REPAIRED
    ]
    return list(dict.fromkeys(text for weight, text in files + texts if weight == severe))


def _alone(result: AuditResult, row: Alone) -> dict[str, Any]:
    """A line of the table of versions."""
    version = row.version
    found = version.attacks.get(result.primary_attack)
    difference = row.difference.difference if row.difference else None
    compressed = version.receipt is not None and version.receipt.compressed
    return {
        "name": version.variant,
        "broken": None if version.status == "ok" else version.reason or "it is broken",
        "done": what_was_done(version.receipt) if compressed else "",
        "size": _size(version.receipt.bytes_disk) if version.receipt else "–",
        "perplexity": f"{version.perplexity:.2f}" if version.perplexity else "–",
        "auc": _shown(found.auc if found else None),
        "tpr": _shown(found.tpr_at_fpr.get(_key(result)) if found else None, percent=True),
        "difference": Markdown(_shown(difference, signed=True) + _star(result, row)),
    }


def _group(result: AuditResult, rows: list[Together]) -> dict[str, Any]:
    """A table of attackers who can be compared with each other."""
    over = {LESS[row.gain.question] for row in rows if row.gain}
    return {
        "with_reference": rows[0].setting.with_reference,
        "rows": [_together(result, row) for row in rows],
        "gained": bool(over),
        # Whom all of them gain over stands above the column instead of in it.
        "over": over.pop() if len(over) == 1 else None,
    }


def _together(result: AuditResult, row: Together) -> dict[str, Any]:
    """A line of the table of attackers who hold several versions."""
    one = row.setting
    held = holds(result, one.versions)
    if one.supervision == "none":
        held += (
            ", by their mean rank" if one.setting == "MR" else ", by the difference of their losses"
        )
    gain = row.gain.difference if row.gain else None
    return {
        "holds": held,
        "auc": _shown(one.figures.auc),
        "tpr": _shown(one.figures.tpr_at_fpr.get(_key(result)), percent=True),
        "gain": Markdown(_shown(gain, signed=True) + _star(result, row)),
        "over": LESS[row.gain.question] if row.gain else "",
    }


def _key(result: AuditResult) -> str:
    return headline_rate(result) or ""


def _shown(found: Estimate | None, *, percent: bool = False, signed: bool = False) -> Markdown:
    """A figure of a table, which may be broken before its interval only."""
    value, interval = justified(found, percent=percent, signed=signed)
    return Markdown(f"{value} {interval.replace(' ', NO_BREAK)}".rstrip())


def _star(result: AuditResult, row: Alone | Together) -> Markdown:
    test = row.difference if isinstance(row, Alone) else row.gain
    return Markdown(r" \*" if is_found(result, test) else "")


def _absent(result: AuditResult) -> str:
    """Why TPRs are not given; empty where all are."""
    found = result.variants[0].attacks.get(result.primary_attack)
    rates = found.tpr_at_fpr.values() if found else []
    return "; ".join(dict.fromkeys(one.absent for one in rates if one.absent))


def _receipt(result: AuditResult, variant: VariantResult) -> dict[str, Any] | None:
    """What was done to make a version, in words; None where there is no receipt."""
    receipt, before = variant.receipt, result.variants[0].receipt
    if receipt is None:
        return None
    left: dict[str, int] = {}
    for module in receipt.skipped:
        left[module.reason] = left.get(module.reason, 0) + module.n_parameters
    used = receipt.calibration
    return {
        "made_with": f"{receipt.library}, {receipt.method}" if receipt.method else receipt.library,
        "n_compressed": f"{receipt.n_compressed:,}",
        "n_parameters": f"{receipt.n_parameters:,}",
        "n_modules": len(receipt.compressed),
        "n_changed": f"{receipt.n_changed:,}",
        "bits": f"{receipt.bits_per_weight:.2f}",
        "zeros": f"{100 * receipt.sparsity:.1f}%",
        "error": f"{receipt.relative_error:.3f}",
        "on_disk": _size(receipt.bytes_disk),
        "original_on_disk": _size(before.bytes_disk) if before else None,
        "calibration": f"{used.n_records:,} texts from {last_part(used.source)}" if used else None,
        "left_alone": [f"{n:,} parameters ({reason})" for reason, n in left.items()],
        "notes": receipt.notes,
    }


def _figure(drawing: Drawing) -> Markdown:
    """The figure, at its own width where that is less than a card's."""
    if drawing.width == "wide":
        return Markdown(f"![{escape(drawing.description)}]({FIGURE})")
    said = html.escape(printable(drawing.description))
    return Markdown(f'<img src="{FIGURE}" width="{NARROW}" alt="{said}">')


def _link(base: str) -> Markdown:
    return Markdown(f"[{escape(base)}](https://huggingface.co/{base})")


def _code(text: str) -> Markdown:
    """A code span that nothing in it can close."""
    text = printable(text)
    ticks = "`" * (_longest_run(text) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{ticks}{room}{text}{room}{ticks}")


def _longest_run(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
