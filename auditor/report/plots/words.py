"""What figures say of a number, and the names of their files."""

import re

from auditor.results import Estimate

SLUG = 40


def percent(value: float) -> str:
    """A TPR in percent, with one digit behind the point."""
    return f"{100 * value:.1f}%"


def rate_in_percent(fpr: float) -> str:
    """A false positive rate in percent: two digits that count."""
    return f"{100 * fpr:.2g}%" if fpr < 1 else "100%"


def by_rate(rate: str) -> str:
    """A false positive rate by its key in results: "0.01" as "1% FPR"."""
    return f"{100 * float(rate):g}% FPR"


def estimate_at(found: Estimate) -> str:
    """A TPR with its interval: "43.7% [33.8%, 55.6%]"."""
    value, low, high = (percent(x or 0.0) for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def sides(n_members: int, n_nonmembers: int) -> str:
    """The counts behind a figure."""
    return f"{n_members:,} members, {n_nonmembers:,} nonmembers"


def slug(name: str) -> str:
    """A name as a part of a file name: lower-case letters, digits, hyphens and points."""
    kept = re.sub(r"[^a-z0-9.]+", "-", name.lower().encode("ascii", "ignore").decode())
    return kept[:SLUG].strip("-.") or "version"
