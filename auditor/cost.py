"""What an audit costs: from records and a model's shape to operations, hours and money.

    operations = sum over versions: 2 x weights x tokens + attention
    hours      = operations x factor of the version / what scoring reaches of a product's rate
    money      = hours x devices x price of one device for an hour

Arithmetic alone: nothing here opens a model, a file or a device. It tells minutes from hours, and
is meant to hold within a factor of two (docs/scale.md shows it beside real runs).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.compress import VariantSpec
from auditor.compress.options import Int8Options
from auditor.errors import ConfigError

# On a CPU, what is no matrix product (norms, softmax, the exponentials of the vocabulary) takes
# this part of the time that the products would take in float32, whatever dtype they are in.
# Measured: scoring reaches 0.48 to 0.78 of a product's rate in float32, 0.38 to 0.65 in bfloat16 on
# a processor twice as fast in it, 0.13 to 0.22 on one that is seven to eight times as fast (AMX).
REST_CPU = 0.6
# Of a GPU's product: assumed, not measured.
SHARE_GPU = 0.4
# A model with fewer weights than this is small: the steps around its products weigh as much.
SMALL = 50e6


class Slower(NamedTuple):
    """How many times as long a version takes that computes with integers.

    On a CPU as the original in float32: in 16 bits it is no faster. Measured with 5.5M and 124M
    parameters (benchmarks/estimate.py). On a GPU as the original in its dtype: assumed.
    """

    small: float
    large: float
    gpu: float


LLM_INT8_ALONE = Slower(4.0, 1.2, 3.0)  # with outliers: scored one record at a time
LLM_INT8 = Slower(1.6, 1.0, 1.5)
DYNAMIC = Slower(3.4, 1.0, 1.5)


class Shape(NamedTuple):
    """What of a model a token's cost depends on.

    Attributes:
        weights: Weights that a token is multiplied with, the output head's among them and the input
            embedding's not; of experts those that are chosen.
        n_layers: Layers with attention.
        width: Width of a layer's attention: heads times the size of one.
    """

    weights: int
    n_layers: int
    width: int

    def operations(self, lengths: npt.NDArray[np.integer]) -> float:
        """Floating-point operations of one pass, a multiplication and an addition counted as two.

        Args:
            lengths: Tokens of each record; the last of a record predicts nothing and is not fed.
        """
        fed = np.maximum(np.asarray(lengths, dtype=np.float64) - 1, 0)
        # Scores and their product with the values: position t sees t others, itself among them.
        seen = (fed * (fed + 1) / 2).sum()
        return float(2 * self.weights * fed.sum() + 4 * self.n_layers * self.width * seen)


class Work(NamedTuple):
    """One version's pass over all records.

    Attributes:
        tokens: Tokens of all records, as its tokenizer cuts them.
        operations: Floating-point operations, counted as `Shape.operations` does.
        factor: See the function `factor`.
    """

    tokens: int
    operations: float
    factor: float | None = None


class Cost(NamedTuple):
    """What the passes of an audit cost.

    Attributes:
        passes: How many there are.
        tokens: Tokens that are scored by all of them.
        operations: Floating-point operations of all of them.
        seconds: On the clock.
        device_hours: Hours times devices.
        money: In the unit of the price, or None without one.
    """

    passes: int
    tokens: int
    operations: float
    seconds: float
    device_hours: float
    money: float | None


class Speed(NamedTuple):
    """Operations per second that scoring reaches, of all processes together.

    Attributes:
        usual: Where weights are multiplied in the audit's dtype.
        integer: Where a version computes with integers, before its factor.
    """

    usual: float
    integer: float


def speed(device: str, product: float, *, float32: float) -> Speed:
    """What scoring reaches, from the rates of a matrix product.

    Args:
        device: "cpu", or a GPU.
        product: Operations per second of a product in the audit's dtype.
        float32: The same in float32; of a GPU it is not asked for.
    """
    if device != "cpu":
        return Speed(SHARE_GPU * product, SHARE_GPU * product)
    return Speed(1 / (1 / product + REST_CPU / float32), float32 / (1 + REST_CPU))


def factor(spec: VariantSpec, *, weights: float, device: str) -> float | None:
    """How much longer a version takes that computes with integers; None for all others.

    Args:
        spec: The variant.
        weights: As in `Shape`.
        device: "cpu", or a GPU.
    """
    if spec.over is not None:
        return factor(spec.over, weights=weights, device=device)
    if isinstance(spec.options, Int8Options):
        found = LLM_INT8_ALONE if spec.options.threshold > 0 else LLM_INT8
    elif spec.id == "int8-dynamic":
        found = DYNAMIC
    else:
        return None
    if device != "cpu":
        return found.gpu
    return found.small if weights < SMALL else found.large


def price_of(given: float | None) -> float | None:
    """The price of a device for an hour, checked.

    Raises:
        ConfigError: It is no price.
    """
    if given is not None and not 0 <= given < float("inf"):
        raise ConfigError(
            "--price-per-hour must be a number of at least 0",
            seen=f"{given}",
            fix="give what one device costs for an hour, in any currency: 2.5",
        )
    return given


def cost(
    works: Iterable[Work], speed: Speed, *, n_devices: float, price: float | None = None
) -> Cost:
    """Add up the passes of an audit.

    Args:
        works: One for each version.
        speed: Of all processes together.
        n_devices: Devices that are held meanwhile, and paid for.
        price: Of one device for an hour.
    """
    found = list(works)
    seconds = sum(
        one.operations / speed.usual
        if one.factor is None
        else one.operations * one.factor / speed.integer
        for one in found
    )
    device_hours = seconds / 3600 * n_devices
    return Cost(
        passes=len(found),
        tokens=sum(one.tokens for one in found),
        operations=sum(one.operations for one in found),
        seconds=seconds,
        device_hours=device_hours,
        money=None if price is None else price * device_hours,
    )


# -- in words -------------------------------------------------------------------------------------

_STEPS = (("s", 1.0, 90.0), ("min", 60.0, 5400.0), ("h", 3600.0, 72 * 3600.0))
_PREFIXES: Mapping[str, float] = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6}


def duration(seconds: float) -> str:
    """A time that is only about right."""
    for unit, size, most in _STEPS:
        if seconds < most:
            return f"{max(1.0, seconds / size):{'.1f' if unit == 'h' else '.0f'}} {unit}"
    return f"{seconds / 86400:,.1f} days"


def with_prefix(value: float, unit: str) -> str:
    """Three digits and a prefix: `1.23 TFLOP`."""
    for prefix, size in _PREFIXES.items():
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def amount(money: float) -> str:
    """A price that is only about right."""
    return f"{money:,.0f}" if money >= 100 else f"{money:.2g}"
