"""Text that came from models, paths and records, without what a terminal or a page would obey."""

import re
import unicodedata

# Joiners belong to scripts and emoji; all else of their class only hides or turns what is read.
JOINERS = "\u200c\u200d"
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """One line of text: control, direction and separator characters become spaces.

    Args:
        text: Anything.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = (
        " " if unicodedata.category(letter) in OBEYED and letter not in JOINERS else letter
        for letter in text
    )
    return re.sub(" {2,}", " ", "".join(kept)).strip()
