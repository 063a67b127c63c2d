"""What weight files say beside their numbers: the headers of safetensors and the metadata of GGUF.

GGUF is read by hand: the `gguf` package keeps an array for every string, which takes 14 s and
700 MB for a vocabulary of 256,000 tokens with its merges, and gives up on bytes that are no UTF-8.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES = 100_000_000  # the most that the safetensors library accepts
STRING, ARRAY = 8, 9
# Bytes of the other GGUF types, by number: integers, float32, bool, 64-bit ones.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
DEEPEST = 4  # arrays within arrays


class Unsearchable(Exception):  # noqa: N818 - it says what the file is
    """A file that could not be searched; the message says why."""


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes begins as safetensors do."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= min(HEADER_BYTES, size - 8)


def safetensors_header(path: Path) -> str:
    """The header: a JSON object with the tensors and `__metadata__`.

    Raises:
        Unsearchable: It is cut off, or longer than the library allows.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        data = file.read(min(length, HEADER_BYTES))
    if len(data) < length or not data.startswith(b"{"):
        raise Unsearchable("it is no whole safetensors file")
    return data.decode("utf-8", errors="replace")


def gguf_strings(path: Path) -> Iterator[str]:
    """Every key, every string of the metadata and every tensor's name, in order.

    The format is that of GGUF versions 2 and 3, in either byte order.

    Raises:
        Unsearchable: It is cut off, of another version, or malformed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.read(4)
        version = file.read(4)
        order = "<" if int.from_bytes(version, "little") < 2**16 else ">"
        number = int.from_bytes(version, "little" if order == "<" else "big")
        if number not in (2, 3):
            raise Unsearchable(f"it is GGUF of version {number}, where 2 and 3 are known")
        reader = _Gguf(file, order, size)
        n_tensors, n_keys = reader.integer("Q"), reader.integer("Q")
        for _ in range(n_keys):
            yield reader.string()
            yield from reader.values(reader.integer("I"))
        for _ in range(n_tensors):
            yield reader.string()
            reader.skip(8 * reader.integer("I") + 12)


class _Gguf:
    def __init__(self, file: BinaryIO, order: str, size: int) -> None:
        self._file, self._order, self._size = file, order, size

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._size else b""
        if len(data) < count:
            raise Unsearchable("it is no whole GGUF file")
        return data

    def integer(self, kind: str) -> int:
        data = self._bytes(struct.calcsize(kind))
        return int(struct.unpack(self._order + kind, data)[0])

    def string(self) -> str:
        return self._bytes(self.integer("Q")).decode("utf-8", errors="replace")

    def skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise Unsearchable("it is no whole GGUF file")
        self._file.seek(count, 1)

    def values(self, kind: int, *, depth: int = 0) -> Iterator[str]:
        """The strings in a value; other types are passed over."""
        if kind == STRING:
            yield self.string()
        elif kind == ARRAY and depth < DEEPEST:
            inner, count = self.integer("I"), self.integer("Q")
            if inner in SIZES:
                self.skip(SIZES[inner] * count)
            else:
                for _ in range(count):
                    yield from self.values(inner, depth=depth + 1)
        elif kind in SIZES:
            self.skip(SIZES[kind])
        else:
            raise Unsearchable(f"its metadata holds a value of unknown type {kind}")
