"""Taking out of the cache what has not been used for long, and what was left half-written."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from auditor.compress.entries import Entry, entries, unusable
from auditor.errors import ConfigError

MOST_DAYS = 36_500.0  # more than any file is old


class Evicted(NamedTuple):
    """What was taken out.

    Attributes:
        removed: Each entry as it was called, with its bytes.
        in_use: Names of the entries that another process holds, which were left alone.
        left: Names of the entries that could not be removed whole, with the reason.
    """

    removed: list[tuple[str, int]]
    in_use: list[str]
    left: list[str]

    @property
    def n_bytes(self) -> int:
        """Bytes of all that was removed."""
        return sum(n_bytes for _, n_bytes in self.removed)


def evict(root: Path, *, older_than_days: float, everything: bool = False) -> Evicted:
    """Remove entries that were not used for some days, damaged ones, and half-written ones.

    Args:
        root: The cache's folder.
        older_than_days: Days without use after which a whole entry goes.
        everything: Whether all of them go.

    Raises:
        ConfigError: Days below zero.
        StoreError: The cache cannot be written.
    """
    if not older_than_days >= 0:
        raise ConfigError("--older-than must be days, 0 or more", seen=f"{older_than_days:g}")
    found = Evicted([], [], [])
    limit = datetime.now(UTC) - timedelta(days=min(older_than_days, MOST_DAYS))
    try:
        for entry in entries(root):
            lock = entry.locked_now()
            if lock is None:
                found.in_use.append(entry.name)
                continue
            with lock:
                try:
                    _evict_one(entry, found, limit=None if everything else limit)
                except OSError as error:  # the others may go all the same
                    found.left.append(f"{entry.name} ({error.strerror or error})")
    except OSError as error:
        raise unusable(root, error) from error
    return found


def _evict_one(entry: Entry, found: Evicted, *, limit: datetime | None) -> None:
    """Remove an entry, for who holds its lock, where it was not used since `limit`, if any."""
    if entry.part.is_dir():
        found.removed.append((f"{entry.name}, half-written", entry.remove_part()))
    manifest, used_at = entry.manifest(), entry.used_at
    is_due = limit is None or manifest is None or used_at is None or used_at < limit
    if is_due and entry.folder.is_dir():
        name = f"{manifest.variant} of {manifest.model}" if manifest else entry.name
        found.removed.append((name, entry.remove()))
    if not entry.folder.is_dir():
        # Last of all: whoever waits looks again whether the file is still this one.
        entry.lock.unlink(missing_ok=True)
