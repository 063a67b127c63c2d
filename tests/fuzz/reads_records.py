"""Records in each format, read as an audit reads them."""

import csv
import io
import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from auditor.config import Shared, Source
from auditor.grams import word_grams
from auditor.records import record_id
from auditor.rows import RowReader
from auditor.scoring.encode import Encoder
from auditor.sources import open_source
from auditor.textfiles import Placed
from tests.fuzz.property import given
from tests.tiny import byte_tokenizer

Rows = list[dict[str, Any]]
LETTERS = "To the clinic of the river: the patient sleeps well, and walks {n} miles a day. {n}"
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] not in ('user', 'assistant') %}{{ raise_exception('role') }}{% endif %}"
    "{% endfor %}"
)


@cache
def _tools() -> tuple[Encoder, RowReader]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = Shared(model="x")
    return Encoder(tokenizer, 48), RowReader(config, tokenizer)


def texts() -> Rows:
    """Rows with a text each."""
    return [{"text": LETTERS.format(n=n)} for n in range(4)]


def labelled() -> Rows:
    """Members and nonmembers in one list."""
    return [{**row, "label": label} for row, label in zip(texts(), "1010", strict=True)]


def conversations() -> Rows:
    """Rows with a conversation each."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"How is patient {n}?"},
                {"role": "assistant", "content": row["text"]},
            ]
        }
        for n, row in enumerate(texts())
    ]


def prompts() -> Rows:
    """Rows with a prompt and a completion each."""
    return [
        {"prompt": f"Patient {n}: ", "completion": row["text"]} for n, row in enumerate(texts())
    ]


def lines(make: Callable[[], Rows]) -> Callable[[], list[bytes]]:
    """Rows as JSON lines, plain and with escapes."""
    return lambda: [
        "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in make()).encode(),
        "\r\n".join(json.dumps({**row, "ž": 1.5}, ensure_ascii=False) for row in make()).encode(),
    ]


def array(make: Callable[[], Rows]) -> Callable[[], list[bytes]]:
    """Rows as a JSON array, on one line and indented."""
    return lambda: [json.dumps(make()).encode(), json.dumps(make(), indent=2).encode()]


def table(make: Callable[[], Rows]) -> Callable[[], list[bytes]]:
    """Rows as CSV, with and without quotes."""

    def seeds() -> list[bytes]:
        found = []
        for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL):
            file = io.StringIO()
            writer = csv.DictWriter(file, list(make()[0]), quoting=quoting)
            writer.writeheader()
            writer.writerows(make())
            found.append(file.getvalue().encode())
        return found

    return seeds


def parquet(*makes: Callable[[], Rows]) -> Callable[[], list[bytes]]:
    """Rows as Parquet, in one row group and in two."""

    def seeds() -> list[bytes]:
        found = []
        for make, size in itertools.product(makes, (2, 4)):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(make()), sink, row_group_size=size)
            found.append(sink.getvalue().to_pybytes())
        return found

    return seeds


def records(suffix: str) -> Callable[[bytes], None]:
    """Read a file as an audit reads its members, and every record again by its place.

    Args:
        suffix: Of the file.
    """

    def run(data: bytes) -> None:
        rows = open_source(Source(path=str(given(f"records{suffix}", data))))
        encoder, reader = _tools()
        found = []
        for placed in rows.stream():
            found.append((placed.position, reader.text(placed)))
            if "label" in placed.row:
                reader.side(placed)
        encoded = encoder.encode([text for _, text in found])
        assert all(one.n_scored >= 0 and one.zlib_bytes > 0 for one in encoded)
        for _, text in found:
            word_grams(text.words)
        again = rows.read([position for position, _ in found])
        for (_, text), row in zip(found, again, strict=True):
            assert record_id(reader.text(Placed(0, "it", row))) == record_id(text)

    return run
