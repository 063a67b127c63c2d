"""The tables of `list` and `doctor`."""

import re

from rich.console import Console
from rich.table import Table

from auditor.attacks import ATTACKS
from auditor.compress import COMPRESSORS, Compressor, spell
from auditor.environment import installed
from auditor.recipes import names


def print_table(table: Table) -> None:
    """Print a table to standard output."""
    Console().print(table)


def new_table(*columns: str) -> Table:
    """A table in the style of all tables here."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0)
    return table


def attacks_table() -> Table:
    """Every attack, what it does, what it needs, where it comes from."""
    table = new_table("attack", "setting", "signal", "needs", "source")
    for name, attack in ATTACKS.items():
        if attack.needs_same_tokens:
            needs = "a reference with the same tokenizer"
        else:
            needs = "a reference" if attack.needs_reference else ""
        summary = (attack.load().__doc__ or "").strip().partition("\n")[0]
        # The source has a column of its own.
        summary = re.sub(r" \([^()]*\d{4}[^()]*\)", "", summary)
        table.add_row(name, attack.setting, summary, needs, attack.source)
    return table


def variants_table() -> Table:
    """Every compressor, its options and whether it can run here."""
    table = new_table("variant", "what", "options", "here")
    for name, compressor in COMPRESSORS.items():
        table.add_row(name, compressor.summary, options_text(compressor), _here(compressor))
    return table


def options_text(compressor: Compressor) -> str:
    """The options with their defaults and help, one a line."""
    lines = []
    for key, field in compressor.options.model_fields.items():
        default = "required" if field.is_required() else f"default {spell(field.default)}"
        lines.append(f"{key} ({default}): {field.description}")
    return "\n".join(lines)


def _here(compressor: Compressor) -> str:
    missing = [name for name in compressor.requires if installed(name) is None]
    return f"pip install {' '.join(missing)}" if missing else "yes"


def recipes_table() -> Table:
    """Every recipe with the first line of its comment."""
    table = new_table("recipe", "what")
    for name, summary in names().items():
        table.add_row(name, summary)
    return table
