"""A README as bytes in and bytes out: one section between two markers is renewed, nothing else.

    <!-- compleak-llm:begin -->
    <!-- compleak-llm:end -->

A marker counts where it stands alone on its line. Inside a code block it is documentation of
itself, and no marker.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from auditor.errors import CompleakError

BEGIN = "<!-- compleak-llm:begin -->"
END = "<!-- compleak-llm:end -->"
BOM = "\ufeff"
# What ends a line in Markdown; `str.splitlines` knows others, which end none there.
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
FENCE = re.compile(r"---[ \t]*")


class CardError(CompleakError):
    """The README cannot be read, or its section cannot be placed."""


class FrontMatter(NamedTuple):
    """Where the front matter stands among the lines of a README.

    Attributes:
        first: The line after the opening `---`.
        last: The line of the closing `---`.
    """

    first: int
    last: int


def decoded(path: Path, content: bytes) -> str:
    """The text of a README, byte order mark and line ends as they are.

    Raises:
        CardError: It is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CardError(
            f"{path} must be UTF-8 text",
            seen=f"byte {error.start} ({content[error.start]:#04x}) is none",
            fix="save it as UTF-8; nothing was written",
        ) from error


def lines_of(text: str) -> list[str]:
    """Lines with their ends; joined they are the text."""
    return LINE.findall(text)


def newline_of(line: str) -> str:
    """What ends a line, or nothing."""
    return line[len(line.rstrip("\r\n")) :]


def usual_newline(lines: list[str]) -> str:
    """What ends most lines; a line feed where there is none to go by."""
    ends = Counter(end for line in lines if (end := newline_of(line)))
    return ends.most_common(1)[0][0] if ends else "\n"


def front_matter(path: Path, lines: list[str]) -> FrontMatter | None:
    """Where the front matter stands; None where there is none.

    Raises:
        CardError: It is opened and never closed.
    """
    found = _front_matter(lines)
    if isinstance(found, int):
        raise CardError(
            f"the front matter of {path} must end in a line that is only ---",
            seen=f"line {found + 1} opens it and no line closes it",
            fix="close it; or, where that line is a rule above the text, write it as ***",
        )
    return found


def _front_matter(lines: list[str]) -> FrontMatter | int | None:
    """The front matter, the line of a `---` that is never closed, or None."""
    at = 0
    while at < len(lines) and not lines[at].removeprefix(BOM).strip():
        at += 1
    if at == len(lines) or not _is_fence(lines[at].removeprefix(BOM)):
        return None
    for end in range(at + 1, len(lines)):
        if _is_fence(lines[end]):
            return FrontMatter(at + 1, end)
    return at


def _is_fence(line: str) -> bool:
    return FENCE.fullmatch(line.rstrip("\r\n")) is not None


def with_section(path: Path, text: str, section: str) -> str:
    """The README with its section renewed, or added at its end.

    Args:
        path: The README, for errors.
        text: Its text.
        section: The section, with line feeds, without markers.

    Raises:
        CardError: The markers are not one pair in order, or what is added at the end would be
            part of a code block that is never closed.
    """
    lines = lines_of(text)
    found = marked(path, lines)
    if found is None:
        newline = usual_newline(lines)
        before, after = _ended(text, lines, newline) + BEGIN + newline, END + newline
    else:
        begin, end = found
        newline = newline_of(lines[begin])
        before, after = "".join(lines[: begin + 1]), "".join(lines[end:])
    body = newline.join(["", *section.strip("\n").split("\n"), "", ""])
    renewed = before + body + after
    _must_be_found_again(path, renewed, before=before, body=body)
    return renewed


def _ended(text: str, lines: list[str], newline: str) -> str:
    """The text, brought to an end by a blank line where there is any text."""
    if not text.removeprefix(BOM).strip():
        return text if not lines or newline_of(lines[-1]) or text == BOM else text + newline
    if not newline_of(lines[-1]):
        return text + newline * 2
    return text if not lines[-1].strip() else text + newline


def _must_be_found_again(path: Path, text: str, *, before: str, body: str) -> None:
    """What was placed must be a section to the next run too, and to who renders the README."""
    begin = len(lines_of(before)) - 1
    wanted = (begin, begin + len(lines_of(body)) + 1)
    try:
        found = marked(path, lines_of(text))
    except CardError:
        found = None
    if found != wanted:
        raise CardError(
            f"the section in {path} must be read as Markdown",
            seen="above it a code block is opened that is never closed",
            fix=f"close it, or put the lines {BEGIN} and {END} where the section belongs",
        )


def marked(path: Path, lines: list[str]) -> tuple[int, int] | None:
    """The lines of the two markers, counted from 0; None where there is neither.

    Args:
        path: The README, for errors.
        lines: Its lines.

    Raises:
        CardError: They are not one pair in order.
    """
    markers = _markers(lines)
    begins = [at for at, marker in markers if marker == BEGIN]
    ends = [at for at, marker in markers if marker == END]
    if not markers:
        return None
    if len(begins) == len(ends) == 1 and begins < ends:
        return begins[0], ends[0]
    seen = ", ".join(
        f"{'begin' if marker == BEGIN else 'end'} in line {at + 1}" for at, marker in markers
    )
    raise CardError(
        f"{path} must hold one line {BEGIN} and, below it, one line {END}, or neither",
        seen=seen,
        fix="take the lines out that are too many, or put the missing one back; a marker inside "
        "a code block does not count",
    )


def _markers(lines: list[str]) -> list[tuple[int, str]]:
    """Every marker with its line, outside of front matter and code blocks."""
    words = [line.removeprefix(BOM).strip(" \t\r\n") for line in lines]
    candidates = [(at, word) for at, word in enumerate(words) if word in (BEGIN, END)]
    if not candidates:
        return []
    found = _front_matter(lines)
    top = found.last + 1 if isinstance(found, FrontMatter) else 0
    # Two rules above the text look like front matter; what holds a marker is none.
    if any(at < top for at, _ in candidates):
        top = 0
    code = _code(lines[top:])
    return [(at, word) for at, word in candidates if at - top not in code]


@cache
def _parser() -> MarkdownIt:
    # Blocks alone: how a line reads inside does not matter here.
    return MarkdownIt("commonmark").disable("inline")


def _code(lines: list[str]) -> set[int]:
    """Which of these lines stand in a code block, by CommonMark."""
    text = "".join(lines).removeprefix(BOM)
    return {
        at
        for token in _parser().parse(text)
        if token.type in ("fence", "code_block") and token.map
        for at in range(*token.map)
    }
