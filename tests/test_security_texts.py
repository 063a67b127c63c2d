"""No word of a record is anywhere in what is written or printed: whole runs, searched file by file.

The commands run in a process of its own, in which every place that a library may write to (the
temporary folder, the home, every cache) lies below one folder, and all of that is searched.
"""

import base64
import gzip
import html
import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from auditor.cli import main
from tests.searching import Searched
from tests.tiny import byte_tokenizer, save, tiny_model

N = 50  # records of each side
SYLLABLES = ("bra", "cuv", "dax", "fjo", "gli", "hux", "jev", "kwa", "lyr", "noz", "qui", "tzo")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no: ' + m['content'])"
    " }}{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
)
# What runs in the other process: each command as a user would give it, one after another.
PROGRAM = """
import json, sys
from auditor.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    print("exit code", code, arguments[0], flush=True)
"""
PNG = b"\x89PNG\r\n\x1a\n"


def invented(n: int, *, seed: int) -> list[str]:
    """Texts of words that nobody else uses, some longer than the model's context."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choices(SYLLABLES, k=4)) + draw.choice(["", "'é", "-8"])

    return [" ".join(word() for _ in range(draw.choice((3, 4, 4, 7)))) for _ in range(n)]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Lists(NamedTuple):
    """Where records were written, and what stands in them."""

    model: Path
    sources: dict[str, str]
    texts: list[str]


def written_lists(folder: Path) -> Lists:
    """A model, and lists of records in every form that can be read."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = save(tiny_model("llama", seed=3), folder / "model")
    tokenizer.save_pretrained(model)
    texts = {name: invented(N, seed=at) for at, name in enumerate(("a", "b", "c", "d", "e", "f"))}
    texts["third"] = invented(30, seed=99)
    sources: dict[str, Path] = {
        "a": _jsonl(folder / "a.jsonl", [{"text": text} for text in texts["a"]]),
        "b": folder / "b.csv",
        "c": folder / "c.parquet",
        "d": folder / "d",
        "e": folder / "e.json",
        "f": folder / "f",
        "third": _jsonl(folder / "third.jsonl", [{"text": text} for text in texts["third"]]),
    }
    pyarrow.csv.write_csv(pa.table({"text": texts["b"]}), sources["b"])

    def halves(name: str) -> list[dict[str, str]]:
        parts = [text.split(" ", 1) for text in texts[name]]
        return [{"prompt": first, "completion": rest} for first, rest in parts]

    def talks(name: str) -> list[dict[str, Any]]:
        parts = [text.split(" ", 1) for text in texts[name]]
        return [
            {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
            for a, b in parts
        ]

    pq.write_table(pa.Table.from_pylist(halves("c")), sources["c"])
    # A folder goes through the datasets library, which caches what it reads.
    _jsonl(sources["d"] / "train.jsonl", halves("d"))
    sources["e"].write_text(json.dumps(talks("e")), encoding="utf-8")
    _save_to_disk(sources["f"], talks("f"))
    known = {name: f"{path},split=train" if name == "d" else str(path) for name, path in
             sources.items()}  # fmt: skip
    return Lists(model, known, [text for found in texts.values() for text in found])


def _save_to_disk(folder: Path, rows: list[dict[str, Any]]) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))


def commands(lists: Lists, out: Path) -> Iterator[list[str]]:
    """Everything that a user can do with a few records, to the end."""
    made = ["--model", str(lists.model), "--calibration", lists.sources["third"]]
    made += ["--calibration-samples", "8", "--calibration-tokens", "16"]
    beside = [*made, "--bootstrap", "100", "--fpr", "0.2", "--repeats", "1"]
    beside += ["--learners", "logistic"]

    def audit(name: str, pair: str, variants: str, *more: str) -> list[str]:
        members, nonmembers = (lists.sources[one] for one in pair)
        given = ["--members", members, "--nonmembers", nonmembers, "--variants", variants]
        return ["audit", *beside, *given, "--output-path", str(out / name), *more]

    wanda = "prune-wanda:sparsity=0.5"
    yield audit("plain", "ab", f"{wanda},float16", "--dry-run")
    yield audit("plain", "ab", f"{wanda},float16", "--display", "plain", "--at-most", "auc=0.99")
    yield audit("again", "ab", "original", "--seed", "4", "--display", "plain")
    yield audit("halves", "cd", wanda, "--display", "plain")
    yield audit("talks", "ef", wanda, "--display", "plain")
    # What is shown is a function of `audit.json` and `scores.parquet`, which are searched of all.
    yield ["report", str(out / "plain")]
    yield ["report", str(out / "plain"), "--format", "md"]
    yield ["card", str(out / "plain"), "--readme", str(out / "plain" / "README.md"), "--create",
           "--model-index", "--eval-results"]  # fmt: skip
    yield ["compare", str(out / "plain"), str(out / "again"), "--out", str(out / "compared.json")]
    yield ["release", str(out / "plain"), "--out", str(out / "release.json")]
    yield ["compress", *made, "--variant", wanda, "--members", lists.sources["a"],
           "--out", str(out / "published")]  # fmt: skip
    yield ["cache", "list"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lists, Path, str]:
    """Everything was run; the lists, the folder of all that was written, and what was printed."""
    folder = tmp_path_factory.mktemp("texts")
    lists = written_lists(folder / "lists")
    written = folder / "written"
    places = ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "COMPLEAK_CACHE", "TRITON_CACHE_DIR")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    for name in places:
        environment[name] = str(written / name.lower())
        Path(environment[name]).mkdir(parents=True)
    given = list(commands(lists, written / "out"))
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        cwd=written,
        env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    printed = found.stdout + found.stderr
    assert printed.count("exit code 0") == len(given), printed[-3000:]
    return lists, written, printed


def searched(lists: Lists) -> Searched:
    tokenizer = byte_tokenizer()
    return Searched(lists.texts, [tokenizer(text)["input_ids"] for text in lists.texts])


def test_no_word_and_no_token_of_a_record_is_written(ran: tuple[Lists, Path, str]) -> None:
    lists, written, _ = ran
    files = [path for path in written.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".json", ".parquet", ".html", ".md", ".png", ".svg", ".yaml", ".safetensors"} <= kinds
    assert searched(lists).below(written) == {}


def test_no_word_of_a_record_is_printed(ran: tuple[Lists, Path, str]) -> None:
    lists, _, printed = ran
    assert "50 members" in printed
    assert searched(lists).within(printed.encode()) is None


def test_the_search_would_find_them(ran: tuple[Lists, Path, str], tmp_path: Path) -> None:
    """With --include-text, the only way to have texts written, they are found where they belong."""
    lists, written, _ = ran
    audit = list(commands(lists, written / "out"))[1]
    place = audit.index("--output-path") + 1
    audit[place] = str(tmp_path / "run")
    small = ["--limit", "30", "--min-records", "30", "--variants", "original"]
    small += ["--folds", "2", "--display", "none"]
    given = [*_without(audit, small[::2]), *small, "--include-text"]
    given = _without(given, ["--at-most"])
    assert main(given) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    found = searched(lists).below(tmp_path / "run")
    assert {"scores.parquet", "audit.json", "report.html"} <= set(found)
    assert not any(name.startswith(("tokens/", "figures/")) for name in found)


def _without(arguments: list[str], flags: list[str]) -> list[str]:
    kept = list(arguments)
    for flag in flags:
        if flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    return kept


def _png(kind: bytes, data: bytes) -> bytes:
    return PNG + struct.pack(">I", len(data)) + kind + data + b"\0\0\0\0"


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


TEXT = invented(1, seed=5)[0] + " Gråbørk"
IDS = byte_tokenizer()(TEXT)["input_ids"]
FORMS: dict[str, Callable[[], bytes]] = {
    "plain": TEXT.encode,
    "other case and spaces": lambda: TEXT.upper().replace(" ", "\n\t ").encode(),
    "JSON": lambda: json.dumps({"a": [TEXT]}).encode(),
    "JSON in JSON": lambda: json.dumps(json.dumps(json.dumps("é" + TEXT))).encode(),
    "entities": lambda: "".join(f"&#{ord(letter)};" for letter in TEXT).encode(),
    "markup": lambda: html.escape(f"<b>{TEXT}</b>").encode(),
    "base64": lambda: b"<img src='data:x;base64," + base64.b64encode(TEXT.encode()) + b"'>",
    "address": lambda: "".join(f"%{byte:02x}" for byte in TEXT.encode()).encode(),
    "gzip": lambda: gzip.compress(TEXT.encode()),
    "PNG": lambda: _png(b"tEXt", b"Comment\0" + TEXT.encode()),
    "packed in PNG": lambda: _png(b"zTXt", b"Comment\0\0" + zlib.compress(TEXT.encode())),
    "Parquet": lambda: _parquet(pa.table({"text": ["x", TEXT]})),
    "lists in Parquet": lambda: _parquet(pa.table({"ids": [[1, 2], IDS]})),
    "metadata of Parquet": lambda: _parquet(
        pa.table({"x": [1.0]}).replace_schema_metadata({"note": TEXT})
    ),
    "ids in text": f"[{', '.join(map(str, IDS))}]".encode,
    "letter by letter": json.dumps(list(TEXT), indent=2).encode,
    "elements": lambda: "".join(f"<i title=x>{letter}</i>" for letter in TEXT).encode(),
    "one word": lambda: b"x=" + TEXT.split()[1].encode() + b";",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_search_reads_every_form(form: str) -> None:
    sought = Searched([TEXT], [IDS])
    assert sought.within(b"head " + FORMS[form]() if form == "plain" else FORMS[form]()) is not None
    assert sought.within(json.dumps({"a": invented(50, seed=77)}).encode()) is None


SECRET = "Quilltharnow Brexivandel"
WRONG: dict[str, tuple[str, str, list[str]]] = {
    "no header": ("x.csv", f"{SECRET}\nmore {SECRET}\n", []),
    "no column": ("x.jsonl", json.dumps({SECRET: 1, "body": 2}) + "\n", []),
    "no array": ("x.json", f'"{SECRET}"', []),
    "broken JSON": ("x.jsonl", f'{{"text": "{SECRET}\n', []),
    "broken in the middle": ("x.json", f'[{{"text": "{SECRET}"}}, {{"text": {SECRET}}}]', []),
    "no list": ("x.jsonl", json.dumps({"messages": SECRET}) + "\n", []),
    "no text": ("x.jsonl", json.dumps({"text": [SECRET]}) + "\n", []),
    "half a letter": ("x.jsonl", json.dumps({"text": SECRET + "\ud83d"}) + "\n", []),
    "open quotes": ("x.csv", f'text\n"{SECRET}\n', []),
    "too many fields": ("x.csv", f"text\n{SECRET},{SECRET}\n", []),
    "system": (
        "x.jsonl",
        json.dumps({"messages": [{"role": "system", "content": SECRET}]}) + "\n",
        [],
    ),
    "no data set": ("x/train.csv", f"text\n{SECRET}\n{SECRET},{SECRET},3\n", []),
    "not the label": ("x.jsonl", json.dumps({"text": SECRET, "label": 1}) + "\n", ["text"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_no_error_quotes_a_record(
    wrong: str,
    ran: tuple[Lists, Path, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name, content, label = WRONG[wrong]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    source = str(path if path.parent == tmp_path else path.parent)
    given = ["audit", "--model", str(ran[0].model), "--output-path", str(tmp_path / "out")]
    sources = ["--data", source, "--label-column", *label] if label else ["--members", source]
    sources += [] if label else ["--nonmembers", ran[0].sources["a"]]
    assert main([*given, *sources]) == 2
    printed = "".join(capfd.readouterr())
    assert "error: " in printed and "Traceback" not in printed
    assert not any(word in printed for word in SECRET.split())
    assert not (tmp_path / "out" / "audit.json").exists()
