"""The kernel against naive float64: on a CUDA device for real, else interpreted on the CPU.

Not collected by itself: Triton decides at import whether it interprets, so that `test_kernels.py`
runs this file in a process of its own.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from auditor.scoring import kernels
from auditor.scoring.kernels import TILES, applies, fused_statistics, is_available
from auditor.scoring.statistics import Head, TokenStatistics, token_statistics
from auditor.scoring.triton_sums import IS_INTERPRETED
from tests.test_statistics import naive

DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [*HALVES, torch.float32]
FORMS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "cap": {"softcap": 5.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 30.0},
}
pytestmark = [  # NumPy's, where it interprets
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|All-NaN slice) encountered:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def few_shares(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three shares of the vocabulary, so that a share has several tiles where V is small."""
    monkeypatch.setattr(kernels, "PROGRAMS", 1)
    monkeypatch.setattr(kernels, "SPLITS", 3)
    return


def case(
    n: int, h: int, v: int, dtype: torch.dtype, *, is_exact: bool = False, **form: object
) -> tuple[Tensor, Tensor, Head]:
    """Hidden states, targets and a head; exact ones have products that no order of sums changes."""
    generator = torch.Generator().manual_seed(n * 1000 + v)

    def draw(*shape: int) -> Tensor:
        if is_exact:
            return torch.randint(-8, 9, shape, generator=generator) / 8
        return torch.randn(shape, generator=generator)

    hidden, weight, bias = (x.to(DEVICE, dtype) for x in (draw(n, h), draw(v, h), draw(v)))
    targets = torch.randint(0, v, (n,), generator=generator).to(DEVICE)
    has_bias = form.pop("bias", False)
    return hidden, targets, Head(weight, bias if has_bias else None, **form)  # type: ignore[arg-type]


def whole(hidden: Tensor, head: Head) -> Tensor:
    return head.logits(hidden, slice(0, len(head.weight)))


def errors(ours: TokenStatistics, reference: TokenStatistics) -> list[float]:
    for column in ours[:3]:
        assert column.dtype == torch.float32
    return [
        (getattr(ours, name).double() - getattr(reference, name).double()).abs().max().item()
        for name in ("logp", "mu", "sigma")
    ]


def in_float32(logits: Tensor, targets: Tensor) -> TokenStatistics:
    """The naive form, which holds the matrix, in single precision."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    mu = (logp.exp() * logp).sum(-1)
    sigma = (logp.exp() * (logp - mu[:, None]) ** 2).sum(-1).sqrt()
    return TokenStatistics(
        logp.gather(1, targets[:, None])[:, 0], mu, sigma, logits.argmax(-1) == targets
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_logits_give_what_the_naive_form_gives(dtype: torch.dtype, form: str) -> None:
    # Logits are exact until they are rounded to the dtype: no path may have others.
    hidden, targets, head = case(6, 72, 700, dtype, is_exact=True, **FORMS[form])
    logits = whole(hidden, head)
    reference = naive(logits.float(), targets)
    ours = fused_statistics(hidden, targets, head=head)
    for error, bound in zip(
        errors(ours, reference), errors(in_float32(logits, targets), reference), strict=True
    ):
        assert error < 2 * bound + 3e-6
    assert torch.equal(ours.hit, reference.hit)
    tiled = token_statistics(hidden, targets, head=head)
    assert max(errors(ours, tiled)) < 1e-5


@pytest.mark.parametrize(
    ("n", "h", "v"), [(1, 8, 2), (5, 40, 129), (130, 16, 128), (3, 200, 700), (70, 64, 257)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_size_need_be_a_multiple(dtype: torch.dtype, n: int, h: int, v: int) -> None:
    hidden, targets, head = case(n, h, v, dtype, bias=n % 2 == 1)
    exact = Head(head.weight.double(), None if head.bias is None else head.bias.double())
    reference = naive(whole(hidden.double(), exact).double(), targets)
    ours = fused_statistics(hidden, targets, head=head)
    bounds = errors(in_float32(whole(hidden, head), targets), reference)
    # A logit beside the middle of two numbers of the dtype may be rounded to either.
    slack = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 5e-6}[dtype]
    for error, bound in zip(errors(ours, reference), bounds, strict=True):
        assert error < 2 * bound + slack


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_number_of_shares_gives_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, targets, head = case(3, 16, 600, dtype)
    found = []
    for programs in (1, 2, 1024):
        monkeypatch.setattr(kernels, "SPLITS", 1)
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        found.append(fused_statistics(hidden, targets, head=head))
    for other in found[1:]:
        assert max(errors(other, found[0])) < 5e-6
        assert torch.equal(other.hit, found[0].hit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_row_is_its_own(dtype: torch.dtype) -> None:
    # More tiles of rows than stand in a group, and the last group is not full.
    n = (kernels.GROUP + 2) * TILES[dtype].rows + 3
    hidden, targets, head = case(n, 16, 2 * TILES[dtype].columns + 1, dtype, is_exact=True)
    ours = fused_statistics(hidden, targets, head=head)
    reference = naive(whole(hidden, head), targets)
    assert max(errors(ours, reference)) < 2e-5
    assert torch.equal(ours.hit, reference.hit)
    few = torch.tensor([0, n // 2, n - 1], device=DEVICE)
    alone = fused_statistics(hidden[few], targets[few], head=head)
    assert max(errors(alone, TokenStatistics(*(x[few] for x in ours)))) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_at_the_edges_of_tiles_and_shares(dtype: torch.dtype) -> None:
    columns = TILES[dtype].columns
    v = 7 * columns + 5
    edges = [k * columns + d for k in range(1, 8) for d in (-1, 0)] + [0, v - 1]
    targets = torch.tensor(edges, device=DEVICE)
    # Logits grow with the column, so that a neighbour in the place of the target would be seen.
    head = Head((torch.arange(v, device=DEVICE)[:, None] % 97 / 8).to(dtype))
    hidden = torch.ones(len(edges), 1, dtype=dtype, device=DEVICE)
    ours = fused_statistics(hidden, targets, head=head)
    assert max(errors(ours, naive(whole(hidden, head), targets))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_first_of_equal_maxima_is_the_one(dtype: torch.dtype) -> None:
    columns = TILES[dtype].columns
    v = 7 * columns + 5
    pairs = [
        (first, second)
        for first in (0, 1, columns - 1, columns, 4 * columns + 3, v - 1)
        for second in (first, first + 1, first + columns, v - 1)
        if second < v
    ]
    weight = torch.zeros(v, len(pairs))
    for number, pair in enumerate(pairs):
        weight[list(pair), number] = 2.0
    head = Head(weight.to(DEVICE, dtype))
    hidden = torch.eye(len(pairs), dtype=dtype, device=DEVICE)
    for asked in (0, 1):
        targets = torch.tensor([pair[asked] for pair in pairs], device=DEVICE)
        ours = fused_statistics(hidden, targets, head=head)
        assert ours.hit.tolist() == [pair[asked] == pair[0] for pair in pairs]
    before = torch.tensor([(first - 1) % v for first, _ in pairs], device=DEVICE)
    assert not fused_statistics(hidden, before, head=head).hit[:-1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype: torch.dtype) -> None:
    v = 4 * TILES[dtype].columns + 1
    weight = torch.linspace(-1, 1, v)[:, None] * 1e4
    for order in (weight, weight.flip(0), weight.roll(v // 2, 0)):
        head = Head(order.to(DEVICE, dtype))
        hidden = torch.tensor([[1.0], [-1.0], [0.0]], device=DEVICE, dtype=dtype)
        targets = torch.tensor([0, v // 2, v - 1], device=DEVICE)
        ours = fused_statistics(hidden, targets, head=head)
        reference = naive(whole(hidden, head), targets)
        for name in ("logp", "mu", "sigma"):
            got, wanted = getattr(ours, name).double(), getattr(reference, name)
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=2e-5, msg=name)
        assert torch.equal(ours.hit, reference.hit)


def test_a_vanishing_variance_is_floored_and_a_small_one_is_not() -> None:
    v = 300
    weight = torch.zeros(v, 2)
    weight[200, 0] = 25.0  # a sharp distribution
    weight[200, 1] = 1e4  # one without any doubt
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    targets = torch.tensor([200, 200, 0], device=DEVICE)
    head = Head(weight.to(DEVICE))
    ours = fused_statistics(hidden.to(DEVICE), targets, head=head)
    reference = naive(whole(hidden.to(DEVICE), head), targets)
    assert ours.sigma[0].item() == pytest.approx(reference.sigma[0].item(), rel=1e-5)
    assert 1e-6 < ours.sigma[0].item() < 1e-2
    assert ours.sigma[1:].tolist() == pytest.approx([1e-6, 1e-6])
    assert ours.logp[1:].tolist() == pytest.approx([0.0, -math.log(v)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_visible(dtype: torch.dtype) -> None:
    hidden, targets, head = case(4, 24, 700, dtype)
    clean = fused_statistics(hidden, targets, head=head)
    hidden[2, 5] = math.nan
    ours = fused_statistics(hidden, targets, head=head)
    for column, before in zip(ours[:3], clean[:3], strict=True):
        assert column.isnan().tolist() == [False, False, True, False]
        assert torch.equal(column[[0, 1, 3]], before[[0, 1, 3]])
    assert not ours.hit[2]
    for value in (math.nan, math.inf):
        for place in (0, 699):
            broken = head.weight.clone()
            broken[place, 3] = value
            best = whole(hidden[:2], head).argmax(dim=1)
            assert fused_statistics(hidden[:2], best, head=head).hit.all()
            ours = fused_statistics(hidden[:2], best, head=Head(broken))
            assert not torch.stack(ours[:3]).isfinite().all(dim=0).any()
            assert not ours.hit.any()


def test_an_overflow_of_the_dtype_stays_visible() -> None:
    hidden = torch.full((1, 2), 256.0, dtype=torch.float16, device=DEVICE)
    head = Head(torch.full((200, 2), 200.0, dtype=torch.float16, device=DEVICE))
    target = torch.tensor([3], device=DEVICE)
    assert whole(hidden, head).isinf().all()
    assert fused_statistics(hidden, target, head=head).mu.isnan().all()
    # The same product in float32 is finite, and so are its statistics.
    wide = fused_statistics(hidden.float(), target, head=Head(head.weight.float()))
    assert wide.logp.item() == pytest.approx(-math.log(200))


def test_strides_of_views_are_kept() -> None:
    hidden, targets, head = case(5, 48, 300, torch.bfloat16)
    wanted = fused_statistics(hidden, targets, head=head)
    columns = hidden.T.contiguous().T
    every_other = torch.stack([hidden, -hidden], dim=1).flatten(0, 1)[::2]
    transposed = Head(head.weight.T.contiguous().T)
    for view in (columns, every_other):
        assert view.stride() != hidden.stride()
        ours = fused_statistics(view, targets, head=transposed)
        assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_no_rows() -> None:
    _, targets, head = case(1, 8, 20, torch.float32)
    none = fused_statistics(torch.zeros(0, 8, device=DEVICE), targets[:0], head=head)
    assert [len(column) for column in none] == [0, 0, 0, 0]
    assert none.hit.dtype == torch.bool


def test_a_device_where_it_fails_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_to_work = kernels._works.__wrapped__
    assert seen_to_work(DEVICE)
    # No power of two, which Triton refuses.
    monkeypatch.setitem(kernels.TILES, torch.bfloat16, TILES[torch.float32]._replace(rows=100))
    with pytest.warns(UserWarning, match="scoring without the GPU kernel, which did not run"):
        assert not seen_to_work(DEVICE)


def test_what_the_kernel_does_not_take() -> None:
    hidden, targets, head = case(2, 8, 20, torch.float32)
    assert is_available(DEVICE)
    assert applies(hidden, head=head)
    refused = {
        "a head that is a module": (hidden, Head(head.weight, module=torch.nn.Linear(8, 20))),
        "a dtype beside the three": (hidden.double(), Head(head.weight.double())),
        "two dtypes": (hidden.bfloat16(), head),
    }
    for what, (states, other) in refused.items():
        assert not applies(states, head=other), what
        with pytest.raises(ValueError, match="no kernel for"):
            fused_statistics(states, targets, head=other)
