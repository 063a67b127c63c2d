"""Magnitude pruning is exact: a stable argsort, to the weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from auditor.compress import prune
from auditor.compress.checkpoint import (
    Checkpoint,
    Placement,
    load_model,
    open_checkpoint,
)
from auditor.compress.options import PruneMagnitudeOptions
from tests.families import CPU, make, matrix_names, saved_families
from tests.tiny import save, tiny_model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return saved_families(tmp_path_factory.mktemp("models"))


def naive_prune(arrays: list[np.ndarray], n: int) -> list[np.ndarray]:
    flat = np.concatenate([array.ravel() for array in arrays])
    flat[np.argsort(np.abs(flat), kind="stable")[:n]] = 0
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [p.reshape(a.shape) for p, a in zip(np.split(flat, ends), arrays, strict=True)]


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[Tensor]:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0])
    many = st.floats(-60000, 60000, width=16)
    values = draw(st.sampled_from([few, many]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3))
    return [
        torch.tensor(draw(st.lists(values, min_size=r * c, max_size=r * c)), dtype=dtype).view(r, c)
        for r, c in shapes
    ]


@settings(max_examples=150, deadline=None)
@given(tensors=tensor_lists(), share=st.floats(0, 1), chunk=st.sampled_from([1, 5, 2**22]))
def test_pruning_is_a_stable_argsort(tensors: list[Tensor], share: float, chunk: int) -> None:
    n = round(share * sum(tensor.numel() for tensor in tensors))
    expected = naive_prune([tensor.double().numpy().copy() for tensor in tensors], n)
    given_values = [tensor.clone() for tensor in tensors]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "CHUNK", chunk)
        before = list(prune.zero_smallest(tensors, n))
    for one, other in zip(before, given_values, strict=True):
        assert torch.equal(one, other)
    for tensor, naive in zip(tensors, expected, strict=True):
        assert np.array_equal(tensor.double().numpy(), naive)


def test_neighbours_in_float64_are_told_apart() -> None:
    base = torch.full((9,), 1.0, dtype=torch.float64)
    base += torch.arange(9, 0, -1, dtype=torch.float64) * 2.0**-52
    list(prune.zero_smallest([base], 4))
    assert (base == 0).tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.01, 0.3333, 0.5, 0.995])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gpt-neox"])
def test_pruned_models(
    name: str, sparsity: float, scope: str, checkpoints: dict[str, Checkpoint]
) -> None:
    made = make(checkpoints[name], f"prune-magnitude:sparsity={sparsity},scope={scope}")
    original = load_model(checkpoints[name], CPU)
    names = matrix_names(name)
    arrays = [original.get_submodule(n).weight.numpy() for n in names]
    if scope == "layer":
        expected = [naive_prune([a], round(sparsity * a.size))[0] for a in arrays]
    else:
        expected = naive_prune(arrays, round(sparsity * sum(a.size for a in arrays)))
    pruned = {n: made.model.get_submodule(n).weight.numpy() for n in names}
    for n, array in zip(names, expected, strict=True):
        assert np.array_equal(pruned[n], array), n
    # Everything else, embeddings and head above all, is what it was.
    others = {
        n: p for n, p in made.model.named_parameters() if n.removesuffix(".weight") not in names
    }
    for n, parameter in others.items():
        assert torch.equal(parameter, original.get_parameter(n)), n
    assert {"lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"} & set(others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_matrices_lose_their_first_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    model: Any = tiny_model("gpt2")
    for name in matrix_names("gpt2"):
        model.get_submodule(name).weight.data.fill_(-0.125)
    checkpoint = open_checkpoint(str(save(model, tmp_path)))
    for scope in ("layer", "global"):
        made = make(
            checkpoint, f"prune-magnitude:sparsity=0.3,scope={scope}", Placement("cpu", dtype)
        )
        weights = [made.model.get_submodule(n).weight.flatten() for n in matrix_names("gpt2")]
        for flat in [torch.cat(weights)] if scope == "global" else weights:
            n = round(0.3 * len(flat))
            assert not flat[:n].any()
            assert bool((flat[n:] == -0.125).all())


def test_pruning_never_holds_the_original_twice(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Checkpoint] = []

    def counted(checkpoint: Checkpoint, placement: Placement) -> Any:
        loads.append(checkpoint)
        return load_model(checkpoint, placement)

    monkeypatch.setattr(prune, "load_model", counted)
    options = PruneMagnitudeOptions(sparsity=0.5, scope="global")
    prune.make_magnitude(checkpoints["llama"], options, CPU, variant="x")
    assert len(loads) == 1
