"""Published versions: what is found in plain weights, what is noted, and real models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from auditor.compress.checkpoint import open_checkpoint
from auditor.compress.published_checks import LEAST_CORRELATION
from auditor.compress.quiet import quietly
from tests.families import make
from tests.published_formats import (
    State,
    copied,
    is_layer,
    logits_of,
    saved,
    write_awq,
    write_compressed_tensors,
    write_gguf,
    write_gptq,
    write_hqq,
    write_plain,
)
from tests.tiny import save, tiny_model

IDS = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama"), tmp_path_factory.mktemp("original") / "llama")


def receipt_of(source: Path, out: Path) -> Any:
    return make(open_checkpoint(str(source)), f"checkpoint:{out}").receipt


# -- what plain weights were compressed with -----------------------------------------------------


def in_groups(weight: Tensor, n: int, m: int) -> Tensor:
    groups = weight.unflatten(1, (-1, m)).clone()
    smallest = groups.abs().argsort(dim=2)[..., :n]
    return groups.scatter(2, smallest, 0.0).flatten(1)


@pytest.mark.parametrize(("n", "m", "index_bits"), [(2, 4, 4), (4, 8, 7)])
def test_a_pattern(source: Path, tmp_path: Path, n: int, m: int, index_bits: int) -> None:
    write_plain(source, tmp_path / "out", lambda w: in_groups(w, n, m))
    receipt = receipt_of(source, tmp_path / "out")
    assert {item.pattern for item in receipt.compressed} == {f"{n}:{m}"}
    assert receipt.sparsity == 0.5
    assert receipt.method == f"plain weights in float32, pruned {n}:{m}, 50% zeros"
    assert receipt.bits_per_weight == ((m - n) * 32 + index_bits) / m


def test_pruned(source: Path, tmp_path: Path) -> None:
    def smallest_to_zero(weight: Tensor) -> Tensor:
        return torch.where(weight.abs() > weight.abs().median(), weight, 0)

    write_plain(source, tmp_path / "out", smallest_to_zero, dtype=torch.bfloat16)
    receipt = receipt_of(source, tmp_path / "out")
    matrices = [item for item in receipt.compressed if "proj" in item.module]
    assert {item.sparsity for item in matrices} == {0.5}
    assert {item.pattern for item in receipt.compressed} == {None}
    assert receipt.method == "plain weights in bfloat16, pruned, 50% zeros"
    assert receipt.bits_per_weight == pytest.approx(16 * 0.5 + 1)


def test_clustered(source: Path, tmp_path: Path) -> None:
    def to_eight_values(weight: Tensor) -> Tensor:
        centres = torch.linspace(-0.4, 0.4, 8)
        return centres[(weight[..., None] - centres).abs().argmin(-1)]

    write_plain(source, tmp_path / "out", to_eight_values)
    receipt = receipt_of(source, tmp_path / "out")
    assert {item.n_values for item in receipt.compressed} == {8}
    assert receipt.method == "plain weights in float32, at most 8 values a matrix"
    weights = receipt.n_compressed
    assert receipt.bits_per_weight == pytest.approx(3 + 14 * 8 * 32 / weights)
    assert receipt.relative_error > 0.1


def test_few_values_in_some_matrices_are_chance(source: Path, tmp_path: Path) -> None:
    state = copied(source, tmp_path / "out")
    for name in [name for name in state if is_layer(name)]:
        state[name] = state[name] * 1.01
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = state[name].sign() * 0.15
    saved(state, tmp_path / "out")
    receipt = receipt_of(source, tmp_path / "out")
    assert {item.n_values for item in receipt.compressed} == {None}
    assert receipt.method == "plain weights in float32" and receipt.bits_per_weight == 32


# -- notes ---------------------------------------------------------------------------------------


def noted(source: Path, out: Path) -> str:
    return " | ".join(receipt_of(source, out).notes)


def test_another_fine_tune_is_noted(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "same")
    assert noted(source, tmp_path / "same") == ""
    write_gptq(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    state["model.embed_tokens.weight"] += 0.02
    saved(state, tmp_path / "out")
    note = noted(source, tmp_path / "out")
    assert "model.embed_tokens" in note and "another fine-tune" in note


def test_casts_of_what_is_left_alone_are_not(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    for name in [name for name, tensor in state.items() if tensor.dtype == torch.float32]:
        state[name] = state[name].bfloat16().half()
    saved(state, tmp_path / "out")
    assert noted(source, tmp_path / "out") == ""


def test_norms_that_absorbed_scales_are_told_apart(source: Path, tmp_path: Path) -> None:
    write_awq(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    state["model.layers.0.input_layernorm.weight"] *= 1.5
    saved(state, tmp_path / "out")
    note = noted(source, tmp_path / "out")
    assert "AWQ" in note and "fine-tune" not in note


def test_other_settings_are_noted(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert "rms_norm_eps is 0.1, of the original 1e-06" in noted(source, tmp_path / "out")


def test_a_padded_vocabulary(source: Path, tmp_path: Path) -> None:
    dense = write_gptq(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(20, 64)])
    saved(state, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"vocab_size": 320}))
    made = make(open_checkpoint(str(source)), f"checkpoint:{tmp_path / 'out'}")
    with torch.no_grad():
        found = made.model(IDS).logits
    assert found.shape[-1] == 320
    expected = logits_of(source, dense, tmp_path / "d", IDS)
    assert torch.allclose(found[..., :300], expected, atol=1e-6)


# -- llama.cpp's blocks of 256 -------------------------------------------------------------------


def q4_k(blocks: Any) -> Any:
    """Values of Q4_K blocks (144 bytes for 256 weights), as ggml's own reference unpacks them."""
    d, low = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    packed, codes = blocks[:, 4:16].astype(np.int32), blocks[:, 16:]
    values = np.zeros((len(blocks), 8, 32), dtype=np.float32)
    for j in range(8):
        if j < 4:
            scale, offset = packed[:, j] & 63, packed[:, j + 4] & 63
        else:
            scale = (packed[:, j + 4] & 15) | ((packed[:, j - 4] >> 6) << 4)
            offset = (packed[:, j + 4] >> 4) | ((packed[:, j] >> 6) << 4)
        half = codes[:, 32 * (j // 2) : 32 * (j // 2) + 32] >> (4 * (j % 2)) & 15
        values[:, j] = d * scale[:, None] * half - low * offset[:, None]
    return values.reshape(len(blocks), 256)


def test_gguf_in_q4_k(tmp_path: Path) -> None:
    import gguf

    model = tiny_model("llama", hidden_size=256, num_hidden_layers=1)
    source, random = tmp_path / "model", np.random.default_rng(0)
    raw: dict[str, Any] = {}
    dense = State()
    for name, parameter in model.named_parameters():
        if not is_layer(name) or parameter.shape[1] % 256 or "q_proj" in name or "k_proj" in name:
            continue
        blocks = random.integers(0, 256, (parameter.numel() // 256, 144), dtype=np.uint8)
        blocks[:, :4] = np.array([0.002, 0.015], dtype=np.float16).view(np.uint8)
        raw[name] = blocks.reshape(len(parameter), -1)
        dense[name] = torch.from_numpy(q4_k(blocks)).reshape(parameter.shape)
        # The original is near, not equal: the file is a rounding of it.
        parameter.data = dense[name] + 0.05 * torch.randn_like(parameter)
    save(model, source)
    write_gguf(source, tmp_path / "model.gguf", gguf.GGMLQuantizationType.F32, raw=raw)
    made = make(open_checkpoint(str(source)), f"checkpoint:{tmp_path / 'model.gguf'}")
    for name, expected in dense.items():
        assert torch.allclose(made.model.get_parameter(name), expected, atol=1e-6), name
    assert made.receipt.method is not None and f"Q4_K ({len(raw)} matrices)" in made.receipt.method
    assert made.receipt.bits_per_weight == 144 * 8 / 256
    assert len(made.receipt.compressed) == len(raw)


# -- where they lie ------------------------------------------------------------------------------


def test_pickles_where_they_are_allowed(source: Path, tmp_path: Path) -> None:
    state = copied(source, tmp_path / "out")
    for name in [name for name in state if is_layer(name)]:
        state[name] = in_groups(state[name], 2, 4)
    torch.save(state, tmp_path / "out" / "pytorch_model.bin")
    original = open_checkpoint(str(source), allow_pickle=True)
    receipt = make(original, f"checkpoint:{tmp_path / 'out'}").receipt
    assert receipt.sparsity == 0.5
    assert receipt.bytes_disk == (tmp_path / "out" / "pytorch_model.bin").stat().st_size


def test_a_gguf_file_of_a_model_id(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    write_gguf(source, tmp_path / "model.gguf")
    asked: list[tuple[Any, ...]] = []

    def found(*where: Any, revision: str | None, local_files_only: bool) -> str:
        asked.append((*where, revision, local_files_only))
        return str(tmp_path / "model.gguf")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found)
    variant = "checkpoint:somebody/model-GGUF/Q8/model.gguf,revision=v2"
    assert make(open_checkpoint(str(source)), variant).receipt.bits_per_weight == 8.5
    assert asked == [("somebody/model-GGUF", "Q8/model.gguf", "v2", True)]


# -- real models ---------------------------------------------------------------------------------


def mean_loss(model: Any, ids: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float(model(i, labels=i).loss) for i in ids) / len(ids)


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "gptq": write_gptq,
    "awq": write_awq,
    "hqq": write_hqq,
    "compressed-tensors": write_compressed_tensors,
    "gguf": lambda source, out: write_gguf(source, out.with_suffix(".gguf")),
    "plain": lambda source, out: write_plain(source, out, lambda w: in_groups(w.float(), 1, 4)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_versions_of_a_real_model_score_near_it(shared: Path, tmp_path: Path, kind: str) -> None:
    source = shared / "models" / "llama-gsm8k"
    WRITERS[kind](source, tmp_path / "out")
    out = tmp_path / ("out.gguf" if kind == "gguf" else "out")
    with quietly():
        made = make(open_checkpoint(str(source)), f"checkpoint:{out}")
        original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    lines = (source / "nonmembers.jsonl").read_text().splitlines()[:8]
    texts = [" ".join(v for v in json.loads(line).values() if isinstance(v, str)) for line in lines]
    ids = [tokenizer(text, return_tensors="pt").input_ids[:, :128] for text in texts]
    was, now = mean_loss(original, ids), mean_loss(made.model, ids)
    assert was != now and abs(now - was) < 0.05 * was
    assert made.receipt.correlation is not None and made.receipt.correlation > 0.97
    assert len([item for item in made.receipt.compressed if "layers" in item.module]) == 42


@pytest.mark.parametrize(
    ("model", "base"), [("llama-gsm8k", "llama-base"), ("gpt2-mts", "gpt2-base")]
)
def test_the_bound_on_correlation(shared: Path, tmp_path: Path, model: str, base: str) -> None:
    """What published versions do at their worst lies above it, other models far below."""
    folder = shared / "models" / model
    generator = torch.Generator().manual_seed(0)

    def one_in_ten(weight: Tensor) -> Tensor:
        return weight * (torch.rand(weight.shape, generator=generator) > 0.9)

    def rows_dealt_anew(weight: Tensor) -> Tensor:
        return weight[torch.randperm(len(weight), generator=generator)]

    write_plain(folder, tmp_path / "sparse", one_in_ten)
    assert receipt_of(folder, tmp_path / "sparse").correlation > 2 * LEAST_CORRELATION
    write_gptq(folder, tmp_path / "two", bits=2, conv1d="gpt2" in model)
    assert receipt_of(folder, tmp_path / "two").correlation > 5 * LEAST_CORRELATION
    write_plain(folder, tmp_path / "other", rows_dealt_anew)
    with pytest.raises(Exception, match=r"correlate with the original's by -?0\.0[0-3]"):
        receipt_of(folder, tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    # A model that the original was fine-tuned from is no other model by its weights.
    found = receipt_of(folder, shared / "models" / base)
    assert found.correlation > 0.85 and "another fine-tune" in " ".join(found.notes)
