"""Which versions can be published together.

    every set of versions -> the attacker who holds exactly these -> figures, verdict on the bound
                          -> Shapley part of each version, frontier of utility and leakage, advice

All sets are made of the same fitted parts, see `attackers`, so that no model and no learner but a
small logistic regression is trained for a set.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from auditor.compress import is_retrained
from auditor.compress.noise import is_noise
from auditor.errors import ConfigError, unknown
from auditor.leakage.advice import advise, described
from auditor.leakage.attackers import Attackers, in_order
from auditor.leakage.bounds import (
    AUC,
    bound_in_words,
    check_supported,
    estimate_in_words,
    fpr_of,
    metric_at,
    metric_in_words,
    reported_rate,
    verdict_of,
)
from auditor.leakage.learners import one_thread
from auditor.leakage.sets import MOST_VARIANTS, Figures, Sets, Versions, beam, every_set
from auditor.leakage.settings import Levels
from auditor.leakage.shapley import sampled_shapley, shapley
from auditor.results import Bound, Part, Release, Releases
from auditor.results.leakage import Verdict

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Search = Literal["every set", "beam"]
# Orders that are drawn for the Shapley parts where not every set is looked at.
N_ORDERS = 200


def judge_releases(
    attackers: Attackers,
    perplexities: Mapping[str, float],
    *,
    levels: Levels,
    with_reference: bool,
    bound: Bound | None = None,
    gate: Sequence[str] | None = None,
) -> Releases:
    """Judge every set of versions, up to 8 variants; above, those that a beam search finds.

    Controls, noise and what was only trained further, are never part of a release.

    Args:
        attackers: All attackers.
        perplexities: On the nonmembers, by version.
        levels: How figures are made; the bound's rate is added where it is missing.
        with_reference: Whether the attackers hold the reference model too.
        bound: What a release may give away at most.
        gate: The versions that are to be judged; all of them when left out.

    Raises:
        ConfigError: The counts do not support the bound, or the gate names a version that is not
            there.
    """
    names = tuple(name for name in attackers.order if not is_control(name))
    n_nonmembers = int((~attackers.is_member).sum())
    wanted = _gate(gate, names)
    if bound is not None:
        check_supported(bound, n_nonmembers)
        if bound.metric != AUC:
            fprs = {*levels.fprs, fpr_of(bound.metric)}
            levels = levels._replace(fprs=tuple(sorted(fprs)))
    metric = _ranking(bound, levels, n_nonmembers)
    sets = Sets(attackers, levels, with_reference=with_reference)
    sets.prepare(names)
    with one_thread():
        return _judge(sets, names, wanted, perplexities, metric=metric, bound=bound)


def _judge(
    sets: Sets,
    names: Versions,
    wanted: Versions,
    perplexities: Mapping[str, float],
    *,
    metric: str,
    bound: Bound | None,
) -> Releases:
    n_variants = len([name for name in names if name != sets.original])
    search: Search = "every set" if n_variants <= MOST_VARIANTS else "beam"
    chosen = (
        every_set(names)
        if search == "every set"
        else beam(
            names,
            lambda held: float(sets.worth(held)[sets.metrics.index(metric)]),
            always=(names, wanted),
        )
    )
    judged = {held: sets.figures(held) for held in chosen}
    releases = _releases(judged, perplexities, metric=metric, bound=bound)
    return Releases(
        with_reference=sets.with_reference,
        metric=metric,
        search=search,
        sets=releases,
        parts=_parts(sets, names, sampled=search == "beam"),
        bound=bound,
        gate=next(release for release in releases if tuple(release.versions) == wanted),
        advice=advise(sets, names, releases, metric=metric, bound=bound),
    )


def is_control(name: str) -> bool:
    """Whether a version is the original with noise, or only trained further: nobody's release."""
    return is_noise(name) or is_retrained(name)


def gate_broken(releases: Releases, fail_on: Literal["over", "undecided"]) -> str | None:
    """Why the release that was to be judged may not go out, or None.

    Args:
        releases: With a bound; without one there is nothing to break.
        fail_on: over: only a release that is shown to lie above the bound; undecided: every one
            that is not shown to lie at or below it.
    """
    gate, bound = releases.gate, releases.bound
    if gate is None or bound is None or gate.verdict == "under":
        return None
    if fail_on == "over" and gate.verdict != "over":
        return None
    names = described(gate.versions, [part.version for part in releases.parts])
    found = (
        "is shown to give away more than was allowed"
        if gate.verdict == "over"
        else "is not shown to stay within the bound"
    )
    figure = estimate_in_words(Figures(gate.auc, gate.tpr_at_fpr).of(bound.metric), bound.metric)
    return (
        f"the release of {names} {found}: {metric_in_words(bound.metric)} is {figure}, "
        f"and {bound_in_words(bound)} was allowed"
    )


def frontier(sizes: npt.ArrayLike, costs: npt.ArrayLike, leakages: npt.ArrayLike) -> Bools:
    """Which sets no other of as many versions or more beats in both cost and leakage.

    Args:
        sizes: Versions of each set, shape (s,).
        costs: Mean perplexities, shape (s,).
        leakages: Shape (s,).
    """
    n, cost, leakage = (np.asarray(values) for values in (sizes, costs, leakages))
    beaten = [
        bool(((n >= n[i]) & (cost < cost[i]) & (leakage < leakage[i])).any()) for i in range(len(n))
    ]
    return ~np.array(beaten, dtype=np.bool_)


def _gate(gate: Sequence[str] | None, names: Versions) -> Versions:
    """The release that is to be judged, in the audit's order."""
    if gate is None:
        return names
    if not gate:
        raise ConfigError("a release must hold at least one version", seen="none")
    for name in gate:
        if name not in names:
            raise unknown("version that can be released", name, names)
    return in_order(gate, names)


def _ranking(bound: Bound | None, levels: Levels, n_nonmembers: int) -> str:
    """The metric that sets are ranked by."""
    if bound is not None:
        return bound.metric
    rate = reported_rate(levels.fprs, n_nonmembers)
    return AUC if rate is None else metric_at(rate)


def _releases(
    judged: Mapping[Versions, Figures],
    perplexities: Mapping[str, float],
    *,
    metric: str,
    bound: Bound | None,
) -> list[Release]:
    """The sets, best utility first: more versions, lower mean perplexity, less leakage."""
    found: list[tuple[tuple[int, float, float], Release]] = []
    verdicts: dict[Versions, Verdict] = {}
    if bound is not None:
        verdicts = {held: verdict_of(figures.of(metric), bound) for held, figures in judged.items()}
    for held, figures in judged.items():
        costs = [perplexities[name] for name in held]
        release = Release(
            versions=list(held),
            auc=figures.auc,
            tpr_at_fpr=figures.tpr_at_fpr,
            perplexity_worst=max(costs),
            perplexity_mean=float(np.mean(costs)),
            on_frontier=False,
            verdict=_worst(held, verdicts),
        )
        leakage = figures.of(metric).value or 0.0
        found.append(((-len(held), release.perplexity_mean, leakage), release))
    found.sort(key=lambda item: item[0])
    keys = np.array([key for key, _ in found])
    on_it = frontier(-keys[:, 0], keys[:, 1], keys[:, 2])
    return [
        release.model_copy(update={"on_frontier": bool(here)})
        for (_, release), here in zip(found, on_it, strict=True)
    ]


def _worst(held: Versions, verdicts: Mapping[Versions, Verdict]) -> Verdict | None:
    """The worst verdict of a set and of all its subsets that were judged; None without a bound.

    Whoever holds a set holds its subsets, so that a set is not under where one of them is over.
    """
    of_subsets = {verdict for versions, verdict in verdicts.items() if set(versions) <= set(held)}
    order: tuple[Verdict, ...] = ("over", "undecided", "under")
    return next((one for one in order if one in of_subsets), None)


def _parts(sets: Sets, names: Versions, *, sampled: bool) -> list[Part]:
    def worth(places: tuple[int, ...]) -> Float64:
        return sets.worth(tuple(names[i] for i in places))

    parts = (
        sampled_shapley(len(names), worth, n_orders=N_ORDERS, seed=sets.levels.seed)
        if sampled
        else shapley(len(names), worth)
    )
    return [
        Part(
            version=name,
            auc=float(row[0]),
            tpr_at_fpr={
                metric.partition("@")[2]: float(value)
                for metric, value in zip(sets.metrics[1:], row[1:], strict=True)
            },
        )
        for name, row in zip(names, parts, strict=True)
    ]
