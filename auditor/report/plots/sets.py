"""What the release picture shows: sets of versions by utility and leakage, and which is advised."""

from typing import Literal, NamedTuple

from auditor.finished import Finished
from auditor.leakage.advice import NO_DIFFERENCE, described
from auditor.leakage.bounds import AUC, estimate_in_words, metric_at, metric_in_words
from auditor.report.figures import headline_rate
from auditor.report.plots.canvas import plain
from auditor.results import Bound, Estimate, Release, Releases, VariantResult

# What a set stands for beside what it holds.
Role = Literal["original", "all", "advised", "gate", "single"]


class Point(NamedTuple):
    """One set of versions.

    Attributes:
        name: The set in words.
        n_versions: How many it holds.
        perplexity: Mean on nonmembers.
        leakage: Its TPR or AUC with its interval.
        on_frontier: Whether no set of as many versions or more has less of both.
        roles: What it stands for.
        note: Its numbers in a sentence.
    """

    name: str
    n_versions: int
    perplexity: float
    leakage: Estimate
    on_frontier: bool
    roles: frozenset[Role]
    note: str


class Picture(NamedTuple):
    """What is shown.

    Attributes:
        metric: 'auc' or 'tpr@0.01' and the like.
        points: The sets, in the order of the audit.
        n_versions: Versions that sets are made of; 0 where versions stand alone.
        bound: What was allowed at most.
        no_increase: Whether the advice is that no increase is shown with all versions.
        advice: The sentence; empty where there is none.
    """

    metric: str
    points: list[Point]
    n_versions: int
    bound: Bound | None
    no_increase: bool
    advice: str


def find_picture(finished: Finished) -> Picture | None:
    """All sets that were judged, or the versions alone; None where neither can be shown."""
    leakage = finished.result.leakage
    if leakage is not None and leakage.releases is not None and leakage.releases.sets:
        return _of_releases(leakage.releases, finished.original)
    return _of_versions(finished)


def advised(releases: Releases) -> tuple[str, ...] | None:
    """The set that the advice names, or None where it names none.

    With a bound, the set of best utility that is shown to keep it; without, all versions but the
    one that is to be left out. That no difference is shown is no advice to publish.
    """
    names = [plain(part.version) for part in releases.parts]
    if releases.bound is not None:
        best = next((one for one in releases.sets if one.verdict == "under"), None)
        return tuple(map(plain, best.versions)) if best is not None else None
    # The result keeps the sentence alone; longer names first, for one may begin another.
    for name in sorted(names, key=len, reverse=True):
        if plain(releases.advice).startswith(f"Leave out {name} and "):
            return tuple(other for other in names if other != name)
    return None


def _of_releases(releases: Releases, original: str) -> Picture:
    names = [plain(part.version) for part in releases.parts]
    chosen = advised(releases)
    points = [_point(one, releases, names, plain(original), chosen) for one in releases.sets]
    return Picture(
        metric=releases.metric,
        points=[point for point in points if point.leakage.value is not None],
        n_versions=len(names),
        bound=releases.bound,
        no_increase=releases.advice.startswith(NO_DIFFERENCE),
        advice=plain(releases.advice),
    )


def _point(
    one: Release,
    releases: Releases,
    names: list[str],
    original: str,
    chosen: tuple[str, ...] | None,
) -> Point:
    held = tuple(map(plain, one.versions))
    roles: set[Role] = set()
    if held == (original,):
        roles.add("original")
    elif len(held) == 1:
        roles.add("single")
    if set(held) == set(names):
        roles.add("all")
    if chosen is not None and set(held) == set(chosen):
        roles.add("advised")
    gate = releases.gate if releases.bound is not None else None
    if gate is not None and set(held) == set(map(plain, gate.versions)):
        roles.add("gate")
    found = _figure(one, releases.metric)
    words = described(held, names)
    parts = [f"{metric_in_words(releases.metric)} {estimate_in_words(found, releases.metric)}"]
    parts.append(f"mean perplexity {one.perplexity_mean:.2f}, worst {one.perplexity_worst:.2f}")
    parts += ["on the frontier"] if one.on_frontier else []
    parts += [f"against the bound: {one.verdict}"] if one.verdict else []
    return Point(
        name=words,
        n_versions=len(held),
        perplexity=one.perplexity_mean,
        leakage=found,
        on_frontier=one.on_frontier,
        roles=frozenset(roles),
        note=f"{words}: {'; '.join(parts)}",
    )


def _figure(one: Release, metric: str) -> Estimate:
    return one.auc if metric == AUC else one.tpr_at_fpr[metric.partition("@")[2]]


def _of_versions(finished: Finished) -> Picture | None:
    """Every version alone, by the primary attack."""
    result = finished.result
    rate = headline_rate(result)
    metric = AUC if rate is None else metric_at(float(rate))
    points = []
    for variant in result.variants:
        found = _alone(variant, result.primary_attack, rate)
        if variant.status != "ok" or variant.perplexity is None:
            continue
        if found is None or found.value is None:
            continue
        name = plain(variant.variant)
        role: Role = "original" if variant is result.variants[0] else "single"
        figure = f"{metric_in_words(metric)} {estimate_in_words(found, metric)}"
        note = f"{name}: {figure}; perplexity {variant.perplexity:.2f}"
        points.append(Point(name, 1, variant.perplexity, found, False, frozenset([role]), note))
    return Picture(metric, points, 0, None, False, "") if points else None


def _alone(variant: VariantResult, attack: str, rate: str | None) -> Estimate | None:
    found = variant.attacks.get(attack)
    if found is None:
        return None
    return found.auc if rate is None else found.tpr_at_fpr.get(rate)
