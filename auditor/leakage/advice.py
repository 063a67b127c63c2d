"""The advice on what to publish: one sentence, never stronger than the tests allow."""

from collections.abc import Sequence

from auditor.leakage.bounds import (
    AUC,
    bound_in_words,
    estimate_in_words,
    figure_in_words,
    metric_in_words,
)
from auditor.leakage.sets import Figures, Sets, Versions
from auditor.results import Bound, Estimate, Release
from auditor.stats.paired import holm

# How the advice begins where all versions together are not shown to give away more.
NO_DIFFERENCE = "No difference is shown"


def advise(
    sets: Sets,
    names: Versions,
    releases: Sequence[Release],
    *,
    metric: str,
    bound: Bound | None,
) -> str:
    """What to publish, in a sentence.

    With a bound: the set of best utility that is shown to keep it. Without: whether all versions
    together are shown to give away more than the original alone, and if so, which of them to
    leave out.

    Args:
        sets: The attackers.
        names: All versions, the original first.
        releases: The sets that were judged, best utility first.
        metric: What sets are ranked by.
        bound: What was allowed at most.
    """
    if bound is not None:
        return _within(bound, releases, names)
    if len(names) == 1:
        return f"There is only one version, {names[0]}, and so there is nothing to choose from."
    test = sets.compare(names, names[:1], metric)
    both = _against(sets, names, names[:1], metric)
    if not _is_shown(test.p_value, sets):
        more = f"{NO_DIFFERENCE} between publishing {all_of(names)} and the original alone"
        return f"{more}: {both}; {_excluded(test.difference, metric, sets)}."
    return _leave_out(sets, names, metric=metric, both=both)


def _within(bound: Bound, releases: Sequence[Release], names: Versions) -> str:
    """The set of best utility that is shown to keep the bound, and what is left out for it."""
    metric, allowed = bound.metric, bound_in_words(bound)
    title = metric_in_words(metric)
    best = next((release for release in releases if release.verdict == "under"), None)
    if best is None:
        least = min(releases, key=lambda release: _figure(release, metric).value or 0.0)
        n_over = sum(release.verdict == "over" for release in releases)
        return (
            f"No release is shown to keep {title} {allowed}: the smallest is "
            f"{estimate_in_words(_figure(least, metric), metric)}, of "
            f"{described(least.versions, names)}; {n_over} of {len(releases)} sets are shown to "
            "lie above."
        )
    found = f"{title} is {estimate_in_words(_figure(best, metric), metric)}"
    missing = [name for name in names if name not in best.versions]
    if not missing:
        verb = "is" if len(names) == 1 else "are"
        together = _capital(all_of(names))
        return f"{together} {verb} shown to stay within the bound: {found}, {allowed}."
    if len(best.versions) > len(missing):
        what = f"Leave out {listed(missing)} and the others are"
    else:
        alone = "is" if len(best.versions) == 1 else "are"
        what = f"Publish nothing but {listed(best.versions)}, which {alone}"
    return (
        f"{what} shown to stay within the bound: {found}, {allowed}; of {len(releases)} sets it is "
        "the one of best utility that is, and its interval is not widened for that choice."
    )


def _leave_out(sets: Sets, names: Versions, *, metric: str, both: str) -> str:
    """Which version to leave out, where that is shown to help."""
    rest = {name: tuple(other for other in names if other != name) for name in names}
    tests = {name: sets.compare(names, held, metric) for name, held in rest.items()}
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    shown = [name for name in names if _is_shown(adjusted[name], sets)]
    if not shown:
        return (
            f"Publishing {all_of(names)} gives away more than the original alone ({both}), and no "
            "single version stands out: to leave out any one of them is not shown to lower it."
        )
    best = max(shown, key=lambda name: tests[name].difference.value or 0.0)
    before, after = (
        figure_in_words(sets.figures(held).of(metric).value or 0.0, metric)
        for held in (names, rest[best])
    )
    return (
        f"Leave out {best} and {metric_in_words(metric)} falls from {before} to {after} (by "
        f"{_gap_in_words(tests[best].difference, metric)}, p {_p_in_words(adjusted[best])} after "
        f"Holm's correction over {len(names)} versions)."
    )


def _against(sets: Sets, more: Versions, less: Versions, metric: str) -> str:
    found, other = (
        estimate_in_words(sets.figures(held).of(metric), metric) for held in (more, less)
    )
    return f"{metric_in_words(metric)} {found} against {other}"


def _excluded(difference: Estimate, metric: str, sets: Sets) -> str:
    level = f"at {100 * sets.levels.confidence:g}% confidence"
    if difference.high is None or difference.high <= 0:
        return f"an increase can be excluded {level}"
    return f"an increase of more than {_points(difference.high, metric)} can be excluded {level}"


def _is_shown(p_value: float | None, sets: Sets) -> bool:
    return p_value is not None and p_value < 1 - sets.levels.confidence


def _figure(release: Release, metric: str) -> Estimate:
    return Figures(release.auc, release.tpr_at_fpr).of(metric)


def _points(value: float, metric: str) -> str:
    """A difference: of AUCs with three digits, of TPRs in percentage points."""
    return f"{value:.3f}" if metric == AUC else f"{100 * value:.1f} points"


def _gap_in_words(found: Estimate, metric: str) -> str:
    scale, digits = (1, 3) if metric == AUC else (100, 1)
    low, high = (f"{scale * (x or 0.0):.{digits}f}" for x in (found.low, found.high))
    return f"{_points(found.value or 0.0, metric)} [{low}, {high}]"


def _p_in_words(value: float | None) -> str:
    return "< 0.001" if value is None or value < 0.001 else f"= {value:.3f}"


def described(versions: Sequence[str], names: Sequence[str]) -> str:
    """A set of versions in the shortest of three ways: all, all but some, one by one."""
    missing = [name for name in names if name not in versions]
    if not missing:
        return all_of(names)
    if len(missing) < len(versions):
        return f"all but {listed(missing)}"
    return listed(versions)


def all_of(names: Sequence[str]) -> str:
    """All versions, by their number."""
    if len(names) == 1:
        return names[0]
    return "both versions" if len(names) == 2 else f"all {len(names)} versions"


def listed(names: Sequence[str], word: str = "and") -> str:
    """Names with commas and an `and`, or another word, before the last."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
