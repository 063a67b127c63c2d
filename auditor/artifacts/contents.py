"""The strings that stand in a file, whatever its format; a pickle is never opened.

What is no format that is known is read as text, and where it holds bytes that are no text, as what
can be printed between them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from auditor.artifacts.headers import Unsearchable, gguf_strings, is_safetensors, safetensors_header

Kind = Literal[
    "safetensors", "gguf", "pickle", "archive", "parquet", "arrow", "text", "fragments", "binary"
]
# Bytes of one file that are searched: text beyond that is data, and is said to be only partly read.
LARGEST = 64 * 2**20
CHUNK = 2**20
TINY = 9  # five words take at least as many characters
FIRST_UNSPACED = "\u3040"  # from here on, letters without spaces may be several words

PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
# Weights in other formats, pictures and sound: no text, and much of it.
BINARIES = (
    *(".h5", ".mlmodel", ".msgpack", ".npy", ".onnx", ".onnx_data", ".ot", ".tflite"),
    *(".avif", ".bmp", ".gif", ".ico", ".jpeg", ".jpg", ".pdf", ".png", ".tiff", ".webp"),
    *(".flac", ".mov", ".mp3", ".mp4", ".ogg", ".otf", ".ttf", ".wav", ".webm", ".woff", ".woff2"),
)
PICKLE = re.compile(rb"\x80[\x02-\x05]")
BYTE_ORDERS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32"}
BYTE_ORDERS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# One word or a pair of them a line: run together they would be sentences that nobody wrote.
VOCABULARIES = re.compile(r"(vocab|merges|dict).*\.(txt|bpe)|.*\.tiktoken")
UNPRINTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]+")
JSON_ERRORS = (ValueError, RecursionError)


class Piece(NamedTuple):
    """A string, or a part of one.

    Attributes:
        text: The characters.
        goes_on: Whether it goes on where the last piece ended.
    """

    text: str
    goes_on: bool = False


def kind_of(path: Path) -> Kind:
    """What a file is, by its first bytes and its name.

    Raises:
        OSError: It cannot be read.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(2**13)
    if head.startswith(b"GGUF"):
        return "gguf"
    if suffix == ".safetensors" or is_safetensors(head, path.stat().st_size):
        return "safetensors"
    if suffix in PICKLES or PICKLE.match(head):
        return "pickle"
    if suffix in ARCHIVES or head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return "archive"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if suffix in BINARIES:
        return "binary"
    return "fragments" if b"\x00" in head and _encoding(head) == "utf-8" else "text"


def pieces_in(path: Path, kind: Kind) -> Iterator[Piece]:
    """The strings of a file, keys and names among them; none of a pickle, an archive, an image.

    Raises:
        OSError: It cannot be read.
        Unsearchable: It is damaged.
    """
    if kind == "safetensors":
        yield from _json_pieces(path, safetensors_header(path))
    elif kind == "gguf":
        yield from map(Piece, gguf_strings(path))
    elif kind in ("parquet", "arrow"):
        yield from _table_pieces(path, kind)
    elif kind == "fragments":
        yield from _fragments(path)
    elif kind == "text":
        yield from _text_pieces(path)


def _json_pieces(path: Path, text: str) -> list[Piece]:
    try:
        return json_strings(text)
    except JSON_ERRORS:
        raise Unsearchable(f"the header of {path.suffix[1:]} is no JSON") from None


def json_strings(text: str) -> list[Piece]:
    """Every key and every string of a JSON document, those of a doubled key too.

    In a list, a string that ends in a line feed goes on in the next, as notebooks write text.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    found: list[Piece] = []

    def keep(value: object) -> None:
        if isinstance(value, str):
            if not _is_one_word(value):
                found.append(Piece(value))
        elif isinstance(value, list):
            goes_on = False
            for item in value:
                if not isinstance(item, str):
                    keep(item)
                    goes_on = False
                    continue
                is_cut = item.endswith("\n")
                if goes_on or is_cut or not _is_one_word(item):
                    found.append(Piece(item, goes_on))
                goes_on = is_cut

    def pairs(items: list[tuple[str, Any]]) -> None:
        for key, value in items:
            if not _is_one_word(key):
                found.append(Piece(key))
            if isinstance(value, (str, list)):
                keep(value)

    keep(json.loads(text, object_pairs_hook=pairs))
    return found


def _is_one_word(text: str) -> bool:
    """Whether a string is too short for a record, as nearly all of a vocabulary is."""
    if len(text) < TINY and text.isascii():
        return True
    return text.isalnum() and max(text) < FIRST_UNSPACED


def _text_pieces(path: Path) -> Iterator[Piece]:
    with path.open("rb") as file:
        head = file.read(CHUNK)
    size, name = path.stat().st_size, path.name.lower()
    encoding = _encoding(head)
    if VOCABULARIES.fullmatch(name):
        yield from (Piece(line) for line in _lines(path))
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        for line in _lines(path):
            try:
                yield from json_strings(line)
            except JSON_ERRORS:
                yield Piece(line)
    elif size > LARGEST or head.decode(encoding, "replace").strip("\ufeff \t\r\n")[:1] not in "{[":
        yield from _plain_pieces(path, encoding)
    else:
        yield from _perhaps_json(path, encoding)


def _perhaps_json(path: Path, encoding: str) -> Iterator[Piece]:
    """One JSON document, or one a line; else the file as it stands."""
    text = _decoded(path.read_bytes(), encoding).strip("\ufeff \t\r\n")
    for parts in ([text], text.split("\n")):
        try:
            found = [piece for part in parts if part.strip() for piece in json_strings(part)]
        except JSON_ERRORS:  # a log whose lines begin with a bracket, JSON with comments
            continue
        yield from found
        return
    yield from _plain_pieces(path, encoding)


def _plain_pieces(path: Path, encoding: str) -> Iterator[Piece]:
    """The whole file as one string."""
    if encoding != "utf-8":
        with path.open("rb") as file:
            yield Piece(_decoded(file.read(LARGEST + 4), encoding))
        return
    for number, data in enumerate(_chunks(path)):
        yield Piece(_decoded(data), goes_on=number > 0)


def _fragments(path: Path) -> Iterator[Piece]:
    for data in _chunks(path):
        for run in UNPRINTED.split(data.decode("utf-8", errors="replace")):
            yield Piece(run)
            # Protocol buffers put a line feed and the length before a string, and the length may
            # be a letter that sticks to the first word.
            if "\n" in run:
                yield Piece(re.sub("\n.", "\n", run, count=1))


def _table_pieces(path: Path, kind: Kind) -> Iterator[Piece]:
    import pyarrow as pa

    try:
        for batch in _parquet(path) if kind == "parquet" else _arrow(path):
            yield from _strings_of(batch.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise Unsearchable(f"it is no whole {kind} file") from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [field.name for field in file.schema_arrow if "string" in str(field.type)]
        yield from file.iter_batches(batch_size=1024, columns=names, use_threads=False)


def _arrow(path: Path) -> Iterator[Any]:
    """Batches of an Arrow file, or of an Arrow stream, which `datasets` writes."""
    import pyarrow as pa

    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    with pa.memory_map(str(path)) as source:
        if is_file:
            reader = pa.ipc.open_file(source)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)


def _strings_of(value: object) -> Iterator[Piece]:
    if isinstance(value, str):
        yield Piece(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_of(item)


def _chunks(path: Path) -> Iterator[bytes]:
    """A file by the mebibyte, cut where there is white space, if there is any in four of them."""
    with path.open("rb") as file:
        kept = b""
        while data := file.read(CHUNK):
            data = kept + data
            cut = max(data.rfind(b" "), data.rfind(b"\n")) + 1
            if not cut and len(data) < 4 * CHUNK:
                kept = data
                continue
            cut = cut or len(data)
            yield data[:cut]
            kept = data[cut:]
        yield kept


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while line := file.readline(LARGEST):
            yield _decoded(line)


def _encoding(head: bytes) -> str:
    return next((name for mark, name in BYTE_ORDERS.items() if head.startswith(mark)), "utf-8")


def _decoded(data: bytes, encoding: str = "utf-8") -> str:
    """Text of bytes: lines that are no UTF-8 are taken for Latin-1."""
    if encoding != "utf-8":
        return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "\n".join(_decoded_line(line) for line in data.split(b"\n"))


def _decoded_line(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return line.decode("latin-1")
