"""The receipts on the page: what was really done to every variant, and what was not."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from auditor.compress.receipt import Compressed, Receipt, Skipped
from auditor.report.figures import ABSENT
from auditor.report.view import (
    Column,
    Fact,
    Grid,
    Row,
    number_cell,
    plural,
    text_cell,
)
from auditor.report.view_table import places
from auditor.results import AuditResult, VariantResult

MIB = 2**20


@dataclass(frozen=True)
class ReceiptView:
    """The receipt of one version.

    Attributes:
        name: The version.
        status: Why it is broken; empty where it is not.
        facts: What was found.
        notes: What its reader must know; repairs first.
        modules: What was compressed, by kind of module; None where nothing was.
        skipped: What was left alone, by kind of module and reason; None where nothing was.
    """

    name: str
    status: str
    facts: list[Fact]
    notes: list[str]
    modules: Grid | None
    skipped: Grid | None


@dataclass(frozen=True)
class ReceiptsView:
    """All receipts.

    Attributes:
        overview: A row for every version.
        receipts: One for every version.
    """

    overview: Grid
    receipts: list[ReceiptView]


def receipts_view(result: AuditResult) -> ReceiptsView:
    """The receipts of all versions, side by side and one by one."""
    return ReceiptsView(
        _overview(result),
        [_receipt(at, variant) for at, variant in enumerate(result.variants)],
    )


def _overview(result: AuditResult) -> Grid:
    columns = [
        Column("Version"),
        Column("Weights changed, %", "number"),
        Column("Bits per weight", "number"),
        Column("Zeros, %", "number"),
        Column("Relative error", "number"),
        Column("On disk, MiB", "number"),
        Column("In memory, MiB", "number"),
        Column("Perplexity", "number"),
        Column("× original", "number"),
    ]
    rows = [_overview_row(result, variant) for variant in result.variants]
    notes = [
        "Counted on the models that were scored. Changed: of all parameters. Bits, zeros and error "
        "are those of the modules that were compressed; error is ||W' − W|| / ||W||."
    ]
    return Grid("receipt-overview", "What was really changed", columns, rows, notes)


def _overview_row(result: AuditResult, variant: VariantResult) -> Row:
    receipt = variant.receipt
    name = variant.variant if variant.status == "ok" else f"{variant.variant} (broken)"
    perplexity = [
        number_cell(value, f"{value:.{digits}f}" if value is not None else None)
        for value, digits in ((variant.perplexity, 2), (variant.perplexity_ratio, 3))
    ]
    cells = [number_cell(None) for _ in range(6)]
    if receipt is not None:
        changed = receipt.n_changed / max(1, receipt.n_parameters)
        error = _or_none(receipt.relative_error)
        cells = [
            number_cell(changed, f"{100 * changed:.1f}"),
            number_cell(receipt.bits_per_weight, f"{receipt.bits_per_weight:.2f}"),
            number_cell(receipt.sparsity, f"{100 * receipt.sparsity:.1f}"),
            number_cell(error, _error(error)),
            number_cell(receipt.bytes_disk, _mib(receipt.bytes_disk)),
            number_cell(receipt.bytes_memory, _mib(receipt.bytes_memory)),
        ]
    return Row([text_cell(name), *cells, *perplexity], versions=places(result, [variant.variant]))


def _receipt(at: int, variant: VariantResult) -> ReceiptView:
    receipt = variant.receipt
    status = ""
    if variant.status != "ok":
        status = f"Broken, compared with nothing: {variant.reason or 'no reason was given'}."
    if receipt is None:
        return ReceiptView(variant.variant, status, [], ["There is no receipt."], None, None)
    return ReceiptView(
        name=variant.variant,
        status=status,
        facts=_facts(variant, receipt),
        notes=[*receipt.repairs, *receipt.notes],
        modules=_modules(at, variant.variant, receipt.compressed) if receipt.compressed else None,
        skipped=_skipped(at, variant.variant, receipt.skipped) if receipt.skipped else None,
    )


def _facts(variant: VariantResult, receipt: Receipt) -> list[Fact]:
    share = 100 * receipt.n_compressed / max(1, receipt.n_parameters)
    changed = 100 * receipt.n_changed / max(1, receipt.n_compressed)
    facts = [Fact("With all options", variant.canonical), Fact("Made by", receipt.library)]
    if receipt.method is not None:
        facts.append(Fact("Found to be", receipt.method))
    if receipt.compressed:
        facts += [
            Fact(
                "Compressed",
                f"{receipt.n_compressed:,} of {receipt.n_parameters:,} parameters ({share:.0f}%)",
            ),
            Fact("Changed", f"{receipt.n_changed:,} of these ({changed:.1f}%)"),
        ]
    else:
        facts.append(Fact("Parameters", f"{receipt.n_parameters:,}, none compressed"))
    if receipt.skipped:
        # Not the sum over modules: a head that is tied to the embedding is the same weights.
        n_left = receipt.n_parameters - receipt.n_compressed
        reasons = dict.fromkeys(module.reason for module in receipt.skipped)
        facts.append(Fact("Left alone", f"{n_left:,} parameters: {'; '.join(reasons)}"))
    facts += [
        Fact("On disk", f"{receipt.bytes_disk:,} bytes"),
        Fact("In memory", f"{receipt.bytes_memory:,} bytes"),
    ]
    if receipt.correlation is not None:
        facts.append(Fact("Correlation with the original", f"{receipt.correlation:.4f}"))
    if receipt.calibration is not None:
        used = receipt.calibration
        facts.append(
            Fact(
                "Calibrated on",
                f"{used.n_tokens:,} tokens in {plural(used.n_samples, 'window')} of "
                f"{plural(used.n_records, 'text')}, {used.source}; tokens {used.sha256[:16]}",
            )
        )
    if receipt.batch_dependent:
        facts.append(Fact("Scored", "one record at a time: its scores depend on the batch"))
    took = f"{receipt.compress_s:.1f} s"
    if receipt.compress_peak_bytes:
        took += f", {_mib(receipt.compress_peak_bytes)} MiB at its peak"
    facts.append(Fact("Took", took))
    return facts


def _modules(at: int, name: str, compressed: Sequence[Compressed]) -> Grid:
    """The modules that differ in nothing but numbers as one row: a layer is like the next."""
    kinds: dict[tuple[str, str], list[Compressed]] = {}
    for module in compressed:
        kinds.setdefault((pattern(module.module), module.kind), []).append(module)
    columns = [
        Column("Modules"),
        Column("Kind"),
        Column("Count", "number"),
        Column("Weights", "number"),
        Column("Changed, %", "number"),
        Column("Zeros, %", "number"),
        Column("Relative error"),
    ]
    rows = [_module_row(part, kind, found) for (part, kind), found in kinds.items()]
    caption = f"{name}: compressed, {plural(len(compressed), 'module')}"
    notes = _found_in(compressed)
    return Grid(f"modules-{at}", caption, columns, rows, notes)


def _module_row(name: str, kind: str, found: Sequence[Compressed]) -> Row:
    n_weights = sum(module.n_parameters for module in found)
    changed = sum(module.n_changed for module in found) / max(1, n_weights)
    zeros = sum(module.sparsity * module.n_parameters for module in found) / max(1, n_weights)
    errors = [module.relative_error for module in found if not math.isnan(module.relative_error)]
    low, high = (_error(end(errors) if errors else None) for end in (min, max))
    return Row(
        [
            text_cell(name),
            text_cell(kind),
            number_cell(len(found)),
            number_cell(n_weights),
            number_cell(changed, f"{100 * changed:.1f}"),
            number_cell(zeros, f"{100 * zeros:.1f}"),
            text_cell(low if low == high else f"{low} to {high}"),
        ]
    )


def _found_in(compressed: Sequence[Compressed]) -> list[str]:
    """Patterns and counts of values, where they were looked for."""
    patterns = sorted({module.pattern for module in compressed if module.pattern is not None})
    values = [module.n_values for module in compressed if module.n_values is not None]
    notes = [f"Pattern found in every group: {', '.join(patterns)}."] if patterns else []
    if values:
        low, high = min(values), max(values)
        count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        notes.append(f"Distinct values in a matrix: {count}.")
    return notes


def _skipped(at: int, name: str, skipped: Sequence[Skipped]) -> Grid:
    kinds: dict[tuple[str, str], list[Skipped]] = {}
    for module in skipped:
        kinds.setdefault((pattern(module.module), module.reason), []).append(module)
    rows = [
        Row(
            [
                text_cell(part),
                text_cell(reason),
                number_cell(len(found)),
                number_cell(sum(module.n_parameters for module in found)),
            ]
        )
        for (part, reason), found in kinds.items()
    ]
    columns = [
        Column("Modules"),
        Column("Why"),
        Column("Count", "number"),
        Column("Parameters", "number"),
    ]
    caption = f"{name}: left alone, {plural(len(skipped), 'module')}"
    return Grid(f"skipped-{at}", caption, columns, rows)


def pattern(module: str) -> str:
    """A module's name with a star for every number: the same part of every layer."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _error(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:,.1f}"
