"""Rows from files and data sets: streamed once, and read again by position.

A million records must not be a million strings in memory on every process. So a source is passed
through once, each row with its position (a byte offset in a text file, a row number elsewhere), and
later only the rows that are wanted are read again. Nothing is cached on disk: the loaders of the
datasets library would copy a file's text into its cache.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from auditor.config import Source
from auditor.errors import RecordsError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
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


class RowSource(Protocol):
    """Rows that can be passed through, and read again by position."""

    def stream(self) -> Iterator[Placed]:
        """All rows in order; raises RecordsError on the first that cannot be read."""

    def read(self, positions: Sequence[int]) -> list[Row]:
        """The rows at these positions, in the order asked for."""


def open_source(source: Source) -> RowSource:
    """Open a file by its suffix, or a data set in the words of `datasets.load_dataset`.

    Raises:
        RecordsError: It is not there, or its suffix is unknown.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        kinds: dict[str, type[JsonLines | JsonArray | Delimited | ParquetFile]] = {
            ".jsonl": JsonLines,
            ".ndjson": JsonLines,
            ".json": JsonArray,
            ".csv": Delimited,
            ".tsv": Delimited,
            ".parquet": ParquetFile,
        }
        kind = kinds.get(path.suffix.lower())
        if kind is None:
            raise RecordsError(
                f"{path} must end in {', '.join(SUFFIXES)}", seen=path.suffix or "no suffix"
            )
        return kind(path)
    if path.suffix.lower() in SUFFIXES:
        raise RecordsError(f"{path} must be a file that can be read", seen="it does not exist")
    return DataSet(source)


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
        """See `RowSource`."""
        with _open(self._path) as file:
            position = 0
            for number, line in enumerate(file, start=1):
                data = line[len(BOM) :] if not position and line.startswith(BOM) else line
                if data.strip():
                    where = f"{self._path}:{number}"
                    yield Placed(position, where, self._parse(data, number))
                position += len(line)

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `RowSource`."""
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
        """See `RowSource`."""
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
        """See `RowSource`."""
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
                seen=f"it begins with {text[at : at + 20]!r}",
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
        """See `RowSource`."""
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
        """See `RowSource`."""
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
        self.position = self.number = 0

    def __iter__(self) -> "Iterator[str]":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        data = line[len(BOM) :] if not self.number and line.startswith(BOM) else line
        self.position += len(line)
        self.number += 1
        return _decoded(data, self._path, self.number)


class ParquetFile:
    """A Parquet file, row group by row group."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _file(self) -> Any:  # noqa: ANN401 - pyarrow is untyped
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self._path)
        except (OSError, pa.ArrowException) as error:
            raise RecordsError(
                f"{self._path} must be a Parquet file", seen=str(error).splitlines()[0]
            ) from None

    def stream(self) -> Iterator[Placed]:
        """See `RowSource`."""
        number = 0
        for batch in self._file().iter_batches(batch_size=1024, use_threads=False):
            for row in batch.to_pylist():
                yield Placed(number, f"row {number + 1} of {self._path}", row)
                number += 1

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `RowSource`."""
        import numpy as np

        file = self._file()
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        found: dict[int, Row] = {}
        wanted = np.unique(np.asarray(positions, dtype=np.int64))
        groups = np.searchsorted(ends, wanted, side="right")
        for group in np.unique(groups):
            rows = wanted[groups == group]
            table = file.read_row_group(int(group), use_threads=False)
            picked = table.take(rows - (ends[group] - sizes[group])).to_pylist()
            found.update(zip(rows.tolist(), picked, strict=True))
        return [found[int(position)] for position in positions]


class DataSet:
    """A data set of the datasets library, memory-mapped by it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._data: Any = None

    def _load(self) -> Any:  # noqa: ANN401 - datasets is untyped
        if self._data is not None:
            return self._data
        import datasets

        source = self._source
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            if (Path(source.path) / "dataset_info.json").is_file() or (
                Path(source.path) / "dataset_dict.json"
            ).is_file():
                found = datasets.load_from_disk(source.path)
            else:
                found = datasets.load_dataset(
                    source.path, name=source.name, revision=source.revision
                )
        except Exception as error:  # the library raises errors of many others
            raise RecordsError(
                f"{source.path} must be a file or a data set that can be loaded",
                seen=str(error).strip().splitlines()[0],
                fix="give the path of a .jsonl, .json, .csv or .parquet file",
            ) from error
        finally:
            if not bars:
                datasets.enable_progress_bars()
        self._data = self._split(found)
        return self._data

    def _split(self, found: Any) -> Any:  # noqa: ANN401
        if not isinstance(found, dict):
            return found
        names = list(found)
        split = self._source.split or (names[0] if len(names) == 1 else None)
        if split not in found:
            raise RecordsError(
                f"a split of {self._source.path} must be named",
                seen=f"split={self._source.split}" if self._source.split else "no split",
                fix=f"{self._source.path},split={names[0]} (splits: {', '.join(names)})",
            )
        return found[split]

    def stream(self) -> Iterator[Placed]:
        """See `RowSource`."""
        for number, row in enumerate(self._load()):
            yield Placed(number, f"row {number + 1} of {self._source.path}", row)

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `RowSource`."""
        data = self._load()
        return [data[int(position)] for position in positions]
