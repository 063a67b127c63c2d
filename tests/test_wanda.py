"""Wanda, against a reference that sorts every row and asks the whole model for its norms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from auditor.compress import observe, wanda
from auditor.compress.checkpoint import Checkpoint, Placement, load_model, open_checkpoint
from auditor.compress.matrices import linear_layers
from auditor.compress.receipt import NOT_DIVISIBLE
from auditor.compress.wanda import EXPERTS, prune_by_norm, smallest
from tests.families import CATALOGUE, CPU, make, saved_catalogue, tiny_calibration
from tests.tiny import save, tiny_model

PATTERNS = {
    "sparsity=0.3": None,
    "sparsity=0.65": None,
    "pattern=2:4": (2, 4),
    "pattern=4:8": (4, 8),
}
BF16 = Placement("cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_catalogue(tmp_path_factory.mktemp("models"))


def naive_mask(scores: np.ndarray, n: int, n_m: tuple[int, int] | None) -> np.ndarray:
    """Where the smallest scores of every row are, or of every group in it, by a stable sort."""
    mask = np.zeros(scores.shape, dtype=bool)
    width = scores.shape[1] if n_m is None else n_m[1]
    n = n if n_m is None else n_m[0]
    for row in range(len(scores)):
        for start in range(0, scores.shape[1], width):
            order = np.argsort(scores[row, start : start + width], kind="stable")
            mask[row, start + order[:n]] = True
    return mask


def by_output(module: Any) -> Tensor:
    """The weight of a Linear or Conv1D with a row for each output."""
    weight: Tensor = module.weight.data
    return weight.T if type(module).__name__ == "Conv1D" else weight


# -- one matrix ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_smallest_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 12)))
    values = data.draw(
        st.sampled_from([[0.0, 1.0, 2.0], [0.0, 0.0, 0.5, 1e-30, 7.0], list(range(50))])
    )
    size = shape[0] * shape[1] * shape[2]
    drawn = data.draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))
    scores = torch.tensor(drawn, dtype=torch.float32).view(shape)
    n = data.draw(st.integers(0, shape[2]))
    expected = naive_mask(scores.view(-1, shape[2]).numpy(), n, None).reshape(shape)
    assert np.array_equal(smallest(scores, n).numpy(), expected)


@pytest.mark.parametrize("spelled", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("in_axis", [0, 1])
@pytest.mark.parametrize("chunk", [1, 100, 2**22])
def test_one_matrix(
    spelled: str, dtype: torch.dtype, in_axis: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanda, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    # Weights and norms that are whole numbers: most scores are equal to others, and exact.
    given_weight = torch.randint(-3, 4, (11, 24), generator=generator).to(dtype)
    norms = torch.randint(0, 4, (24,), generator=generator).double()
    stored = given_weight.clone() if in_axis == 1 else given_weight.T.contiguous()
    view = stored if in_axis == 1 else stored.T
    share = float(spelled.partition("=")[2]) if "sparsity" in spelled else 0.5
    prune_by_norm(view, norms**2, share=share, n_m=PATTERNS[spelled])
    scores = given_weight.double().abs().numpy() * norms.numpy()
    mask = naive_mask(scores, round(share * 24), PATTERNS[spelled])
    assert torch.equal(view, given_weight.masked_fill(torch.from_numpy(mask), 0))
    assert view.dtype == dtype


# -- whole models --------------------------------------------------------------------------------


@torch.no_grad()
def naive_wanda(model: Any, windows: np.ndarray, n: float, n_m: tuple[int, int] | None) -> None:
    """Prune block by block, with norms from whole passes of the model as pruned so far."""
    layers = dict(linear_layers(model))
    blocks = sorted(
        {name[: name.index(f".{i}.") + 3] for name in layers for i in range(2) if f".{i}." in name}
    )
    for block in blocks:
        seen: dict[str, list[Tensor]] = {name: [] for name in layers if name.startswith(block)}
        handles = [
            layers[name].register_forward_pre_hook(
                lambda _m, args, parts=parts: parts.append(args[0].flatten(0, -2).double())
            )
            for name, parts in seen.items()
        ]
        model(input_ids=torch.from_numpy(windows), use_cache=False)
        for handle in handles:
            handle.remove()
        for name, parts in seen.items():
            norms = torch.linalg.vector_norm(torch.cat(parts), dim=0)
            weight = by_output(layers[name])
            scores = weight.double().abs() * norms
            mask = naive_mask(scores.numpy(), round(n * weight.shape[1]), n_m)
            weight.masked_fill_(torch.from_numpy(mask), 0)


@pytest.mark.parametrize("spelled", ["sparsity=0.65", "pattern=2:4"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "opt", "gemma3", "phi3", "mixtral"])
def test_the_mask_of_whole_passes(
    name: str, spelled: str, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[name], f"prune-wanda:{spelled}")
    expected: Any = load_model(checkpoints[name], CPU)
    share = 0.65 if "sparsity" in spelled else 0.5
    naive_wanda(expected, tiny_calibration().windows, share, PATTERNS[spelled])
    # Also embeddings, norms, biases, head and experts: nothing else was touched.
    for key, parameter in expected.named_parameters():
        assert torch.equal(made.model.get_parameter(key), parameter), key


def test_one_block_with_norms_by_hand(tmp_path: Path) -> None:
    """The first layer of the only block sees the normalised embeddings, and nothing else."""
    model: Any = tiny_model("llama", num_hidden_layers=1)
    checkpoint = open_checkpoint(str(save(model, tmp_path)))
    made: Any = make(checkpoint, "prune-wanda:sparsity=0.5").model
    ids = tiny_calibration().windows
    embedded = model.model.embed_tokens.weight.detach().numpy().astype(float)[ids.ravel()]
    scale = np.sqrt((embedded**2).mean(1, keepdims=True) + model.config.rms_norm_eps)
    norms = np.sqrt(((embedded / scale) ** 2).sum(0))
    for key in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(model.model.layers[0].self_attn, key).weight.detach().numpy()
        pruned = getattr(made.model.layers[0].self_attn, key).weight.numpy()
        assert np.array_equal(
            pruned, np.where(naive_mask(np.abs(weight) * norms, 32, None), 0, weight)
        )


@pytest.mark.parametrize("placement", [CPU, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spelled", PATTERNS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_family(
    name: str, spelled: str, placement: Placement, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[name], f"prune-wanda:{spelled}", placement)
    receipt, layers = made.receipt, dict(linear_layers(made.model))
    assert {item.module for item in receipt.compressed} == set(layers)
    share = float(spelled.partition("=")[2]) if "sparsity" in spelled else 0.5
    zeros = 0
    for item in receipt.compressed:
        weight = by_output(layers[item.module])
        per_row = (weight == 0).sum(1)
        assert bool((per_row == round(share * weight.shape[1])).all()), item.module
        assert item.sparsity == int(per_row.sum()) / weight.numel()
        assert item.pattern == (spelled.partition("=")[2] if PATTERNS[spelled] else None)
        zeros += int(per_row.sum())
    assert receipt.sparsity == zeros / receipt.n_compressed
    if PATTERNS[spelled] is None:
        assert receipt.bits_per_weight == pytest.approx(32 * (1 - receipt.sparsity) + 1)
    else:
        assert receipt.bits_per_weight == {"2:4": 17.0, "4:8": 16.875}[spelled[-3:]]
    assert receipt.notes == []
    skipped = {item.module: item for item in receipt.skipped}
    experts = {key for key in skipped if key.endswith("experts")}
    assert len(experts) == (2 if name == "mixtral" else 0)
    assert {skipped[key].reason for key in experts} <= {EXPERTS}
    tied = any("tied" in item.reason for item in receipt.skipped)
    head = sum(item.n_parameters for item in receipt.skipped if "head, tied" in item.reason)
    counted = receipt.n_compressed + sum(item.n_parameters for item in receipt.skipped)
    assert counted - head * tied == receipt.n_parameters
    with torch.inference_mode():
        ids = torch.from_numpy(tiny_calibration().windows)
        assert bool(torch.isfinite(made.model(input_ids=ids).logits).all())


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mixtral"])
def test_twice_the_same_and_saved(
    name: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made, again = (make(checkpoints[name], "prune-wanda:pattern=4:8") for _ in range(2))
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


@pytest.mark.parametrize("variant", ["prune-wanda:sparsity=0.5", "prune-sparsegpt:pattern=2:4"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_a_model_that_must_be_run_whole_is_pruned_alike(
    name: str,
    variant: str,
    checkpoints: dict[str, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = make(checkpoints[name], variant)
    monkeypatch.setattr(observe, "record", lambda *_: None)
    made = make(checkpoints[name], variant)
    assert (expected.receipt.notes, made.receipt.notes) == ([], [observe.WHOLE])
    for key, parameter in expected.model.named_parameters():
        assert torch.equal(made.model.get_parameter(key), parameter), key
    assert capfd.readouterr() == ("", "")


def test_the_original_is_held_once(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []

    def counted(*args: Any) -> Any:
        loads.append(args)
        return load_model(*args)

    monkeypatch.setattr(wanda, "load_model", counted)
    make(checkpoints["llama"], "prune-wanda:sparsity=0.5")
    make(checkpoints["llama"], "prune-sparsegpt:sparsity=0.5")
    assert len(loads) == 2


def test_matrices_that_groups_do_not_divide(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama", intermediate_size=100), tmp_path)))
    receipt = make(checkpoint, "prune-wanda:pattern=4:8").receipt
    left = {item.module for item in receipt.skipped if item.reason == NOT_DIVISIBLE}
    assert left == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    assert {item.pattern for item in receipt.compressed} == {"4:8"}
    assert len(receipt.compressed) == 12
    assert len(make(checkpoint, "prune-wanda:pattern=2:4").receipt.compressed) == 14


def test_the_receipt_names_what_was_looked_at(checkpoints: dict[str, Checkpoint]) -> None:
    receipt = make(checkpoints["llama"], "prune-wanda:sparsity=0.5").receipt
    assert receipt.calibration == tiny_calibration().use
