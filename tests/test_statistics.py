"""Token statistics against the naive form in float32, which holds the whole matrix."""

import pytest
import torch
from torch import Tensor

from auditor.scoring import statistics
from auditor.scoring.statistics import (
    Head,
    TokenStatistics,
    statistics_of_logits,
    token_statistics,
)


def naive(logits: Tensor, targets: Tensor) -> TokenStatistics:
    logp = torch.log_softmax(logits.double(), dim=-1)
    p = logp.exp()
    mu = (p * logp.clamp(min=-1e9)).sum(-1)
    variance = (p * (logp.clamp(min=-1e9) - mu[:, None]) ** 2).sum(-1)
    own = logp.gather(1, targets[:, None])[:, 0]
    return TokenStatistics(own, mu, variance.sqrt(), logits.argmax(-1) == targets)


def case(n: int, h: int, v: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + v)
    hidden = torch.randn(n, h, generator=generator) * scale
    weight = torch.randn(v, h, generator=generator)
    return hidden, weight, torch.randint(0, v, (n,), generator=generator)


def assert_close(ours: TokenStatistics, reference: TokenStatistics, atol: float) -> None:
    for name in ("logp", "mu", "sigma"):
        torch.testing.assert_close(
            getattr(ours, name).double(), getattr(reference, name), rtol=1e-5, atol=atol, msg=name
        )
        assert getattr(ours, name).dtype == torch.float32
    assert torch.equal(ours.hit, reference.hit)


# Neither rows nor columns are multiples of the tiles (512 x 2048) in most of these.
@pytest.mark.parametrize(
    ("n", "h", "v"), [(1, 8, 2), (7, 16, 2048), (513, 8, 2049), (600, 32, 5003)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_against_naive(n: int, h: int, v: int, bias: bool) -> None:
    hidden, weight, targets = case(n, h, v)
    shift = torch.linspace(-3, 3, v) if bias else None
    logits = torch.nn.functional.linear(hidden, weight, shift)
    reference = naive(logits, targets)
    ours = token_statistics(hidden, targets, head=Head(weight, shift))
    assert_close(ours, reference, 2e-4)
    assert_close(statistics_of_logits(logits, targets), reference, 2e-4)


def test_the_maximum_may_stand_in_any_tile() -> None:
    v = 3 * statistics.TILE_CPU[1] + 5
    for place in (0, statistics.TILE_CPU[1], v - 1):
        logits = torch.zeros(1, v)
        logits[0, place] = 50.0
        for target in (place, (place + 1) % v):
            targets = torch.tensor([target])
            assert_close(
                statistics_of_logits(logits.clone(), targets), naive(logits, targets), 1e-5
            )


def test_among_equals_the_first_is_the_hit() -> None:
    v = statistics.TILE_CPU[1] + 10
    logits = torch.zeros(2, v)
    logits[:, [5, v - 1]] = 1.0
    found = statistics_of_logits(logits, torch.tensor([5, v - 1]))
    assert found.hit.tolist() == [True, False]


@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 300.0])
def test_flat_and_sharp_distributions(scale: float) -> None:
    hidden, weight, targets = case(64, 16, 3000, scale)
    ours = token_statistics(hidden, targets, head=Head(weight))
    reference = naive(hidden @ weight.T, targets)
    for name in ("logp", "mu"):
        torch.testing.assert_close(
            getattr(ours, name).double(), getattr(reference, name), rtol=2e-5, atol=2e-4
        )
    # A vanishing variance is floored at 1e-12, and nothing above it is touched.
    floor = torch.where(reference.sigma < 1e-6, torch.full_like(reference.sigma, 1e-6), 0.0)
    expected = torch.maximum(reference.sigma, floor)
    torch.testing.assert_close(ours.sigma.double(), expected, rtol=1e-2, atol=2e-4)


def test_moments_are_weighted_by_probability() -> None:
    """The known trap: an unweighted mean and deviation over the vocabulary."""
    logits = torch.tensor([[4.0, 0.0, -2.0, -8.0]])
    logp = torch.log_softmax(logits, -1)
    found = statistics_of_logits(logits, torch.tensor([0]))
    assert found.mu.item() == pytest.approx((logp.exp() * logp).sum().item(), abs=1e-6)
    assert found.mu.item() != pytest.approx(logp.mean().item(), abs=0.5)
    assert found.sigma.item() != pytest.approx(logp.std().item(), abs=0.5)


def test_masked_vocabulary_entries_weigh_nothing() -> None:
    logits = torch.randn(3, 40)
    masked = torch.cat([logits, torch.full((3, 9), -torch.inf)], dim=1)
    targets = torch.tensor([0, 1, 2])
    assert_close(statistics_of_logits(masked, targets), naive(logits, targets), 1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(bad: float) -> None:
    logits = torch.randn(2, 5000)
    logits[1, 4000] = bad
    found = statistics_of_logits(logits, torch.tensor([1, 2]))
    assert found.logp[0].isfinite()
    assert not (found.logp[1].isfinite() and found.mu[1].isfinite() and found.sigma[1].isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_the_naive_form(dtype: torch.dtype) -> None:
    """The bound is the naive method's own error: logits in `dtype`, then float32."""
    hidden, weight, targets = case(200, 64, 4100, 0.3)
    exact = naive(hidden @ weight.T, targets)
    low_h, low_w = hidden.to(dtype), weight.to(dtype)
    naive_low = naive((low_h @ low_w.T).float(), targets)
    ours = token_statistics(low_h, targets, head=Head(low_w))
    for name in ("logp", "mu", "sigma"):
        reference = getattr(exact, name)
        own_error = (getattr(ours, name).double() - reference).abs().mean()
        naive_error = (getattr(naive_low, name) - reference).abs().mean()
        assert own_error <= 1.05 * naive_error + 1e-5
