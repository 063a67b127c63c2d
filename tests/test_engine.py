"""The engine: batches, padding, heads, memory; against one record at a time and naive logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import BrokenVariantError, ModelError
from auditor.memory import ran_out
from auditor.scoring import engine as engine_module
from auditor.scoring.batches import Budget, cut
from auditor.scoring.encode import Encoded
from auditor.scoring.engine import Engine
from auditor.scoring.head import take_apart
from tests.tiny import CONTEXT, FAMILIES, VOCABULARY, tiny_model

CPU = torch.device("cpu")
COLUMNS = ("logp", "mu", "sigma")


def records(lengths: Sequence[int], *, first: int = 1, seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [Encoded(rng.integers(2, 257, n).tolist(), min(first, n), False, n, n) for n in lengths]


def naive(model: Any, record: Encoded) -> dict[str, np.ndarray]:
    """One record, alone, from the model's whole logits, in float64."""
    ids = torch.tensor([record.ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].double()
    logp = torch.log_softmax(logits, -1)
    p, rows = logp.exp(), slice(record.first - 1, None)
    mu = (p * logp).sum(-1)
    sigma = ((p * (logp - mu[:, None]) ** 2).sum(-1)).sqrt()
    own = logp.gather(1, ids[0, 1:, None])[:, 0]
    hit = logits.argmax(-1) == ids[0, 1:]
    columns = {"logp": own, "mu": mu, "sigma": sigma, "hit": hit}
    return {name: column[rows].numpy() for name, column in columns.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_every_family_padded_or_not(family: str, batch_size: int | str) -> None:
    model = tiny_model(family)
    given_records = records([2, 3, 17, 40, 41, 9, 64, 2, 33])
    scores = Engine(model, CPU, batch_size=batch_size).score(given_records)
    assert scores.n_tokens.tolist() == [len(r.ids) - 1 for r in given_records]
    for row, record in enumerate(given_records):
        span = slice(scores.offsets[row], scores.offsets[row + 1])
        reference = naive(model, record)
        for name in COLUMNS:
            np.testing.assert_allclose(getattr(scores, name)[span], reference[name], atol=1e-4)
        assert np.array_equal(scores.hit[span], reference["hit"])


def test_softcapped_and_scaled_logits_are_known_by_trying_them() -> None:
    assert take_apart(tiny_model("llama"), CPU).head is not None
    gemma = take_apart(tiny_model("gemma2"), CPU).head
    assert gemma is not None
    assert gemma.softcap == 2.0
    cohere = take_apart(tiny_model("cohere"), CPU).head
    assert cohere is not None
    assert cohere.scale == 0.25
    granite = take_apart(tiny_model("granite"), CPU).head
    assert granite is not None
    assert granite.scale == pytest.approx(1 / 3)


class Twisted(torch.nn.Module):
    """A model that does something to its logits that nobody has heard of."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.base_model = inner, inner.config, inner.base_model

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = output.logits + 0.3 * output.logits.sin()
        return output


def test_an_unknown_head_falls_back_to_the_models_own_logits() -> None:
    model = Twisted(tiny_model("llama"))
    assert take_apart(model, CPU).head is None
    given_records = records([5, 30, 12])
    scores = Engine(model, CPU).score(given_records)
    reference = np.concatenate([naive(model, record)["mu"] for record in given_records])
    np.testing.assert_allclose(scores.mu, reference, atol=1e-4)


def test_a_head_that_is_no_plain_linear_layer_is_called() -> None:
    class Packed(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1.0

    model = tiny_model("llama")
    packed = Packed(64, VOCABULARY, bias=False)
    model.lm_head = packed
    head = take_apart(model, CPU).head
    assert head is not None
    assert head.module is packed
    record = records([20])
    np.testing.assert_allclose(
        Engine(model, CPU).score(record).logp, naive(model, record[0])["logp"], atol=1e-4
    )


def test_a_records_scores_do_not_depend_on_its_batch() -> None:
    model = tiny_model("llama")
    wanted = records([21], seed=7)
    alone = Engine(model, CPU).score(wanted)
    company = Engine(model, CPU).score(wanted + records([64] * 5 + [2, 3], seed=3))
    for name in COLUMNS:
        np.testing.assert_allclose(
            getattr(company, name)[:20], getattr(alone, name), rtol=0, atol=1e-5
        )


def test_only_the_completion_is_scored() -> None:
    model = tiny_model("gpt2")
    record = records([30], first=12)
    scores = Engine(model, CPU).score(record)
    assert scores.n_tokens.tolist() == [18]
    np.testing.assert_allclose(scores.logp, naive(model, record[0])["logp"], atol=1e-4)


def test_bfloat16_runs_and_stays_near() -> None:
    model = tiny_model("llama")
    given_records = records([30, 20, 10])
    exact = Engine(model, CPU).score(given_records)
    low = Engine(model.to(torch.bfloat16), CPU).score(given_records)
    assert low.logp.dtype == np.float32
    assert np.abs(low.logp - exact.logp).mean() < 0.1


def test_each_record_goes_through_once() -> None:
    scorer = Engine(tiny_model("llama"), CPU, batch_size=2)
    scorer.score(records([5, 6, 7, 8, 9]))
    assert scorer.counters.n_records == 5
    assert scorer.counters.n_passes == 3
    assert scorer.counters.n_tokens == 35


def test_one_at_a_time() -> None:
    scorer = Engine(tiny_model("llama"), CPU, one_at_a_time=True)
    scorer.score(records([5, 6, 7]))
    assert scorer.counters.n_passes == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_halves_the_batch(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran_out(error)
    real, sizes = engine_module.pad, []

    def small_memory(batch: Sequence[Encoded], pad_id: int, device: torch.device) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise error
        return real(batch, pad_id, device)

    model, given_records = tiny_model("llama"), records([30, 5, 18, 18, 18, 40, 7, 9])
    expected = Engine(model, CPU).score(given_records)
    monkeypatch.setattr(engine_module, "pad", small_memory)
    scorer = Engine(model, CPU)
    found = scorer.score(given_records)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    assert max(sizes) > 2
    sizes.clear()
    scorer.score(records([40] * 8))
    assert max(sizes) <= 2, "what has been learned about memory must be kept"


def test_a_single_record_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> torch.Tensor:
        raise MemoryError

    scorer = Engine(tiny_model("llama"), CPU)
    monkeypatch.setattr(engine_module, "pad", no_memory)
    with pytest.raises(ModelError, match="one record at a time") as caught:
        scorer.score(records([9, 9]))
    assert "--max-length" in str(caught.value)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    scorer = Engine(tiny_model("llama"), CPU)
    monkeypatch.setattr(engine_module, "pad", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        scorer.score(records([9, 9]))


def test_nan_in_the_weights_breaks_the_variant() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(BrokenVariantError, match="finite"):
        Engine(model, CPU).score(records([9, 12]))


@given(
    lengths=st.lists(st.integers(1, CONTEXT), max_size=60),
    tokens=st.integers(1, 500),
    most=st.none() | st.integers(1, 10),
)
def test_batches_hold_every_record_once_within_the_budget(
    lengths: list[int], tokens: int, most: int | None
) -> None:
    lengths.sort(reverse=True)
    batches = cut(lengths, Budget(tokens, most))
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch.start] <= tokens
        assert most is None or len(batch) <= most
