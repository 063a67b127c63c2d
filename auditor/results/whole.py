"""Whether the parts of an `audit.json` fit each other, as a schema cannot say.

Reports and cards are functions of a result, and believe it: that there is an original, that rates
are rates, that a figure which is named is there. A file that was edited, or mixed from two, is
refused where it is read instead of somewhere inside a table.
"""

import math
from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from auditor.results.audit import AuditResult, BlindBaseline
from auditor.results.figures import AttackResult, Comparison, Estimate
from auditor.results.leakage import Bound, LeakageComparison, Part, Release, Releases

AUC, TPR = "auc", "tpr@"
# An AUC, a TPR or a difference of two, with room for an interval's ends.
LARGEST_FIGURE = 10.0
# Counts and bytes; what is larger cannot be divided.
LARGEST_COUNT = 2**63


def fault(result: AuditResult) -> str | None:
    """The first thing that does not fit, in words; None where all does."""
    return next(_faults(result), None)


def _faults(result: AuditResult) -> Iterator[str]:
    if not result.variants:
        yield "no version of the model"
    for what in ("variant", "canonical"):
        names = [getattr(one, what) for one in result.variants]
        if len(set(names)) < len(names):
            yield f"a version twice: {max(names, key=names.count)}"
    if not 0.5 < result.confidence < 1:
        yield f"a confidence of {result.confidence}"
    parts = list(_parts(result))
    for part in parts:
        yield from _faults_of(part)
    # Tables have a column for each rate.
    rates = [list(part.tpr_at_fpr) for part in parts if isinstance(part, AttackResult | Release)]
    if any(set(found) != set(rates[0]) for found in rates[1:]):
        yield "figures at other false positive rates than the first"


def _faults_of(part: BaseModel) -> Iterator[str]:
    for name, value in part:
        if isinstance(value, int) and abs(value) >= LARGEST_COUNT:
            yield f"{name} beyond 64 bits"
        elif name == "versions" and value == []:
            yield "a figure of no version"
    if isinstance(part, Estimate):
        ends = (part.value, part.low, part.high)
        if any(end is not None and not abs(end) <= LARGEST_FIGURE for end in ends):
            yield f"a figure of {part.value} [{part.low}, {part.high}]"
    elif isinstance(part, AttackResult | BlindBaseline | Release | Part):
        yield from (f"a false positive rate of {rate!r}" for rate in _no_rates(part.tpr_at_fpr))
    elif isinstance(part, Comparison | LeakageComparison | Bound | Releases):
        if not is_metric(part.metric):
            yield f"a metric {part.metric!r}"
        elif isinstance(part, Releases):
            yield from _faults_of_releases(part)


def _faults_of_releases(part: Releases) -> Iterator[str]:
    """Every set has the figure that it is ranked and judged by."""
    metrics = {part.metric, part.bound.metric} if part.bound is not None else {part.metric}
    rates = [metric.removeprefix(TPR) for metric in metrics if metric != AUC]
    sets: list[Release | Part] = [*part.sets, *part.parts]
    sets += [part.gate] if part.gate is not None else []
    for held in sets:
        if missing := [rate for rate in rates if rate not in held.tpr_at_fpr]:
            yield f"a set of versions without its TPR at {missing[0]}"


def is_metric(text: str) -> bool:
    """Whether this is `auc`, or `tpr@` with a rate."""
    return text == AUC or (text.startswith(TPR) and not _no_rates([text.removeprefix(TPR)]))


def _no_rates(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if not _is_rate(text)]


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < 1 and text.isascii() and text.isprintable()
    except ValueError:
        return False


def _parts(value: object) -> Iterator[BaseModel]:
    """A result and all results within it."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _parts(item)


def finite(text: str) -> float:
    """A number of JSON.

    Raises:
        ValueError: It is larger than a float can be, or a word that JSON does not know.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number that is none: {text[:40]}")
    return number
