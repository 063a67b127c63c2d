"""The arithmetic of what an audit costs: against counted operations, and as documented."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from auditor.cli import main
from auditor.compress import parse_variant
from auditor.cost import SHARE_GPU, Cost, Shape, Work, amount, cost, duration, factor, speed
from auditor.probe import MOST_S, matrix_rate, shape_of
from tests.tiny import save, tiny_model

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")

shapes = st.builds(
    Shape,
    weights=st.integers(1, 10**12),
    n_layers=st.integers(0, 200),
    width=st.integers(0, 20_000),
)
lengths = st.lists(st.integers(1, 5000), min_size=1, max_size=20)
rates = st.floats(1e6, 1e18)


def work(shape: Shape, tokens: list[int], times: float | None = None) -> Work:
    return Work(sum(tokens), shape.operations(np.array(tokens)), times)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gpt_neox", "mixtral"])
def test_operations_are_those_that_are_counted_while_a_model_runs(family: str) -> None:
    changes = {"experts_implementation": "eager"} if family == "mixtral" else {}
    model = tiny_model(family, attn_implementation="eager", **changes).eval()
    fed = 48
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.arange(fed)[None])
    shape = shape_of(model)
    if family == "mixtral":  # what chooses the experts is a product too, too small to be counted
        shape = shape._replace(weights=shape.weights + 2 * 64 * 4)
    # Run this way, attention computes the half too that its mask takes away.
    masked = 4 * shape.n_layers * shape.width * fed * (fed - 1) / 2
    found = shape.operations(np.array([fed + 1])) + masked
    assert found == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_a_record_of_one_token_costs_nothing() -> None:
    assert Shape(10, 2, 4).operations(np.array([1, 0])) == 0
    assert Shape(10, 2, 4).operations(np.array([2])) == 2 * 10 + 4 * 2 * 4


@given(shapes, lengths, rates, st.floats(0, 1e4), st.integers(1, 4096))
def test_more_of_anything_costs_no_less(
    shape: Shape, tokens: list[int], rate: float, price: float, n_devices: int
) -> None:
    def of(works: list[Work], rate: float, n_devices: float = n_devices) -> Cost:
        reached = speed("cpu", rate, float32=rate)
        return cost(works, reached, n_devices=n_devices, price=price)

    first = work(shape, tokens)
    usual = of([first], rate)
    assert usual.money == pytest.approx(price * usual.seconds / 3600 * n_devices)
    for more in (
        of([first, first], rate),
        of([work(shape, [*tokens, 7])], rate),
        of([work(shape, [one + 1 for one in tokens])], rate),
        of([work(shape._replace(weights=2 * shape.weights), tokens)], rate),
        of([work(shape, tokens, 2.5)], rate),
        of([first], rate / 2),
    ):
        assert more.seconds >= usual.seconds
        assert more.money is not None
        assert usual.money is not None
        assert more.money >= usual.money
    assert of([first], rate, n_devices=n_devices + 1).device_hours >= usual.device_hours


@given(rates, rates)
def test_scoring_is_slower_than_products(product: float, float32: float) -> None:
    for device in ("cpu", "cuda:0"):
        found = speed(device, product, float32=float32)
        assert 0 < found.usual < product
        assert speed(device, 2 * product, float32=float32).usual > found.usual
        assert found.integer < (float32 if device == "cpu" else product)


def test_shares_that_were_measured() -> None:
    """What the benchmarks found: float32, bfloat16 twice as fast, bfloat16 eight times as fast."""
    for faster, least, most in ((1, 0.48, 0.78), (2, 0.38, 0.65), (8, 0.13, 0.22)):
        assert least <= speed("cpu", faster * 1e11, float32=1e11).usual / (faster * 1e11) <= most


def test_variants_that_compute_with_integers_take_longer() -> None:
    told = ["original", "bnb-nf4", "bnb-int8:threshold=0", "int8-dynamic", "bnb-int8"]
    for weights, device in ((1e6, "cpu"), (1e9, "cpu"), (1e9, "cuda:0")):
        found = [factor(parse_variant(name), weights=weights, device=device) for name in told]
        assert found[:2] == [None, None]
        slower = [times for times in found if times is not None]
        assert len(slower) == 3
        assert slower == sorted(slower)
        assert slower[0] >= 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.1, "1 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (9000, "2.5 h"), (864e3, "10.0")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds).startswith(said)


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_amounts_keep_their_order(one: float, other: float) -> None:
    low, high = (float(amount(money).replace(",", "")) for money in sorted((one, other)))
    assert low <= high


def test_the_probe_is_quick_and_finds_a_rate() -> None:
    rates = [matrix_rate("cpu", dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert all(1e8 < rate < 1e14 for rate in rates)
    assert MOST_S <= 0.5  # of which there are two


# -- at the command line --------------------------------------------------------------------------


def plan(capsys: pytest.CaptureFixture[str], monkeypatch: Any, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["audit", *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_a_dry_run_says_what_it_costs(
    subject: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = save(tiny_model("llama", seed=1), tmp_path / "model")
    flags = ["--model", str(model), "--variants", "bnb-int8,prune-wanda:sparsity=0.5"]
    flags += ["--members", subject["members"], "--nonmembers", subject["nonmembers"]]
    flags += ["--calibration", subject["members"], "--allow-calibration-on-members"]
    flags += ["--calibration-samples", "8"]
    said = plan(capsys, monkeypatch, *flags)
    tokens = int(re.search(r"tokens +([\d,]+) counted", said)[1].replace(",", ""))  # type: ignore[index]
    assert f"3 passes, {3 * tokens:,} tokens" in said
    assert "in the model, within a factor of two" in said
    assert "in float32: bnb-int8 4" in said
    assert "making the versions (long: prune-wanda:sparsity=0.5)" in said
    assert "price" not in said

    other = str(save(tiny_model("gpt2", seed=1), tmp_path / "other"))
    said = plan(capsys, monkeypatch, *flags, "--reference", other, "--price-per-hour", "3600000")
    assert "4 passes" in said
    assert "at 3.6e+06 for an hour of a device" in said
    assert "on 1 device)" in said
    assert "the reference's tokens" not in said  # both have the same tokenizer


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--price-per-hour", "-1", "--dry-run"], "must be a number of at least 0"),
        (["--price-per-hour", "nan", "--dry-run"], "must be a number of at least 0"),
        (["--price-per-hour", "2"], "--price-per-hour is for --dry-run"),
    ],
)
def test_a_price_that_is_none(
    more: list[str],
    expected: str,
    subject: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"--{key}={subject[key]}" for key in ("model", "members", "nonmembers")]
    assert main(["audit", *given, *more]) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert "Traceback" not in printed


# -- the document ---------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    part = DOCUMENT.split(f"## {heading}\n")[1].split("\n| ", 1)[1].split("\n\n")[0]
    lines = [line for line in f"| {part}".splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[1:]]


def number(pattern: str) -> float:
    """A figure of the document's text."""
    found = re.search(pattern, DOCUMENT)
    assert found, pattern
    return float(found[1].replace(",", ""))


def test_the_table_of_the_document_is_this_arithmetic() -> None:
    n_records = int(number(r"([\d,]+) records of"))
    n_tokens = int(number(r"records of ([\d,]+) tokens"))
    peak = 1e12 * number(r"([\d,]+) TFLOP/s")
    assert number(r"times (\d+)%") == 100 * SHARE_GPU
    names = re.findall(r"`([^`]+)`", DOCUMENT.split("The versions:")[1].split(".\n")[0])
    specs = [parse_variant(name) for name in names]
    factors = [None, *(factor(one, weights=1e9, device="cuda") for one in specs)]  # the reference
    assert len(factors) == number(r"(\d+) passes")
    reached = speed("cuda", peak, float32=0)
    found = rows("What an audit costs")
    assert [row[0] for row in found] == ["1B", "8B", "70B"]
    for _, weights, layers, width, gpus, hours, gpu_hours, money, hours_of_eight in found:
        shape = Shape(round(float(weights.removesuffix("e9")) * 1e9), int(layers), int(width))
        once = shape.operations(np.full(n_records, n_tokens))
        works = [Work(n_records * n_tokens, once, times) for times in factors]
        expected = cost(
            works, reached, n_devices=int(gpus), price=number(r"at ([\d.]+) for an\s+hour")
        )
        assert hours == f"{expected.seconds / 3600:.2f}"
        assert gpu_hours == f"{expected.device_hours:.2f}"
        assert expected.money is not None
        assert money == f"{expected.money:.2f}"
        # A model that takes several devices is for one process.
        eight = f"{expected.seconds / 3600 / 8:.2f}" if int(gpus) == 1 else "–"
        assert hours_of_eight == eight


def test_the_document_names_what_is_there() -> None:
    for path in re.findall(r"\]\(\.\./([^)#]+)\)", DOCUMENT):
        assert (ROOT / path).exists(), path
    assert not re.search(r"(?<![\w.])/(?:work|tmp|home|root)/", DOCUMENT)
