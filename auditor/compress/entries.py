"""Entries of the cache of made versions: folders that are whole or not there.

    CACHE/gptq-1a2b3c4d5e6f7081/       one version; the digits: its fingerprint
        weights-00000.safetensors ...  what is needed beside the original
        manifest.json                  what it is, its receipt, size and SHA-256 of every file
    CACHE/gptq-1a2b3c4d5e6f7081.lock   held by whoever makes or removes it, released by the system
    CACHE/.gptq-1a2b3c4d5e6f7081.part  being written; renamed once it is whole
    CACHE/merged-0f1e2d3c4b5a6978/     a base with its adapter: the files of a whole model

Everything is for its owner alone, and nothing of it holds a text.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, Timeout
from pydantic import Field

from auditor.compress.receipt import Part, Receipt
from auditor.errors import StoreError
from auditor.files import OWNER_ALONE, OWNERS_FOLDER, begin_file, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

OFF = "off"
MANIFEST = "manifest.json"
DIGITS = 16  # of a fingerprint's digest, in an entry's name
NAME = re.compile(r"[A-Za-z0-9.=,_-]+-[0-9a-f]{16}")
WEIGHTS = re.compile(
    r"weights-\d{5}\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|(generation_)?config\.json"
)
# Bytes of tensors in a file at most, but for a single one that is larger: on a GPU's host so much
# is held in memory at once.
FILE_BYTES = 2**31


class File(Part):
    """A file of an entry, as it was written."""

    n_bytes: int = Field(description="Its size.")
    sha256: str = Field(description="Of its content, hex.")


class Manifest(Part):
    """What an entry is; written last."""

    fingerprint: dict[str, Any] = Field(description="Everything that determines the weights.")
    variant: str = Field(description="The version, as it was called.")
    model: str = Field(description="The original, as it was called.")
    made_at: str = Field(description="When it was made, ISO 8601, UTC.")
    receipt: Receipt = Field(description="How it was made; without the calibration texts' ids.")
    settings: dict[str, Any] = Field(description="What its form needs beside the tensors.")
    files: dict[str, File] = Field(description="Its files with weights, by name.")
    sha256: str = Field(description="Over all of the above as it is written here, hex.")

    @property
    def n_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.n_bytes for file in self.files.values())

    def digest(self) -> str:
        """What its `sha256` must be."""
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def cache_folder() -> Path | None:
    """Where made versions are kept: COMPLEAK_CACHE, or `compleak` in HF_HOME; None for "off"."""
    given = os.environ.get("COMPLEAK_CACHE", "")
    if given.lower() == OFF:
        return None
    if given:
        return Path(given).expanduser().absolute()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).absolute() / "compleak"


def named(root: Path, label: str, fingerprint: Mapping[str, Any]) -> "Entry":
    """The entry of a version; it need not be there.

    Args:
        root: The cache's folder.
        label: What tables call the version.
        fingerprint: Everything that determines its weights.
    """
    text = json.dumps(fingerprint, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Entry(root, f"{re.sub(r'[^A-Za-z0-9.=,_-]+', '_', label)[:80]}-{digest[:DIGITS]}")


def entries(root: Path) -> list["Entry"]:
    """Everything in the cache that is an entry, was one, or is being made, by name.

    Raises:
        StoreError: The cache cannot be read.
    """
    try:
        files = [path.name for path in root.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(root, error) from error
    names = {re.sub(r"^\.(.+)\.part$", r"\1", file.removesuffix(".lock")) for file in files}
    return [Entry(root, name) for name in sorted(filter(NAME.fullmatch, names))]


def unusable(root: Path, error: OSError) -> StoreError:
    """The error for a cache that is to be shown or tidied, and cannot be."""
    return StoreError(
        f"the cache {root} must be a folder that this user may read and write",
        seen=f"{error.filename or root}: {error.strerror or error}",
        fix="name another by COMPLEAK_CACHE, or give this one back to its user",
    )


@dataclass(frozen=True)
class Entry:
    """One version's place in the cache.

    Attributes:
        root: The cache's folder.
        name: Its name there.
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Its folder once it is whole."""
        return self.root / self.name

    @property
    def part(self) -> Path:
        """Its folder while it is written; only who holds the lock touches it."""
        return self.root / f".{self.name}.part"

    @property
    def lock(self) -> Path:
        """The file that is locked."""
        return self.root / f"{self.name}.lock"

    def locked(self, waiting: Callable[[], None]) -> AcquireReturnProxy[BaseFileLock]:
        """Hold the lock: whoever makes or removes the entry must.

        Args:
            waiting: Called before waiting for another process that holds it.

        Returns:
            A context manager whose end releases the lock. (The lock itself, as a context manager,
            would take it once more and release that alone.)

        Raises:
            OSError: The cache cannot be written.
        """
        if (held := self.locked_now()) is not None:
            return held
        waiting()
        return self._lock().acquire()

    def locked_now(self) -> AcquireReturnProxy[BaseFileLock] | None:
        """The same, or None where another process holds it."""
        self.root.mkdir(mode=OWNERS_FOLDER, parents=True, exist_ok=True)
        try:
            return self._lock().acquire(timeout=0)
        except Timeout:
            return None

    def _lock(self) -> BaseFileLock:
        return FileLock(self.lock, mode=OWNER_ALONE)

    def manifest(self) -> Manifest | None:
        """What it is; None where it is not there, or its manifest or a file's size is wrong."""
        try:
            text = (self.folder / MANIFEST).read_text(encoding="utf-8")
            found = Manifest.model_validate_json(text)
            sizes = {name: (self.folder / name).stat().st_size for name in found.files}
        except (OSError, ValueError):
            return None
        is_ours = found.sha256 == found.digest() and all(map(WEIGHTS.fullmatch, found.files))
        are_whole = all(sizes[name] == file.n_bytes for name, file in found.files.items())
        return found if is_ours and are_whole else None

    def is_whole(self, fingerprint: Mapping[str, Any], *, checked: bool) -> bool:
        """Whether it is there and is this version.

        Args:
            fingerprint: Everything that determines the version's weights.
            checked: Whether its files are read to compare their checksums.
        """
        found = self.manifest()
        # Through JSON, as the manifest's own has gone: tuples are lists by then.
        if found is None or found.fingerprint != json.loads(json.dumps(fingerprint)):
            return False
        if not checked:
            return True
        try:
            return all(sha256_of(self.folder / n) == file.sha256 for n, file in found.files.items())
        except OSError:
            return False

    def tensors(self, manifest: Manifest) -> "Iterator[tuple[str, Tensor]]":
        """Its tensors by name, one at a time, from the pages of its files.

        Raises:
            OSError, SafetensorError: It has been damaged or removed meanwhile.
        """
        from safetensors import safe_open

        for file in sorted(manifest.files):
            with safe_open(self.folder / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - the handle is no mapping
                    yield name, opened.get_tensor(name)

    def touch(self) -> None:
        """Note that it is used now, where it can be noted."""
        with suppress(OSError):
            os.utime(self.folder / MANIFEST)

    @property
    def used_at(self) -> datetime | None:
        """When it was last used; None where it has no manifest."""
        try:
            seconds = (self.folder / MANIFEST).stat().st_mtime
        except OSError:
            return None
        return datetime.fromtimestamp(seconds, UTC)

    def write(self, tensors: "Iterable[tuple[str, Tensor]]", **about: Any) -> None:  # noqa: ANN401
        """Write it, in the place of what is there; for who holds the lock.

        Args:
            tensors: What is written, by name, one at a time.
            about: The fields of its manifest but for `files` and `made_at`.

        Raises:
            OSError, SafetensorError: It cannot be written; nothing is left of it.
        """

        def fill(part: Path) -> dict[str, File]:
            files = {}
            for number, group in enumerate(_groups(tensors)):
                path = part / f"weights-{number:05d}.safetensors"
                files[path.name] = _write_tensors(path, group)
            return files

        self.write_files(fill, **about)

    def write_files(self, fill: Callable[[Path], dict[str, File]], **about: Any) -> None:  # noqa: ANN401
        """The same with files that `fill` writes into the folder that it is given."""
        self.remove()  # it was found damaged, or is another version's
        self.remove_part()
        try:
            self.part.mkdir(mode=OWNERS_FOLDER)
            files = fill(self.part)
            made_at = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(files=files, made_at=made_at, sha256="", **about)
            manifest = manifest.model_copy(update={"sha256": manifest.digest()})
            _write_text(self.part / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
            _sync(self.part)
            self.part.rename(self.folder)
            _sync(self.root)
        finally:
            shutil.rmtree(self.part, ignore_errors=True)

    def remove(self) -> int:
        """Remove it, for who holds the lock; how many bytes that were.

        Raises:
            OSError: It cannot be removed.
        """
        return _remove(self.folder)

    def remove_part(self) -> int:
        """The same for what a killed maker has left half-written."""
        return _remove(self.part)


def _remove(folder: Path) -> int:
    """Remove the folder of an entry, and nothing that was not written here.

    Raises:
        OSError: It cannot be removed, or holds something else.
    """
    if not folder.is_dir():
        return 0
    # The manifest first: what is half removed is not taken for whole.
    files = sorted(folder.iterdir(), key=lambda file: file.name != MANIFEST)
    n_bytes = 0
    for file in files:
        if file.name == MANIFEST or WEIGHTS.fullmatch(file.name):
            n_bytes += file.lstat().st_size
            file.unlink()
    folder.rmdir()
    return n_bytes


def _groups(tensors: "Iterable[tuple[str, Tensor]]") -> "Iterator[dict[str, Tensor]]":
    """The tensors on the CPU, as many as a file holds at a time."""
    group: dict[str, Tensor] = {}
    n_bytes = 0
    for name, tensor in tensors:
        if group and n_bytes + tensor.nbytes > FILE_BYTES:
            yield group
            group, n_bytes = {}, 0
        group[name] = tensor.cpu().contiguous()
        n_bytes += tensor.nbytes
    if group:
        yield group


def _write_tensors(path: Path, group: "Mapping[str, Tensor]") -> File:
    from safetensors.torch import save_file

    begin_file(path, private=True)
    save_file(dict(group), path)
    return file_of(path)


def file_of(path: Path) -> File:
    """A file that a library has written, for its owner alone and on the disk from now on."""
    path.chmod(OWNER_ALONE)  # whatever the library did with the file that it was given
    _sync(path)
    return File(n_bytes=path.stat().st_size, sha256=sha256_of(path))


def _write_text(path: Path, text: str) -> None:
    begin_file(path, private=True)
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk before what follows."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
