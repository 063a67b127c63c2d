"""What goes to a terminal that others' names may stand in."""

from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from auditor.report.plain import visible


class Harmless:
    """What is printed without the characters in it that a terminal would obey.

    File names come from checkpoints of others; what stands in them must not move a cursor.
    """

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Segment by segment: what goes has no width, and columns stay where they are."""
        for segment in console.render(self._shown, options):
            if segment.control:
                yield segment
                continue
            kept = (x for x in segment.text if _is_kept(x))
            style = segment.style
            # A link would be a sequence that the terminal obeys, with an address of others in it.
            style = style.update_link(None) if style is not None and style.link else style
            yield Segment("".join(kept), style)


def _is_kept(letter: str) -> bool:
    """Whether a letter only shows; halves of characters, as in odd names, cannot be written."""
    if "\ud800" <= letter <= "\udfff":
        return False
    return letter == "\n" or letter.isprintable() or cell_len(letter) > 0


def say(line: str, *, file: TextIO) -> None:
    """Write a line, or several, for a person at a terminal or the reader of a log.

    Args:
        line: The words, in which names of others may stand.
        file: Where to, such as `sys.stderr`.
    """
    print(visible(line), file=file, flush=True)
