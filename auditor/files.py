"""Files are written to a temporary name and renamed, so that no reader ever meets half a file.

What speaks of single records is for its owner alone, mode 0600 in folders of mode 0700: token
statistics, signals, and `audit.json` with its ids, which whoever holds a text can compute and look
up. What is made to be shown says so, and takes the mode that the umask gives. A file that is
replaced never becomes readable to more people than it was.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from auditor.errors import StoreError

OWNER_ALONE = 0o600
AS_UMASK_SAYS = 0o666
OWNERS_FOLDER = 0o700
# Not on every system; there links are followed as ever.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: Path, *, private: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended well.

    Args:
        path: The file. Its folder is made where it is missing.
        private: Whether the file, and the folder that is made for it, are for their owner alone;
            else the umask decides. A file that is there already and is more private stays so.

    Raises:
        StoreError: The disk is full, read-only, or the folder cannot be made.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        folder_mode = OWNERS_FOLDER if private else 0o777
        path.parent.mkdir(mode=folder_mode, parents=True, exist_ok=True)
        begin_file(part, private=private)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        keep_private(part, like=path)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def begin_file(part: Path, *, private: bool) -> None:
    """Make an empty file that nobody else has made, with its mode from the first byte on.

    A temporary name can be guessed: a link that waits there would lead what is written elsewhere.

    Args:
        part: The file. What a killed process of the same number left there is removed.
        private: Whether only its owner may read it.

    Raises:
        OSError: It cannot be made.
    """
    part.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | NO_LINK
    os.close(os.open(part, flags, OWNER_ALONE if private else AS_UMASK_SAYS))


def keep_private(part: Path, *, like: Path) -> None:
    """Take from a new file what nobody could do with the one that it replaces, if there is one.

    Raises:
        OSError: Its mode cannot be changed.
    """
    with suppress(FileNotFoundError):
        before, now = (stat.S_IMODE(file.lstat().st_mode) for file in (like, part))
        if before & now != now:
            part.chmod(before & now)


def write_text(path: Path, text: str, *, private: bool = True) -> None:
    """Write a text file whole or not at all; arguments and errors as in `written_whole`."""
    with written_whole(path, private=private) as part:
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
