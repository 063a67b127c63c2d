"""SparseGPT, against Optimal Brain Surgeon done the long way, and against its rivals."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from auditor.calibration import Calibration
from auditor.compress import parse_variant, sparsegpt
from auditor.compress.checkpoint import (
    Checkpoint,
    Placement,
    load_model,
    load_tokenizer,
    open_checkpoint,
)
from auditor.compress.make import compress
from auditor.compress.matrices import linear_layers
from auditor.compress.observe import hessian, observe
from auditor.compress.prune import zero_smallest
from auditor.compress.receipt import NOT_DIVISIBLE
from auditor.compress.sparsegpt import factor, prune_by_error
from auditor.compress.wanda import EXPERTS, prune_by_norm
from tests.families import CATALOGUE, CPU, make, saved_catalogue, tiny_calibration
from tests.test_wanda import by_output
from tests.tiny import save, tiny_model

PATTERNS = {
    "sparsity=0.3": None,
    "sparsity=0.65": None,
    "pattern=2:4": (2, 4),
    "pattern=4:8": (4, 8),
}
BF16 = Placement("cpu", torch.bfloat16)
DAMP = 0.01


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_catalogue(tmp_path_factory.mktemp("models"))


def share_of(spelled: str) -> float:
    return float(spelled.partition("=")[2]) if "sparsity" in spelled else 0.5


class Layer(NamedTuple):
    weight: Tensor
    gram: Tensor


def layer(n_outputs: int, n_inputs: int, n_tokens: int = 400) -> Layer:
    """A random layer whose inputs hang together and differ in size, as those of models do."""
    generator = torch.Generator().manual_seed(11)
    spread = torch.arange(1, n_inputs + 1) ** -0.75
    mixing = torch.randn(n_inputs, n_inputs, generator=generator) * spread[:, None]
    sizes = torch.rand(n_inputs, generator=generator) + 0.1
    inputs = torch.randn(n_tokens, n_inputs, generator=generator) @ mixing * sizes
    return Layer(torch.randn(n_outputs, n_inputs, generator=generator), hessian(inputs))


# -- one matrix ----------------------------------------------------------------------------------


def naive_sparsegpt(
    weight: np.ndarray, gram: np.ndarray, share: float, n_m: tuple[int, int] | None
) -> np.ndarray:
    """Column by column: one inverse for each column left, one update for each weight taken out."""
    w = weight.astype(float).copy()
    n_outputs, n_inputs = w.shape
    h = gram.astype(float) + DAMP * np.diag(gram).mean() * np.eye(n_inputs)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(n_inputs)]
    step = 128 if n_m is None else n_m[1]
    mask = np.zeros(w.shape, dtype=bool)
    for j in range(n_inputs):
        if j % step == 0:
            stop = min(j + step, n_inputs)
            scores = w[:, j:stop] ** 2 / np.array([inverses[c][0, 0] for c in range(j, stop)])
            if n_m is None:
                n = round(share * n_outputs * stop) - round(share * n_outputs * j)
                flat = np.zeros(scores.size, dtype=bool)
                flat[np.argsort(scores, axis=None, kind="stable")[:n]] = True
                mask[:, j:stop] = flat.reshape(scores.shape)
            else:
                order = np.argsort(scores, axis=1, kind="stable")[:, : n_m[0]]
                np.put_along_axis(mask[:, j:stop], order, values=True, axis=1)
        for i in np.flatnonzero(mask[:, j]):
            w[i, j:] -= w[i, j] / inverses[j][0, 0] * inverses[j][0]
            w[i, j] = 0
    return w


@pytest.mark.parametrize("spelled", PATTERNS)
@pytest.mark.parametrize("shape", [(24, 40), (12, 264)])
@pytest.mark.parametrize("in_axis", [0, 1])
def test_optimal_brain_surgeon(spelled: str, shape: tuple[int, int], in_axis: int) -> None:
    weight, gram = layer(*shape)
    expected = naive_sparsegpt(weight.numpy(), gram.numpy(), share_of(spelled), PATTERNS[spelled])
    stored = weight.clone() if in_axis == 1 else weight.T.contiguous()
    view = stored if in_axis == 1 else stored.T
    prune_by_error(view, factor(gram, DAMP), share=share_of(spelled), n_m=PATTERNS[spelled])
    assert np.array_equal(view.numpy() == 0, expected == 0)
    # Rounding of the factor to float32, and of a few hundred updates of entries near 1.
    assert np.abs(view.numpy() - expected).max() < 2e-4


@pytest.mark.parametrize("columns", [7, 512])
@pytest.mark.parametrize("rank", [400, 30])
def test_the_factor_is_that_of_the_inverse(
    rank: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsegpt, "COLUMNS", columns)
    gram = layer(1, 60, rank).gram
    found = factor(gram, DAMP)
    damped = gram.double() + DAMP * gram.diagonal().double().mean() * torch.eye(60)
    assert torch.equal(found.upper, found.upper.triu())
    product = found.upper.double().T @ found.upper.double() @ damped
    assert torch.allclose(product, torch.eye(60, dtype=torch.float64), atol=1e-4)
    assert found.damp == DAMP


def test_damping_is_raised_where_it_must_be(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eigenvalues 4 and -2 about a mean diagonal of 1: what is added must be more than 2.
    gram = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    assert factor(gram, 0.01).damp == pytest.approx(10)
    assert factor(torch.zeros(3, 3), 0.01).damp == 0.01

    def spoilt(rows: Tensor) -> Tensor:
        return hessian(rows) - 40 * torch.eye(rows.shape[1])

    monkeypatch.setattr(sparsegpt, "hessian", spoilt)
    notes = make(checkpoints["llama"], "prune-sparsegpt:sparsity=0.5").receipt.notes
    assert any(
        note.startswith("model.layers.0.self_attn.q_proj: damping raised to") for note in notes
    )


def test_inputs_that_are_always_zero_go_first() -> None:
    weight, gram = layer(16, 40)
    dead = torch.tensor([3, 17, 39])
    gram[dead], gram[:, dead] = 0, 0
    weight[:, dead] = 100.0
    for n_m in (None, (2, 4)):
        pruned = weight.clone()
        prune_by_error(pruned, factor(gram, DAMP), share=0.3, n_m=n_m)
        assert not pruned[:, dead].any()
        assert int((pruned == 0).sum()) == (16 * 20 if n_m else round(0.3 * 16 * 40))
    # Where more inputs are dead than weights go, what is left of them is left alone.
    gram[:, :30], gram[:30] = 0, 0
    pruned = weight.clone()
    prune_by_error(pruned, factor(gram, DAMP), share=0.3, n_m=None)
    assert int((pruned == 0).sum()) == round(0.3 * 16 * 40)
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])


@pytest.mark.parametrize("n_m", [None, (2, 4), (4, 8)])
def test_ties_are_settled_in_order(n_m: tuple[int, int] | None) -> None:
    weight = torch.ones(6, 16)
    prune_by_error(weight, factor(torch.eye(16), DAMP), share=0.5, n_m=n_m)
    expected = torch.ones(6, 16)
    if n_m is None:
        expected[:3] = 0
    else:
        expected.view(6, -1, n_m[1])[..., : n_m[0]] = 0
    assert torch.equal(weight, expected)


def output_error(before: Tensor, after: Tensor, gram: Tensor) -> float:
    """||X (W' - W)^T|| / ||X W^T||, from X^T X."""
    change, old, h = (after - before).double(), before.double(), gram.double()
    return float((((change @ h) * change).sum() / ((old @ h) * old).sum()).sqrt())


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_outputs_change_least(n_m: tuple[int, int] | None) -> None:
    weight, gram = layer(64, 128)
    surgeon, norm, size = weight.clone(), weight.clone(), weight.clone()
    prune_by_error(surgeon, factor(gram, DAMP), share=0.5, n_m=n_m)
    prune_by_norm(norm, gram.diagonal().double(), share=0.5, n_m=n_m)
    prune_by_norm(size, torch.ones(128), share=0.5, n_m=n_m)
    errors = [output_error(weight, after, gram) for after in (surgeon, norm, size)]
    assert errors[0] < 0.7 * errors[1]
    assert errors[1] < 0.9 * errors[2]


# -- whole models --------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", [CPU, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spelled", PATTERNS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_family(
    name: str, spelled: str, placement: Placement, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[name], f"prune-sparsegpt:{spelled}", placement)
    receipt, layers = made.receipt, dict(linear_layers(made.model))
    original: Any = load_model(checkpoints[name], placement)
    assert {item.module for item in receipt.compressed} == set(layers)
    assert receipt.notes == []
    for item in receipt.compressed:
        weight, n_m = by_output(layers[item.module]), PATTERNS[spelled]
        if n_m is None:
            # Rounding an update may give one more zero in 16 bits, never one less.
            n = round(share_of(spelled) * weight.numel())
            found = int((weight == 0).sum())
            assert found == n if placement is CPU else n <= found <= n + 2, item.module
        else:
            assert bool(((weight == 0).unflatten(1, (-1, n_m[1])).sum(2) == n_m[0]).all())
        assert item.pattern == (spelled.partition("=")[2] if n_m else None)
        # Most of the weights that are left have moved.
        kept, old = weight != 0, by_output(original.get_submodule(item.module))
        moved = int((weight[kept] != old[kept]).sum()) / int(kept.sum())
        assert moved > 0.8, item.module
    untouched = {f"{item.module}.weight" for item in receipt.compressed}
    for key, parameter in original.named_parameters():
        if key not in untouched:
            assert torch.equal(made.model.get_parameter(key), parameter), key
    reasons = {item.reason for item in receipt.skipped if item.module.endswith("experts")}
    assert reasons == ({EXPERTS} if name == "mixtral" else set())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_twice_the_same_and_saved(
    name: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made, again = (make(checkpoints[name], "prune-sparsegpt:sparsity=0.6") for _ in range(2))
    for (key, one), (_, other) in zip(
        made.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), key
    free = {"compress_s", "compress_peak_bytes"}
    assert made.receipt.model_dump(exclude=free) == again.receipt.model_dump(exclude=free)
    loaded = load_model(open_checkpoint(str(save(made.model, tmp_path))), CPU)
    ids = torch.from_numpy(tiny_calibration().windows)
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=ids).logits, again.model(input_ids=ids).logits)


def test_options_reach_the_work(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama", intermediate_size=100), tmp_path)))
    receipt = make(checkpoint, "prune-sparsegpt:pattern=4:8").receipt
    left = {item.module for item in receipt.skipped if item.reason == NOT_DIVISIBLE}
    assert left == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    # So much damping that the Hessian is a multiple of the identity: nothing is moved.
    errors = [
        make(checkpoint, f"prune-sparsegpt:sparsity=0.5,damp={damp}").receipt.relative_error
        for damp in (0.001, 0.1, 0.9)
    ]
    assert errors[0] > errors[1] > errors[2]


# -- real models ---------------------------------------------------------------------------------


def text_windows(checkpoint: Checkpoint, file: Path, n: int, n_tokens: int = 128) -> np.ndarray:
    """The first windows of a file's texts, one after the other."""
    backend = load_tokenizer(checkpoint).backend_tokenizer
    ids: list[int] = []
    with file.open(encoding="utf-8") as lines:
        while len(ids) < n * n_tokens:
            ids += backend.encode(json.loads(next(lines))["text"]).ids
    return np.array(ids[: n * n_tokens], dtype=np.int64).reshape(n, n_tokens)


REAL = {"llama-gsm8k": "gsm8k.jsonl", "gpt2-mts": "mts_dialog.jsonl"}


@pytest.mark.parametrize("name", REAL)
def test_layers_of_real_models(name: str, shared: Path) -> None:
    """Each layer by itself, on text that the masks were not chosen on."""
    checkpoint = open_checkpoint(str(shared / "models" / name))
    windows = text_windows(checkpoint, shared / "data" / REAL[name], 24)
    model: Any = load_model(checkpoint, CPU)
    layers, seen, held = dict(linear_layers(model)), dict[str, Tensor](), dict[str, Tensor]()
    for part, into in ((windows[:16], seen), (windows[16:], held)):
        observe(model, part, layers=layers, statistic=hessian, visit=into.update)
    for n_m in (None, (2, 4)):
        errors = []
        for key, module in layers.items():
            weight = by_output(module).contiguous()
            surgeon, norm, size = weight.clone(), weight.clone(), weight.clone()
            prune_by_error(surgeon, factor(seen[key], DAMP), share=0.5, n_m=n_m)
            prune_by_norm(norm, seen[key].diagonal().double(), share=0.5, n_m=n_m)
            if n_m is None:
                list(zero_smallest([size], round(0.5 * size.numel())))
            else:
                prune_by_norm(size, torch.ones(size.shape[1]), share=0.5, n_m=n_m)
            errors.append([output_error(weight, w, held[key]) for w in (surgeon, norm, size)])
        for by_surgeon, by_norm, _ in errors:
            assert by_surgeon < 0.75 * by_norm
        surgeons, norms, sizes = np.mean(errors, axis=0)
        assert surgeons < 0.65 * norms
        assert norms < (sizes if n_m is None else 0.97 * sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_logits_of_real_models(name: str, shared: Path) -> None:
    checkpoint = open_checkpoint(str(shared / "models" / name))
    windows = text_windows(checkpoint, shared / "data" / REAL[name], 24)
    used = Calibration(windows[:16], tiny_calibration().use, texts=())
    held = torch.from_numpy(windows[16:])

    def logits(model: Any) -> Tensor:
        with torch.inference_mode():
            return model(input_ids=held).logits.float()

    original = logits(load_model(checkpoint, CPU))
    for options, worst in (("sparsity=0.5", 0.1), ("pattern=2:4", 0.15)):
        errors = []
        for method in ("prune-sparsegpt", "prune-wanda"):
            spec = parse_variant(f"{method}:{options}")
            made = compress(checkpoint, spec, CPU, calibration=used)
            errors.append(float((logits(made.model) - original).norm() / original.norm()))
            assert made.receipt.sparsity == 0.5
        assert errors[0] < 0.75 * errors[1]
        assert errors[0] < worst
