"""Text that came from models, paths and records, without what a terminal or a page would obey.

printable    one line, for tables and documents: what cannot be printed is a space
visible      lines, for messages: what cannot be printed is spelled, so that it can be found
"""

import re
from unicodedata import category

# Joiners belong to scripts and emoji; all else that cannot be printed hides or turns what is read.
JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """One line of text: what cannot be printed (controls, direction marks, separators) is a space.

    Args:
        text: Anything.
    """
    if text.isprintable():
        return text
    kept = (letter if letter.isprintable() or letter in JOINERS else " " for letter in text)
    return re.sub(" {2,}", " ", "".join(kept)).strip()


def visible(text: str) -> str:
    r"""A message for a terminal: lines stay lines, and what cannot be printed is spelled.

    A file may be called anything; an escape sequence in its name is shown as `\x1b` and moves no
    cursor, writes no clipboard and turns no line around.

    Args:
        text: Anything.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(letter if _is_shown(letter) else _spelled(letter) for letter in text)


def _is_shown(letter: str) -> bool:
    # Spaces of other widths are called not printable, and are harmless.
    return letter.isprintable() or letter in JOINERS + "\n" or category(letter) == "Zs"


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape", errors="surrogatepass").decode("ascii")
