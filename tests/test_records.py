"""Records: ids, sides, duplicates, overlap, lengths; and what cannot be audited."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auditor.config import AuditConfig
from auditor.errors import RecordsError
from auditor.records import Records, read_records, record_id, records_sha256
from auditor.scoring.encode import Encoder, RecordText
from tests.tiny import byte_tokenizer


def rows(texts: list[Any], **more: Any) -> str:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts)


def read(tmp_path: Path, members: str, nonmembers: str, **changes: Any) -> Records:
    (tmp_path / "m.jsonl").write_text(members)
    (tmp_path / "n.jsonl").write_text(nonmembers)
    given_config = {
        "model": "m",
        "members": str(tmp_path / "m.jsonl"),
        "nonmembers": str(tmp_path / "n.jsonl"),
        "min_records": 2,
        **changes,
    }
    encoder = Encoder(changes.pop("tokenizer", byte_tokenizer()), 40)
    given_config.pop("tokenizer", None)
    return read_records(AuditConfig.model_validate(given_config), encoder)


def test_ids_are_of_the_normalised_text() -> None:
    expected = hashlib.sha256("caf\u00e9 a b".encode()).hexdigest()[:16]
    assert record_id("  cafe\u0301 a\n\tb ") == expected
    assert record_id("café A b") != expected
    assert record_id(RecordText("b", prompt="a")) == record_id("a\nb")


def test_the_digest_is_over_ids_and_sides_in_order() -> None:
    ids, sides = np.array(["0a", "1b", "2c"]), np.array([True, False, True])
    expected = hashlib.sha256(b"0a11b02c1").hexdigest()
    assert records_sha256(ids, sides) == expected
    assert records_sha256(ids[::-1], sides[::-1]) != expected
    assert records_sha256(ids, ~sides) != expected


def test_input_order_and_reading_again(tmp_path: Path) -> None:
    members, nonmembers = [f"member {i}" for i in range(7)], [f"other {i}" for i in range(5)]
    records = read(tmp_path, rows(members), rows(nonmembers))
    assert records.is_member.tolist() == [True] * 7 + [False] * 5
    assert records.ids.tolist() == [record_id(text) for text in members + nonmembers]
    assert [text.text for text in records.texts([11, 0, 3])] == ["other 4", "member 0", "member 3"]
    assert records.n_tokens[0] == len("member 0")


def test_limit_takes_the_first_of_each_side(tmp_path: Path) -> None:
    texts = [f"m{i}" for i in range(9)], [f"n{i}" for i in range(9)]
    records = read(tmp_path, rows(texts[0]), rows(texts[1]), limit=3)
    assert [t.text for t in records.texts(range(6))] == ["m0", "m1", "m2", "n0", "n1", "n2"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    members = ["aa", "bb", "aa", " a  a", "", "  ", "c", None, "dd", "long" * 20]
    records = read(tmp_path, rows(members), rows(["xx", "yy"]))
    side = records.summary.members
    assert (side.n_read, side.n_audited, side.n_duplicates) == (10, 5, 1)
    assert (side.n_empty, side.n_too_short, side.n_truncated) == (3, 1, 1)
    assert record_id("c") in side.left_out_ids
    assert {warned.code for warned in records.warnings} >= {"duplicates", "empty", "too-short"}
    assert side.tokens is not None
    assert side.tokens.high == 40


def test_overlap_is_an_error_unless_allowed(tmp_path: Path) -> None:
    sides = rows(["aa", "bb", "cc", "dd"]), rows(["xx", "c c".replace(" ", ""), "yy", " aa"])
    with pytest.raises(RecordsError, match="must not stand on both sides") as caught:
        read(tmp_path, *sides)
    assert "2 do" in str(caught.value)
    assert record_id("aa") in str(caught.value)
    records = read(tmp_path, *sides, allow_overlap=True)
    assert [text.text for text in records.texts(range(4))] == ["bb", "dd", "xx", "yy"]
    assert records.summary.members.n_overlap == records.summary.nonmembers.n_overlap == 2


def test_one_source_with_a_label(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\naa,1\nbb,0\ncc,true\ndd,nonmember\n")
    config = AuditConfig.model_validate({"model": "m", "data": str(path), "min_records": 2})
    records = read_records(config, Encoder(byte_tokenizer(), 40))
    assert records.is_member.tolist() == [True, False, True, False]
    path.write_text("text,label\naa,1\nbb,maybe\n")
    with pytest.raises(RecordsError, match="member or nonmember") as caught:
        read_records(config, Encoder(byte_tokenizer(), 40))
    assert ":3" in str(caught.value)


@pytest.mark.parametrize(
    ("members", "changes", "expected"),
    [
        (rows(["aa"]), {}, "at least 2 records"),
        ("", {}, "no members"),
        ('{"body": "a", "title": "b"}\n', {}, "columns: body, title"),
        (rows([5, 6]), {}, "text must be text"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', {}, "chat template"),
        ('{"messages": "hello"}\n', {}, "list of messages"),
        (rows(["aa", "bb"]), {"text_column": "body"}, "'body'"),
    ],
)
def test_bad_records(members: str, changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(RecordsError) as caught:
        read(tmp_path, members, rows(["xx", "yy"]), **changes)
    assert expected in str(caught.value)


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    chats = [[{"role": "user", "content": f"hi {i}"}] for i in range(2)]
    members = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    records = read(tmp_path, members, rows(["xx", "yy"]), tokenizer=tokenizer)
    assert records.texts([0])[0] == RecordText("<user>hi 0", add_special_tokens=False)


def test_prompt_and_completion(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"q{i} ", "completion": f"answer {i}"}) for i in range(3)]
    records = read(tmp_path, "\n".join(lines), rows(["xx", "yy"]))
    assert records.texts([1]) == [RecordText("answer 1", prompt="q1 ")]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    records = read(tmp_path, rows(["aa", "bb"]), rows(["xx", "yy"]))
    (tmp_path / "m.jsonl").write_text(rows(["ab", "bb"]))
    with pytest.raises(RecordsError, match="stay as they are"):
        records.texts([0])


def test_unequal_lengths_are_warned_about(tmp_path: Path) -> None:
    short, long = [f"{i:04d}" for i in range(80)], [f"{i:04d} and more" for i in range(80)]
    records = read(tmp_path, rows(short), rows(long))
    assert records.summary.length_auc == 0.0
    assert "unequal-lengths" in {warned.code for warned in records.warnings}
    same = read(tmp_path, rows(short), rows([f"x{i:03d}" for i in range(80)]))
    assert same.summary.length_auc == 0.5
    assert not same.warnings


def test_near_duplicates_have_the_same_group(tmp_path: Path) -> None:
    words = [[f"{name}{i}" for i in range(30)] for name in "abcd"]
    texts = [" ".join(some) for some in words]
    cut = " ".join(words[1][:20])  # 8 of its 8 grams stand in the second text
    mixed = " ".join(words[2][:15] + words[3][:15])  # 3 and 3 of 18
    # What is left out before, between and after must not shift the groups of the others.
    members = ["", *texts[:2], "x", texts[0], cut]
    nonmembers = ["y", texts[2], texts[1] + " more", mixed, texts[3]]
    records = read(tmp_path, rows(members), rows(nonmembers))
    assert records.is_member.tolist() == [True] * 3 + [False] * 4
    assert records.groups.tolist() == [0, 1, 1, 2, 1, 3, 4]
    assert records.groups.dtype == np.int64
    assert records.groups.shape == records.ids.shape
    near = records.summary.members.n_near_duplicates, records.summary.nonmembers.n_near_duplicates
    assert near == (2, 1)
