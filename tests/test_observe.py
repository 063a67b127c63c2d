"""What layers see is what they would see in whole passes of the model, pruned up to there."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from auditor.compress import observe as observing
from auditor.compress import replay as replaying
from auditor.compress.matrices import linear_layers
from auditor.compress.observe import (
    ONE_PASS,
    OUTSIDE,
    UNSEEN,
    WHOLE,
    decoder_blocks,
    hessian,
    holds_pattern,
    observe,
    squared_norms,
)
from auditor.errors import VariantError
from tests.families import CATALOGUE
from tests.tiny import CONTEXT, SMALL, VOCABULARY, tiny_model

BLOCK_PREFIXES = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}


def windows(n_samples: int = 7, n_tokens: int = 24) -> np.ndarray:
    return np.random.default_rng(1).integers(2, VOCABULARY, (n_samples, n_tokens))


def halve_half(weight: Tensor) -> None:
    """A change that a block's outputs show, in the place of pruning."""
    weight.view(-1)[::2] *= 0.5


def observed(
    model: Any, ids: np.ndarray, statistic: Any = squared_norms
) -> tuple[Any, dict[str, Tensor]]:
    """What `observe` finds while every block is changed once it was seen."""
    layers, found = dict(linear_layers(model)), dict[str, Tensor]()

    def visit(sums: dict[str, Tensor]) -> None:
        found.update(sums)
        for name in sums:
            halve_half(layers[name].weight.data)

    return observe(model, ids, layers=layers, statistic=statistic, visit=visit), found


@torch.no_grad()
def naive(
    model: Any, ids: np.ndarray, blocks: str, reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The same by whole passes: for every block, each window alone through the changed model."""
    found: dict[str, Tensor] = {}
    layers = dict(linear_layers(model))
    for number in range(model.config.num_hidden_layers):
        group = {n: m for n, m in layers.items() if n.startswith(f"{blocks}.{number}.")}
        seen: dict[str, list[Tensor]] = {name: [] for name in group}
        handles = [
            module.register_forward_pre_hook(
                lambda _m, args, parts=seen[name]: parts.append(args[0].flatten(0, -2))
            )
            for name, module in group.items()
        ]
        for row in ids:
            model(input_ids=torch.from_numpy(row)[None], use_cache=False)
        for handle in handles:
            handle.remove()
        found.update({name: reduce(torch.cat(parts)) for name, parts in seen.items()})
        for module in group.values():
            halve_half(module.weight.data)
    return found


def by_column(rows: Tensor) -> Tensor:
    return torch.tensor([sum(float(x) ** 2 for x in column) for column in rows.T])


def outer(rows: Tensor) -> Tensor:
    return torch.einsum("ti,tj->ij", rows.double(), rows.double())


def blocks_of(family: str) -> str:
    return BLOCK_PREFIXES.get(family, "model.layers")


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, sums in expected.items():
        error = (found[name].double() - sums.double()).norm() / sums.double().norm()
        assert float(error) < tolerance, name


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_see_what_pruned_blocks_before_them_give(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two windows a batch, so that the last of seven is a batch of its own.
    monkeypatch.setattr(observing, "BATCH_TOKENS", 50)
    family, changes = CATALOGUE[name]
    ids = windows()
    result, found = observed(tiny_model(family, **changes).to(dtype), ids)
    assert result.notes == []
    assert result.unseen == {}
    other = tiny_model(family, **changes).to(dtype)
    expected = naive(other, ids, blocks_of(family), by_column)
    agree(found, expected, 1e-5 if dtype == torch.float32 else 0.03)
    # Blind to pruning, the second block would see something else by far.
    unpruned: dict[str, Tensor] = {}
    again = tiny_model(family, **changes).to(dtype)
    observe(
        again,
        ids,
        layers=dict(linear_layers(again)),
        statistic=squared_norms,
        visit=unpruned.update,
    )
    last = list(expected)[-1]
    assert float((unpruned[last] - expected[last]).norm() / expected[last].norm()) > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_hessians(family: str) -> None:
    ids = windows(3)
    _, found = observed(tiny_model(family), ids, hessian)
    agree(found, naive(tiny_model(family), ids, blocks_of(family), outer), 1e-5)
    assert all(sums.dtype == torch.float32 for sums in found.values())


def test_statistics() -> None:
    rows = torch.randn(700, 5, generator=torch.Generator().manual_seed(0)) * 1e3
    exact = rows.double()
    assert torch.allclose(squared_norms(rows), (exact**2).sum(0), rtol=1e-14)
    assert torch.allclose(hessian(rows).double(), exact.T @ exact, rtol=1e-5, atol=1e2)
    assert hessian(rows.bfloat16()).dtype == torch.float32
    assert squared_norms(rows.bfloat16()).dtype == torch.float64


def test_a_model_is_left_as_it_was() -> None:
    model: Any = tiny_model("gemma3_text")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = windows()
    observe(
        model, ids, layers=dict(linear_layers(model)), statistic=squared_norms, visit=lambda _: None
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks


def test_keys_and_values_that_blocks_share() -> None:
    """Gemma 4: late blocks take keys and values of earlier ones, and layers lie outside blocks."""

    def build() -> Any:
        torch.manual_seed(0)
        settings = {
            **SMALL,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "sliding_window": 16,
        }
        config = AutoConfig.for_model("gemma4_text", **settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    result, found = observed(build(), windows())
    assert result.notes == []
    assert result.unseen == {"model.per_layer_model_projection": OUTSIDE}
    agree(found, naive(build(), windows(), "model.layers", by_column), 1e-5)


# -- models whose blocks cannot be run one by one ------------------------------------------------


def between_blocks(model: Any) -> None:
    """Something is done to the hidden states on their way from block to block."""
    model.model.layers[1].register_forward_pre_hook(lambda _m, args: (args[0] * 2, *args[1:]))


def in_place_between_blocks(model: Any) -> None:
    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].mul_(2)

    model.model.layers[1].register_forward_pre_hook(add)


def by_another_argument(model: Any) -> None:
    """What the second block is given beside the hidden states hangs on the first one's output."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen[:] = [output.mean((1, 2))[:, None, None]]

    def use(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        cos, sin = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (cos * (1 + seen[0]), sin)}

    model.model.layers[0].register_forward_hook(keep)
    model.model.layers[1].register_forward_pre_hook(use, with_kwargs=True)


def twice(model: Any) -> None:
    """The first block is run again after the second."""
    second, first = model.model.layers[1], model.model.layers[0]
    forward = second.forward
    second.forward = lambda *args, **kwargs: first(forward(*args, **kwargs), **kwargs)


@pytest.mark.parametrize(
    "how", [between_blocks, in_place_between_blocks, by_another_argument, twice]
)
def test_a_model_is_run_whole_where_its_blocks_cannot_be_run_alone(
    how: Callable[[Any], None],
) -> None:
    models = [tiny_model("llama") for _ in range(2)]
    for model in models:
        how(model)
    ids = windows(3)
    result, found = observed(models[0], ids)
    assert result.notes == [WHOLE]
    assert result.unseen == {}
    agree(found, naive(models[1], ids, "model.layers", by_column), 1e-5)


def test_a_block_that_writes_into_its_input() -> None:
    def write(model: Any) -> Any:
        block = model.model.layers[1]
        forward = block.forward
        block.forward = lambda hidden, **kwargs: forward(hidden.mul_(1.5), **kwargs)
        return model

    ids = windows(3)
    model = write(tiny_model("llama"))
    own = model.model.layers[1].forward
    result, found = observed(model, ids)
    assert result.notes == []
    assert model.model.layers[1].forward is own
    agree(found, naive(write(tiny_model("llama")), ids, "model.layers", by_column), 1e-5)


def test_a_model_without_a_list_of_blocks() -> None:
    model: Any = tiny_model("llama")
    # The model itself goes on by a configuration of its own.
    model.model.config = copy.deepcopy(model.config)
    model.config.num_hidden_layers = 3
    assert decoder_blocks(model, dict(linear_layers(model))) is None
    calls = []
    layers = dict(linear_layers(model))
    result = observe(
        model,
        windows(3),
        layers=layers,
        statistic=squared_norms,
        visit=lambda s: calls.append(dict(s)),
    )
    assert result.notes == [ONE_PASS]
    assert [set(call) for call in calls] == [set(layers)]


# -- what cannot be seen -------------------------------------------------------------------------


def test_layers_that_see_nothing() -> None:
    model: Any = tiny_model("llama")
    model.model.layers[0].mlp.spare = nn.Linear(64, 64)
    model.model.aside = nn.Linear(64, 64)
    result, found = observed(model, windows(2))
    assert result.unseen == {"model.layers.0.mlp.spare": UNSEEN, "model.aside": OUTSIDE}
    assert len(found) == 14


def test_inputs_that_are_not_finite() -> None:
    model: Any = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data[3] = float("inf")
    with pytest.raises(VariantError, match="must be finite") as caught:
        observed(model, windows(2))
    assert "model.layers.1.self_attn.q_proj" in caught.value.seen


def test_masks_are_kept_once() -> None:
    model: Any = tiny_model("gemma3_text")
    model.set_attn_implementation("eager")
    blocks = list(model.model.layers)
    batches = torch.from_numpy(windows(5, CONTEXT)).split(2)
    replay = replaying.record(model, blocks, batches)
    assert replay is not None
    masks = [[call.kwargs["attention_mask"] for call in calls] for calls in replay.calls]
    assert masks[0][0] is masks[1][0]
    # Sliding and whole attention have masks of their own.
    types = model.config.layer_types
    assert torch.equal(masks[0][0], masks[0][1]) is (types[0] == types[1])


@pytest.mark.parametrize("in_axis", [0, 1])
def test_patterns_are_found_or_not(in_axis: int) -> None:
    weight = torch.ones(6, 8)
    weight[:, [0, 3, 5, 6]] = 0
    turned = weight if in_axis == 1 else weight.T
    assert holds_pattern(turned, in_axis, 2, 4)
    assert holds_pattern(turned, in_axis, 4, 8)
    turned[(5, 6) if in_axis == 1 else (6, 5)] = -1.0
    assert not holds_pattern(turned, in_axis, 2, 4)
    assert not holds_pattern(turned, in_axis, 4, 8)
