"""Valid inputs made wrong, a thing or two at a time: what a tool, a disk or an attacker leaves.

Nothing is parsed as a whole: a place is drawn, and the token that stands there is exchanged,
doubled or taken out. So a mutation takes microseconds, and works on what was mutated before.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from tests.fuzz.oddities import (
    BYTES,
    JSON_VALUES,
    LINES,
    NESTS,
    NUMBERS,
    TEXTS,
    YAML_BLOCKS,
    YAML_VALUES,
)

Kind = Literal["json", "yaml", "csv", "spelled", "markdown", "parquet", "safetensors", "gguf"]
Mutation = Callable[[bytes, random.Random], bytes]

MOST_BYTES = 2**18
KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*')
WORD = re.compile(r"[^,:=@;|\t\n\"'\[\]{} ]+")
DECODER = json.JSONDecoder()


def mutated(data: bytes, rng: random.Random, kind: Kind, others: Sequence[bytes] = ()) -> bytes:
    """An input with one thing wrong, or up to four.

    Args:
        data: The input.
        rng: Draws what and where.
        kind: What is known of its structure.
        others: Inputs to take pieces from.
    """
    mutations = MUTATIONS[kind]
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 4))):
        if others and rng.random() < 0.05:
            data = _spliced(data, rng.choice(others), rng)
        else:
            structured = rng.random() < 0.75
            data = rng.choice(mutations if structured else ANY)(data, rng)
    return data[:MOST_BYTES]


# -- any bytes -----------------------------------------------------------------------------------


def _place(data: bytes | str, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A bit or a byte changed."""
    if not data:
        return data
    at = rng.randrange(len(data))
    byte = data[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return data[:at] + bytes([byte]) + data[at + 1 :]


def truncated(data: bytes, rng: random.Random) -> bytes:
    """Cut off at the end, or at the beginning."""
    at = _place(data, rng)
    return data[:at] if rng.random() < 0.8 else data[at:]


def inserted(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are seldom meant."""
    at = _place(data, rng) if rng.random() < 0.8 else 0
    return data[:at] + rng.choice(BYTES) + data[at:]


def repeated(data: bytes, rng: random.Random) -> bytes:
    """A piece doubled, or a thousand times."""
    at = _place(data, rng)
    piece = data[at : at + rng.choice((1, 8, 64))]
    return data[:at] + piece * rng.choice((2, 2, 3, 1000)) + data[at:]


def removed(data: bytes, rng: random.Random) -> bytes:
    """A piece taken out."""
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 4, 16, 256)) :]


def recoded(data: bytes, rng: random.Random) -> bytes:
    """Other line ends, or another encoding of the whole or of one half."""
    at = rng.choice((0, len(data) // 2))
    head, text = data[:at], data[at:].decode("utf-8", "replace")
    return head + rng.choice(
        (
            text.replace("\n", "\r\n").encode(),
            text.replace("\n", "\r").encode(),
            text.replace("\n", "\u2028").encode(),
            text.encode("utf-16", "replace"),
            text.encode("utf-16-le", "replace"),
            text.encode("latin-1", "replace"),
            text.encode("utf-32", "replace"),
            text.encode("utf-8-sig"),
        )
    )


def emptied(data: bytes, rng: random.Random) -> bytes:
    """Nothing, or nothing but white space and the like."""
    return rng.choice((b"", b"\n", b" ", b"\0", b"\xef\xbb\xbf", b"null", b"{}", b"[]", data * 2))


def numbered(data: bytes, rng: random.Random) -> bytes:
    """Four or eight bytes made a huge or a negative number, as lengths and counts are stored."""
    size = rng.choice((4, 8))
    at = _place(data, rng)
    number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40, len(data)))
    return data[:at] + (number % 256**size).to_bytes(size, "little") + data[at + size :]


def _spliced(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at, begin = _place(data, rng), _place(other, rng)
    return data[:at] + other[begin : begin + rng.choice((16, 256, 4096))] + data[at:]


# -- text ----------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str, rng: random.Random) -> bytes:
    # Lone surrogates as some tools write them; undecodable bytes stay as they were.
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", rng.choice(("surrogatepass", "replace")))


def word(data: bytes, rng: random.Random) -> bytes:
    """A word or a number exchanged for another."""
    text = _text(data)
    found = WORD.search(text, _place(text, rng)) or WORD.search(text)
    start, end = found.span() if found else (0, 0)
    new = rng.choice(NUMBERS if rng.random() < 0.5 else TEXTS)
    return _bytes(text[:start] + new + text[end:], rng)


def nested(data: bytes, rng: random.Random) -> bytes:
    """Something deep: more than any parser's stack holds, or just a little."""
    opening, closing = rng.choice(NESTS)
    depth = rng.choice((3, 90, 1200, 20_000))
    text = _text(data)
    at = _place(text, rng)
    ends = closing * depth if rng.random() < 0.7 else ""
    return _bytes(text[:at] + opening * depth + "1" + ends + text[at:], rng)


def line(data: bytes, rng: random.Random) -> bytes:
    """A line doubled, moved, taken out, indented or put in."""
    lines = _text(data).split("\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    act = rng.randrange(6)
    if act == 0:
        lines.insert(to, lines[at])
    elif act == 1:
        lines.insert(to, lines.pop(at))
    elif act == 2:
        lines.pop(at)
    elif act == 3:
        lines[at] = rng.choice(("  ", "\t", " ", "    ", "# ", "- ", "> ")) + lines[at]
    elif act == 4:
        lines[at] = lines[at].lstrip()
    else:
        lines.insert(to, rng.choice(LINES))
    return _bytes("\n".join(lines), rng)


def spelled(data: bytes, rng: random.Random) -> bytes:
    """A sign that parts words doubled, exchanged or put in."""
    text = _text(data)
    at = _place(text, rng)
    sign = rng.choice((",", ":", "=", "@", ",,", "==", "::", " ", ";", "\n"))
    return _bytes(text[:at] + sign + text[at:], rng)


# -- JSON ----------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _keys(text: str) -> dict[str, list[int]]:
    """Where each key of a document stands."""
    found: dict[str, list[int]] = {}
    for match in KEY.finditer(text):
        found.setdefault(match[1], []).append(match.start())
    return found


def _key(text: str, rng: random.Random) -> re.Match[str] | None:
    """A key with its colon: any, or one of any name, or else most would be deep in a long list."""
    if rng.random() < 0.5 and (keys := _keys(text)):
        return KEY.match(text, rng.choice(keys[rng.choice(list(keys))]))
    return KEY.search(text, _place(text, rng)) or KEY.search(text)


def pair(data: bytes, rng: random.Random) -> bytes:
    """A key with its value: another value, taken out, doubled, renamed, moved or wrapped."""
    text = _text(data)
    found = _key(text, rng)
    if found is None:
        return word(data, rng)
    begin, start = found.span()
    try:
        _, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        end = min(len(text), start + 1)
    value = text[start:end]
    act = rng.randrange(8)
    if act <= 2:
        new = text[begin:start] + rng.choice(JSON_VALUES)
    elif act == 3:
        return _bytes(text[:begin] + text[end:].lstrip(" \n\r\t,"), rng)
    elif act == 4:
        new = f"{text[begin:end]},{text[begin:start]}{rng.choice((*JSON_VALUES, value))}"
    elif act == 5:
        new = f"{json.dumps(rng.choice(TEXTS))}:{value}"
    elif act == 6:
        other = KEY.search(text, _place(text, rng)) or found
        new = f"{other[0]}{value}"
    else:
        new = text[begin:start] + rng.choice((f"[{value}]", f'{{"a":{value}}}', f'"{value[:9]}"'))
    return _bytes(text[:begin] + new + text[end:], rng)


def alike(data: bytes, rng: random.Random) -> bytes:
    """A value exchanged for another of its type: right to a schema, and right to nothing else."""
    text = _text(data)
    found = _key(text, rng)
    if found is None:
        return word(data, rng)
    try:
        value, end = DECODER.raw_decode(text, found.end())
    except (ValueError, RecursionError):
        return item(data, rng)
    new: object = None
    if isinstance(value, bool):
        new = not value
    elif isinstance(value, (int, float)):
        new = rng.choice((0, 1, -1, 0.5, 2**31, -(10**18), 1e300, 1e-300, value + 1, -value))
    elif isinstance(value, str):
        other = KEY.search(text, _place(text, rng)) or found
        new = rng.choice((*TEXTS[:4], *TEXTS[6:], other[1], value[::-1], value * 2))
    elif isinstance(value, list):
        new = rng.choice(([], value[:1], value[1:], value[::-1], value * 2))
    elif isinstance(value, dict) and value:
        name = rng.choice(list(value))
        rest = {key: one for key, one in value.items() if key != name}
        new = rng.choice(({}, rest, {**rest, rng.choice(TEXTS[:4]): value[name]}))
    if rng.random() < 0.1:
        new = None
    try:
        written = json.dumps(new)
    except RecursionError:  # it was read with less of the stack in use than there is now
        return item(data, rng)
    return _bytes(text[: found.end()] + written + text[end:], rng)


def item(data: bytes, rng: random.Random) -> bytes:
    """A value that stands in a list exchanged, or one put beside it."""
    text = _text(data)
    at = text.find(rng.choice((",", "[")), _place(text, rng))
    if at < 0:
        return pair(data, rng)
    return _bytes(f"{text[: at + 1]}{rng.choice(JSON_VALUES)},{text[at + 1 :]}", rng)


# -- YAML ----------------------------------------------------------------------------------------


def setting(data: bytes, rng: random.Random) -> bytes:
    """A key's value exchanged for what YAML reads in ways of its own."""
    lines = _text(data).split("\n")
    at = rng.randrange(len(lines))
    key, colon, value = lines[at].partition(":")
    act = rng.randrange(5)
    if act <= 2 and colon:
        lines[at] = f"{key}: {rng.choice(YAML_VALUES)}"
    elif act == 3:
        lines[at] = f"{rng.choice(YAML_VALUES)}: {value.strip()}"
    else:
        lines.insert(at, rng.choice(YAML_BLOCKS).rstrip("\n"))
    return _bytes("\n".join(lines), rng)


# -- CSV -----------------------------------------------------------------------------------------


def delimited(data: bytes, rng: random.Random) -> bytes:
    """A field exchanged, or a quote, a delimiter or a line break put in."""
    text = _text(data)
    at = _place(text, rng)
    if rng.random() < 0.5:
        new = rng.choice(
            ('"', '""', ",", "\t", "\n", "\r", '"\n', ',"', "\0", ",,,,", '","', '"\r\n"')
        )
        return _bytes(text[:at] + new + text[at:], rng)
    return word(data, rng)


def _binary(name: str) -> Mutation:
    """A mutation of a binary format, whose library is imported only where it is fuzzed."""

    def mutation(data: bytes, rng: random.Random) -> bytes:
        from tests.fuzz import binaries

        found: Mutation = getattr(binaries, name)
        return found(data, rng)

    return mutation


ANY: tuple[Mutation, ...] = (
    *(flipped, flipped, truncated, inserted, repeated, removed, recoded, emptied, numbered),
)
MUTATIONS: dict[Kind, tuple[Mutation, ...]] = {
    "json": (pair, pair, pair, alike, alike, alike, item, nested, line, word),
    "yaml": (setting, setting, setting, line, nested, word, spelled),
    "csv": (delimited, delimited, line, word),
    "spelled": (word, word, spelled, inserted, repeated, removed),
    "markdown": (line, line, setting, setting, nested, word, pair),
    "parquet": (_binary("table"), _binary("table"), numbered),
    "safetensors": (_binary("header"), _binary("header"), pair, numbered),
    "gguf": (numbered, numbered, flipped, word),
}
