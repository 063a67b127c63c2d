"""The words of a text, the same however it was written: plain, escaped, as Markdown or HTML."""

import html
import re
import unicodedata

WORD = re.compile(r"[^\W_]+")
TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
ESCAPE = re.compile(r"(?:\\+u[0-9a-fA-F]{4})+|\\+U[0-9a-fA-F]{8}|\\+x[0-9a-fA-F]{2}|\\+[nrtfbv]")
PARTS = re.compile(r"(\\+)([uUx][0-9a-fA-F]+|.)")


def words_of(text: str) -> list[str]:
    """The words of a text, in order: stretches of letters and digits, NFKC, in lower case.

    Escapes as JSON, YAML and Python write them count as what they stand for, however often they
    were escaped, and so do HTML's entities; tags are left out. Chinese and Japanese, which put no
    spaces between words, have one in every character. The same is done to what is searched for and
    to what is searched, so that a text that holds a backslash of its own is still found.
    """
    if "\\" in text:
        text = ESCAPE.sub(_unescaped, text)
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = TAG.sub(" ", text)
    if not text.isascii():
        text = UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))
    return WORD.findall(text.lower())


def _unescaped(match: re.Match[str]) -> str:
    units = b""  # of UTF-16, where what does not go into 16 bits is written as two escapes
    for bars, code in PARTS.findall(match[0]):
        # One backslash becomes 2, 4, ... as it is escaped again. Any other number of them holds
        # backslashes of the text's own, which part words.
        if len(bars) & (len(bars) - 1):
            units += b"\0 "
        point = int(code[1:], 16) if code[0] in "uUx" else 0x20
        if point < 0x10000:
            units += point.to_bytes(2, "big")
        elif point < 0x110000:
            units += chr(point).encode("utf-16-be")
    return units.decode("utf-16-be", errors="replace")
