"""What goes to a terminal that others' names may stand in."""

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment


class Harmless:
    """What is printed without the characters in it that a terminal would obey.

    File names come from checkpoints of others; what stands in them must not move a cursor.
    """

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Segment by segment: what goes has no width, and columns stay where they are."""
        for segment in console.render(self._shown, options):
            kept = (x for x in segment.text if x == "\n" or x.isprintable() or cell_len(x))
            yield segment if segment.control else Segment("".join(kept), segment.style)
