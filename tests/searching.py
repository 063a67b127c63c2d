"""Where texts of records stand in what was written, in whatever way they were written down.

Every file is looked at as it is and in every form that can be got out of it: columns of Parquet and
Arrow, compressed archives, text chunks of pictures, base64, entities, escapes of JSON and of
Python. Looked for are rare words, which every run of words holds one of, and runs of token ids.
"""

import base64
import binascii
import gzip
import html
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
TAGS = re.compile(r"<[^<>]*>")
COMMAS = re.compile(r"[\"']\s*,\s*[\"']")
URL_SAFE = bytes.maketrans(b"-_", b"+/")
HEAD = 8
IDS = 8  # token ids in a row
DEEPEST = 4


class Searched:
    """Texts that must not be found.

    Args:
        texts: The texts, each with words that stand nowhere else.
        token_ids: The same as token ids, where they are looked for too.
    """

    def __init__(self, texts: Sequence[str], token_ids: Sequence[Sequence[int]] = ()) -> None:
        self._words = _Needles(
            word.casefold().encode() for text in texts for word in text.split() if len(word) > 8
        )
        runs = [np.asarray(ids[at : at + IDS]) for ids in token_ids for at in (0, len(ids) // 3)]
        runs = [run for run in runs if len(run) == IDS]
        kinds = (np.int16, np.int32, np.int64)
        self._ids = _Needles(
            [
                *(run.astype(kind).tobytes() for run in runs for kind in kinds),
                *(sign.join(map(str, run)).encode() for run in runs for sign in (",", ", ", " ")),
            ]
        )

    def within(self, content: bytes) -> str | None:
        """The first thing that stands in some bytes, or None."""
        for form in forms(content):
            # White space of every kind counts as one space, and case does not count.
            text = " ".join(form.decode("utf-8", errors="replace").casefold().split()).encode()
            if found := self._words.first_in(text):
                return found.decode()
            if self._ids.first_in(form) or self._ids.first_in(text):
                return "token ids"
        return None

    def below(self, folder: Path) -> dict[str, str]:
        """What was found in which file, below a folder; names of files are looked at too."""
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if hit := self.within(name.encode()):
                found[name] = f"{hit} in its name"
            elif path.is_file() and (hit := self.within(path.read_bytes())):
                found[name] = hit
        return found


class _Needles:
    """Many runs of bytes, looked for at once: by their first eight bytes, at every place."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        self._by_head: dict[int, list[bytes]] = {}
        for needle in sorted(set(needles)):
            self._by_head.setdefault(int.from_bytes(needle[:HEAD], "little"), []).append(needle)
        self._heads = np.array(sorted(self._by_head), dtype=np.uint64)

    def first_in(self, content: bytes) -> bytes | None:
        """The first that stands in some bytes, or None."""
        for shift in range(min(HEAD, len(content) - HEAD + 1) if len(self._heads) else 0):
            count = (len(content) - shift) // HEAD
            seen = np.frombuffer(content, "<u8", count=count, offset=shift)
            near = np.searchsorted(self._heads, seen).clip(max=len(self._heads) - 1)
            for at in np.flatnonzero(self._heads[near] == seen).tolist():
                for needle in self._by_head[int(seen[at])]:
                    if content.startswith(needle, shift + HEAD * at):
                        return needle
        return None


def forms(content: bytes, *, depth: int = 0) -> Iterator[bytes]:
    """Some bytes, and everything that they can be read as."""
    yield content
    if depth == DEEPEST:
        return
    inner = [*_tables(content), *_unpacked(content), *_chunks(content)]
    # Of what is no text only the parts are read as text.
    if not inner:
        text = content.decode("utf-8", errors="replace")
        plain = unquote(_unescaped(html.unescape(text)), errors="replace")
        inner = [plain.encode("utf-8", errors="replace")] if plain != text else []
        # Tokens one by one: elements of a page side by side, strings of a list.
        for apart in (TAGS, COMMAS):
            yield apart.sub("", plain).encode("utf-8", errors="replace")
        for run in BASE64.findall(content):
            with suppress(binascii.Error, ValueError):
                inner.append(base64.b64decode(run.translate(URL_SAFE) + b"=="))
    for one in inner:
        yield from forms(one, depth=depth + 1)


def _unescaped(text: str) -> str:
    plain = ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
    return plain.replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"')


def _tables(content: bytes) -> Iterator[bytes]:
    """Every column of a Parquet or Arrow file, as text and as numbers in a row."""
    table = _table(content)
    if table is None:
        return
    yield repr(table.schema.metadata).encode()
    for name, column in zip(table.column_names, table.columns, strict=True):
        yield name.encode()
        flat = column.combine_chunks()
        while pa.types.is_list(flat.type):
            flat = flat.flatten()
        if pa.types.is_integer(flat.type):
            yield flat.to_numpy(zero_copy_only=False).astype(np.int64).tobytes()
        elif not pa.types.is_floating(flat.type):
            yield json.dumps(flat.to_pylist(), ensure_ascii=False, default=str).encode()


def _table(content: bytes) -> pa.Table | None:
    with suppress(OSError, pa.ArrowException):
        if content[:4] == b"PAR1":
            # By path: from memory pyarrow was seen to abort when the interpreter ends.
            with NamedTemporaryFile(suffix=".parquet") as file:
                file.write(content)
                file.flush()
                return pq.ParquetFile(file.name).read(use_threads=False)
        if content[:6] == b"ARROW1":
            return pa.ipc.open_file(pa.BufferReader(content)).read_all()
        if content[:4] == b"\xff\xff\xff\xff":
            return pa.ipc.open_stream(pa.BufferReader(content)).read_all()
    return None


def _unpacked(content: bytes) -> Iterator[bytes]:
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)


def _chunks(content: bytes) -> Iterator[bytes]:
    """The text chunks of a PNG, unpacked where they are packed."""
    at = 8 if content[:8] == b"\x89PNG\r\n\x1a\n" else len(content)
    while at + 8 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        if kind == b"tEXt":
            yield data
        elif kind in (b"zTXt", b"iTXt"):
            start = data.find(b"x")  # how a stream of zlib begins
            while start != -1:
                with suppress(zlib.error):
                    yield zlib.decompress(data[start:])
                start = data.find(b"x", start + 1)
            yield data
        at += size + 12
