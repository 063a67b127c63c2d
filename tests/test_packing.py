"""Records in one row against records alone: with masks, and with attention of variable length."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig
from transformers import AutoModelForCausalLM as CausalLM
from transformers.masking_utils import flash_attention_mask

from auditor.scoring.batches import pad
from auditor.scoring.encode import Encoded
from auditor.scoring.head import take_apart
from auditor.scoring.packing import can_pack, is_variable_length, pack
from auditor.scoring.statistics import TokenStatistics, token_statistics
from tests.test_engine import CPU, naive, records
from tests.tiny import CONTEXT, tiny_model

PACKED = ["llama", "gpt2", "gpt_neox", "mistral", "gemma3_text", "phi3", "mixtral", "cohere"]
LOOP = "in_a_loop"


def loop(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of variable length in plain terms: it sees bounds and no mask, as flash does."""
    assert attention_mask is None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if cu_seq_lens_q is None:
        bounds = [0, query.shape[2]]
    else:
        assert cu_seq_lens_q.dtype == torch.int32
        assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        bounds = cu_seq_lens_q.tolist()
        assert max_length_q == max_length_k == cu_seq_lens_q.diff().max()
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in (query, key, value)), is_causal=True, scale=scaling
        )
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    AttentionInterface.register(LOOP, loop)
    AttentionMaskInterface.register(LOOP, flash_attention_mask)
    yield
    del AttentionInterface._global_mapping[LOOP]
    del AttentionMaskInterface._global_mapping[LOOP]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Models whose attention is masked, and some whose attention is told the bounds."""
    made: dict[str, Any] = {family: tiny_model(family) for family in PACKED}
    for family in ("llama", "gpt2", "gpt_neox"):
        made[f"{family} {LOOP}"] = tiny_model(family)
        made[f"{family} {LOOP}"].set_attn_implementation(LOOP)
    return made


def packed_statistics(model: Any, batch: Sequence[Encoded]) -> TokenStatistics:
    trunk = take_apart(model, CPU)
    assert trunk.body is not None
    assert trunk.head is not None
    row = pack(batch, CPU)
    with torch.inference_mode():
        hidden = trunk.body(
            input_ids=row.ids, position_ids=row.position_ids, use_cache=False, **row.kwargs
        )[0][0]
        return token_statistics(hidden[row.rows], row.targets, head=trunk.head)


def assert_as_alone(model: Any, batch: Sequence[Encoded]) -> None:
    found = packed_statistics(model, batch)
    alone = [naive(model, record) for record in batch]
    for name in ("logp", "mu", "sigma", "hit"):
        wanted = torch.cat([torch.from_numpy(one[name]) for one in alone])
        if name == "hit":
            assert torch.equal(found.hit, wanted)
        else:
            torch.testing.assert_close(getattr(found, name).double(), wanted, rtol=0, atol=1e-4)


# More tokens than the context holds, records longer than a sliding window, and the shortest.
LENGTHS = [CONTEXT, 2, 40, 3, 2, 33, CONTEXT, 9]


@pytest.mark.parametrize("name", [*PACKED, *(f"{x} {LOOP}" for x in ("llama", "gpt2", "gpt_neox"))])
def test_a_row_of_records_gives_what_each_gives_alone(name: str, models: dict[str, Any]) -> None:
    model = models[name]
    assert can_pack(model, model.base_model, CPU)
    assert_as_alone(model, records(LENGTHS))
    assert_as_alone(model, [*records([30, 12], first=7, seed=1), *records([5])])
    assert_as_alone(model, records([17]))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, CONTEXT), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_records(lengths: list[int], seed: int) -> None:
    assert_as_alone(tiny_model("gpt2", n_layer=1), records(lengths, seed=seed))


@given(
    st.lists(
        st.tuples(st.integers(2, 30), st.integers(1, 29)).filter(lambda pair: pair[1] < pair[0]),
        min_size=1,
        max_size=8,
    )
)
def test_a_row_holds_what_padded_rows_hold(shapes: list[tuple[int, int]]) -> None:
    batch = [records([n], first=first, seed=n + first)[0] for n, first in shapes]
    row = pack(batch, CPU)
    grid = pad(batch, 0, CPU)
    assert row.ids.shape == row.position_ids.shape == (1, sum(n - 1 for n, _ in shapes))
    assert row.kwargs["max_length_q"] == grid.shape[1]
    for record, line, (start, end) in zip(
        batch, grid, pairwise(row.kwargs["cu_seq_lens_q"].tolist()), strict=True
    ):
        assert torch.equal(row.ids[0, start:end], line[: len(record.ids) - 1])
        assert row.position_ids[0, start:end].tolist() == list(range(end - start))
    # A row that is scored comes right before its target, in the record that the target is of.
    whole = [token for record in batch for token in record.ids[record.first :]]
    assert row.targets.tolist() == whole
    first_rows = row.rows[torch.tensor([0, *(n - k for n, k in shapes)]).cumsum(0)[:-1]]
    starts = row.kwargs["cu_seq_lens_q"][:-1]
    assert (first_rows - starts).tolist() == [first - 1 for _, first in shapes]


def test_half_precision_is_told_from_a_leak() -> None:
    for family in ("llama", "gpt2", "gpt_neox"):
        model = tiny_model(family).to(torch.bfloat16)
        assert can_pack(model, model.base_model, CPU)


REFUSED: dict[str, dict[str, Any]] = {
    # state goes on from record to record
    "mamba": {"state_size": 4},
    "lfm2": {"intermediate_size": 64, "num_key_value_heads": 2, "full_attn_idxs": [1]},
    # positions are counted by the model
    "bloom": {"n_layer": 2, "n_head": 4},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_mixes_records_is_refused(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **{**shape, **REFUSED[family]})
    model = CausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.to(dtype)
    assert not can_pack(model, model.base_model, CPU)


def test_attention_that_misses_the_bounds_is_refused() -> None:
    def deaf(
        *args: Any, cu_seq_lens_q: Any = None, cu_seq_lens_k: Any = None, **kwargs: Any
    ) -> Any:
        return loop(*args, **kwargs)

    AttentionInterface.register("deaf", deaf)
    AttentionMaskInterface.register("deaf", flash_attention_mask)
    try:
        for family in ("llama", "gpt2", "gpt_neox"):
            model = tiny_model(family)
            model.set_attn_implementation("deaf")
            assert not can_pack(model, model.base_model, CPU)
    finally:
        del AttentionInterface._global_mapping["deaf"]
        del AttentionMaskInterface._global_mapping["deaf"]


class NoPositions(torch.nn.Module):
    """A body that knows nothing but tokens."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_a_body_without_position_ids_is_refused() -> None:
    model = tiny_model("llama")
    assert not can_pack(model, NoPositions(model.base_model), CPU)


def test_only_attention_of_variable_length_is_worth_a_row() -> None:
    model = tiny_model("llama")
    for chosen in ("sdpa", "eager"):
        model.set_attn_implementation(chosen)
        assert not is_variable_length(model)
    for chosen in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
        model.config._attn_implementation = chosen  # not installed here, so only named
        assert is_variable_length(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_flash_attention_on_a_gpu(family: str) -> None:
    pytest.importorskip("flash_attn", reason="needs flash-attn")
    device = torch.device("cuda")
    model: Any = tiny_model(family).to(device, torch.bfloat16)
    batch = records([40, 33, 9, 2])
    expected = [naive(model.float().to(CPU), record) for record in batch]
    model = model.to(device, torch.bfloat16)
    model.set_attn_implementation("flash_attention_2")
    assert is_variable_length(model)
    assert can_pack(model, model.base_model, device)
    row = pack(batch, device)
    trunk = take_apart(model, device)
    assert trunk.body is not None
    assert trunk.head is not None
    with torch.inference_mode():
        hidden = trunk.body(
            input_ids=row.ids, position_ids=row.position_ids, use_cache=False, **row.kwargs
        )[0][0]
        found = token_statistics(hidden[row.rows], row.targets, head=trunk.head)
    wanted = torch.cat([torch.from_numpy(one["logp"]) for one in expected])
    assert (found.logp.cpu().double() - wanted).abs().mean() < 0.05
