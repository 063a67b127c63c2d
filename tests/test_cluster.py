"""Clustering: k-means is the optimum, and every weight is its nearest of k published values."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from auditor.compress import kmeans as module
from auditor.compress.checkpoint import Placement, load_model, open_checkpoint
from auditor.compress.cluster import find_codebook, set_nearest
from auditor.compress.kmeans import Weighted, count_distinct, kmeans, optimal_starts
from auditor.compress.matrices import Matrix, matrices
from auditor.errors import VariantError
from tests.families import CPU, make
from tests.tiny import VOCABULARY, save, tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def squares(values: np.ndarray, centres: np.ndarray) -> float:
    """Sum of squared distances of values to their nearest centres, in float64."""
    best = np.full(len(values), np.inf)
    for centre in centres:
        best = np.minimum(best, (values - centre) ** 2)
    return float(best.sum())


def least_squares(values: np.ndarray, k: int) -> float:
    """The same at its least, over all ways of cutting the sorted values into k runs."""
    ordered = np.sort(values)
    runs = itertools.combinations(range(1, len(ordered)), k - 1)
    parts = (np.split(ordered, cuts) for cuts in runs)
    return min(sum(((part - part.mean()) ** 2).sum() for part in split) for split in parts)


@st.composite
def tensors(draw: st.DrawFn, most: int = 9) -> Tensor:
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 100.0])
    many = st.floats(-2000, 2000, width=16)
    near = st.integers(0, 40).map(lambda n: 1000 + n / 2)
    values = draw(st.sampled_from([few, many, near]))
    flat = torch.tensor(draw(st.lists(values, min_size=2, max_size=most)))
    return flat.to(draw(st.sampled_from(DTYPES)))


@settings(max_examples=300, deadline=None)
@given(weight=tensors(), k=st.integers(2, 6), is_counted=st.booleans(), chunk=st.integers(1, 20))
def test_no_partition_is_better(weight: Tensor, k: int, is_counted: bool, chunk: int) -> None:
    values = weight.double().numpy()
    n_distinct = len(np.unique(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        if not is_counted:  # the way of tensors that 16 bits do not hold
            patch.setattr(module, "SHORT", ())
            weight = weight.float() if weight.element_size() == 2 else weight
        centres = kmeans(weight, k)
        assert count_distinct(weight) == n_distinct
    assert len(centres) == min(k, n_distinct)
    if k >= n_distinct:
        assert np.array_equal(centres, np.unique(values))
    else:
        assert (np.diff(centres) > 0).all()
        best = least_squares(values, k)
        assert squares(values, centres) <= best * (1 + 1e-9) + 1e-12 * (values**2).sum()


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_cauchy(n)


def unequal(rng: np.random.Generator, n: int) -> np.ndarray:
    small = n // 1000
    parts = [rng.normal(0, 1, n - 3 * small), rng.normal(50, 0.01, small), rng.normal(99, 5, small)]
    return np.concatenate([*parts, rng.normal(-7, 0.3, small)])


def tied(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.9, rng.integers(-2, 3, n), rng.normal(0, 1, n))


def outlying(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.append(rng.normal(0, 0.02, n - 2), [-3e5, 1e30])


def shifted(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.lognormal(0, 0.01, n)


HARD = [heavy, unequal, tied, outlying, shifted]


@pytest.mark.parametrize("k", [3, 16, 64])
@pytest.mark.parametrize("draw", HARD)
def test_binned_values_come_close_to_the_optimum(
    draw: Callable[..., np.ndarray], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.from_numpy(draw(np.random.default_rng(k), 30_000)).float()
    values, counts = np.unique(weight.double().numpy(), return_counts=True)
    starts = optimal_starts(Weighted(values, counts.astype(float)), k)
    parts = [np.split(x, starts[1:]) for x in (values, counts)]
    best = sum(
        float((n * (v - np.average(v, weights=n)) ** 2).sum()) for v, n in zip(*parts, strict=True)
    )
    for name, small in (("MAX_DISTINCT", 2), ("CHUNK", 7000), ("N_BINS", 400)):
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(module, "N_FINER_BINS", 2000)
    centres = kmeans(weight, k)
    assert len(centres) == k
    assert squares(weight.double().numpy(), centres) <= 1.0002 * best


def test_lloyds_steps_end_where_the_bins_were_too_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=30_000)).float()
    values = weight.double().numpy()
    best = squares(values, kmeans(weight, 3))
    for name, small in (("MAX_DISTINCT", 2), ("N_BINS", 16), ("MAX_ROUNDS", 1)):
        monkeypatch.setattr(module, name, small)
    assert best * (1 - 1e-12) <= squares(values, kmeans(weight, 3)) <= best * (1 + 1e-5)


def test_far_values_do_not_blur_the_near_ones() -> None:
    near = np.random.default_rng(0).normal(size=9)
    both = torch.from_numpy(np.concatenate([near, [-1e30, 1e30]]))
    inner = kmeans(both, 5)[1:-1]
    assert squares(near, inner) == pytest.approx(least_squares(near, 3), rel=1e-9)
    far = torch.from_numpy(near + 1e9)
    least = least_squares(far.numpy() - 1e9, 3)
    assert squares(far.numpy(), kmeans(far, 3)) == pytest.approx(least, rel=1e-6)


def test_a_value_alone_in_its_cluster_stays_itself() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    weight = torch.from_numpy(np.repeat(values, rng.integers(1, 60, 200)))
    assert np.array_equal(kmeans(weight, 200), np.sort(values))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("k", [4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draw", HARD)
def test_as_good_as_the_best_of_ten_starts(
    draw: Callable[..., np.ndarray], dtype: torch.dtype, k: int
) -> None:
    weight = torch.from_numpy(draw(np.random.default_rng(k), 10_000)).to(dtype)
    values = weight.double().numpy()
    best = KMeans(k, n_init=10, random_state=0).fit(values[:, None])
    ours = squares(values, kmeans(weight, k))
    assert ours <= 1.001 * squares(values, best.cluster_centers_[:, 0])


@pytest.mark.parametrize(("k", "least"), [(2, 1 - 2 / math.pi), (4, 0.11748), (16, 0.009497)])
def test_normal_weights_lose_what_the_literature_says(k: int, least: float) -> None:
    """Max, "Quantizing for minimum distortion", 1960, table I."""
    noise = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    assert len(noise.unique()) > module.MAX_DISTINCT
    for weight in (noise, noise.half()):
        lost = squares(weight.double().numpy(), kmeans(weight, k)) / len(noise)
        assert lost == pytest.approx(least, rel=0.01)


@settings(max_examples=200, deadline=None)
@given(weight=tensors(most=30), k=st.integers(1, 5), chunk=st.integers(1, 20), data=st.data())
def test_every_weight_takes_the_nearest_value_or_the_lower_of_two(
    weight: Tensor, k: int, chunk: int, data: st.DataObject
) -> None:
    picked = st.sampled_from([-2.0, -1.0, 0.0, 0.25, 1.0, 1.5, 3.0, 1003.0])
    chosen = data.draw(st.lists(picked, min_size=k, max_size=k, unique=True))
    codebook = torch.tensor(sorted(chosen)).to(weight.dtype)
    distances = (weight.double()[:, None] - codebook.double()).abs()
    expected = codebook[distances.argmin(1)]  # the first of equals
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        done = weight.clone()
        set_nearest(done, codebook)
        assert torch.equal(done, expected)
        patch.setattr(module, "SHORT", ())  # the way of tensors that 16 bits do not hold
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        done = weight.to(wide)
        set_nearest(done, codebook.to(wide))
        assert torch.equal(done, expected.to(wide))


def test_neighbours_in_float32_are_told_apart() -> None:
    step = 2.0**-23
    codebook = torch.tensor([1 + step, 1 + 2 * step, 1 + 3 * step])
    weight = codebook.clone()
    set_nearest(weight, codebook)
    assert torch.equal(weight, codebook)


# -- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 11, 16])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gpt_neox", "mixtral"])
def test_clustered_models(family: str, k: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        str(save(tiny_model(family), tmp_path / "m", dtype=torch.bfloat16))
    )
    made = make(checkpoint, f"cluster:k={k}")
    receipt, original = made.receipt, load_model(checkpoint, CPU)
    before = {matrix.name: matrix.weight for matrix in matrices(original)}
    after = {matrix.name: matrix for matrix in matrices(made.model)}
    assert [item.module for item in receipt.compressed] == list(before)
    for item, matrix in zip(receipt.compressed, after.values(), strict=True):
        found, old = matrix.weight.unique(), before[matrix.name]
        assert item.n_values == len(found) == k
        assert torch.equal(found.bfloat16().float(), found)  # as they will be published
        # Equal to a naive search, rounding included.
        nearest = found[(old.double().reshape(-1, 1) - found.double()).abs().argmin(1)]
        assert torch.equal(matrix.weight, nearest.view(old.shape))
        assert item.n_changed == int((matrix.weight != old).sum())
    n = receipt.n_compressed
    codebooks = len(before) * k * 16
    assert receipt.bits_per_weight == pytest.approx(math.ceil(math.log2(k)) + codebooks / n)
    coded = receipt.bytes_disk - 2 * n + math.ceil(n * receipt.bits_per_weight / 8)
    assert receipt.bytes_disk == 2 * receipt.n_parameters
    assert f" {coded:,} bytes" in receipt.notes[0]
    assert not receipt.batch_dependent
    touched = {matrix.module for matrix in after.values()}
    for name, part in made.model.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            if part not in touched or parameter.dim() < 2:
                assert torch.equal(parameter, original.get_submodule(name).get_parameter(key))


def test_saved_in_its_own_precision_it_is_the_same(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("gpt2"), tmp_path / "m", dtype=torch.float16)))
    made: Any = make(checkpoint, "cluster:k=16")
    again = make(checkpoint, "cluster:k=16")
    assert made.model.dtype == torch.float32
    ids = torch.arange(1, VOCABULARY, 13)[None]
    with torch.inference_mode():
        expected = made.model(input_ids=ids).logits
        assert torch.equal(again.model(input_ids=ids).logits, expected)
        made.model.half().save_pretrained(tmp_path / "published")
        published = load_model(replace(checkpoint, path=tmp_path / "published"), CPU)
        assert torch.equal(published(input_ids=ids).logits, expected)


@pytest.mark.parametrize("placement", [torch.float32, torch.bfloat16])
def test_the_size_of_an_ideal_coding(placement: torch.dtype, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama"), tmp_path)))
    receipt = make(checkpoint, "cluster:k=5", Placement("cpu", placement)).receipt
    others = receipt.n_parameters - receipt.n_compressed
    # 3 bits for each of the weights, 5 values for each of 14 matrices.
    n_values = others + 14 * 5
    coded = placement.itemsize * n_values + math.ceil(receipt.n_compressed * 3 / 8)
    assert f" {coded:,} bytes" in receipt.notes[0]


def a_matrix(values: list[float]) -> Matrix:
    weight = torch.tensor(values).repeat(6, 1)
    return Matrix("blocks.0.up", torch.nn.Identity(), weight, 1, "Linear")


def test_as_many_values_as_there_are_leave_everything_as_it_is() -> None:
    matrix = a_matrix([0.1, -0.0, 0.0, 7.0, 1 / 3])
    codebook = find_codebook(matrix, 4, stored=torch.float32)
    expected = matrix.weight.clone()
    set_nearest(matrix.weight, codebook)
    assert torch.equal(matrix.weight, expected)


def test_too_few_distinct_values(tmp_path: Path) -> None:
    model: Any = tiny_model("gpt2")
    weight = model.transformer.h[1].mlp.c_fc.weight.data
    weight.copy_(weight.sign())
    checkpoint = open_checkpoint(str(save(model, tmp_path)))
    with pytest.raises(VariantError, match="distinct values") as caught:
        make(checkpoint, "cluster:k=16")
    assert caught.value.seen == "transformer.h.1.mlp.c_fc has 2 distinct values, and k=16"
    assert caught.value.fix == "give k=2 or less"
    with pytest.raises(VariantError, match="distinct values") as caught:
        find_codebook(a_matrix([0.5, 0.5]), 2, stored=torch.float32)
    assert caught.value.seen == "blocks.0.up has 1 distinct value, and k=2"
    assert caught.value.fix == "leave this variant out"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_no_numbers(bad: float, dtype: torch.dtype) -> None:
    matrix = a_matrix([0.1, bad, 2.0, 7.0])
    with pytest.raises(VariantError, match="numbers") as caught:
        find_codebook(matrix._replace(weight=matrix.weight.to(dtype)), 2, stored=dtype)
    assert "blocks.0.up" in caught.value.seen


@pytest.mark.parametrize("placement", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["llama-gsm8k", "gpt2-mts"])
def test_real_models(model: str, placement: torch.dtype, shared: Path) -> None:
    checkpoint = open_checkpoint(str(shared / "models" / model))
    made = make(checkpoint, "cluster:k=16", Placement("cpu", placement))
    assert {item.n_values for item in made.receipt.compressed} == {16}
    # Weights are close to normal, whose error is the root of 0.0095.
    assert made.receipt.relative_error == pytest.approx(math.sqrt(0.009497), rel=0.05)
    original = list(matrices(load_model(checkpoint, CPU)))[
        :: 9 if placement == torch.float32 else 99
    ]
    found = {matrix.name: matrix.weight for matrix in matrices(made.model)}
    for matrix in original:
        values = matrix.weight.double().numpy().ravel()
        best = KMeans(16, n_init=10, random_state=0).fit(values[:, None])
        ours = ((found[matrix.name].double().numpy().ravel() - values) ** 2).sum()
        assert ours <= 1.001 * best.inertia_
