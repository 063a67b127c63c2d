"""The top of the page: what was audited, what must be known first, the answer, what to publish."""

from dataclasses import dataclass
from datetime import datetime

from auditor.caveats import ALLOWED
from auditor.compress import is_retrained
from auditor.leakage.bounds import AUC, bound_in_words, estimate_in_words, metric_in_words
from auditor.leakage.sets import Figures
from auditor.report.answer import answer
from auditor.report.claims import read_claims
from auditor.report.figures import headline_rate, is_finding, justified, p_value
from auditor.report.leakage import LESS
from auditor.report.plain import printable
from auditor.report.releases import shown_sets
from auditor.report.terminal import REPAIRED
from auditor.report.view import (
    Column,
    Fact,
    Grid,
    Row,
    estimate_cell,
    metric_title,
    number_cell,
    plural,
    rate_in_words,
    text_cell,
)
from auditor.report.view_table import holds, main_question, places
from auditor.results import Artifact, AuditResult, Part, Release, Releases


@dataclass(frozen=True)
class Notice:
    """Something to know before the figures.

    Attributes:
        severity: severe, warning or info; how it looks.
        label: The word before it.
        text: What it is.
    """

    severity: str
    label: str
    text: str


@dataclass(frozen=True)
class Key:
    """One key figure.

    Attributes:
        title: What it is about.
        value: The figure.
        interval: Its interval, or empty.
        says: What it says, never more than its test allows.
    """

    title: str
    value: str
    interval: str
    says: str


@dataclass(frozen=True)
class Head:
    """What was audited.

    Attributes:
        name: Short name of the model.
        facts: What, when, how many.
    """

    name: str
    facts: list[Fact]


@dataclass(frozen=True)
class AnswerView:
    """The answer.

    Attributes:
        headline: One short sentence.
        sentences: What it stands on.
        advice: What to publish together; empty where it is one of the sentences.
        finding: more, less, mixed, none or unknown; how it looks.
        keys: Key figures.
    """

    headline: str
    sentences: list[str]
    advice: str
    finding: str
    keys: list[Key]


@dataclass(frozen=True)
class ReleasesView:
    """What can be published together, beside the release picture.

    Attributes:
        sets: The sets to choose from.
        parts: What each version adds.
        gate: How the release that was to be judged was judged; empty where none was.
    """

    sets: Grid
    parts: Grid
    gate: str


def head(result: AuditResult) -> Head:
    """What was audited, and when."""
    members, nonmembers = result.records.members, result.records.nonmembers
    n_variants = len(result.variants) - 1
    facts = [
        Fact("Model", result.model.name),
        *([Fact("Reference", result.reference.name)] if result.reference else []),
        Fact("Versions", f"the original and {plural(n_variants, 'variant')}"),
        Fact(
            "Records",
            f"{plural(members.n_audited, 'member')} and "
            f"{plural(nonmembers.n_audited, 'nonmember')}",
        ),
        Fact("Primary attack", f"{result.primary_attack}, named before the run"),
        Fact("Audited", _date(result.timings.started_at)),
    ]
    return Head(short_name(result.model.name), facts)


def short_name(name: str) -> str:
    """A model's name as people say it: of a path from the root the last part, else all."""
    last = name.rstrip("/").rpartition("/")[2]
    return last if name.startswith("/") and last else name


def _date(started_at: str) -> str:
    try:
        when = datetime.fromisoformat(started_at)
    except ValueError:
        return started_at
    zone = " UTC" if when.utcoffset() is not None and not when.utcoffset() else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def notices(result: AuditResult) -> list[Notice]:
    """Artifacts and warnings, worst first; what a library was mended for only by name."""
    # What files of others were allowed to do speaks of all figures, and must not be cut off by a
    # long list of other things.
    warned = sorted(result.warnings, key=lambda item: item.code not in ALLOWED)
    n_allowed = sum(item.code in ALLOWED for item in warned)
    found = [
        Notice(item.severity, LABELS[item.severity], item.message)
        for item in warned
        if item.code != REPAIRED
    ]
    found[n_allowed:n_allowed] = [_of_artifact(item) for item in result.artifacts]
    mended = [item.message.partition(": ")[0] for item in result.warnings if item.code == REPAIRED]
    if mended:
        names = ", ".join(dict.fromkeys(mended))
        text = f"{names}: the library computes wrongly here and was mended; see the receipts."
        found.append(Notice("info", LABELS["info"], text))
    order = list(LABELS)
    return sorted(found, key=lambda notice: order.index(notice.severity))


LABELS = {"severe": "Warning", "warning": "Caution", "info": "Note"}


def _of_artifact(item: Artifact) -> Notice:
    label = LABELS[item.severity]
    if item.kind != "file":
        label = f"{label}: published in clear"
    return Notice(item.severity, label, f"{item.checkpoint}: {item.file}: {item.message}")


def answer_view(result: AuditResult) -> AnswerView:
    """The answer, what to publish set apart from it."""
    found = answer(result)
    releases = result.leakage.releases if result.leakage is not None else None
    *sentences, last = found.sentences
    if releases is None or printable(releases.advice) not in last:
        sentences, last = found.sentences, ""
    may_claim = found.finding in ("more", "less", "mixed")
    shown = keys(result, may_claim=may_claim)
    return AnswerView(found.headline, sentences, last, found.finding, shown)


def keys(result: AuditResult, *, may_claim: bool) -> list[Key]:
    """The key figures, as far as there are any.

    Args:
        result: The audit.
        may_claim: Whether its tests allow any claim; else a key figure claims nothing either.
    """
    found = [
        _original(result),
        _worst(result, may_claim=may_claim),
        _together(result, may_claim=may_claim),
        _exposed(result),
        _lists(result),
    ]
    return [key for key in found if key is not None]


def _original(result: AuditResult) -> Key | None:
    """What the primary attack finds on the original."""
    figures = result.variants[0].attacks.get(result.primary_attack)
    if figures is None:
        return None
    shown = justified(figures.auc)
    rate = headline_rate(result)
    says = f"{result.primary_attack}; a coin has 0.5"
    if rate is not None:
        tpr = justified(figures.tpr_at_fpr[rate], percent=True)
        says = f"finds {tpr.value}% {tpr.interval} of members at {rate_in_words(rate)} FPR"
    return Key("Original alone, AUC", shown.value, shown.interval, says)


def _worst(result: AuditResult, *, may_claim: bool) -> Key | None:
    """The variant with the largest difference to the original, and whether it is one."""
    primary = [
        item
        for item in result.comparisons
        if item.attack == result.primary_attack
        and item.metric == "auc"
        and item.difference.value is not None
        and not is_retrained(item.variant)
    ]
    if not primary:
        return None
    most = max(primary, key=lambda item: item.difference.value or 0.0)
    shown = justified(most.difference, signed=True)
    p = f"p {p_value(most.p_adjusted)} (Holm)"
    claims = read_claims(result)
    claim = "" if is_finding(most.p_adjusted, result.confidence) else "no difference is shown, "
    for word, changes in (("more", claims.more), ("less", claims.less)):
        if may_claim and (most.variant,) in [change.versions for change in changes]:
            claim = f"gives away {word}, "
    says = f"{most.variant}: {claim}{p}"
    title = "Most leaking variant − original, AUC"
    return Key(title if len(primary) > 1 else "Variant − original, AUC", *shown, says)


def _together(result: AuditResult, *, may_claim: bool) -> Key | None:
    """What all versions together, or the only pair that there is, add for whoever holds them."""
    leakage = result.leakage
    if leakage is None:
        return None
    original = result.variants[0].variant
    with_original = [one for one in leakage.settings if one.versions[0] == original]
    together = [one for one in with_original if one.attack == "combined"]
    pairs = [one for one in with_original if one.attack == "paired"]
    if not together and len({tuple(one.versions) for one in pairs}) == 1:
        together = pairs
    asked = [
        (one, found)
        for one in together
        for found in [main_question(result, one)]
        if found is not None and found.difference.value is not None
    ]
    if not asked:
        return None
    one, found = max(asked, key=lambda pair: pair[0].with_reference)
    gain = justified(found.difference, signed=True)
    is_gain = is_finding(found.p_adjusted, result.confidence)
    claim = ("a gain, " if may_claim else "") if is_gain else "no gain is shown, "
    says = (
        f"over {LESS[found.question]}{', reference held' if one.with_reference else ''}: "
        f"{claim}p {p_value(found.p_adjusted)} (Holm)"
    )
    who = "All versions" if len(one.versions) > 2 else "Both versions"
    return Key(f"{who} together, gain in AUC", *gain, says)


def _exposed(result: AuditResult) -> Key | None:
    exposed = result.leakage.exposed if result.leakage is not None else None
    if exposed is None or exposed.n_newly is None or exposed.fpr is None:
        return None
    chance = f"{exposed.expected_by_chance or 0.0:.0f} expected by chance"
    p = f", p {p_value(exposed.p_value)}" if exposed.p_value is not None else ""
    return Key("Newly exposed members", f"{exposed.n_newly:,}", "", chance + p)


def _lists(result: AuditResult) -> Key | None:
    if result.blind is None:
        return None
    shown = justified(result.blind.auc)
    apart = "the lists differ: see the warning" if result.blind.told_apart else "no difference seen"
    return Key("Lists without the model, AUC", *shown, apart)


def releases_view(result: AuditResult) -> ReleasesView | None:
    """The sets to choose from and what each version adds; None where it was not judged."""
    releases = result.leakage.releases if result.leakage is not None else None
    if releases is None:
        return None
    names = [part.version for part in releases.parts]
    gate = ""
    if releases.gate is not None and releases.bound is not None:
        metric = releases.bound.metric
        figure = Figures(releases.gate.auc, releases.gate.tpr_at_fpr).of(metric)
        gate = (
            f"To be released: {holds(result, releases.gate.versions)}. "
            f"{metric_in_words(metric)} {estimate_in_words(figure, metric)}, "
            f"{bound_in_words(releases.bound)}: {releases.gate.verdict}."
        )
    return ReleasesView(_sets(result, releases, len(names)), _parts(result, releases), gate)


def _sets(result: AuditResult, releases: Releases, n_versions: int) -> Grid:
    metrics = list(dict.fromkeys([releases.metric, AUC]))
    columns = [
        Column("Published together"),
        *(Column(metric_title(metric), "estimate") for metric in metrics),
        Column("Mean perplexity", "number"),
        Column("Worst perplexity", "number"),
    ]
    if releases.bound is not None:
        columns.append(Column("Verdict"))
    shown = shown_sets(releases, n_versions)
    rows = [_set(result, releases, release, metrics) for release in shown]
    held = "the reference model and " if releases.with_reference else ""
    n_sets = plural(len(releases.sets), "set")
    notes = [
        f"{n_sets} judged, {len(rows)} shown, best utility first; what an attacker gets who holds "
        f"{held}exactly these versions. Every set is in audit.json."
    ]
    if releases.search == "beam":
        notes.append("More than 8 variants: sets were found by a beam search.")
    notes += [f"Left out: {name}: {reason}." for name, reason in releases.left_out.items()]
    return Grid("sets", "Sets to choose from", columns, rows, notes)


def _set(result: AuditResult, releases: Releases, release: Release, metrics: list[str]) -> Row:
    figures = Figures(release.auc, release.tpr_at_fpr)
    cells = [
        text_cell(holds(result, release.versions)),
        *(estimate_cell(figures.of(metric), percent=metric != AUC) for metric in metrics),
        number_cell(release.perplexity_mean, f"{release.perplexity_mean:.2f}"),
        number_cell(release.perplexity_worst, f"{release.perplexity_worst:.2f}"),
    ]
    if releases.bound is not None:
        marks = {"under": "good", "over": "bad", "undecided": "warn"}
        verdict = str(release.verdict)
        cells.append(text_cell(verdict, mark=marks.get(verdict, "")))
    return Row(cells, versions=places(result, release.versions))


def _parts(result: AuditResult, releases: Releases) -> Grid:
    rates = list(releases.parts[0].tpr_at_fpr) if releases.parts else []
    columns = [
        Column("Version"),
        Column("AUC − 0.5", "number"),
        *(Column(f"TPR − FPR at {rate_in_words(rate)}, points", "number") for rate in rates),
    ]
    rows = [_part(result, part, rates) for part in releases.parts]
    notes = [
        "Shapley parts: what a version adds to a set, on average over all orders of publishing. "
        "They add up to what all versions give away together, above chance."
    ]
    return Grid("parts", "What each version adds", columns, rows, notes)


def _part(result: AuditResult, part: Part, rates: list[str]) -> Row:
    cells = [text_cell(part.version), number_cell(part.auc, _signed(part.auc, 3))]
    for rate in rates:
        value = part.tpr_at_fpr[rate]
        cells.append(number_cell(value, _signed(100 * value, 1)))
    return Row(cells, versions=places(result, [part.version]))


def _signed(value: float, digits: int) -> str:
    return format(value, f"+.{digits}f").replace("-", "−")
