"""What is going on while it goes on: a bar per version of the model, plain lines, or nothing."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from auditor.report.plain import printable, visible

DisplayKind = Literal["rich", "plain", "none"]
# Told a line at a time.
Tell = Callable[[str], None]


class Display(Protocol):
    """Told by the audit what it does."""

    def note(self, message: str) -> None:
        """One line about a stage without a bar."""

    def start(self, name: str, *, n_records: int, n_done: int) -> None:
        """A version of the model begins; `n_done` of its records are already stored."""

    def advance(self, n_records: int, n_tokens: int) -> None:
        """So many more records went through the model."""

    def finish(self, outcome: str) -> None:
        """The version is done; `outcome` says how in a word or two."""


class Silent:
    """Says nothing: the library's default."""

    def note(self, message: str) -> None:
        """See `Display`."""

    def start(self, name: str, *, n_records: int, n_done: int) -> None:
        """See `Display`."""

    def advance(self, n_records: int, n_tokens: int) -> None:
        """See `Display`."""

    def finish(self, outcome: str) -> None:
        """See `Display`."""


class Plain:
    """One line at the start and end of each stage and every ten seconds, for logs."""

    every_s = 10.0

    def __init__(self) -> None:
        self._name = ""
        self._total = self._done = self._tokens = 0
        self._begin = self._said = 0.0

    def note(self, message: str) -> None:
        """See `Display`."""
        self._say(message)

    def start(self, name: str, *, n_records: int, n_done: int) -> None:
        """See `Display`."""
        self._name, self._total, self._done, self._tokens = name, n_records, n_done, 0
        self._begin = self._said = time.monotonic()
        self._say(f"{name}: {n_done} of {n_records} records stored")

    def advance(self, n_records: int, n_tokens: int) -> None:
        """See `Display`."""
        self._done += n_records
        self._tokens += n_tokens
        now = time.monotonic()
        if now - self._said >= self.every_s:
            self._said = now
            rate = self._tokens / (now - self._begin)
            self._say(f"{self._name}: {self._done}/{self._total} records, {rate:,.0f} tokens/s")

    def finish(self, outcome: str) -> None:
        """See `Display`."""
        self._say(f"{self._name}: {outcome}, {time.monotonic() - self._begin:.1f} s")

    @staticmethod
    def _say(line: str) -> None:
        sys.stderr.write(visible(line) + "\n")
        sys.stderr.flush()


class _Rate(ProgressColumn):
    """Tokens per second of this run; what was stored before does not count."""

    def render(self, task: Task) -> Text:
        seconds = task.fields["elapsed"] if task.finished else (task.elapsed or 0.0)
        tokens = task.fields["n_tokens"]
        rate = f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds else ""
        return Text(rate.rjust(16), style="cyan")


class Rich:
    """A bar per version of the model: records, tokens per second, time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>7,.0f}/{task.total:,.0f} records"),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[outcome]}", markup=False),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._tokens = 0
        self._begin = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, message: str) -> None:
        """See `Display`."""
        self._progress.console.print(Text(printable(message), style="dim"))

    def start(self, name: str, *, n_records: int, n_done: int) -> None:
        """See `Display`."""
        self._tokens = 0
        self._begin = time.monotonic()
        self._task = self._progress.add_task(
            printable(name),
            total=n_records,
            completed=n_done,
            n_tokens=0,
            elapsed=0.0,
            outcome="",
        )

    def advance(self, n_records: int, n_tokens: int) -> None:
        """See `Display`."""
        if self._task is not None:
            self._tokens += n_tokens
            self._progress.update(self._task, advance=n_records, n_tokens=self._tokens)

    def finish(self, outcome: str) -> None:
        """See `Display`."""
        if self._task is not None:
            elapsed = time.monotonic() - self._begin
            self._progress.update(self._task, outcome=outcome, elapsed=elapsed)


def display(kind: DisplayKind) -> "Rich | Plain | Silent":
    """The display that was asked for; `rich` falls back to `plain` where there is no terminal."""
    if kind == "none":
        return Silent()
    if kind == "rich" and sys.stderr.isatty():
        return Rich()
    return Plain()
