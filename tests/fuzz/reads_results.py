"""What an audit wrote, read back: result, scores and store, and all that is made of them."""

import hashlib
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from auditor import compare, release
from auditor.card import metadata
from auditor.card.attackers import the_variant
from auditor.card.section import render_section
from auditor.finished import Finished, read_finished
from auditor.output_folder import must_be_free
from auditor.records import records_sha256
from auditor.report.harmless import Harmless
from auditor.report.markdown import render_markdown
from auditor.report.page import render_page
from auditor.report.plots import Drawings, draw
from auditor.report.releases import releases_table
from auditor.report.terminal import render
from auditor.results import AuditResult
from auditor.run import open_run
from auditor.scoring.scores import Scores
from auditor.store import REFERENCE, VariantStore, plan_shards
from tests.fuzz.property import place
from tests.report_cases import invented_run

README = Path("README.md")
# Of the scores: each column takes its time in each input.
COLUMNS = (
    *("record_id", "variant", "is_member", "n_tokens", "group", "loss", "ez", "gap"),
    *("combined", "blind"),
)
ABOUT = {"model": "m", "tokenizer": "t", "records": "r", "max_length": "64", "dtype": "float32"}


class Kept(NamedTuple):
    """A finished audit as it should be: its folder, its files, the store of one version."""

    folder: Path
    result: bytes
    scores: bytes
    drawings: Drawings
    store: VariantStore


@cache
def _audit() -> Kept:
    """An audit of few records with one variant and a reference, and invented token statistics."""
    folder = invented_run(place().inputs / "audit", n=40, n_variants=1)
    content = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    table = pq.read_table(folder / "scores.parquet", use_threads=False)
    table = table.select([name for name in table.column_names if name in COLUMNS])
    pq.write_table(table, folder / "scores.parquet")
    attacks = [name for name in content["attacks"] if name in COLUMNS]
    content = _cut({**content, "attacks": attacks}, content["primary_attack"])
    rows = table.slice(0, 40)
    ids = rows["record_id"].to_numpy().astype(np.str_)
    records = records_sha256(ids, rows["is_member"].to_numpy())
    shards = plan_shards(rows["n_tokens"].to_numpy())
    identity = content["model"]
    stores = {}
    for name in [*dict.fromkeys(table["variant"].to_pylist()), REFERENCE]:
        store = VariantStore(
            folder / "tokens",
            name,
            fingerprint={"records": records, "max_length": 64, "version": name},
            shards=shards,
            record_ids=ids,
        )
        lengths = np.full(len(ids), 3)
        for number, shard in enumerate(shards):
            store.write_shard(number, _scores(lengths[shard]))
        receipt = next((v["receipt"] for v in content["variants"] if v["variant"] == name), None)
        manifest = {
            **{"fingerprint": store.fingerprint, "status": "ok", "identity": identity},
            **{"receipt": receipt, "n_shards": len(shards)},
        }
        (store.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        stores[name] = store
    content["stored"] = {name: store.folder.name for name, store in stores.items()}
    result = json.dumps(content).encode()
    (folder / "audit.json").write_bytes(result)
    drawings = draw(read_finished(folder))
    scores = (folder / "scores.parquet").read_bytes()
    return Kept(folder, result, scores, drawings, stores["original"])


def _cut(value: object, primary: str) -> Any:
    """The same with two of everything: a module or a question more says nothing new."""
    if isinstance(value, list):
        return [_cut(item, primary) for item in value[:2]]
    if isinstance(value, dict):
        kept = value
        if primary in value:
            kept = {primary: value[primary]}
        return {key: _cut(item, primary) for key, item in kept.items()}
    return value


def _scores(lengths: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Scores:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.linspace(-5, -0.1, int(offsets[-1]), dtype=np.float32)
    sizes = np.full(len(lengths), 50, dtype=np.int64)
    return Scores(offsets, values, values, -values, values > -1, sizes, sizes)


def results() -> list[bytes]:
    """An `audit.json`, as it is and indented."""
    content = json.loads(_audit().result)
    alone = {**content, "leakage": None, "reference": None, "blind": None}
    return [_audit().result, json.dumps(content, indent=2).encode(), json.dumps(alone).encode()]


def short_result() -> AuditResult:
    """The same without what is said of versions together."""
    return AuditResult.model_validate_json(results()[-1])


def _with_result(use: Callable[[Path], None]) -> Callable[[bytes], None]:
    """An input in the place of `audit.json`."""

    def run(data: bytes) -> None:
        folder = _audit().folder
        (folder / "audit.json").write_bytes(data)
        try:
            use(folder)
        finally:
            (folder / "audit.json").write_bytes(_audit().result)

    return run


def _printed(*, width: int) -> Console:
    return Console(file=io.StringIO(), width=width)


def _shown(folder: Path) -> None:
    finished = read_finished(folder)
    assert finished.config.model_dump(mode="json")
    # Both forms of the tables, in turn: each takes longer than all that is read.
    width = 140 if len(finished.result.model.name) % 2 else 60
    _printed(width=width).print(Harmless(render(finished.result, width=width)))
    render_markdown(finished).encode("utf-8")
    release.must_pass_gate(finished.result)


def _carded(folder: Path) -> None:
    finished = read_finished(folder)
    result = finished.result
    for name in (None, result.variants[-1].variant):
        variant = the_variant(result, name) if name is not None else None
        text = render_section(
            result, drawing=_audit().drawings.roc, variant=variant, base="org/name"
        )
        entries = metadata.model_index(README, None, result, name)
        assert metadata.as_yaml(entries.after)
        (text + metadata.eval_results_file(result, name)).encode("utf-8")


def _paged(folder: Path) -> None:
    render_page(read_finished(folder), _audit().drawings).encode("utf-8")


def _compared(folder: Path) -> None:
    """`compare` and `release` up to where statistics begin."""
    run = open_run(folder)
    compare.aligned(run, run)
    pairs, left_out = compare._pairs(run, run)
    shared = compare._shared_attacks(run, run, pairs, left_out)
    compared = compare.Compared(
        run, run, np.arange(len(run)), run.config, compare._primary(run, run, shared, None)
    )
    compare._notes(compared, shared)
    for pair in pairs:
        for attack in shared:
            compare._noise_share(run, pair.before, attack)
    asked = release._asked(run.config, None, (), None)
    release._must_be_judged(asked.variants, run.left_out)
    release.evidence_of(run)
    leakage = run.result.leakage
    if leakage is not None and leakage.releases is not None:
        _printed(width=100).print(Harmless(releases_table(leakage.releases, width=100)))
        release.must_pass(leakage.releases, "undecided")


shown, carded = _with_result(_shown), _with_result(_carded)
paged, compared = _with_result(_paged), _with_result(_compared)


def scores(data: bytes) -> None:
    """An input in the place of `scores.parquet`."""
    kept = _audit()
    (kept.folder / "scores.parquet").write_bytes(data)
    try:
        found: Finished = read_finished(kept.folder)
        assert all(
            len(signal) == len(found) for one in found.signals.values() for signal in one.values()
        )
    finally:
        (kept.folder / "scores.parquet").write_bytes(kept.scores)


def all_scores() -> list[bytes]:
    """A `scores.parquet`."""
    return [_audit().scores]


def shard(data: bytes) -> None:
    """An input in the place of a shard, under the name that its own digest gives it."""
    store = _audit().store
    whole = next(store.folder.glob("shard-00000-*.parquet"))
    aside = whole.rename(place().inputs / "whole-shard")
    name = f"shard-00000-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    (store.folder / name).write_bytes(data)
    try:
        if 0 not in store.missing():
            found = store.shard(0)
            assert len(found.scores) == len(found.records)
            assert len(found.scores.logp) == found.scores.offsets[-1]
            assert found.scores.n_tokens.sum() == len(found.scores.logp)
    finally:
        (store.folder / name).unlink()
        aside.rename(whole)


def shards() -> list[bytes]:
    """A shard."""
    return [next(_audit().store.folder.glob("shard-00000-*.parquet")).read_bytes()]


def manifest(data: bytes) -> None:
    """An input in the place of a version's manifest, with the receipt in it."""
    store = _audit().store
    path = store.folder / "manifest.json"
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        found = store.manifest()
        assert found is None or found.model_dump_json()
        VariantStore.opened(
            store.folder, "original", shards=store.shards, record_ids=store._record_ids
        )
    finally:
        path.write_bytes(before)


def manifests() -> list[bytes]:
    """Manifests, with a receipt and without."""
    tokens = _audit().store.folder.parent
    return [path.read_bytes() for path in sorted(tokens.glob("*/manifest.json"))]


def claimed(data: bytes) -> None:
    """An input in the place of what a store says that it is about."""
    folder = place().inputs / "claimed"
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    (folder / "tokens" / "audit.json").write_bytes(data)
    must_be_free(folder, ABOUT)


def claims() -> list[bytes]:
    """What a store says."""
    return [json.dumps(ABOUT).encode()]
