"""What lies in a checkpoint beside its weights: records, calibration texts, files to take out.

Whatever leaks through a model's outputs, a record that stands in the model's README, in the
`config.json` of a quantized version or among the added tokens is published in clear. So every file
of every checkpoint is searched for all of the texts at once: the files into an index of runs of
words, the texts past it in one stream. Ids come out, never a text.

What is found, how much must stand there, and what is too common to count: `passages.py`.
"""

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from auditor.artifacts.contents import LARGEST, Kind, kind_of, pieces_in
from auditor.artifacts.headers import Unsearchable
from auditor.artifacts.misplaced import VERSIONED, Severity, misplaced_file, misplaced_folder
from auditor.artifacts.passages import Hit, Passages
from auditor.errors import ModelError
from auditor.results import Artifact

MAX_LISTED = 100
# Words of all files together that are searched, some 50 MiB of text: the index takes about 100
# bytes for each while it is made. Small files come first.
MOST_WORDS = 2**23
OWN_LIST = "the audit's own list of records lies in the checkpoint: take it out before publishing"
ORDER = {"severe": 0, "warning": 1, "info": 2}


class Text(NamedTuple):
    """A text that is looked for, without its words.

    Attributes:
        id: Its id.
        is_member: Whether it is a member; None for a calibration text.
    """

    id: str
    is_member: bool | None


class _File(NamedTuple):
    """A file of a checkpoint; `name` is relative to it and can be printed."""

    checkpoint: str
    name: str
    path: Path
    kind: Kind
    size: int


def scan_checkpoints(
    paths: Mapping[str, Path],
    records: Iterable[tuple[str, bool, str]],
    *,
    calibration: Iterable[str] = (),
    own_files: Collection[Path] = (),
) -> list[Artifact]:
    """Search checkpoints for texts that must not be in them, and for files that do not belong.

    Args:
        paths: Folders, or single files, by the name that they have in the findings.
        records: Id, whether it is a member, and text of each record; passed through once.
        calibration: Texts that a variant was calibrated on; copies are looked for once.
        own_files: Where the records were read from. Such a file in a checkpoint is named and not
            searched: all of its records are in it.

    Returns:
        Records first, then calibration texts, then files, the worst of them first; each by
        checkpoint as given, and by name.

    Raises:
        ModelError: A path is not there.
    """
    scan = _Scan({path.resolve() for path in own_files})
    for name, path in paths.items():
        scan.checkpoint(name, path)
    scan.read()
    found, calibrated = scan.index.search(
        ((Text(id_, is_member), text) for id_, is_member, text in records),
        ((Text(id_, None), text) for id_, text in _distinct(calibration).items()),
    )
    order = {name: number for number, name in enumerate(paths)}
    scan.artifacts.sort(key=lambda a: (ORDER[a.severity], order[a.checkpoint], a.file))
    return [*_findings(scan.files, found), *_findings(scan.files, calibrated), *scan.artifacts]


def _distinct(texts: Iterable[str]) -> dict[str, str]:
    from auditor.records import record_id

    return {record_id(text): text for text in texts}


class _Scan:
    """Files on their way into the index, and what was found on the way."""

    def __init__(self, own_files: Collection[Path]) -> None:
        self.index = Passages()
        self.files: list[_File] = []
        self.artifacts: list[Artifact] = []
        self._own_files = own_files
        self._own: set[Path] = set()  # those that count in the checkpoint at hand

    def checkpoint(self, name: str, path: Path) -> None:
        """Find the files of a checkpoint, and name those that do not belong."""
        root = path.resolve()
        # A folder that holds the whole checkpoint keeps nothing in it from being searched.
        self._own = {own for own in self._own_files if own != root or path.is_file()}
        self._own -= set(root.parents)
        if path.is_file():
            self._file(name, path.name, path, has_code=True)
            return
        if not path.is_dir():
            raise ModelError(
                "a checkpoint to search must be a folder or a file", seen=f"{path} is not there"
            )
        has_code = any(map(_names_code, path.glob("*.json")))
        walk = os.walk(path, onerror=lambda error: self._cannot_read(name, path, error))
        for folder, folders, files in walk:
            folders.sort()
            for entry in list(folders):
                if not self._folder(name, path, Path(folder, entry)):
                    folders.remove(entry)
            for entry in sorted(files):
                file = Path(folder, entry)
                self._file(name, file.relative_to(path).as_posix(), file, has_code=has_code)

    def _folder(self, checkpoint: str, root: Path, folder: Path) -> bool:
        """Whether to go into a folder."""
        name = folder.relative_to(root).as_posix()
        if folder.is_symlink():
            self._name(checkpoint, f"{name}/", "a link to a folder, which was not searched")
            return False
        if why := misplaced_folder(name):
            self._name(checkpoint, f"{name}/", why.reason, why.severity)
        return folder.name not in VERSIONED

    def _file(self, checkpoint: str, name: str, path: Path, *, has_code: bool) -> None:
        try:
            found, real = path.stat(), path.resolve()
            if not stat.S_ISREG(found.st_mode):
                self._name(checkpoint, name, "no file that can be read through, nor published")
                return
            if real in self._own or any(folder in self._own for folder in real.parents):
                self._name(checkpoint, name, OWN_LIST)
                return
            kind = kind_of(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
            self._cannot_read(checkpoint, path, error, name=name)
            return
        if why := misplaced_file(name, kind, has_code=has_code):
            self._name(checkpoint, name, why.reason, why.severity)
        self.files.append(_File(checkpoint, _printable(name), path, kind, found.st_size))

    def read(self) -> None:
        """Put the strings of all files into the index, small files first."""
        by_size = sorted(range(len(self.files)), key=lambda number: self.files[number].size)
        for number in by_size:
            file = self.files[number]
            try:
                self._read(number, file)
            except Unsearchable as error:
                self._name(file.checkpoint, file.name, f"not searched: {error}")
            except OSError as error:
                self._cannot_read(file.checkpoint, file.path, error, name=file.name)

    def _read(self, number: int, file: _File) -> None:
        size = 0
        for piece in pieces_in(file.path, file.kind):
            if size > LARGEST or self.index.n_words > MOST_WORDS:
                self._name(
                    file.checkpoint,
                    file.name,
                    f"searched only in part: it holds more text ({file.size / 2**20:,.0f} MiB) "
                    "than a checkpoint needs",
                )
                return
            self.index.add(number, piece.text, goes_on=piece.goes_on)
            size += len(piece.text)

    def _cannot_read(
        self, checkpoint: str, path: Path, error: Exception, *, name: str | None = None
    ) -> None:
        seen = (
            error.strerror if isinstance(error, OSError) and error.strerror else "a loop of links"
        )
        where = getattr(error, "filename", None) or path
        shown = name or Path(os.path.relpath(where, path)).as_posix()
        self._name(checkpoint, shown, f"not searched: it cannot be read ({seen})")

    def _name(self, checkpoint: str, file: str, why: str, severity: Severity = "warning") -> None:
        self.artifacts.append(
            Artifact(
                checkpoint=checkpoint,
                file=_printable(file),
                kind="file",
                message=why,
                severity=severity,
            )
        )


def _names_code(file: Path) -> bool:
    try:
        return file.stat().st_size < LARGEST and b'"auto_map"' in file.read_bytes()
    except OSError:
        return False


def _printable(name: str) -> str:
    """A file's name without what a terminal would obey or JSON cannot hold."""
    text = os.fsencode(name).decode("utf-8", errors="replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _findings(files: list[_File], hits: list[Hit[Text]]) -> list[Artifact]:
    """One finding for each file that texts of one kind were found in."""
    by_file: dict[int, list[Hit[Text]]] = {}
    for hit in hits:
        by_file.setdefault(hit.file, []).append(hit)
    return [_finding(files[number], by_file[number]) for number in sorted(by_file)]


def _finding(file: _File, hits: list[Hit[Text]]) -> Artifact:
    n, n_whole = len(hits), sum(hit.share == 1.0 for hit in hits)
    n_members = sum(hit.key.is_member is True for hit in hits)
    is_record = hits[0].key.is_member is not None
    what = "record" if is_record else "calibration text"
    stands = f"{n:,} {what}{'s stand' if n > 1 else ' stands'} in it word for word"
    sides = [(n_members, "member"), (n - n_members, "nonmember")] if is_record else []
    counts = [f"{count:,} {side}{'s' if count > 1 else ''}" for count, side in sides if count]
    parts = [(n_whole, "whole"), (n - n_whole, "in part")]
    counts += [f"{count:,} {how}" for count, how in parts if count]
    fix = "take it out before publishing" if n == 1 else "take them out before publishing"
    if not is_record and file.path.suffix == ".json":
        fix += " (GPTQ tools write them there as the dataset of the quantization)"
    return Artifact(
        checkpoint=file.checkpoint,
        file=file.name,
        kind="record" if is_record else "calibration",
        n_records=n,
        n_whole=n_whole,
        n_members=n_members,
        n_nonmembers=n - n_members if is_record else 0,
        record_ids=[hit.key.id for hit in hits[:MAX_LISTED]],
        message=f"{stands} ({', '.join(counts)}): {fix}",
        severity="severe",
    )
