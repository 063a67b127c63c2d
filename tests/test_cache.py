"""Made once, by one process, for all and for later runs; and never taken for what it is not."""

import json
import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from auditor.calibration import Calibration
from auditor.compress import COMPRESSORS, entries, parse_variant
from auditor.compress.cache import Cache, fingerprint_of
from auditor.compress.checkpoint import CompressedModel, Placement, open_checkpoint
from auditor.compress.entries import MANIFEST, Entry
from auditor.compress.saved import UnfitError, form_of
from tests.cache_cases import VARIANT, cached, digest, state
from tests.conftest import needs
from tests.families import CPU, make, tiny_calibration
from tests.forks import CONTEXT
from tests.tiny import save, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("gpt2"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entry_of(root: Path) -> Entry:
    (entry,) = entries.entries(root)
    return entry


def costless(made: CompressedModel) -> Any:
    return made.receipt.model_copy(update={"compress_s": 0.0, "compress_peak_bytes": 0})


# -- the same to the bit -------------------------------------------------------------------------

KINDS = [
    ("prune-wanda:sparsity=0.5", "gpt2", {}, torch.float32),
    ("prune-sparsegpt:pattern=2:4", "llama-tied", {}, torch.bfloat16),
    ("cluster:k=8", "mixtral", {}, torch.float32),
    ("cluster:k=4", "gpt2", {}, torch.bfloat16),
    ("gptq:group_size=32", "llama", {"attention_bias": True, "mlp_bias": True}, torch.float32),
    ("gptq:bits=3,group_size=32", "gpt2", {}, torch.bfloat16),
    ("gptq:bits=8,group_size=-1,desc_act=true", "llama-tied", {}, torch.float32),
    ("gptq:group_size=32", "mixtral", {}, torch.float32),
]


@pytest.mark.parametrize(("variant", "family", "changes", "dtype"), KINDS)
def test_from_the_cache_it_is_what_was_made(
    variant: str,
    family: str,
    changes: dict[str, Any],
    dtype: torch.dtype,
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs(variant)
    monkeypatch.setattr(entries, "FILE_BYTES", 10_000)  # so that there are several files
    checkpoint = open_checkpoint(str(save(tiny_model(family, **changes), tmp_path / "model")))
    placement, spec = Placement("cpu", dtype), parse_variant(variant)
    needed = tiny_calibration() if COMPRESSORS[spec.id].is_calibrated else None
    plain = make(checkpoint, variant, placement)
    said: list[str] = []
    first, second = (
        Cache(root, tell=said.append).made(checkpoint, spec, placement, calibration=needed)
        for _ in range(2)
    )
    assert (first.from_cache, second.from_cache) == (False, True)
    assert said == [f"{spec.label}: taken from the cache"]
    assert len(list(entry_of(root).folder.glob("weights-*"))) > 1
    ids = torch.arange(1, 21)[None]
    expected = state(plain.model)
    for again in (first, second):
        found = state(again.model)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name
        pairs = list(zip(again.model.named_modules(), plain.model.named_modules(), strict=True))
        assert all((type(a), a.training) == (type(b), b.training) for (_, a), (_, b) in pairs)
        assert not any(parameter.requires_grad for parameter in again.model.parameters())
        assert again.model.config.to_dict() == plain.model.config.to_dict()
        tied = [
            m.get_output_embeddings().weight is m.get_input_embeddings().weight
            for m in (again.model, plain.model)
        ]
        assert tied[0] == tied[1]
        assert costless(again) == costless(plain)
        assert (again.dense is None, again.cannot_save) == (plain.dense is None, plain.cannot_save)
        with torch.inference_mode():
            theirs = plain.model(input_ids=ids, use_cache=False).logits
            assert torch.equal(again.model(input_ids=ids, use_cache=False).logits, theirs)
    assert second.receipt.compress_s == first.receipt.compress_s > 0
    assert second.load_s > 0
    if plain.dense is not None:
        assert second.dense is not None
        assert digest(second.dense()) == digest(plain.dense())


def test_weights_of_16_bits_are_written_in_16_bits(tmp_path: Path, root: Path) -> None:
    model = save(tiny_model("llama"), tmp_path / "model", dtype=torch.bfloat16)
    pruned = cached(root, model, "prune-wanda:sparsity=0.5")  # in float32
    n_bytes = sum(file.n_bytes for file in _manifest(root).files.values())
    weights = sum(item.n_parameters for item in pruned.receipt.compressed)
    assert 2 * weights < n_bytes < 2.2 * weights
    shutil.rmtree(root)
    moved = cached(root, model, "prune-sparsegpt:sparsity=0.5")
    n_bytes = sum(file.n_bytes for file in _manifest(root).files.values())
    assert 4 * weights < n_bytes
    assert digest(moved.model) == digest(cached(root, model, "prune-sparsegpt:sparsity=0.5").model)


def _manifest(root: Path) -> entries.Manifest:
    found = entry_of(root).manifest()
    assert found is not None
    return found


def test_what_is_as_quick_as_reading_and_what_is_not_wanted_is_not_kept(
    model: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(root, model, "prune-magnitude:sparsity=0.5")
    checkpoint = open_checkpoint(str(model), trust_remote_code=True)
    Cache(root, tell=print).made(checkpoint, parse_variant(VARIANT), CPU)
    assert not root.exists()
    for off in ("off", "OFF"):
        monkeypatch.setenv("COMPLEAK_CACHE", off)
        assert entries.cache_folder() is None
    assert not cached(None, model).from_cache
    monkeypatch.setenv("COMPLEAK_CACHE", "~/somewhere")
    assert entries.cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("COMPLEAK_CACHE")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(root))
    assert entries.cache_folder() == root / "compleak"


def test_it_is_its_owners_alone(model: Path, root: Path) -> None:
    mask = os.umask(0)
    try:
        cached(root, model)
    finally:
        os.umask(mask)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o600}
    assert len(found) == 5


# -- what it is known by ---------------------------------------------------------------------------


def test_whatever_determines_the_weights_makes_another_entry(
    model: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save(tiny_model("gpt2", seed=1), tmp_path / "other")
    texts = tiny_calibration()
    moved = Calibration(texts.windows.reshape(8, 16), texts.use, texts=())
    more = Calibration(
        np.roll(texts.windows, 1), texts.use.model_copy(update={"sha256": "1" * 64}), texts=()
    )

    def name(
        model: Path = model,
        variant: str = "prune-wanda:sparsity=0.5",
        placement: Placement = CPU,
        calibration: Calibration = texts,
        attention: str | None = None,
    ) -> str:
        args = {"attn_implementation": attention} if attention else {}
        checkpoint = open_checkpoint(str(model), model_args=args)
        found = fingerprint_of(checkpoint, parse_variant(variant), placement, calibration)
        return entries.named(root, "x", found).name

    # There need be no GPU here to have a name.
    monkeypatch.setattr("auditor.compress.cache.device_name", lambda d: d.partition(":")[0])
    names = [
        name(),
        name(model=other),
        name(variant="prune-wanda:sparsity=0.6"),
        name(variant="prune-sparsegpt:sparsity=0.5"),
        name(placement=Placement("cpu", torch.bfloat16)),
        name(placement=Placement("cuda:1", torch.float32)),
        name(calibration=moved),
        name(calibration=more),
        name(attention="eager"),
    ]
    for library in ("torch", "transformers", "compleak-llm"):
        with monkeypatch.context() as patched:
            patched.setattr(
                "auditor.compress.cache.installed", lambda n, old=library: "1" if n == old else "0"
            )
            names.append(name())
    with monkeypatch.context() as patched:
        patched.setattr("auditor.compress.cache.CACHE_VERSION", 0)
        names.append(name())
    assert len(set(names)) == len(names)
    # Which GPU of a machine it is made for, and where the texts lie, changes nothing.
    cuda = [name(placement=Placement(f"cuda:{n}", torch.float32)) for n in (1, 2)]
    renamed = Calibration(texts.windows, texts.use.model_copy(update={"source": "y"}), texts=())
    assert cuda[0] == cuda[1]
    assert name(calibration=renamed) == names[0]


def test_the_receipt_names_the_texts_of_this_run(model: Path, root: Path) -> None:
    spec, checkpoint = parse_variant("prune-wanda:sparsity=0.5"), open_checkpoint(str(model))
    texts = tiny_calibration()
    for source in ("first.jsonl", "second.jsonl"):
        use = texts.use.model_copy(update={"source": source})
        given = Calibration(texts.windows, use, texts=())
        made = Cache(root, tell=print).made(checkpoint, spec, CPU, calibration=given)
        assert made.receipt.calibration == use
    assert made.from_cache
    assert b"first.jsonl" not in b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())


# -- damage ----------------------------------------------------------------------------------------


def _cut(entry: Entry) -> None:
    (weights,) = entry.folder.glob("weights-*")
    os.truncate(weights, weights.stat().st_size - 1)


def _flip(entry: Entry) -> None:
    (weights,) = entry.folder.glob("weights-*")
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)


def _flip_receipt(entry: Entry) -> None:
    path = entry.folder / MANIFEST
    found = json.loads(path.read_text())
    found["receipt"]["n_changed"] += 1
    path.write_text(json.dumps(found))


def _lose(name: str) -> Callable[[Entry], None]:
    return lambda entry: next(entry.folder.glob(name)).unlink()


def _garble(entry: Entry) -> None:
    (entry.folder / MANIFEST).write_bytes(b'{"\xff')


def _foreign(entry: Entry) -> None:
    """Another version's entry, whole in itself, in the place of this one."""
    model = Path(_manifest(entry.root).model)
    cached(entry.root / "other", model, "cluster:k=4")
    shutil.rmtree(entry.folder)
    entry_of(entry.root / "other").folder.rename(entry.folder)
    shutil.rmtree(entry.root / "other")


def _lead_away(entry: Entry) -> None:
    """A manifest that names a file elsewhere."""
    path = entry.folder / MANIFEST
    found = entries.Manifest.model_validate_json(path.read_text())
    (name,) = found.files
    found = found.model_copy(update={"files": {f"../{entry.name}/{name}": found.files[name]}})
    path.write_text(found.model_copy(update={"sha256": found.digest()}).model_dump_json())


DAMAGES = {
    "cut": _cut,
    "flip": _flip,
    "flip-receipt": _flip_receipt,
    "lose-weights": _lose("weights-*"),
    "lose-manifest": _lose(MANIFEST),
    "garble": _garble,
    "foreign": _foreign,
    "lead-away": _lead_away,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_anothers_is_made_anew(damage: str, model: Path, root: Path) -> None:
    expected = cached(root, model)
    DAMAGES[damage](entry_of(root))
    said: list[str] = []
    again = cached(root, model, said=said)
    assert (again.from_cache, said) == (False, [])
    assert digest(again.model) == digest(expected.model)
    assert costless(again) == costless(expected)
    assert cached(root, model).from_cache


def test_tensors_that_do_not_fit_are_never_scored(model: Path, root: Path) -> None:
    expected = cached(root, model)
    entry, found = entry_of(root), _manifest(root)
    tensors = dict(entry.tensors(found))
    name = next(iter(tensors))
    about = {"fingerprint": found.fingerprint, "variant": "v", "model": str(model)}
    for wrong in (
        {**tensors, name: tensors[name][:-1]},
        {key: value for key, value in tensors.items() if key != name},
        {**tensors, "transformer.wte.weight": torch.zeros(2)},
    ):
        entry.write(wrong.items(), receipt=found.receipt, settings={}, **about)
        said: list[str] = []
        made = cached(root, model, said=said)
        assert not made.from_cache
        assert digest(made.model) == digest(expected.model)
        (line,) = said
        assert "does not give back what was written" in line


# -- a cache that cannot be written ----------------------------------------------------------------


def test_where_nothing_can_be_written_it_is_made_in_memory_and_said_once(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "cache"
    for is_shared, who in ((False, "it is made in memory"), (True, "each process makes it")):
        said: list[str] = []
        cache = Cache(root, tell=said.append, is_shared=is_shared)
        for variant in (VARIANT, "cluster:k=4"):
            spec, checkpoint = parse_variant(variant), open_checkpoint(str(model))
            made = cache.made(checkpoint, spec, CPU)
            assert not made.from_cache
            assert digest(made.model) == digest(make(checkpoint, variant).model)
        (line,) = said
        assert line.startswith(f"{VARIANT}: {who}")
        assert f"the cache {root} cannot be written" in line
        assert "COMPLEAK_CACHE" in line


def _at_most(n_bytes: int, root: Path, model: Path, folder: Path) -> None:
    """Take a version where no file may be larger; as a full disk, an error while it is written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    said: list[str] = []
    made = cached(root, model, said=said)
    text = "\n".join([digest(made.model), *said])
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (folder / "done").write_text(text)


@pytest.mark.parametrize("n_bytes", [50_000, 300, 3_000])
def test_a_full_disk_leaves_no_half_entry(
    n_bytes: int, model: Path, root: Path, tmp_path: Path
) -> None:
    process = CONTEXT.Process(target=_at_most, args=(n_bytes, root, model, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    found, line = (tmp_path / "done").read_text().split("\n")
    assert found == digest(make(open_checkpoint(str(model)), VARIANT).model)
    assert "cannot be written" in line
    assert [path.suffix for path in root.iterdir()] == [".lock"]


def test_a_cache_that_can_only_be_read_serves_what_it_holds(model: Path, root: Path) -> None:
    expected = cached(root, model)
    entry = entry_of(root)
    # No lock can be taken, whoever runs this: permissions do not bind everybody.
    entry.lock.unlink()
    entry.lock.mkdir()
    said: list[str] = []
    again = cached(root, model, said=said)
    assert again.from_cache
    assert said == [f"{VARIANT}: taken from the cache"]
    _flip(entry)
    said = []
    again = cached(root, model, said=said)
    assert not again.from_cache
    assert digest(again.model) == digest(expected.model)
    assert "cannot be written" in said[0]


def test_weights_that_are_elsewhere_are_neither_written_nor_filled(model: Path, root: Path) -> None:
    checkpoint = open_checkpoint(str(model))
    made = make(checkpoint, VARIANT)
    form = form_of("matrices")
    made.model.transformer.h[0].mlp.c_fc.to("meta")
    with pytest.raises(UnfitError, match="not in memory"):
        list(form.tensors(checkpoint, made))
