"""The cache of made versions on screen: what is in it, and what was taken out of it."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auditor.compress.entries import entries
from auditor.report.catalogue import new_table, print_table
from auditor.report.harmless import Harmless

if TYPE_CHECKING:
    from auditor.compress.eviction import Evicted

OFF = "there is no cache: COMPLEAK_CACHE is off"


def show_kept(root: Path | None) -> None:
    """Print what is in the cache.

    Args:
        root: Its folder; None where there is to be none.
    """
    if root is None:
        _say(OFF)
        return
    table = kept_table(root)
    _say(f"{root}" if table.row_count else f"{root}: nothing is kept")
    if table.row_count:
        print_table(table)


def kept_table(root: Path) -> Table:
    """Every entry of the cache, as its manifest says."""
    table = new_table("variant", "model", "size", "made", "last used")
    for entry in entries(root):
        manifest, used_at = entry.manifest(), entry.used_at
        if manifest is None or used_at is None:
            if entry.folder.is_dir() or entry.part.is_dir():
                table.add_row(Text(entry.name), "", "", "not whole", "")
            continue
        table.add_row(
            # Names are others', and no markup.
            Text(manifest.variant),
            Text(manifest.model),
            _size(manifest.n_bytes),
            Text(_day(manifest.made_at)),
            f"{used_at.astimezone():%Y-%m-%d %H:%M}",
        )
    return table


def show_evicted(root: Path | None, found: "Evicted | None") -> None:
    """Print what was taken out of the cache.

    Args:
        root: Its folder; None where there is to be none.
        found: What was taken out.
    """
    if root is None or found is None:
        _say(OFF)
        return
    for name, n_bytes in found.removed:
        _say(f"removed {name}, {_size(n_bytes)}")
    for name in found.in_use:
        _say(f"left {name}: another process holds it")
    n = len(found.removed)
    _say(f"{root}: {n} removed, {found.n_bytes:,} bytes")


def _say(line: str) -> None:
    Console(soft_wrap=True).print(Harmless(Text(line)))


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"


def _day(text: str) -> str:
    """A time of a manifest, here; as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return text
