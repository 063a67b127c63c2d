"""Rows from files and data sets: streamed once, and read again by position.

A million records must not be a million strings in memory on every process. So a source is passed
through once, each row with its position (a byte offset in a text file, a row number elsewhere), and
later only the rows that are wanted are read again; those of a Parquet file from its decoded columns
where memory allows. Nothing of a file is cached on disk: the loaders of the datasets library would
copy its text into their cache, as they do with what they download by an id.
"""

import logging
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

from auditor.config import Source
from auditor.errors import RecordsError, first_line
from auditor.memory import ran_out
from auditor.textfiles import Delimited, JsonArray, JsonLines, Placed, Row

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# Of the memory that is free, what the decoded row groups of one Parquet file may take.
ROOM_SHARE = 0.25
SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves


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


def splits_of(source: Source) -> list[str]:
    """The splits of a data set; none for a file."""
    opened = open_source(source)
    return opened.splits() if isinstance(opened, DataSet) else []


class ParquetFile:
    """A Parquet file, row group by row group.

    A row cannot be had without decoding its whole row group, and the rows of a shard stand in all
    of them: decoded anew for each shard, a million records would take as long as their scoring, and
    twice as many four times as long. So row groups stay in memory, as columns and not as strings,
    as long as they take no more than `ROOM_SHARE` of what is free; those beyond it are decoded each
    time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: dict[int, Any] = {}
        self._room = 0  # bytes that may still be taken
        self._state: tuple[int, ...] = ()  # of the file that they were read from

    def _file(self) -> Any:  # noqa: ANN401 - pyarrow is untyped
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._path)

    def stream(self) -> Iterator[Placed]:
        """See `RowSource`."""
        number = 0
        with _readable(self._path):
            for batch in self._file().iter_batches(batch_size=1024, use_threads=False):
                for row in batch.to_pylist():
                    yield Placed(number, f"row {number + 1} of {self._path}", row)
                    number += 1

    def read(self, positions: Sequence[int]) -> list[Row]:
        """See `RowSource`."""
        with _readable(self._path):
            return self._read(positions)

    def _read(self, positions: Sequence[int]) -> list[Row]:
        import numpy as np

        file = self._file()
        self._let_go_of_another()
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        found: dict[int, Row] = {}
        wanted = np.unique(np.asarray(positions, dtype=np.int64))
        groups = np.searchsorted(ends, wanted, side="right")
        for group in np.unique(groups):
            rows = wanted[groups == group]
            table = self._group(file, int(group))
            picked = table.take(rows - (ends[group] - sizes[group])).to_pylist()
            found.update(zip(rows.tolist(), picked, strict=True))
        return [found[int(position)] for position in positions]

    def _let_go_of_another(self) -> None:
        """Keep nothing of a file that has changed: that it has must be seen in its records."""
        from auditor.memory import spare_bytes

        now = self._path.stat()
        state = (now.st_ino, now.st_size, now.st_mtime_ns)
        if state != self._state:
            self._groups, self._state = {}, state
            self._room = int(spare_bytes("cpu") * ROOM_SHARE)

    def _group(self, file: Any, number: int) -> Any:  # noqa: ANN401
        """A row group as a table."""
        if number in self._groups:
            return self._groups[number]
        table = file.read_row_group(number, use_threads=False)
        # The first ones stay: shards pass through all of them in turn, and whoever let the oldest
        # go would let each go just before it is wanted.
        if table.nbytes <= self._room:
            self._room -= table.nbytes
            self._groups[number] = table
        return table


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Pages that are damaged, text that is no UTF-8, dates that Python does not know."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        raise RecordsError(
            f"{path} must be a Parquet file whose every row can be read",
            seen=first_line(error),
            fix="write it again, with the columns that are needed alone",
        ) from None


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """No progress bars and no log lines of a library whose errors are raised anyway."""
    import datasets

    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


class DataSet:
    """A data set of the datasets library, memory-mapped by it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._data: Any = None
        self._splits: list[str] = []
        self._cache: str | None = None

    def _load(self) -> Any:  # noqa: ANN401 - datasets is untyped
        if self._data is not None:
            return self._data
        import datasets

        source = self._source
        folder = Path(source.path)
        saved = any((folder / name).is_file() for name in SAVED)
        if folder.exists() and not saved:
            # The library copies what it reads into its cache, where text must not stay. (What it
            # downloads by an id is its own affair: it would be downloaded anew for every run.)
            self._cache = mkdtemp(prefix="compleak-")
            weakref.finalize(self, shutil.rmtree, self._cache, ignore_errors=True)
        try:
            with _silenced("datasets", "huggingface_hub"):
                found = (
                    datasets.load_from_disk(source.path)
                    if saved
                    else datasets.load_dataset(
                        source.path,
                        name=source.name,
                        revision=source.revision,
                        cache_dir=self._cache,
                    )
                )
        except Exception as error:  # the library raises errors of many others
            if ran_out(error):
                raise
            raise RecordsError(
                f"{source.path} must be a file or a data set that can be loaded",
                seen=first_line(error),
                fix="give the path of a .jsonl, .json, .csv or .parquet file",
            ) from error
        if self._cache is not None:
            # What is mapped stays readable without a name; a process that is killed leaves none.
            shutil.rmtree(self._cache, ignore_errors=True)
        self._splits = list(found) if isinstance(found, dict) else []
        self._data = self._split(found)
        return self._data

    def splits(self) -> list[str]:
        """The splits of the data set by name; none where it has no splits."""
        self._load()
        return self._splits

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
