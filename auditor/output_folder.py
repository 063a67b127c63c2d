"""The output folder: who holds it, and which audit it belongs to.

One audit works on a folder at a time, and a folder stays with the audit that began it: same model,
same tokenizer, same records. What is about something else is refused before anything is touched.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from auditor.errors import StoreError
from auditor.files import cannot_write, write_text

LOCK = ".lock"


@contextmanager
def locked(output: Path, *, is_main: bool) -> Iterator[None]:
    """Hold the output folder; a second audit on it is refused at once.

    Args:
        output: The output folder; made where it is missing.
        is_main: Only the main process of a run holds the lock.

    Raises:
        StoreError: Another audit holds it, or it cannot be written.
    """
    if not is_main:
        yield
        return
    path = output / LOCK
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout:
        raise _in_use(output) from None
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        lock.release()


def must_not_be_in_use(output: Path) -> None:
    """Refuse at once, before records are read, a folder that another audit holds.

    Raises:
        StoreError: Another audit holds it.
    """
    path = output / LOCK
    if not path.is_file():  # nothing is made before all is checked
        return
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        raise _in_use(output) from None
    except OSError as error:
        raise cannot_write(path, error) from error


def _in_use(output: Path) -> StoreError:
    return StoreError(
        f"{output} must not be in use",
        seen="another audit is running on it",
        fix="wait for it, or choose another --output-path",
    )


def must_be_free(output: Path, about: Mapping[str, str]) -> bool:
    """Whether `output` already belongs to this audit; nothing is written.

    Args:
        output: The output folder, which need not be there.
        about: What an audit is about (model, tokenizer, records, length), as short texts.

    Raises:
        StoreError: The folder holds another audit.
    """
    path = output / "tokens" / "audit.json"
    must = f"{output} must be empty or hold this very audit"
    if not path.is_file():
        if (output / "audit.json").exists():
            raise StoreError(
                must,
                seen="an audit.json without its stored scores",
                fix="choose another --output-path, or move that file away",
            )
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = {}
    found = found if isinstance(found, dict) else {}
    for key in about:
        if found.get(key) != about[key]:
            raise StoreError(
                must,
                seen=f"an audit with another {key}: {found.get(key)} there, {about[key]} now",
                fix="choose another --output-path, or remove that folder",
            )
    return True


def claim(output: Path, about: Mapping[str, str], *, is_main: bool = True) -> Path:
    """Make `output` the folder of the audit `about`, or find that it is already.

    Args:
        output: The output folder.
        about: As for `must_be_free`.
        is_main: Whether this process is the one that writes.

    Returns:
        The store's folder.

    Raises:
        StoreError: The folder holds another audit, or cannot be written.
    """
    root = output / "tokens"
    known = must_be_free(output, about)
    if is_main and not known:
        write_text(root / "audit.json", json.dumps(dict(about), indent=1) + "\n")
    if is_main:
        # What a killed run left half written; nobody else writes here while it is locked.
        for part in root.rglob(".*.part"):
            part.unlink(missing_ok=True)
    return root
