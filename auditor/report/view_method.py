"""The last part of the page: how it was done, to the last number that a researcher checks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from auditor.attacks import ATTACKS
from auditor.leakage.advice import listed
from auditor.report.catalogue import summary
from auditor.report.figures import justified, p_value
from auditor.report.origin import origin
from auditor.report.view import (
    Cell,
    Column,
    Fact,
    Grid,
    Row,
    estimate_cell,
    number_cell,
    plural,
    text_cell,
)
from auditor.report.view_table import SUPERVISION, holds
from auditor.results import (
    AuditResult,
    Comparison,
    Control,
    EpsilonBound,
    Estimate,
    LeakageComparison,
    ModelIdentity,
    Side,
)

LEARNED = {
    "crossfit": "cross-fitted: the side of a record is predicted only by learners that never saw "
    "it, scaling and choice of learner included",
    "shadow": "trained on shadow audits: another model's records, no label of this audit",
}
FEATURES = {"version": "a version", "pair": "a pair", "lengths": "the record's lengths"}
CONTROLS = {
    "permuted-labels": "membership drawn anew",
    "original-as-variant": "the original in the place of the variant",
}


@dataclass(frozen=True)
class MethodView:
    """How it was done.

    Attributes:
        data: Counts of both sides.
        data_facts: Checks of the records as a whole.
        left_out_ids: Ids of records that were left out for being too short or empty.
        controls: What is known beforehand; None where nothing was controlled.
        attacks: Every attack of the audit.
        learned: How learned attacks were trained; empty where there are none.
        learners: Which learner each chose; None where there are none.
        statistics: How each kind of figure was made.
        bounds: Lower bounds on epsilon, or why there are none.
        left_out: Attacks and versions that were left out, with the reason.
        fingerprints: Of models, tokenizers and records.
        environment: What it ran on.
        versions: Of Python and libraries.
        timings: Where the time went; None where nothing was measured.
        timing_facts: The same of the audit as a whole.
    """

    data: Grid
    data_facts: list[Fact]
    left_out_ids: list[str]
    controls: Grid | None
    attacks: Grid
    learned: list[Fact]
    learners: Grid | None
    statistics: list[Fact]
    bounds: list[str]
    left_out: list[Fact]
    fingerprints: list[Fact]
    environment: list[Fact]
    versions: list[Fact]
    timings: Grid | None
    timing_facts: list[Fact]


def method_view(result: AuditResult) -> MethodView:
    """How the audit was done."""
    leakage = result.leakage
    sides = (result.records.members, result.records.nonmembers)
    left_out = {**result.attacks_left_out, **(leakage.left_out if leakage else {})}
    return MethodView(
        data=_data(result),
        data_facts=_data_facts(result),
        left_out_ids=[name for side in sides for name in side.left_out_ids],
        controls=_controls(result, leakage.controls) if leakage and leakage.controls else None,
        attacks=_attacks(result),
        learned=_learned(result),
        learners=_learners(result),
        statistics=_statistics(result),
        bounds=list(dict.fromkeys(_bound(result, one) for one in leakage.epsilon))
        if leakage
        else [],
        left_out=[Fact(name, reason) for name, reason in left_out.items()],
        fingerprints=_fingerprints(result),
        environment=[Fact(*pair) for pair in _pairs(result.environment)],
        versions=[Fact(name, number) for name, number in result.versions.items()],
        timings=_timings(result),
        timing_facts=_timing_facts(result),
    )


def _data(result: AuditResult) -> Grid:
    sides = (result.records.members, result.records.nonmembers)
    counts = (
        ("Read", "n_read"),
        ("Audited", "n_audited"),
        ("Duplicates on the same side, left out", "n_duplicates"),
        ("On both sides, left out", "n_overlap"),
        ("Without text, left out", "n_empty"),
        ("Nothing to predict, left out", "n_too_short"),
        ("Share half of their 13-grams with the other side, kept", "n_near_duplicates"),
        ("Cut to the context, kept", "n_truncated"),
    )
    rows = [
        Row([text_cell(title), *(number_cell(getattr(side, name)) for side in sides)])
        for title, name in counts
    ]
    rows.append(Row([text_cell("Tokens per record: mean"), *(_tokens(side) for side in sides)]))
    rows.append(Row([text_cell("Median, shortest to longest"), *(_range(side) for side in sides)]))
    columns = [Column("Records"), Column("Members", "number"), Column("Nonmembers", "number")]
    return Grid("data", "What was read and what was audited", columns, rows)


def _tokens(side: Side) -> Cell:
    if side.tokens is None:
        return number_cell(None)
    return number_cell(side.tokens.mean, f"{side.tokens.mean:,.1f}")


def _range(side: Side) -> Cell:
    if side.tokens is None:
        return number_cell(None)
    found = side.tokens
    return number_cell(found.median, f"{found.median:,g}, {found.low:,} to {found.high:,}")


def _data_facts(result: AuditResult) -> list[Fact]:
    facts = []
    if said := origin(result):
        facts.append(Fact("Where the lists come from", said))
    if result.records.length_auc is not None:
        auc = f"{result.records.length_auc:.3f}"
        facts.append(Fact("AUC of the record's length alone", f"{auc}; 0.5 where sides are alike"))
    blind = result.blind
    if blind is not None:
        said = "the lists can be told apart" if blind.told_apart else "no difference is shown"
        facts.append(
            Fact(
                "Blind baseline, which never sees the model",
                f"AUC {' '.join(justified(blind.auc))} from {blind.n_features:,} hashed features "
                f"of words: {said}, at 99% confidence",
            )
        )
    best = result.leakage.best if result.leakage is not None else None
    if best is not None:
        facts.append(
            Fact(
                f"Best of {best.n_candidates:,} training-free signals",
                f"{best.attack} on {listed(best.versions)}, AUC {best.auc:.3f}, too high by its "
                f"choice; p {p_value(best.p_value)} over {best.n_permutations:,} permutations, "
                "with the choice paid for",
            )
        )
    return facts


def _controls(result: AuditResult, controls: list[Control]) -> Grid:
    columns = [
        Column("Control"),
        Column("Attack", "word"),
        Column("Holds"),
        Column("Learner"),
        Column("Found", "estimate"),
        Column("Must be", "number"),
        Column("Outcome", "word"),
    ]
    rows = []
    for one in controls:
        beside = " and the reference" if one.with_reference else ""
        cells = [
            text_cell(CONTROLS[one.name]),
            text_cell(one.attack),
            text_cell(holds(result, one.versions) + beside),
            text_cell(one.learner or "none"),
            estimate_cell(one.figure, signed=one.expected == 0),
            number_cell(one.expected, f"{one.expected:g}"),
            text_cell("passed" if one.passed else "FAILED", mark="good" if one.passed else "bad"),
        ]
        rows.append(Row(cells))
    notes = [
        "With labels drawn anew the AUC must be 0.5 within an interval of 99% over all of them; "
        "an original in the place of a variant must add exactly nothing."
    ]
    return Grid("controls", "What is known beforehand", columns, rows, notes)


def _attacks(result: AuditResult) -> Grid:
    used = dict.fromkeys(result.attacks)
    settings = result.leakage.settings if result.leakage is not None else []
    used.update(dict.fromkeys(one.attack for one in settings))
    columns = [
        Column("Attack", "word"),
        Column("Setting", "word"),
        Column("What it does"),
        Column("Source"),
    ]
    rows = []
    for name in used:
        attack = ATTACKS.get(name)
        cells = [text_cell(name + (" (primary)" if name == result.primary_attack else ""))]
        if attack is None:
            cells += [text_cell("–")] * 3
        else:
            # Docstrings quote code; a page has no need to.
            what = summary(attack).replace("`", "")
            cells += [text_cell(attack.setting), text_cell(what), text_cell(attack.source)]
        rows.append(Row(cells))
    notes = ["The three settings are those of CompLeak, Li et al. 2025, arXiv 2507.16872."]
    return Grid("attacks", "Attacks that were run", columns, rows, notes)


def _learned(result: AuditResult) -> list[Fact]:
    leakage = result.leakage
    if leakage is None or not any(one.supervision != "none" for one in leakage.settings):
        return []
    facts = [Fact("Training", "; ".join(LEARNED[how] for how in leakage.supervision))]
    if leakage.n_folds is not None:
        repeats = plural(leakage.n_repeats or 1, "time")
        facts.append(Fact("Folds", f"{leakage.n_folds}, drawn {repeats}"))
    if leakage.n_groups is not None:
        facts.append(
            Fact("Groups", f"{leakage.n_groups:,}; near-duplicates are one and share a fold")
        )
    if leakage.n_features:
        named = ", ".join(
            f"{n:,} of {FEATURES.get(name, name)}" for name, n in leakage.n_features.items()
        )
        facts.append(Fact("Features", named))
    if leakage.shadows:
        facts.append(Fact("Shadow audits", ", ".join(leakage.shadows)))
    return facts


def _learners(result: AuditResult) -> Grid | None:
    """Which learners were chosen inside the folds, and how much of a signal was accident."""
    settings = result.leakage.settings if result.leakage is not None else []
    learned = [one for one in settings if one.supervision != "none"]
    if not learned:
        return None
    columns = [
        Column("Holds"),
        Column("Attack", "word"),
        Column("Trained", "word"),
        Column("Reference", "word"),
        Column("Learners, by folds that chose them"),
        Column("Accident of training, %", "number"),
    ]
    rows = []
    for one in learned:
        chosen = ", ".join(f"{name} ({n})" for name, n in one.learners.items()) or "–"
        share = one.noise_share
        cells = [
            text_cell(holds(result, one.versions)),
            text_cell(one.attack),
            text_cell(SUPERVISION[one.supervision]),
            text_cell("yes" if one.with_reference else "no"),
            text_cell(chosen),
            number_cell(share, None if share is None else f"{100 * share:.0f}"),
        ]
        rows.append(Row(cells))
    notes = ["Intervals are widened by the root of 1 plus the share that is accident of training."]
    return Grid("learners", "Learners", columns, rows, notes)


def _statistics(result: AuditResult) -> list[Fact]:
    """How each kind of figure was made, in the words of the figures themselves."""
    found: dict[str, dict[str, None]] = {}
    for kind, estimate in _estimates(result):
        if estimate.value is not None:
            found.setdefault(kind, {})[estimate.method] = None
    facts = [Fact(kind, "; ".join(methods)) for kind, methods in found.items()]
    draws, level = result.config.get("bootstrap"), f"{100 * result.confidence:g}%"
    facts.append(Fact("Intervals", f"{level}, two-sided, each by itself; {draws} bootstrap draws"))
    facts.append(
        Fact(
            "Correction",
            "Holm over the primary family, and over the secondary one: of differences to the "
            "original, and again of questions about who holds more",
        )
    )
    return facts


def _estimates(result: AuditResult) -> Iterator[tuple[str, Estimate]]:
    figures = [one for variant in result.variants for one in variant.attacks.values()]
    leakage = result.leakage
    if leakage is not None:
        figures += [one.figures for one in leakage.settings]
    for one in figures:
        yield "AUC", one.auc
        for tpr in one.tpr_at_fpr.values():
            yield "TPR at a false positive rate", tpr
        yield "Balanced accuracy", one.balanced_accuracy
    every: list[Comparison | LeakageComparison] = [*result.comparisons]
    every += leakage.comparisons if leakage is not None else []
    for item in every:
        yield f"Differences of {'AUC' if item.metric == 'auc' else 'TPR'}", item.difference


def _bound(result: AuditResult, one: EpsilonBound) -> str:
    if one.epsilon is None:
        return f"No lower bound on epsilon: {one.absent or 'none was found'}."
    return (
        f"Epsilon of the training is at least {one.epsilon:.2f} at delta {one.delta:g}: "
        f"{one.method}, {one.attack} on {holds(result, one.versions)}, "
        f"{one.n_correct or 0:,} of {one.n_guesses or 0:,} guesses right, "
        f"{100 * one.confidence:g}% over all bounds."
    )


def _fingerprints(result: AuditResult) -> list[Fact]:
    facts = _of_model("Model", result.model)
    if result.reference is not None:
        facts += _of_model("Reference", result.reference)
    return [*facts, Fact("Records, SHA-256 of ids and sides", result.records.sha256)]


def _of_model(title: str, model: ModelIdentity) -> list[Fact]:
    n = f", {model.n_parameters:,} parameters" if model.n_parameters is not None else ""
    what = f"{model.model_type}{n}, context of {model.context_tokens:,} tokens, {model.dtype}"
    return [
        Fact(title, f"{model.name}: {what}"),
        Fact(f"{title}, SHA-256 of weights and configuration", model.sha256),
        Fact(f"{title}, SHA-256 of the tokenizer", model.tokenizer_sha256),
    ]


def _pairs(found: dict[str, Any]) -> list[tuple[str, str]]:
    words = {"n_cores": "cores", "n_threads": "threads", "n_processes": "processes"}
    return [
        (words.get(name, name), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in found.items()
        if value is not None
    ]


def _timings(result: AuditResult) -> Grid | None:
    timings = [one for one in result.timings.variants if one.n_forward_records]
    if not timings:
        return None
    columns = [
        Column("Model"),
        Column("Loading, s", "number"),
        Column("Compressing, s", "number"),
        Column("Forward, s", "number"),
        Column("Rest, s", "number"),
        Column("Records", "number"),
        Column("Tokens", "number"),
        Column("Peak, MiB", "number"),
    ]
    rows = []
    for one in timings:
        seconds = (one.load_s, one.compress_s, one.forward_s, one.rest_s)
        cells = [
            text_cell(one.variant),
            *(number_cell(value, f"{value:,.1f}") for value in seconds),
            number_cell(one.n_forward_records),
            number_cell(one.n_tokens),
            number_cell(one.peak_bytes, f"{one.peak_bytes / 2**20:,.0f}"),
        ]
        rows.append(Row(cells))
    return Grid("timings", "Where the time of the last run went", columns, rows)


def _timing_facts(result: AuditResult) -> list[Fact]:
    timings = result.timings
    parts = (
        ("In all", timings.total_s),
        ("Reading and checking records", timings.records_s),
        ("Searching checkpoints", timings.search_s),
        ("Blind baseline", timings.blind_s),
        ("Attacks, intervals, tests", timings.statistics_s),
    )
    return [Fact(name, f"{seconds:,.1f} s") for name, seconds in parts]
