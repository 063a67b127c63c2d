"""Several files are written, or none: a README never shows a figure that is not there.

All are written under temporary names first; then each takes its name, the README last. Should
one of these renames fail, those before it are undone.
"""

import errno
import os
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from auditor.errors import StoreError
from auditor.files import begin_file

FIX = "make its folder writable, or free some space"
NO_FOLDER = "a file stands where its folder must be: move it away"
FIXES = {errno.EEXIST: NO_FOLDER, errno.ENOTDIR: NO_FOLDER}
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class _Placed(NamedTuple):
    """One file on its way.

    Attributes:
        path: As it was given.
        target: Where it really lies, links followed.
        part: Its new content, beside it.
        before: Its old content; None where there was none.
    """

    path: Path
    target: Path
    part: Path
    before: bytes | None


def must_be_file(path: Path) -> Path:
    """Where a file really lies, links followed; it must be one that may be written, or not exist.

    Raises:
        StoreError: It is a folder or the like, its links go in a circle, or it is read-only.
    """
    must = f"{path} must be a file that can be written"
    try:
        target = path.resolve()
        if not target.exists():
            return target
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise StoreError(must, seen=str(error), fix="name another file") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise StoreError(must, seen=f"it is {kind}", fix="name the file itself")
    # A rename would get around the mode of the file, and so does a superuser.
    if not mode & WRITABLE or not os.access(target, os.W_OK):
        raise StoreError(must, seen="it is read-only", fix=f"chmod u+w {path}")
    return target


def place(contents: Mapping[Path, bytes], *, private: Collection[Path] = ()) -> list[Path]:
    """Write files that differ from what is there; all, or none.

    Args:
        contents: What each must hold, in the order in which they take their names.
        private: Those that only their owner may read; the others are as the umask says, and what
            is replaced keeps its mode.

    Returns:
        Those that were written; a file that holds this already is left alone.

    Raises:
        StoreError: One cannot be written; then all are as they were.
    """
    placed: list[_Placed] = []
    made: list[Path] = []
    done: list[_Placed] = []
    path = next(iter(contents), Path())
    try:
        for path, content in contents.items():
            target = must_be_file(path)
            before = target.read_bytes() if target.exists() else None
            if before != content:
                made += _made_folders(target.parent)
                part = target.with_name(f".{target.name}.{os.getpid()}.part")
                placed.append(_Placed(path, target, part, before))
                _write(part, content, private=path in private or before is not None)
                if before is not None:
                    _as_before(part, target, private=path in private)
        for one in placed:
            path = one.path
            one.part.replace(one.target)
            done.append(one)
    except OSError as error:
        _undo(done)
        raise StoreError(
            f"{path} must be a file that can be written",
            seen=error.strerror or str(error),
            fix=f"{FIXES.get(error.errno or 0, FIX)}; every file is as it was",
        ) from error
    except BaseException:
        _undo(done)
        done.clear()
        raise
    finally:
        for one in placed:
            with suppress(OSError):
                one.part.unlink(missing_ok=True)
        if len(done) < len(placed) or not placed:
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()
    return [one.path for one in placed]


def _made_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the new ones, the topmost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _write(part: Path, content: bytes, *, private: bool) -> None:
    begin_file(part, private=private)
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _as_before(part: Path, target: Path, *, private: bool) -> None:
    """Give a file the mode of the one that it replaces; a private one no more than its owner's."""
    mode = stat.S_IMODE(target.stat().st_mode)
    part.chmod(mode & stat.S_IRWXU if private else mode)


def _undo(done: list[_Placed]) -> None:
    """Give files that took their names already their old content back."""
    for one in reversed(done):
        with suppress(OSError):
            if one.before is None:
                one.target.unlink()
            else:
                _write(one.part, one.before, private=True)
                _as_before(one.part, one.target, private=False)
                one.part.replace(one.target)
