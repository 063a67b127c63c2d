"""Figures as text: a value with its interval, a p-value."""

from auditor.results import Estimate


def interval(found: Estimate | None, *, percent: bool = False, signed: bool = False) -> str:
    """A figure with its interval: `0.724 [0.708, 0.740]`, or a dash where it is absent."""
    if found is None or found.value is None:
        return "–"
    sign = "+" if signed else ""
    factor, digits = (100, 1) if percent else (1, 3)
    value, low, high = (
        format((x or 0.0) * factor, f"{sign}.{digits}f")
        for x in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


def p_value(value: float | None) -> str:
    """A p-value to the digits that it justifies."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
