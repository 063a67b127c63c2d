"""Files are written to a temporary name and renamed, so that no reader ever meets half a file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from auditor.errors import StoreError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended well.

    Raises:
        StoreError: The disk is full, read-only, or the folder cannot be made.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; errors as in `written_whole`."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def cannot_write(path: Path, error: OSError) -> StoreError:
    """The error for a path that cannot be written."""
    fixes = {
        errno.ENOSPC: "free some space, or choose another --output-path; the same command goes on",
        errno.EDQUOT: "raise the quota, or choose another --output-path; the same command goes on",
        errno.EFBIG: "raise the file size limit; the same command goes on where it stopped",
        errno.EACCES: "choose an --output-path that this user may write",
        errno.EROFS: "choose an --output-path on a file system that can be written",
    }
    return StoreError(
        f"{path.parent} must be a folder that can be written",
        seen=f"{path.name}: {error.strerror or error}",
        fix=fixes.get(error.errno or 0, "choose another --output-path"),
    )
