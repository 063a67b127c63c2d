"""Adapters: merged as peft merges, unmerged over a compressed base, refused where they do not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from auditor import AuditConfig, audit
from auditor.cli import main
from auditor.compress import parse_variant, split_list
from auditor.compress.adapter import PICKLE, WEIGHTS
from auditor.compress.cache import Cache
from auditor.compress.checkpoint import Checkpoint, CompressedModel, load_model, open_checkpoint
from auditor.compress.entries import entries
from auditor.compress.eviction import evict
from auditor.compress.materialise import materialise
from auditor.compress.merged import with_adapter
from auditor.compress.quiet import quietly
from auditor.config import CompressConfig
from auditor.errors import CompleakError, VariantError
from auditor.plan import show_plan
from auditor.publish import publish
from auditor.recipes import configure
from tests.conftest import needs
from tests.families import CPU, tiny_calibration
from tests.tiny import VOCABULARY, save, tiny_model

FAMILIES = ("llama", "gpt2")
IDS = torch.arange(3, 33)[None]


def adapter_over(model: Any, folder: Path, **settings: Any) -> Any:
    """An adapter with matrices that matter, written by peft; peft's own model with it."""
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(5)
    lora = LoraConfig(
        **{
            "r": 4,
            "target_modules": "all-linear",
            "fan_in_fan_out": model.config.model_type == "gpt2",
            "task_type": TaskType.CAUSAL_LM,
            **settings,
        }
    )
    found = get_peft_model(model, lora).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name and parameter.dim() == 2:
                parameter.normal_(0.0, 0.1)
    found.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and an adapter of each family."""
    root = tmp_path_factory.mktemp("adapters")
    found = {}
    for family in FAMILIES:
        found[family] = save(tiny_model(family, seed=1), root / family)
        adapter_over(tiny_model(family, seed=1), root / f"{family}-lora")
        found[f"{family}-lora"] = root / f"{family}-lora"
    return found


def opened(made: dict[str, Path], family: str) -> Checkpoint:
    return with_adapter(open_checkpoint(str(made[family])), str(made[f"{family}-lora"]))


def variant_of(checkpoint: Checkpoint, variant: str) -> CompressedModel:
    spec = parse_variant(variant)
    calibration = tiny_calibration() if spec.calibration else None
    return Cache.of_user().made(checkpoint, spec, CPU, calibration=calibration)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


# -- what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_what_peft_merges_and_unmerged_gives_the_same(
    made: dict[str, Path], family: str, tmp_path: Path
) -> None:
    own = adapter_over(tiny_model(family, seed=1), tmp_path / "again")
    base = logits(tiny_model(family, seed=1))
    unmerged = logits(own)
    naive = logits(own.merge_and_unload())
    checkpoint = opened(made, family)
    merged = logits(load_model(checkpoint, CPU))
    assert torch.equal(merged, naive)
    assert (merged - base).abs().max() > 0.5
    over = variant_of(checkpoint, "unmerged:original")
    assert torch.equal(logits(over.model), unmerged)
    assert torch.allclose(logits(over.model), merged, atol=2e-5)


OVER = {
    "llama": (
        "bfloat16",
        "bnb-nf4",
        "bnb-int8",
        "prune-magnitude:sparsity=0.5,scope=global",
        "prune-wanda:sparsity=0.3",
        "cluster:k=4",
        "int8",
    ),
    "gpt2": ("bnb-nf4", "bnb-fp4", "bnb-int8", "gptq:group_size=32", "hqq:group_size=32"),
}


@pytest.mark.parametrize(
    ("family", "under"), [(family, under) for family in OVER for under in OVER[family]]
)
def test_an_adapter_lies_over_the_base_compressed(
    made: dict[str, Path], family: str, under: str
) -> None:
    needs(under)
    checkpoint = opened(made, family)
    assert checkpoint.adapter is not None
    over = variant_of(checkpoint, f"unmerged:{under}")
    base = variant_of(checkpoint.adapter.base, under)
    merged = variant_of(checkpoint, under)
    found = logits(over.model)
    # By hand: every product of the compressed base, and the adapter's beside it.
    tensors = checkpoint.adapter.tensors()
    for name, module in base.model.named_modules():
        key = f"base_model.model.{name}.lora"
        if f"{key}_A.weight" in tensors:
            a, b = tensors[f"{key}_A.weight"], tensors[f"{key}_B.weight"]
            module.register_forward_hook(
                lambda _m, given, out, a=a, b=b: out + given[0] @ a.T @ b.T * (8 / 4)
            )
    assert torch.allclose(found, logits(base.model), atol=1e-4)
    assert not torch.allclose(found, logits(merged.model), atol=1e-3)
    # Decompressed it is the same model.
    again = logits(materialise(over, CPU, how="always").model)
    assert torch.allclose(again, found, atol=1e-4)


def test_the_receipt_is_the_bases_with_the_adapter_counted(made: dict[str, Path]) -> None:
    checkpoint = opened(made, "llama")
    adapter = checkpoint.adapter
    assert adapter is not None
    over = variant_of(checkpoint, "unmerged:bnb-nf4").receipt
    base = variant_of(adapter.base, "bnb-nf4").receipt
    n = sum(tensor.numel() for tensor in adapter.tensors().values())
    assert over.variant == "unmerged:bnb-nf4:double_quant=false"
    assert over.n_parameters == base.n_parameters + n
    assert over.bytes_memory == base.bytes_memory + 4 * n
    assert over.bytes_disk == base.bytes_disk + (adapter.path / WEIGHTS).stat().st_size
    assert over.compressed == base.compressed
    assert f"an adapter of {n:,} parameters lies over it unmerged" in over.notes[-1]
    assert over.n_compressed + sum(s.n_parameters for s in over.skipped) == over.n_parameters
    merged = variant_of(checkpoint, "original").receipt
    assert f"an adapter of {n:,} parameters was merged" in merged.notes[0]


def test_what_is_merged_is_rounded_to_the_bases_precision(
    made: dict[str, Path], tmp_path: Path
) -> None:
    save(tiny_model("llama", seed=1), tmp_path / "base", dtype=torch.bfloat16)
    checkpoint = with_adapter(open_checkpoint(str(tmp_path / "base")), str(made["llama-lora"]))
    own = adapter_over(
        tiny_model("llama", seed=1).bfloat16().float(), tmp_path / "again"
    ).merge_and_unload()
    merged = load_model(checkpoint, CPU)
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, own.get_parameter(name).bfloat16().float()), name


def test_one_merging_serves_all_processes_and_later_runs(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auditor.compress import merged

    monkeypatch.setenv("COMPLEAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(merged, "_FOUND", {})
    first = opened(made, "llama").weights_path
    (entry,) = entries(tmp_path / "cache")
    assert entry.folder == first and entry.name.startswith("merged-")
    written = (first / "model.safetensors").stat().st_mtime_ns
    merged._FOUND.clear()  # as another process begins
    assert opened(made, "llama").weights_path == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    # Tidied away between two versions, it is merged again.
    assert len(evict(tmp_path / "cache", older_than_days=0, everything=True).removed) == 1
    assert not first.exists()
    assert (opened(made, "llama").weights_path / "model.safetensors").is_file()
    # A file that is damaged is not loaded.
    (first / "model.safetensors").write_bytes(b"x" * (first / "model.safetensors").stat().st_size)
    merged._FOUND.clear()
    load_model(opened(made, "llama"), CPU)


def test_without_a_cache_a_temporary_folder_serves(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from auditor.compress import merged

    monkeypatch.setattr(merged, "_FOUND", {})
    kept = logits(load_model(opened(made, "gpt2"), CPU))
    monkeypatch.setattr(merged, "_FOUND", {})
    monkeypatch.setenv("COMPLEAK_CACHE", "off")
    checkpoint = opened(made, "gpt2")
    assert "compleak-merged-" in str(checkpoint.weights_path)
    assert torch.equal(logits(load_model(checkpoint, CPU)), kept)


def test_whichever_process_is_first_writes(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from auditor.compress import merged

    monkeypatch.setenv("COMPLEAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(merged, "_FOUND", {})
    distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        folder = opened(made, "llama").weights_path
    finally:
        distributed.destroy_process_group()
    (entry,) = entries(tmp_path / "cache")
    manifest = entry.manifest()
    assert entry.folder == folder and manifest is not None
    assert {"config.json", "model.safetensors"} <= manifest.files.keys()


# -- how it is spelled ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("unmerged:bnb-nf4", None),
        ("unmerged:original", None),
        ("unmerged:over=bnb-nf4", "unmerged:bnb-nf4"),
        ("unmerged:bnb_nf4:double_quant=false", "unmerged:bnb-nf4"),
        ("unmerged:bnb-nf4,double_quant=true", "unmerged:bnb-nf4:double_quant=true"),
        (
            "unmerged:prune-magnitude:sparsity=0.5,scope=global",
            "unmerged:prune-magnitude:scope=global,sparsity=0.5",
        ),
        ("unmerged:gptq:bits=3,group_size=32", None),
    ],
)
def test_a_variant_within_a_variant(text: str, label: str | None) -> None:
    spec = parse_variant(text)
    assert spec.label == (label or text)
    assert parse_variant(spec.label) == spec == parse_variant(spec.canonical)
    assert spec.over is not None
    assert spec.canonical == f"unmerged:{spec.over.canonical}"
    assert split_list([f"a,{text},b:x=1"]) == ["a", text, "b:x=1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unmerged", "over"),
        ("unmerged:nf4", "did you mean 'bnb-nf4'"),
        ("unmerged:unmerged:bnb-nf4", "cannot be made into unmerged"),
        ("unmerged:checkpoint:x", "cannot be made into checkpoint"),
        ("unmerged:bnb-nf4,int8", "one variant"),
        ("unmerged:prune-magnitude:sparsity=2", "less than 1"),
        ("unmerged:prune-magnitude:sparsity=0.5,recover=1", "no longer the adapter's"),
    ],
)
def test_a_variant_that_cannot_be_within_one(text: str, expected: str) -> None:
    with pytest.raises(CompleakError) as caught:
        parse_variant(text)
    assert expected in str(caught.value)


def test_what_is_audited_when_only_an_adapter_is_given() -> None:
    files = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
    assert configure({**files, "adapter": "x"}).variants == (
        "original",
        "bnb-nf4",
        "unmerged:bnb-nf4",
    )
    assert configure({**files, "adapter": "x", "variants": "int8"}).variants[1:] == ("int8",)
    assert configure(files).variants == ("original",)
    assert "unmerged:bnb-nf4" in configure({**files, "adapter": "x"}, recipe="adapter").variants


# -- what is refused -----------------------------------------------------------------------------


def _changed(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _with_tensors(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _as_pickle(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    (folder / WEIGHTS).unlink()


def _of_another_base(folder: Path) -> None:
    text = json.dumps({"base": {"name": "other/base", "sha256": "0" * 64}})
    (folder / "target.json").write_text(text)


def _cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:300])


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json among"),
    "no-weights": (lambda f: (f / WEIGHTS).unlink(), "must hold the adapter's weights"),
    "cut-off": (_cut_off, "must be a whole safetensors file"),
    "prompt": (lambda f: _changed(f, peft_type="PROMPT_TUNING"), "'PROMPT_TUNING', not 'LORA'"),
    "pissa": (lambda f: _changed(f, init_lora_weights="pissa"), "'pissa', which changes them"),
    "newer": (lambda f: _changed(f, use_warp=True), "use_warp: True"),
    "replicated": (lambda f: _changed(f, layer_replication=[[0, 2]]), "layer_replication"),
    "rank": (lambda f: _changed(f, r=8), "size mismatch"),
    "modules": (lambda f: _changed(f, target_modules=["c_attn"]), "c_attn"),
    "fewer-modules": (lambda f: _changed(f, target_modules=["q_proj"]), "has no place for"),
    "more-modules": (lambda f: _changed(f, modules_to_save=["norm"]), "must fit"),
    "a-key-less": (
        lambda f: _with_tensors(f, lambda t: t.pop(sorted(t)[0])),
        "1 tensors missing",
    ),
    "a-key-more": (
        lambda f: _with_tensors(f, lambda t: t.update({"base_model.model.x": torch.ones(2)})),
        "has no place for",
    ),
    "pickle": (_as_pickle, "give --allow-pickle"),
    "another-base": (_of_another_base, "target.json names other/base"),
    "not-json": (lambda f: (f / "adapter_config.json").write_text("{"), "readable JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_does_not_fit(made: dict[str, Path], kind: str, tmp_path: Path) -> None:
    change, expected = REFUSED[kind]
    folder = shutil.copytree(made["llama-lora"], tmp_path / "lora")
    change(folder)
    with pytest.raises(CompleakError) as caught:
        with_adapter(open_checkpoint(str(made["llama"])), str(folder))
    message = str(caught.value)
    assert expected in message
    assert "do:" in message or kind == "not-json"


def test_a_pickle_is_read_where_it_is_allowed(made: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(made["llama-lora"], tmp_path / "lora")
    _as_pickle(folder)
    base = open_checkpoint(str(made["llama"]), allow_pickle=True)
    merged = load_model(with_adapter(base, str(folder)), CPU)
    assert torch.equal(logits(merged), logits(load_model(opened(made, "llama"), CPU)))


def test_a_base_that_does_not_fit(made: dict[str, Path], tmp_path: Path) -> None:
    wide = save(tiny_model("llama", hidden_size=128), tmp_path / "wide")
    for base, expected in ((wide, "size mismatch"), (made["gpt2"], "q_proj")):
        with pytest.raises(CompleakError, match="must fit") as caught:
            with_adapter(open_checkpoint(str(base)), str(made["llama-lora"]))
        assert expected in str(caught.value) and "\n" not in caught.value.seen
    tied = save(tiny_model("llama-tied"), tmp_path / "tied")
    with quietly():  # peft warns of it, and goes on
        adapter_over(tiny_model("llama-tied"), tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(CompleakError, match="ties together"):
        with_adapter(open_checkpoint(str(tied)), str(tmp_path / "head"))


def test_dora_lies_over_weights_that_can_be_read(made: dict[str, Path], tmp_path: Path) -> None:
    own = adapter_over(tiny_model("llama", seed=1), tmp_path / "dora", use_dora=True)
    checkpoint = with_adapter(open_checkpoint(str(made["llama"])), str(tmp_path / "dora"))
    assert torch.allclose(logits(variant_of(checkpoint, "unmerged:original").model), logits(own))
    with pytest.raises(VariantError, match="DoRA"):
        variant_of(checkpoint, "unmerged:bnb-nf4")


# -- the whole -----------------------------------------------------------------------------------


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_what_the_command_says(
    made: dict[str, Path],
    subject: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lists = ["--members", subject["members"], "--nonmembers", subject["nonmembers"]]
    base, lora, out = str(made["llama"]), str(made["llama-lora"]), str(tmp_path / "run")
    given = ["audit", *lists, "--output-path", out]
    said = error_of(capsys, *given, "--model", base, "--variants", "unmerged:bnb-nf4")
    assert "--adapter must be given" in said
    assert "--model BASE --adapter" in error_of(capsys, *given, "--model", lora)
    said = error_of(capsys, *given, "--model", base, "--adapter", base)
    assert "is a whole model" in said
    said = error_of(capsys, *given, "--model", base, "--adapter", str(tmp_path / "none"))
    assert "--adapter must be a folder" in said
    said = error_of(
        capsys, "compress", "--model", base, "--out", out, "--variant", "unmerged:bnb-nf4"
    )
    assert "--adapter must be given" in said
    assert not Path(out).exists()


def test_an_audit_of_an_adapter(
    made: dict[str, Path],
    subject: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from auditor.compress import merged

    cache = tmp_path / "cache"
    monkeypatch.setenv("COMPLEAK_CACHE", str(cache))
    monkeypatch.setattr(merged, "_FOUND", {})
    lora = shutil.copytree(made["llama-lora"], tmp_path / "lora")
    text = json.loads(Path(subject["members"]).read_text().splitlines()[0])["text"]
    (lora / "README.md").write_text(f"trained on such lines as: {text}\n")
    given = {
        **subject,
        "model": str(made["llama"]),
        "reference": None,
        "adapter": str(lora),
        "variants": "unmerged:original,unmerged:prune-magnitude:sparsity=0.6,scope=global",
        "learners": "logistic",
        "settings": "NR",
        "output_path": str(tmp_path / "run"),
    }
    config = AuditConfig.model_validate(given)
    show_plan(config)
    assert not cache.exists() and not (tmp_path / "run").exists()  # a dry run merges nothing
    first = audit(config)
    assert first.model.name == f"{made['llama']} + {lora}"
    found = {variant.variant: variant for variant in first.variants}
    labels = ["original", *config.variants[1:]]
    assert list(found) == labels
    aucs = [found[name].attacks["loss"].auc.value for name in labels]
    assert aucs[0] == pytest.approx(aucs[1], abs=1e-6) != pytest.approx(aucs[2], abs=1e-6)
    hits = [one for one in first.artifacts if one.kind == "record"]
    assert [(one.checkpoint, one.file) for one in hits] == [(str(lora), "README.md")]
    # Again: nothing is scored, and nothing merged, although what was merged is gone.
    shutil.rmtree(cache)
    merged._FOUND.clear()
    again = audit(config)
    assert all(timing.n_forward_passes == 0 for timing in again.timings.variants)
    assert again.model == first.model
    assert not any(cache.glob("merged-*"))


def test_merged_and_compressed_can_be_written(made: dict[str, Path], tmp_path: Path) -> None:
    given = {"model": str(made["llama"]), "adapter": str(made["llama-lora"])}
    written = {**given, "variant": "bfloat16", "out": str(tmp_path / "out")}
    publish(CompressConfig.model_validate(written))
    found = load_model(open_checkpoint(str(tmp_path / "out")), CPU)
    wanted = variant_of(opened(made, "llama"), "bfloat16").model
    assert torch.allclose(logits(found), logits(wanted), atol=1e-4)
    unmerged = {**given, "variant": "unmerged:bfloat16", "out": str(tmp_path / "no")}
    with pytest.raises(VariantError, match="a folder can hold") as caught:
        publish(CompressConfig.model_validate(unmerged))
    assert "published apart" in str(caught.value)
    assert not (tmp_path / "no").exists()


def test_a_real_adapter_over_a_real_base(shared: Path, tmp_path: Path) -> None:
    base = open_checkpoint(str(shared / "models" / "gpt2-base"))
    own = adapter_over(load_model(base, CPU), tmp_path / "lora", target_modules=["c_attn"])
    ids = IDS % VOCABULARY
    checkpoint = with_adapter(base, str(tmp_path / "lora"))
    with torch.no_grad():
        wanted = own(input_ids=ids).logits
        merged = load_model(checkpoint, CPU)(input_ids=ids).logits
        over = variant_of(checkpoint, "unmerged:original").model(input_ids=ids).logits
    assert torch.allclose(over, wanted, atol=1e-4)
    # The base is stored in 16 bits, and so is the sum.
    assert 0 < (merged - wanted).norm() / wanted.norm() < 0.02
