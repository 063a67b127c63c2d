"""The store: what is written is read back, and what is damaged is never read as truth."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor import store as store_module
from auditor.errors import StoreError
from auditor.files import write_text, written_whole
from auditor.output_folder import claim, locked
from auditor.results import ModelIdentity
from auditor.store import VariantStore, plan_shards
from tests.test_attacks import random_scores

IDENTITY = ModelIdentity(
    name="m", model_type="llama", sha256="0", tokenizer_sha256="1", context_tokens=9, dtype="f"
)


def shard_file(store: VariantStore, number: int) -> Path:
    (path,) = store.folder.glob(f"shard-{number:05d}-*.parquet")
    return path


def make(root: Path, **fingerprint: Any) -> VariantStore:
    shards = [np.array([2, 0]), np.array([1, 3])]
    ids = np.array(["aa", "bb", "cc", "dd"])
    return VariantStore(root, "prune:x=1", fingerprint=fingerprint, shards=shards, record_ids=ids)


def fill(store: VariantStore) -> None:
    for number, lengths in enumerate(([3, 5], [1, 4])):
        store.write_shard(number, random_scores(lengths, seed=number))
    store.finish(store.manifest_of(identity=IDENTITY, receipt=None))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = make(tmp_path, model="a")
    assert store.manifest() is None
    assert store.missing() == [0, 1]
    fill(store)
    assert store.missing() == []
    found = list(make(tmp_path, model="a").read())
    for number, lengths in enumerate(([3, 5], [1, 4])):
        expected = random_scores(lengths, seed=number)
        assert found[number].records.tolist() == store.shards[number].tolist()
        for name in ("offsets", "logp", "mu", "sigma", "hit", "text_bytes", "zlib_bytes"):
            np.testing.assert_array_equal(
                getattr(found[number].scores, name), getattr(expected, name)
            )


def test_a_shard_that_comes_after_the_folder_was_listed_is_found(tmp_path: Path) -> None:
    store, other = make(tmp_path, model="a"), make(tmp_path, model="a")
    other.write_shard(1, random_scores([1, 4], seed=1))
    assert store.missing() == [0]
    # A process beside this one goes on, and what somebody left under the same number lies there.
    (store.folder / f"shard-00000-{'0' * 16}.parquet").write_bytes(b"PAR1")
    (store.folder / "shard-00000.parquet").write_bytes(b"PAR1")
    other.write_shard(0, random_scores([3, 5], seed=0))
    assert store.shard(0).records.tolist() == [2, 0]
    assert store.missing() == []
    for path in store.folder.glob("shard-00001-*"):
        path.unlink()
    with pytest.raises(StoreError, match="must be whole"):
        store.shard(1)
    assert store.missing() == [1]


def test_another_fingerprint_finds_nothing(tmp_path: Path) -> None:
    fill(make(tmp_path, model="a"))
    other = make(tmp_path, model="b")
    assert other.manifest() is None
    assert other.missing() == [0, 1]


def test_a_foreign_shard_under_the_right_name_counts_as_missing(tmp_path: Path) -> None:
    own, other = make(tmp_path, model="a"), make(tmp_path, model="b")
    fill(own)
    fill(other)
    shard_file(own, 0).unlink()
    foreign = shard_file(other, 0)
    (own.folder / foreign.name).write_bytes(foreign.read_bytes())
    assert own.missing() == [0]
    assert own.manifest() is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "swapped"])
def test_a_damaged_shard_counts_as_missing_and_is_not_read(tmp_path: Path, damage: str) -> None:
    store = make(tmp_path, model="a")
    fill(store)
    path = shard_file(store, 1)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[60] ^= 0x10
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(shard_file(store, 0).read_bytes())
    path.write_bytes(content)
    assert store.missing() == [1]
    assert store.manifest() is None
    with pytest.raises(StoreError, match="must be whole"):
        list(store.read())


def test_any_flipped_bit_in_the_data_is_seen(tmp_path: Path) -> None:
    """Parquet's own checksums leave out its headers."""
    store = make(tmp_path, model="a")
    fill(store)
    path = shard_file(store, 0)
    content = path.read_bytes()
    for at in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[at] ^= 0x04
        path.write_bytes(damaged)
        assert store.missing() == [0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "ok"}', "\x00"])
def test_a_damaged_manifest_counts_as_none(tmp_path: Path, content: str) -> None:
    store = make(tmp_path, model="a")
    fill(store)
    (store.folder / "manifest.json").write_text(content)
    assert store.manifest() is None
    assert store.missing() == []


@given(st.lists(st.integers(1, 2000), max_size=300))
def test_every_record_stands_in_one_shard(lengths: list[int]) -> None:
    shards = plan_shards(np.array(lengths, dtype=np.int32))
    together = np.concatenate(shards) if shards else np.zeros(0)
    assert sorted(together.tolist()) == list(range(len(lengths)))
    for shard in shards:
        tokens = [lengths[record] for record in shard]
        assert tokens == sorted(tokens, reverse=True)
        assert sum(tokens) < store_module.SHARD_TOKENS + max(tokens)


def test_a_folder_of_another_audit_is_not_touched(tmp_path: Path) -> None:
    claim(tmp_path, {"model": "a", "records": "r"})
    assert claim(tmp_path, {"model": "a", "records": "r"}) == tmp_path / "tokens"
    with pytest.raises(StoreError, match="this very audit") as caught:
        claim(tmp_path, {"model": "a", "records": "other"})
    assert "another records" in str(caught.value)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "audit.json").write_text("{}")
    with pytest.raises(StoreError, match="this very audit"):
        claim(alone, {"model": "a"})
    assert (alone / "audit.json").read_text() == "{}"


def test_the_folder_is_held_by_one_audit(tmp_path: Path) -> None:
    with locked(tmp_path, is_main=True):
        with (
            pytest.raises(StoreError, match="must not be in use"),
            locked(tmp_path, is_main=True),
        ):
            pass
        with locked(tmp_path, is_main=False):
            pass
    with locked(tmp_path, is_main=True):
        pass


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.json"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="can be written") as caught:
        write_text(path, "new")
    assert "free some space" in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["audit.json"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), written_whole(tmp_path / "x" / "f") as part:
        part.write_text("half")
        raise KeyError
    assert list((tmp_path / "x").iterdir()) == []


def test_the_store_holds_no_text(tmp_path: Path) -> None:
    store = make(tmp_path, model="a")
    fill(store)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["n_shards"] == 2
    assert store.folder.name.startswith("prune_x=1-")
