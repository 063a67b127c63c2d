"""Figures as text: a value with its interval, a p-value, to the digits that they justify."""

import math
from typing import NamedTuple

from auditor.results import AuditResult, Estimate
from auditor.stats.figures import rate_name

ABSENT = "–"


class Shown(NamedTuple):
    """A figure as text.

    Attributes:
        value: The figure, or a dash where it is absent.
        interval: Its interval in brackets; empty where it has none.
    """

    value: str
    interval: str


def interval(found: Estimate | None, *, percent: bool = False, signed: bool = False) -> str:
    """A figure with its interval: `0.724 [0.708, 0.740]`, or a dash where it is absent."""
    if found is None or found.value is None:
        return ABSENT
    sign = "+" if signed else ""
    factor, digits = (100, 1) if percent else (1, 3)
    texts = [
        format((x or 0.0) * factor, f"{sign}.{digits}f")
        for x in (found.value, found.low, found.high)
    ]
    # Nothing is not a little more, or less, than nothing.
    value, low, high = (text if float(text) else text.lstrip("+-") for text in texts)
    return f"{value} [{low}, {high}]"


def justified(found: Estimate | None, *, percent: bool = False, signed: bool = False) -> Shown:
    """A figure to two digits of its interval's half width, no more than a reader can use.

    `interval` has the same digits for every figure, as columns of a terminal need; here
    a difference of 0.0004 is not written as 0.000, nor is a figure that is known to 0.1 as 0.492.

    Args:
        found: The figure.
        percent: Whether it is a share, to be shown as a percentage.
        signed: Whether it is a difference: with its sign, and with more digits where they are
            known.
    """
    if found is None or found.value is None:
        return Shown(ABSENT, "")
    digits = _digits(found, percent=percent, signed=signed)
    factor = 100 if percent else 1
    value, *ends = (
        None if x is None else _number(x * factor, digits, signed=signed)
        for x in (found.value, found.low, found.high)
    )
    low, high = ends
    return Shown(value or ABSENT, f"[{low}, {high}]" if low and high else "")


def p_value(value: float | None) -> str:
    """A p-value to the digits that it justifies."""
    if value is None:
        return ABSENT
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _digits(found: Estimate, *, percent: bool, signed: bool) -> int:
    """Decimal places; of a percentage two fewer."""
    least, most = (2, 5) if signed else (2, 3)
    half = ((found.high or 0.0) - (found.low or 0.0)) / 2
    if not signed:
        # Columns of figures are read downwards: a digit is dropped only where it says nothing.
        half /= 1.5
    places = 1 - math.floor(math.log10(half)) if half > 0 else 3
    return min(max(places, least), most) - (2 if percent else 0)


def _number(value: float, digits: int, *, signed: bool) -> str:
    """With a true minus, and zero without a sign."""
    text = format(value, f".{digits}f")
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "−") if value < 0 else f"{'+' if signed else ''}{text}"


def headline_rate(result: AuditResult) -> str | None:
    """The false positive rate shown in the table: 1%, or the lowest that the counts allow."""
    original = result.variants[0].attacks.get(result.primary_attack)
    if original is None:
        return None
    present = [rate for rate, found in original.tpr_at_fpr.items() if found.value is not None]
    wanted = rate_name(0.01)
    return wanted if wanted in present else next(iter(present), None)


def is_finding(p_adjusted: float | None, confidence: float) -> bool:
    """Whether a corrected p-value is a finding at this confidence."""
    return p_adjusted is not None and p_adjusted < 1 - confidence
