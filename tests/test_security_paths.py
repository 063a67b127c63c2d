"""Nothing that content names leads out of a folder, and what is written is its owner's alone."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor import AuditConfig, audit
from auditor.compress.checkpoint import open_checkpoint
from auditor.compress.hub import find_file, find_folder
from auditor.compress.inside import is_own_file
from auditor.compress.receipt import Receipt
from auditor.config import CompressConfig
from auditor.errors import ModelError, StoreError
from auditor.files import written_whole
from auditor.placing import place
from auditor.publish import RECEIPT, publish
from auditor.report.page import write_report
from auditor.run import open_run
from auditor.store import VariantStore
from tests.conftest import write_records
from tests.hostile_checkpoints import edit
from tests.report_cases import HOSTILE_PATH, invented_run
from tests.test_security_texts import invented
from tests.tiny import save, tiny_model

OUTWARD = ("../other/a.safetensors", "/etc/passwd", "a/../../b", "..", "a\0b", "..\\b", "", 7, None)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save(tiny_model("llama"), tmp_path / "plain")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small audit with two versions, whose pair is judged too."""
    folder = tmp_path_factory.mktemp("run")
    lists = [write_records(folder / f"{s}.jsonl", invented(50, seed=s)) for s in (1, 2)]
    config: dict[str, Any] = {"model": str(save(tiny_model("llama"), folder / "model"))}
    config |= {"members": str(lists[0]), "nonmembers": str(lists[1]), "variants": "float16"}
    config |= {"bootstrap": 100, "fpr": "0.2", "repeats": 1, "learners": "logistic"}
    before = os.umask(0o022)
    audit(AuditConfig.model_validate({**config, "output_path": str(folder / "out")}))
    os.umask(before)
    return folder / "out"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- paths


@pytest.mark.parametrize("name", OUTWARD)
def test_an_index_names_files_beside_it(name: object, plain: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (plain / "model.safetensors").rename(other / "a.safetensors")
    index = {"metadata": {}, "weight_map": {"x": name}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json must"):
        open_checkpoint(str(plain))


@pytest.mark.parametrize("name", ["../other", "/tmp", "a/../../other", "a\0b"])
def test_a_subfolder_lies_within(name: str, plain: Path, tmp_path: Path) -> None:
    save(tiny_model("llama"), tmp_path / "other")
    with pytest.raises(ModelError, match="subfolder of --model-args must lie within"):
        open_checkpoint(str(plain), model_args={"subfolder": name})
    shutil.copytree(tmp_path / "other", plain / "inner")
    assert open_checkpoint(str(plain), model_args={"subfolder": "inner"}).path == plain / "inner"


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../b", "a//b", "a b", "a\0", "", "x\n"])
def test_a_revision_is_no_path(revision: str, tmp_path: Path) -> None:
    for name in ("org/model", str(tmp_path)):
        with pytest.raises(ModelError, match="a revision must be a branch"):
            find_folder(name, revision=revision, patterns=["*"])
    with pytest.raises(ModelError, match="a revision must be a branch"):
        find_file("org/model/x.gguf", revision=revision, must="")
    for good in (None, "main", "refs/pr/3", "v1.0", "feature/a-b_c+d"):
        assert find_folder(str(tmp_path), revision=good, patterns=["*"]) == tmp_path


def test_a_file_of_a_model_id_lies_within() -> None:
    with pytest.raises(ModelError, match="must lie within the checkpoint"):
        find_file("org/model/../../../../x.gguf", revision=None, must="")


@given(name=st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_version_of_any_name_has_a_folder_of_its_own(name: str) -> None:
    root = Path("/runs/mine/tokens")
    store = VariantStore(
        root, name, fingerprint={"variant": name}, shards=[], record_ids=np.empty(0, np.str_)
    )
    assert store.folder.parent == root
    assert store.folder.name.isascii() and len(store.folder.name) < 100
    assert store.folder.resolve().parent == root.resolve()


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", "", "original-0/../../x"])
def test_a_result_leads_to_no_scores_elsewhere(name: str, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    stored = json.loads((copy / "audit.json").read_text())["stored"]
    shutil.copytree(copy / "tokens" / stored["original"], tmp_path / "elsewhere")
    assert open_run(copy).stores.keys() == stored.keys()
    edit(copy / "audit.json", stored={**stored, "original": name})
    with pytest.raises(StoreError, match="must say where the scores of each version lie"):
        open_run(copy)


def test_no_name_in_a_result_becomes_the_name_of_a_file(tmp_path: Path) -> None:
    """The figures of versions that are called like paths lie where all figures do."""
    run = invented_run(tmp_path / "a" / "run", n=120, n_variants=2, hostile=True, warned=True)
    assert "/models/" in HOSTILE_PATH
    before = set(tmp_path.rglob("*"))
    written = write_report(run, kind="html", out=tmp_path / "a" / "out" / "report.html")
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert made == set(written)
    assert {path.parent.name for path in written} == {"out", "figures"}
    assert all(path.name.isascii() and path.name.isprintable() for path in written)


def test_no_link_is_published(plain: Path, tmp_path: Path) -> None:
    """A checkpoint of others may hold a link to any file of this machine."""
    secret = tmp_path / "id_ed25519"
    secret.write_text("not for others")
    (plain / "vocab.txt").symlink_to(secret)
    variant = "prune-magnitude:sparsity=0.5"
    config = CompressConfig(model=str(plain), variant=variant, out=str(tmp_path / "published"))
    with pytest.raises(ModelError, match=r"vocab\.txt must be a file of the checkpoint itself"):
        publish(config)
    assert not any("published" in path.name for path in tmp_path.iterdir())
    (plain / "vocab.txt").unlink()
    publish(config)
    assert (tmp_path / "published" / RECEIPT).is_file()


def test_links_of_the_hubs_cache_are_the_checkpoints_own(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--m" / "snapshots" / "0af1"
    blobs = tmp_path / "models--org--m" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "77").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/77")
    (snapshot / "vocab.json").symlink_to(tmp_path / "elsewhere")
    assert is_own_file(snapshot / "tokenizer.json", snapshot)
    assert not is_own_file(snapshot / "vocab.json", snapshot)


def test_what_is_published_tells_nothing_of_calibration_texts(plain: Path, tmp_path: Path) -> None:
    texts = write_records(tmp_path / "third.jsonl", invented(30, seed=3))
    config: dict[str, Any] = {"model": str(plain), "variant": "prune-wanda:sparsity=0.5"}
    config |= {"calibration": str(texts), "calibration_samples": 4, "calibration_tokens": 16}
    config |= {"out": str(tmp_path / "out"), "trust_remote_code": True}
    publish(CompressConfig.model_validate(config))
    receipt = Receipt.model_validate_json((tmp_path / "out" / RECEIPT).read_text())
    assert receipt.calibration is not None and receipt.calibration.n_records
    assert receipt.calibration.ids == []
    assert receipt.calibration.source == "third.jsonl"
    assert any("allowed to run" in note for note in receipt.notes)


# --- modes


def test_results_of_single_records_are_the_owners_alone(run: Path) -> None:
    for path in (run / "tokens").rglob("*"):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert mode(run / "tokens") == 0o700
    for name in ("audit.json", "scores.parquet", "exposure.parquet"):
        assert mode(run / name) == 0o600
    assert mode(run) == 0o755


def test_what_is_made_to_be_shown_is_as_the_umask_says(run: Path, tmp_path: Path) -> None:
    for mask, expected in ((0o022, 0o644), (0o077, 0o600)):
        os.umask(mask)
        for path in write_report(run, kind="md", out=tmp_path / f"{mask:o}" / "report.md"):
            assert mode(path) == expected


def test_a_page_that_lists_ids_or_texts_is_the_owners_alone(tmp_path: Path) -> None:
    silent = invented_run(tmp_path / "silent", n=120, beyond=False)
    spoken = invented_run(tmp_path / "spoken", n=120, include_text=True)
    for run, expected in ((silent, 0o644), (spoken, 0o600)):
        page, *figures = write_report(run, kind="html")
        assert mode(page) == expected
        assert {mode(path) for path in figures} == {0o644}
    # Given once, its owner may let others read it; with texts in it that does not last.
    page.chmod(0o644)
    page.write_text("an older one")
    write_report(spoken, kind="html")
    assert mode(page) == 0o600


@pytest.mark.parametrize(
    ("private", "before", "after"),
    [(True, 0o644, 0o600), (True, 0o400, 0o400), (False, 0o640, 0o640), (False, 0o666, 0o644)],
)
def test_no_file_becomes_readable_to_more(
    before: int, after: int, tmp_path: Path, *, private: bool
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(before)
    with written_whole(path, private=private) as part:
        assert mode(part) == (0o600 if private else 0o644)  # from the first byte on
        part.write_text("new")
    assert path.read_text() == "new"
    assert mode(path) == after


def test_a_link_that_waits_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    waiting = tmp_path / f".x.{os.getpid()}.part"
    waiting.symlink_to(victim)
    with written_whole(tmp_path / "x") as part:
        part.write_text("new")
    waiting.symlink_to(victim)
    place({tmp_path / "x": b"newer"})
    assert victim.read_text() == "mine"
    assert (tmp_path / "x").read_text() == "newer"
    assert not (tmp_path / "x").is_symlink() and not waiting.is_symlink()


def test_a_link_in_the_place_of_a_result_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "audit.json").symlink_to(victim)
    with written_whole(tmp_path / "audit.json") as part:
        part.write_text("new")
    assert victim.read_text() == "mine"
    assert mode(tmp_path / "audit.json") == 0o600
