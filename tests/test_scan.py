"""Checkpoints are searched: what is planted in any kind of file is found, and nothing else is."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import AddedToken

from auditor.artifacts.scan import scan_checkpoints
from auditor.demo.letters import letters
from auditor.errors import ModelError
from auditor.records import record_id
from auditor.results import Artifact
from tests.tiny import byte_tokenizer, save, tiny_model

LETTERS = letters(60, seed=3)
LETTERS[7] = LETTERS[7].replace(" ", " “é” ", 3).replace(". ", ".\nДень добрый, naïve café:\t")
LETTERS[8] = LETTERS[8].replace(". ", ".\r\n")
LETTERS[9] = 'He wrote C:\\new\\table {"a": "b"} & <b>bold</b>\n\n- ' + LETTERS[9]
RECORDS = [(record_id(text), i % 2 == 0, text) for i, text in enumerate(LETTERS)]
PLANTED = (0, 7, 8, 9)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama"), tmp_path_factory.mktemp("scan") / "model")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in clean.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def scan(folder: Path, **more: Any) -> list[Artifact]:
    found = scan_checkpoints({"model": folder}, RECORDS, **more)
    whole = json.dumps([item.model_dump() for item in found])
    for text in LETTERS:
        assert not any(" ".join(text.split()[i : i + 3]) in whole for i in range(8))
    return found


def hits(found: list[Artifact]) -> dict[str, list[str]]:
    return {item.file: item.record_ids for item in found if item.kind != "file"}


def ids(*numbers: int) -> list[str]:
    return [RECORDS[number][0] for number in numbers]


def named(found: list[Artifact]) -> dict[str, str]:
    return {item.file: item.message for item in found if item.kind == "file"}


def gguf(strings: list[str], order: str = "<") -> bytes:
    def text(value: str) -> bytes:
        return struct.pack(order + "Q", len(value.encode())) + value.encode()

    data = b"GGUF" + struct.pack(order + "IQQ", 3, 1, 4)
    data += text("general.description") + struct.pack(order + "I", 8) + text(strings[0])
    data += text("numbers") + struct.pack(order + "IIQ3i", 9, 5, 3, 1, 2, 3)
    data += text("flag") + struct.pack(order + "I?", 7, True)
    data += text("tokenizer.ggml.tokens") + struct.pack(order + "IIQ", 9, 8, len(strings))
    data += b"".join(map(text, strings))
    return data + text("output.weight") + struct.pack(order + "I2QIQ", 2, 4, 4, 0, 0) + bytes(64)


Plant = Callable[[Path, list[str]], object]


def in_json(name: str, build: Callable[[list[str]], object], **more: Any) -> Plant:
    return lambda folder, texts: (folder / name).write_text(json.dumps(build(texts), **more))


def in_readme(**more: Any) -> Plant:
    def plant(folder: Path, texts: list[str]) -> None:
        front = {"license": "mit", "widget": [{"text": text} for text in texts]}
        text = f"---\n{yaml.safe_dump(front, **more)}---\n# A model\n\nIt writes letters.\n"
        (folder / "README.md").write_text(text, encoding="utf-8")

    return plant


def as_text(name: str, encoding: str = "utf-8", newline: str = "\n") -> Plant:
    def plant(folder: Path, texts: list[str]) -> None:
        quoted = "\n\n".join("> " + text.replace("\n", "\n> ") for text in texts)
        data = quoted.replace("\n", newline).encode(encoding, errors="replace")
        (folder / name).write_bytes(data)

    return plant


def in_table(name: str) -> Plant:
    def plant(folder: Path, texts: list[str]) -> None:
        rows = [{"n": 1, "messages": [{"role": "user", "content": text}]} for text in texts]
        table = pa.Table.from_pylist(rows)
        if name.endswith("parquet"):
            pq.write_table(table, folder / name)
            return
        new = pa.ipc.new_file if name.startswith("file") else pa.ipc.new_stream
        with new(str(folder / name), table.schema) as writer:
            writer.write_table(table)

    return plant


def in_tokenizer(folder: Path, texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    tokenizer.save_pretrained(folder)


def in_sentencepiece(folder: Path, texts: list[str]) -> None:
    data = b""
    for piece in ["\u2581the", *texts, "\u2581end"]:
        inner = piece.encode()
        lengths = [bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7]) for n in [len(inner)]]
        data += b"\x0a\x7f\x0a" + lengths[0] + inner + b"\x15\x00\x00\x80\xbf"
    (folder / "tokenizer.model").write_bytes(data)


def log_line(text: str) -> str:
    return f"[12:00] INFO sample: {json.dumps({'inner': json.dumps(text)})}\n"


PLANTS: dict[str, tuple[Plant, str]] = {
    "widget": (in_readme(), "README.md"),
    "widget, folded": (in_readme(allow_unicode=True, width=30), "README.md"),
    "widget, blocks": (in_readme(default_style="|", allow_unicode=True), "README.md"),
    "quoted": (as_text("README.md"), "README.md"),
    "crlf": (as_text("README.md", newline="\r\n"), "README.md"),
    "utf-16": (as_text("notes.txt", encoding="utf-16"), "notes.txt"),
    "no suffix": (as_text("NOTES"), "NOTES"),
    "config": (
        in_json("config.json", lambda t: {"quantization_config": {"dataset": t}}),
        "config.json",
    ),
    "state": (
        in_json("trainer_state.json", lambda t: {"log": [{"x": x} for x in t]}, indent=1),
        "trainer_state.json",
    ),
    "keys": (in_json("map.json", lambda t: dict.fromkeys(t, 1)), "map.json"),
    "deep": (in_json("sub.json", lambda t: [[[{"a": [x]}]] for x in t]), "sub.json"),
    "template": (in_json("chat_template.json", lambda t: {"t": "{{ x }}".join(t)}), "*"),
    "lines": (
        lambda f, t: (f / "d.jsonl").write_text("\n".join(json.dumps({"t": x}) for x in t)),
        "d.jsonl",
    ),
    "log": (lambda f, t: (f / "out.log").write_text("".join(map(log_line, t))), "out.log"),
    "repr": (lambda f, t: (f / "debug").write_text("\n".join(map(repr, t))), "debug"),
    "script": (lambda f, t: (f / "run.py").write_text(f"PROMPTS = {t!a}\n"), "run.py"),
    "notebook": (
        in_json("n.ipynb", lambda t: {"cells": [x.splitlines(keepends=True) for x in t]}),
        "n.ipynb",
    ),
    "html": (
        lambda f, t: (f / "i.html").write_text("<p>" + "<p>".join(t).replace("&", "&amp;")),
        "i.html",
    ),
    "csv": (as_text("train.csv"), "train.csv"),
    "vocabulary": (
        lambda f, t: (f / "vocab.txt").write_text("a\nb\n" + "\n".join(map(json.dumps, t))),
        "vocab.txt",
    ),
    "added token": (in_tokenizer, "tokenizer.json"),
    "safetensors": (
        lambda f, t: save_file({"x": torch.zeros(2)}, f / "x.safetensors", {"note": "|".join(t)}),
        "x.safetensors",
    ),
    "tensor name": (
        lambda f, t: save_file({x: torch.zeros(2) for x in t}, f / "x.safetensors"),
        "x.safetensors",
    ),
    "gguf": (lambda f, t: (f / "m.gguf").write_bytes(gguf(t)), "m.gguf"),
    "gguf, big-endian": (lambda f, t: (f / "m.gguf").write_bytes(gguf(t, ">")), "m.gguf"),
    "sentencepiece": (in_sentencepiece, "tokenizer.model"),
    "parquet": (in_table("d.parquet"), "d.parquet"),
    "arrow file": (in_table("file.arrow"), "file.arrow"),
    "arrow stream": (in_table("stream.arrow"), "stream.arrow"),
    "deeper": (
        lambda f, t: (f / "a" / "b").mkdir(parents=True) or as_text("a/b/c.md")(f, t),
        "a/b/c.md",
    ),
}


@pytest.mark.parametrize("where", PLANTS)
def test_planted_records_are_found(folder: Path, where: str) -> None:
    plant, file = PLANTS[where]
    plant(folder, [LETTERS[number] for number in PLANTED])
    found = hits(scan(folder))
    assert list(found.values())[:1] == [ids(*PLANTED)], found
    assert file in ("*", next(iter(found)))
    assert {*found} <= {file, "tokenizer_config.json", "chat_template.json"}


def test_a_finding_counts_sides_and_stands_first(folder: Path) -> None:
    long = " ".join(LETTERS[20:28])
    records = [*RECORDS, ("f" * 16, True, long)]
    text = f"{LETTERS[0]}\n{LETTERS[1]}\n{LETTERS[2]}\n{' '.join(long.split()[:60])}"
    (folder / "README.md").write_text(text)
    (folder / "optimizer.pt").write_bytes(b"")
    first, second = scan_checkpoints({"m": folder}, records, calibration=[LETTERS[2], LETTERS[2]])[
        :2
    ]
    assert (first.kind, first.severity, first.checkpoint) == ("record", "severe", "m")
    assert (first.n_records, first.n_members, first.n_nonmembers) == (5, 4, 1)
    assert first.record_ids == [*ids(0, 1, 2, 20), "f" * 16]
    assert first.n_whole == 4
    assert "5 records stand" in first.message
    assert (second.kind, second.n_records, second.record_ids) == ("calibration", 1, ids(2))
    assert second.n_members == second.n_nonmembers == 0


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("sentencepiece", "she saw Dr Lund on 4 May in Ulm for an old bad knee"),
        ("sentencepiece", "her number is 681 555 0133"),
        ("config", "病人今年三十六岁左膝疼痛已经注射三次药物效果一般"),
        ("keys", "病人今年三十六岁左膝疼痛"),
    ],
)
def test_the_shortest_records_are_found_whole(folder: Path, where: str, text: str) -> None:
    plant, file = PLANTS[where]
    plant(folder, [text])
    (found,) = scan_checkpoints({"m": folder}, [("a" * 16, True, text)])
    assert (found.file, found.n_whole) == (file, 1)


def test_calibration_texts_in_a_configuration(folder: Path) -> None:
    texts = letters(8, seed=99)
    config = {"quantization_config": {"bits": 4, "dataset": texts}}
    (folder / "config.json").write_text(json.dumps(config))
    found = scan(folder, calibration=texts)
    assert hits(found) == {"config.json": [record_id(text) for text in texts]}
    assert found[0].kind == "calibration"


def test_prompts_licences_and_templates_are_no_hit(folder: Path) -> None:
    prompt = (
        "You are a careful assistant to the clinic. Answer in one letter, name the medicine, and "
        "never give advice on the telephone that the doctor has not signed before."
    )
    licence = (
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this "
        "software and associated documentation files, to deal in the Software without restriction."
    )
    (folder / "README.md").write_text(f"# Model\n{prompt}\n{licence}\n")
    (folder / "LICENSE").write_text(licence)
    (folder / "chat_template.jinja").write_text("{{ bos }}" + prompt + "{{ messages }}")
    records = [(i, m, f"{prompt}\n{text}") for i, m, text in RECORDS]
    records += [
        (f"{n}", True, f"{licence} {' '.join(f'c{n}x{k}' for k in range(30))}") for n in "abc"
    ]
    assert scan_checkpoints({"m": folder}, records) == []


def test_a_plain_checkpoint_has_no_findings(clean: Path) -> None:
    assert scan(clean) == []


def test_real_models_have_no_hits(shared: Path) -> None:
    models = {path.name: path for path in sorted((shared / "models").iterdir())}
    for name in ("llama-gsm8k", "gpt2-mts"):
        lists = {side: models[name] / f"{side}.jsonl" for side in ("members", "nonmembers")}
        records = [
            (record_id(text), side == "members", text)
            for side, file in lists.items()
            for text in (json.loads(line)["text"] for line in file.read_text().splitlines())
        ]
        found = scan_checkpoints(models, records, own_files=lists.values())
        assert hits(found) == {}
        own = [item for item in found if item.checkpoint == name]
        assert [item.file for item in own] == ["members.jsonl", "nonmembers.jsonl"]
        assert all("audit's own" in item.message for item in own)


def test_own_lists_are_named_and_copies_are_searched(folder: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in LETTERS)
    own = folder / "members.jsonl"
    own.write_text(lines)
    (folder / "link.jsonl").symlink_to(own)
    (folder / "copy.json").write_text(json.dumps(LETTERS))
    found = scan(folder, own_files={own})
    assert hits(found) == {"copy.json": [record[0] for record in RECORDS]}
    assert "audit's own" in named(found)["members.jsonl"]
    assert "audit's own" in named(found)["link.jsonl"]
    lists = folder / "lists"
    lists.mkdir()
    (lists / "a.txt").write_text(LETTERS[0])
    assert "audit's own" in named(scan(folder, own_files={own, lists}))["lists/a.txt"]
    for around in (folder, folder.parent):  # records from a folder that holds the checkpoint too
        assert hits(scan(folder, own_files={around}))["lists/a.txt"] == ids(0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.safetensors", (99).to_bytes(8, "little") + b'{"a":'),
        ("x.safetensors", (6).to_bytes(8, "little") + b'{"a": '),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("m.gguf", gguf(["one", "two"])[:60]),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 1, 0, 0)),
        ("m.gguf", b"GGUF" + struct.pack("<IQQQ1sII", 3, 0, 1, 1, b"k", 77, 0)),
        ("d.parquet", b"PAR1 no more"),
        ("d.arrow", b"ARROW1 no more"),
    ],
)
def test_a_damaged_file_is_said_to_be_unsearched(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    (folder / "README.md").write_text(LETTERS[0])
    found = scan(folder)
    assert any(i.file == name and i.message.startswith("not searched: ") for i in found)
    assert hits(found) == {"README.md": ids(0)}


@pytest.mark.parametrize("limit", ["LARGEST", "MOST_WORDS"])
def test_too_much_text_is_searched_in_part(
    folder: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "big.txt").write_text(f"{LETTERS[0]}\n" + "so on and so on " * 2**18 + LETTERS[1])
    (folder / "README.md").write_text(LETTERS[2])
    monkeypatch.setattr(f"auditor.artifacts.scan.{limit}", 10**5)
    found = scan(folder)
    assert hits(found) == {"README.md": ids(2), "big.txt": ids(0)}
    assert "in part" in named(found)["big.txt"]


def test_many_checkpoints_and_a_single_file(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(LETTERS[0])
    quantized = folder / "model-q4.gguf"
    quantized.write_bytes(gguf([LETTERS[1]]))
    paths = {"variant": quantized, "model": folder, "again": folder}
    found = scan_checkpoints(paths, iter(RECORDS))
    assert [(i.checkpoint, i.file, i.record_ids) for i in found] == [
        ("variant", "model-q4.gguf", ids(1)),
        ("model", "README.md", ids(0)),
        ("model", "model-q4.gguf", ids(1)),
        ("again", "README.md", ids(0)),
        ("again", "model-q4.gguf", ids(1)),
    ]
    assert scan_checkpoints(paths, iter(RECORDS)) == found
    with pytest.raises(ModelError, match="must be a folder or a file"):
        scan_checkpoints({"x": tmp_path / "nowhere"}, [])


def test_what_the_gguf_library_writes_is_read(folder: Path) -> None:
    library = pytest.importorskip("gguf")
    writer = library.GGUFWriter(str(folder / "m.gguf"), "llama")
    writer.add_token_list([f"token{i}" for i in range(500)] + [LETTERS[1]])
    writer.add_array("numbers", [[1, 2], [3]])
    writer.add_description(LETTERS[0])
    writer.add_tensor("output.weight", torch.zeros(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = scan(folder)
    assert hits(found) == {"m.gguf": ids(0, 1)}
    assert named(found) == {}
