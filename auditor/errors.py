"""The errors that a user can meet, each with what must hold, what was seen and what to do.

    CompleakError                exit code 2
    ├── ConfigError              a flag, a recipe key or a value is wrong
    ├── RecordsError             the records cannot be read or cannot be audited
    ├── ModelError               the checkpoint cannot be used
    ├── VariantError             a variant cannot be made here
    │   └── BrokenVariantError   a variant was made, and its numbers are not numbers
    ├── StoreError               the output folder cannot be written, or holds something else
    ├── RankError                a process of the run is slow, dead, or has stopped
    ├── ShortageError            memory ran out where nothing could make up for it
    └── GateError                a release breaks the bound that it was given; exit code 3

Everything that is the user's to mend is one of these and is shown without a traceback; anything
else is a defect of this program and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

# What was seen may be a whole file, and an error is read by a person.
MOST_LETTERS, MOST_LINES = 1000, 40


class CompleakError(Exception):
    """Base of all errors that are shown to a user.

    Args:
        must: What must hold, as one sentence.
        seen: What was seen instead.
        fix: What to do about it.
    """

    exit_code = 2
    # Set where another process of the same run shows it already.
    is_said = False

    def __init__(self, must: str, *, seen: str = "", fix: str = "") -> None:
        self.must = _short(must)
        self.seen = _short(seen)
        self.fix = _short(fix, 2 * MOST_LETTERS)
        super().__init__(self.must)

    def __str__(self) -> str:
        lines = [self.must]
        if self.seen:
            lines.append(f"  seen: {self.seen}")
        if self.fix:
            lines.append(f"  do:   {self.fix}")
        # What goes on in another line stands deeper: no name of others can give advice.
        return "\n".join(line.replace("\n", "\n        ") for line in lines)


class ConfigError(CompleakError):
    """A flag, a recipe key or a value is wrong."""


class RecordsError(CompleakError):
    """The records cannot be read, or cannot be audited as they are."""


class ModelError(CompleakError):
    """The checkpoint cannot be used as it is."""


class VariantError(CompleakError):
    """A variant cannot be made on this machine from this model."""


class BrokenVariantError(VariantError):
    """A variant was made and its numbers are not numbers; the audit goes on without it."""


class StoreError(CompleakError):
    """The output folder cannot be written, or holds something else."""


class RankError(CompleakError):
    """A process of the run is slow, dead, or has stopped with an error."""


class ShortageError(CompleakError):
    """Memory ran out where nothing could make up for it."""


class GateError(CompleakError):
    """A release breaks the bound that it was given: all went well, and it may not go out."""

    exit_code = 3


def first_line(error: BaseException | None) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    return next(iter(str(error or "nothing").strip().splitlines()), type(error).__name__)


def _short(text: str, most: int = MOST_LETTERS) -> str:
    """A text of any length, its middle left out where it is too long."""
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        text = "\n".join([*lines[:MOST_LINES], "..."])
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def unknown(kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not known, with the nearest that is.

    Args:
        kind: What the name stands for, such as "variant" or "attack".
        given: The name as the user wrote it.
        known: All names that would have been right.
    """
    names = sorted(known)
    near = get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(
        f"a {kind} must be one of those that exist",
        seen=f"unknown {kind} {given!r}",
        fix=f"{hint}available: {', '.join(names)}",
    )
