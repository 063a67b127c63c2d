"""The noise control: as far from the original as a variant, in a direction that knows nothing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import kurtosis, skew

from auditor import AuditConfig, AuditResult, audit
from auditor.cli import main
from auditor.compress.checkpoint import Checkpoint, Placement, load_model, open_checkpoint
from auditor.compress.matrices import matrices
from auditor.compress.noise import imitate, is_noise, make_noise, noise_name
from auditor.compress.receipt import Receipt
from auditor.compress.weights import model_sha256, weight_files
from auditor.errors import BrokenVariantError, CompleakError
from auditor.scoring.scores import Float64
from auditor.store import VariantStore
from tests.conftest import N
from tests.families import CPU, make
from tests.tiny import save, tiny_model

PRUNED = "prune-magnitude:sparsity=0.5"


def saved(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    return open_checkpoint(str(save(tiny_model(family), folder / family, dtype=dtype)))


def parameters(model: Any) -> dict[str, Float64]:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def weights(model: Any) -> dict[str, Float64]:
    return {matrix.name: matrix.weight.double().numpy() for matrix in matrices(model)}


def errors(before: dict[str, Float64], after: dict[str, Float64]) -> dict[str, float]:
    norm = np.linalg.norm
    return {k: float(norm(after[k] - before[k]) / norm(before[k])) for k in after}


# What 16 bits do to the norm is put right to 1e-5, as far as a matrix of 4,000 weights allows.
@pytest.mark.parametrize(
    ("dtype", "close"),
    [(torch.float32, 1e-5), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)],
)
@pytest.mark.parametrize("variant", [PRUNED, "cluster:k=16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_every_matrix_moves_as_far_as_in_the_variant(
    family: str, variant: str, dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    checkpoint, placement = saved(family, tmp_path), Placement("cpu", dtype)
    imitated = make(checkpoint, variant, placement).receipt
    made = make_noise(checkpoint, imitated, placement, variant="noise(v)", seed=0)
    original = load_model(checkpoint, placement)
    found = errors(weights(original), weights(made.model))
    wanted = {item.module: item.relative_error for item in imitated.compressed}
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, rel=close)
    receipt = made.receipt
    counted = {item.module: item.relative_error for item in receipt.compressed}
    assert counted == pytest.approx(found, rel=1e-5)
    assert receipt.relative_error == pytest.approx(imitated.relative_error, rel=close)
    assert receipt.n_compressed == imitated.n_compressed
    assert receipt.n_parameters == imitated.n_parameters
    assert receipt.variant == "noise(v)"
    assert receipt.library.startswith("compleak-llm ")
    assert f"the compression error of {imitated.variant}" in receipt.notes[0]
    assert len(receipt.notes) == 1
    # Nothing else has moved: embeddings, head, norms, biases.
    before, after = parameters(original), parameters(made.model)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {f"{n}.weight" if "[" not in n else n.partition("[")[0] for n in wanted}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_near_the_last_digit(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rounding the sum to 16 bits adds as much as the noise itself, or swallows most of it."""
    checkpoint, placement = saved("gpt2", tmp_path), Placement("cpu", dtype)
    model = load_model(checkpoint, placement)
    receipt = make(checkpoint, "cluster:k=16").receipt
    for error in (3e-3, 1e-3):
        changed = [item.model_copy(update={"relative_error": error}) for item in receipt.compressed]
        tiny = receipt.model_copy(update={"compressed": changed})
        made = make_noise(checkpoint, tiny, placement, variant="noise(v)", seed=0)
        found = errors(weights(model), weights(made.model))
        assert list(found.values()) == pytest.approx([error] * len(found), rel=0.01)


def test_it_is_normal_and_knows_nothing_of_the_weights(tmp_path: Path) -> None:
    checkpoint = saved("llama", tmp_path)
    receipt = make(checkpoint, PRUNED).receipt
    made = make_noise(checkpoint, receipt, CPU, variant="noise(v)", seed=3)
    before, after = weights(load_model(checkpoint, CPU)), weights(made.model)
    drawn = [(after[name] - before[name]).ravel() for name in before]
    noise = np.concatenate([values / values.std() for values in drawn])
    n, old = len(noise), np.concatenate([before[name].ravel() for name in before])
    # Standard errors of mean, skewness, kurtosis and correlation of n independent normal values.
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(skew(noise)) < 4 * math.sqrt(6 / n)
    assert abs(kurtosis(noise)) < 4 * math.sqrt(24 / n)
    assert abs(np.corrcoef(noise, old)[0, 1]) < 4 / math.sqrt(n)
    assert abs(np.corrcoef(noise, np.abs(old))[0, 1]) < 4 / math.sqrt(n)
    same = [a for a in drawn if len(a) == len(drawn[0])]
    assert abs(np.corrcoef(same[0], same[1])[0, 1]) < 4 / math.sqrt(len(same[0]))


def test_seeds(tmp_path: Path) -> None:
    checkpoint = saved("mixtral", tmp_path)
    receipt = make(checkpoint, PRUNED).receipt

    def drawn(variant: str = "noise(v)", seed: int = 0, of: Receipt = receipt) -> Any:
        return weights(make_noise(checkpoint, of, CPU, variant=variant, seed=seed).model)

    first = drawn()
    assert all(np.array_equal(first[name], again) for name, again in drawn().items())
    for other in (drawn(seed=1), drawn(variant="noise(w)")):
        assert not any(np.array_equal(first[name], values) for name, values in other.items())
    # What a matrix draws depends neither on the others nor on their order.
    part = receipt.model_copy(update={"compressed": receipt.compressed[:4:-2]})
    names = {item.module for item in part.compressed}
    assert 0 < len(names) < len(first)
    original = weights(load_model(checkpoint, CPU))
    for name, values in drawn(of=part).items():
        assert np.array_equal(values, (first if name in names else original)[name])


def test_the_checkpoint_is_not_touched(tmp_path: Path) -> None:
    checkpoint = saved("llama-tied", tmp_path)
    receipt = make(checkpoint, PRUNED).receipt
    before = parameters(load_model(checkpoint, CPU))
    make_noise(checkpoint, receipt, CPU, variant="noise(v)", seed=0)
    files = weight_files("m", checkpoint.path, allow_pickle=False)
    assert model_sha256(checkpoint.path, files) == checkpoint.sha256
    after = parameters(load_model(checkpoint, CPU))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_entries_that_are_no_matrices(tmp_path: Path) -> None:
    """A cast counts every parameter, and all experts of a layer as one."""
    checkpoint = saved("mixtral", tmp_path, torch.float32)
    receipt = make(checkpoint, "bfloat16").receipt
    made = make_noise(checkpoint, receipt, CPU, variant="noise(bfloat16)", seed=0)
    before, after = parameters(load_model(checkpoint, CPU)), parameters(made.model)
    found = errors(before, after)
    wanted = {item.module: item.relative_error for item in receipt.compressed}
    experts = "model.layers.1.mlp.experts.down_proj"
    assert found[experts] == pytest.approx(wanted[experts], rel=1e-3)
    query = "model.layers.0.self_attn.q_proj"
    assert found[f"{query}.weight"] == pytest.approx(wanted[query], rel=1e-3)
    left = [name for name in wanted if not found.get(name, found.get(f"{name}.weight", 0))]
    assert "model.embed_tokens" in left
    assert made.receipt.notes[1].startswith(f"{len(left)} entries of its receipt are no matrix")
    assert "model.embed_tokens" in made.receipt.notes[1]
    reasons = {item.module: item.reason for item in made.receipt.skipped}
    assert reasons["model.embed_tokens"] == "embedding"


def test_errors_that_are_no_numbers(tmp_path: Path) -> None:
    checkpoint = saved("gpt2", tmp_path)
    receipt = make(checkpoint, PRUNED).receipt
    first, *others = receipt.compressed
    unknown = first.model_copy(update={"relative_error": math.nan})
    foreign = first.model_copy(update={"module": "elsewhere"})
    changed = receipt.model_copy(update={"compressed": [unknown, foreign, *others]})
    made = make_noise(checkpoint, changed, CPU, variant="noise(v)", seed=0)
    assert made.receipt.notes[1].endswith(f"not imitated: {first.module}, elsewhere.")
    skipped = {item.module: item.reason for item in made.receipt.skipped}
    assert skipped[first.module] == f"{receipt.variant} names no error for it"
    still = [item.model_copy(update={"relative_error": 0.0}) for item in receipt.compressed]
    for nothing in ([], [unknown, foreign], still):
        empty = receipt.model_copy(update={"compressed": nothing})
        with pytest.raises(BrokenVariantError, match="noise needs a compression error") as caught:
            make_noise(checkpoint, empty, CPU, variant="noise(v)", seed=0)
        assert caught.value.seen == "its receipt names no matrix that changed"


# -- audits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(subject: dict[str, Any]) -> dict[str, Any]:
    return {**subject, "reference": None, "settings": "NR,SR", "controls": "noise"}


@pytest.fixture(scope="module")
def noisy(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    output = tmp_path_factory.mktemp("noisy") / "run"
    return audit(AuditConfig.model_validate({**asked, "output_path": str(output)}))


def manifest(result: AuditResult, name: str) -> dict[str, Any]:
    path = Path(result.config["output_path"]) / "tokens" / result.stored[name] / "manifest.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_an_audit_scores_the_noise_after_what_it_imitates(noisy: AuditResult) -> None:
    variants = ["original", "bnb-nf4", PRUNED]
    noises = [f"noise({name})" for name in variants[1:]]
    assert [step.variant for step in noisy.timings.variants] == variants + noises
    assert {step.n_forward_records for step in noisy.timings.variants} == {2 * N}
    assert list(noisy.stored) == variants + noises
    # Noise is beside the results of the versions that somebody may publish, and not among them.
    assert [found.variant for found in noisy.variants] == variants
    assert {found.variant for found in noisy.comparisons} == set(variants[1:])
    table = pq.read_table(Path(noisy.config["output_path"]) / "scores.parquet").to_pandas()
    signal = {name: rows["loss"].to_numpy() for name, rows in table.groupby("variant")}
    for name, noise in zip(variants[1:], noises, strict=True):
        assert is_noise(noise)
        assert not is_noise(name)
        assert noise == noise_name(name)
        assert np.isfinite(signal[noise]).all()
        assert not np.array_equal(signal[noise], signal[name])
        assert not np.array_equal(signal[noise], signal["original"])
        made, imitated = manifest(noisy, noise), noisy.variant(name).receipt
        receipt = Receipt.model_validate(made["receipt"])
        assert imitated is not None
        assert receipt.relative_error == pytest.approx(imitated.relative_error, rel=1e-4)
        assert made["fingerprint"]["noise_like"] == manifest(noisy, name)["fingerprint"]


def test_a_second_run_makes_no_pass(noisy: AuditResult, asked: dict[str, Any]) -> None:
    given = {**asked, "output_path": noisy.config["output_path"]}
    again = audit(AuditConfig.model_validate(given))
    assert [step.n_forward_passes for step in again.timings.variants] == [0] * 5
    assert again.stored == noisy.stored
    assert again.variants == noisy.variants
    # Another seed is other noise; nothing else is made again.
    other = audit(AuditConfig.model_validate({**given, "seed": 1}))
    assert [bool(step.n_forward_passes) for step in other.timings.variants] == [False] * 3 + [
        True
    ] * 2
    # Without the control the figures are those of any audit.
    plain = audit(AuditConfig.model_validate({**given, "controls": ""}))
    assert plain.variants == noisy.variants
    assert plain.comparisons == noisy.comparisons


@pytest.mark.usefixtures("poisoned_pruning")
def test_a_broken_variant_has_no_noise(asked: dict[str, Any], tmp_path: Path) -> None:
    config = AuditConfig.model_validate({**asked, "output_path": str(tmp_path)})
    for made in (["original", "bnb-nf4", PRUNED, "noise(bnb-nf4)"], []):
        result = audit(config)
        found = {step.variant: step.n_forward_passes for step in result.timings.variants}
        assert [name for name, n in found.items() if n] == made
        assert result.variant(PRUNED).status == "broken"
        left_out = manifest(result, f"noise({PRUNED})")
        assert left_out["status"] == "broken"
        assert left_out["receipt"] is None
        assert left_out["reason"].endswith(f"error of {PRUNED} to imitate: it is broken")
        names = set(pq.read_table(tmp_path / "scores.parquet")["variant"].to_pylist())
        assert names == {"original", "bnb-nf4", "noise(bnb-nf4)"}


def test_it_must_come_after_what_it_imitates(tmp_path: Path) -> None:
    store = VariantStore(
        tmp_path, "bnb-nf4", fingerprint={}, shards=[], record_ids=np.array([], dtype=np.str_)
    )
    with pytest.raises(ValueError, match="bnb-nf4 must be scored before"):
        imitate(saved("llama", tmp_path), store, CPU, seed=0)


def test_controls_are_checked(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("nosie", ["noise", "labels"]):
        with pytest.raises(CompleakError, match="a control must be one of those that exist"):
            AuditConfig.model_validate({**asked, "controls": wrong})
    both = AuditConfig.model_validate({**asked, "controls": "retrain,noise"})
    assert set(both.controls) == {"noise", "retrain"}
    flags = [f"--{name}" for name in ("model", "members", "nonmembers")]
    given = [part for flag in flags for part in (flag, asked[flag.removeprefix("--")])]
    assert main(["audit", *given, "--controls", "nosie", "--dry-run"]) == 2
    assert "did you mean 'noise'" in capsys.readouterr().err
    more = ["--variants", f"bnb-nf4,{PRUNED}", "--controls", "noise", "--dry-run"]
    assert main(["audit", *given, *more]) == 0
    assert "5, one per version" in capsys.readouterr().out
    # Noise is made and never named: it is no variant.
    assert main(["audit", *given, "--variants", "noise(bnb-nf4)", "--dry-run"]) == 2
    assert "unknown variant" in capsys.readouterr().err
