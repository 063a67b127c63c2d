"""The tables of `list` and `doctor`."""

import re
from typing import Any, Literal, get_args, get_origin

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from auditor.attacks import ATTACKS, Attack
from auditor.compress import COMPRESSORS, Compressor, spell
from auditor.compress.receipt import Receipt
from auditor.environment import installed
from auditor.recipes import names
from auditor.report.harmless import Harmless


def print_table(table: Table) -> None:
    """Print a table to standard output."""
    Console().print(Harmless(table))


class _Plain(Table):
    """A table in whose cells text is text: no name of others is markup, a link or an emoji."""

    def add_row(self, *cells: RenderableType | None, **given: Any) -> None:  # noqa: ANN401
        """See `rich.table.Table`."""
        super().add_row(*(Text(one) if isinstance(one, str) else one for one in cells), **given)


def new_table(*columns: str) -> Table:
    """A table in the style of all tables here."""
    table = _Plain(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0, overflow="fold")
    return table


def attacks_table() -> Table:
    """Every attack, what it does, what it needs, where it comes from."""
    table = new_table("attack", "setting", "signal", "needs", "source")
    for name, attack in ATTACKS.items():
        if attack.needs_same_tokens:
            needs = "a reference with the same tokenizer"
        else:
            needs = "a reference" if attack.needs_reference else ""
        table.add_row(name, attack.setting, summary(attack), needs, attack.source)
    return table


def summary(attack: Attack) -> str:
    """What an attack does, in a line; its source has a place of its own."""
    first = (attack.load().__doc__ or "").strip().partition("\n")[0]
    return re.sub(r" \([^()]*\d{4}[^()]*\)", "", first)


def variants_table() -> Table:
    """Every compressor, its options and whether it can run here."""
    table = new_table("variant", "what", "options", "here")
    for name, compressor in COMPRESSORS.items():
        what = compressor.summary + ("; needs --calibration" if compressor.is_calibrated else "")
        table.add_row(name, what, options_text(compressor), _here(compressor))
    return table


def receipt_table(receipt: Receipt) -> Table:
    """A receipt in a few lines."""
    table = new_table("receipt", "")
    table.add_row("variant", receipt.variant)
    changed = 100 * receipt.n_changed / max(1, receipt.n_compressed)
    share = 100 * receipt.n_compressed / max(1, receipt.n_parameters)
    table.add_row("made by", receipt.library)
    table.add_row(
        "compressed", f"{receipt.n_compressed:,} of {receipt.n_parameters:,} weights ({share:.0f}%)"
    )
    table.add_row("changed", f"{receipt.n_changed:,} of these ({changed:.0f}%)")
    table.add_row("bits per weight", f"{receipt.bits_per_weight:.2f}")
    table.add_row("zeros", f"{100 * receipt.sparsity:.1f}%")
    table.add_row("relative error", f"{receipt.relative_error:.4f}")
    table.add_row("on disk", f"{receipt.bytes_disk / 2**20:,.1f} MiB")
    table.add_row(
        "took",
        f"{receipt.compress_s:.1f} s, {receipt.compress_peak_bytes / 2**20:,.0f} MiB at its peak",
    )
    if receipt.calibration is not None:
        used = receipt.calibration
        table.add_row("calibrated on", f"{used.n_tokens:,} tokens of {used.n_records:,} texts")
    for sentence in (*receipt.repairs, *receipt.notes):
        table.add_row("note", sentence)
    return table


def options_text(compressor: Compressor) -> str:
    """The options with their defaults and help, one a line."""
    lines = []
    for key, field in compressor.options.model_fields.items():
        if field.is_required():
            default = "required"
        else:
            default = f"default {spell(field.default)}" if field.default is not None else "optional"
        choices = [spell(value) for value in get_args(field.annotation)]
        if choices and get_origin(field.annotation) is Literal:
            default = f"{'|'.join(choices)}, {default}"
        lines.append(f"{key} ({default}): {field.description}")
    return "\n".join(lines)


def _here(compressor: Compressor) -> str:
    missing = [name for name in compressor.requires if installed(name) is None]
    return f"no: pip install -c constraints.txt {' '.join(missing)}" if missing else "yes"


def recipes_table() -> Table:
    """Every recipe with the first line of its comment."""
    table = new_table("recipe", "what")
    for name, summary in names().items():
        table.add_row(name, summary)
    return table
