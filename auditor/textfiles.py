"""Rows of text files: JSON lines, a JSON array, CSV; each with its byte offset.

Everything that is wrong with a file is said with its name and line.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from auditor.errors import RecordsError

Row = dict[str, Any]
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Placed:
    """One row and where it stands.

    Attributes:
        position: What `read` takes to find it again.
        where: For messages: "members.jsonl:17" or "row 17 of NAME".
        row: Column names to values.
    """

    position: int
    where: str
    row: Row


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise RecordsError(
            f"{path} must be a file that can be read", seen=str(error.strerror or error)
        ) from error


def _decoded(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordsError(
            f"{path}:{line} must be UTF-8",
            seen=f"byte 0x{data[error.start]:02x} at {error.start} of the line",
            fix=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from None


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise RecordsError(
            f"{where} must be an object with columns", seen=f"a JSON {type(value).__name__}"
        )
    return value


class JsonLines:
    """One JSON object a line; blank lines are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stream(self) -> Iterator[Placed]:
        """See `auditor.sources.RowSource`."""
        with _open(self._path) as file:
            position = 0
            for number, line in enumerate(file, start=1):
                data = line[len(BOM) :] if not position and line.startswith(BOM) else line
                if data.strip():
                    where = f"{self._path}:{number}"
                    yield Placed(position, where, self._parse(data, number))
                position += len(line)

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `auditor.sources.RowSource`."""
        found: dict[int, Row] = {}
        with _open(self._path) as file:
            for position in sorted(set(positions)):
                file.seek(position)
                line = file.readline()
                found[position] = self._parse(line.removeprefix(BOM) if not position else line, 0)
        return [found[position] for position in positions]

    def _parse(self, line: bytes, number: int) -> Row:
        text = _decoded(line, self._path, number)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordsError(
                f"{self._path}:{number} must be a JSON object",
                seen=f"{error}" if isinstance(error, ValueError) else "nested too deeply",
                fix='one object a line, for example {"text": "..."}',
            ) from None
        return _object(value, f"{self._path}:{number}")


class JsonArray:
    """One JSON array of objects.

    The file is read once as one piece to find where each object begins and ends; what is kept are
    the offsets.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._length: dict[int, int] = {}

    def stream(self) -> Iterator[Placed]:
        """See `auditor.sources.RowSource`."""
        with _open(self._path) as file:
            data = file.read()
        text = _decoded(data, self._path, 1).removeprefix("\ufeff")
        at = self._start(text)
        decoder, number = json.JSONDecoder(), 0
        offset, counted = len(data) - len(text.encode("utf-8")), 0
        while True:
            at = _skip(text, at, " \t\r\n,")
            if at >= len(text) or text[at] == "]":
                return
            number += 1
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                raise self._error(text, at, error) from None
            begin = offset + len(text[counted:at].encode("utf-8"))
            size = len(text[at:end].encode("utf-8"))
            offset, counted, at = begin + size, end, end
            self._length[begin] = size
            where = f"object {number} of {self._path}"
            yield Placed(begin, where, _object(value, where))

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `auditor.sources.RowSource`."""
        if not self._length:
            for _ in self.stream():
                pass
        found: dict[int, Row] = {}
        with _open(self._path) as file:
            for position in sorted(set(positions)):
                file.seek(position)
                found[position] = json.loads(file.read(self._length[position]))
        return [found[position] for position in positions]

    def _start(self, text: str) -> int:
        """Where the first object of the list stands."""
        at = _skip(text, 0, " \t\r\n")
        if text[at : at + 1] != "[":
            raise RecordsError(
                f"{self._path} must be a JSON array of objects",
                seen=f"it begins with {text[at : at + 1]!r}",
                fix="write one array, or one object a line as .jsonl",
            )
        return at + 1

    def _error(self, text: str, at: int, error: Exception) -> RecordsError:
        place = error.pos if isinstance(error, json.JSONDecodeError) else at
        line = text.count("\n", 0, place) + 1
        return RecordsError(f"{self._path}:{line} must be JSON", seen=str(error))


def _skip(text: str, at: int, letters: str) -> int:
    while at < len(text) and text[at] in letters:
        at += 1
    return at


class Delimited:
    """CSV or TSV with a header; a quoted field may hold line breaks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self._header: list[str] | None = None

    def stream(self) -> Iterator[Placed]:
        """See `auditor.sources.RowSource`."""
        csv.field_size_limit(2**31 - 1)
        with _open(self._path) as file:
            lines = _CountedLines(file, self._path)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            begin, number = 0, 1
            try:
                for row in reader:
                    if row and self._header is None:
                        self._header = [name.strip() for name in row]
                    elif row:
                        yield Placed(begin, f"{self._path}:{number}", self._named(row, number))
                    begin, number = lines.position, lines.number + 1
            except csv.Error as error:
                raise RecordsError(
                    f"{self._path}:{lines.number} must be CSV", seen=str(error)
                ) from None

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `auditor.sources.RowSource`."""
        if self._header is None:
            next(self.stream(), None)
        found: dict[int, Row] = {}
        with _open(self._path) as file:
            for position in sorted(set(positions)):
                file.seek(position)
                lines = _CountedLines(file, self._path)
                row = next(csv.reader(lines, delimiter=self._delimiter, strict=True))
                found[position] = self._named(row, 0)
        return [found[position] for position in positions]

    def _named(self, row: list[str], number: int) -> Row:
        header = self._header or []
        if len(row) != len(header):
            raise RecordsError(
                f"{self._path}:{number} must have as many fields as the header ({len(header)})",
                seen=f"{len(row)} fields",
            )
        return dict(zip(header, row, strict=True))


class _CountedLines:
    """Lines of a file as text, with the bytes and lines that were handed over so far.

    The file's own iterator reads ahead; `readline` does not, so that a position can be trusted.
    Only line feeds end a line: the text may hold any other separator that Unicode knows.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        # A mark is one at the start of the file alone; elsewhere it is a letter of the text.
        self._may_be_marked = not file.tell()
        self.position = self.number = 0

    def __iter__(self) -> "Iterator[str]":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        data = line.removeprefix(BOM) if self._may_be_marked else line
        self._may_be_marked = False
        self.position += len(line)
        self.number += 1
        return _decoded(data, self._path, self.number)
