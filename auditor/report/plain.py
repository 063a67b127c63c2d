"""Text that came from models, paths and records, without what a terminal or a page would obey."""

import re

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
