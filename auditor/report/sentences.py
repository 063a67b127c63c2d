"""The sentences of an answer: what the original gives away, what changes, what to publish."""

import math
from collections.abc import Sequence

from auditor.leakage.advice import described, listed
from auditor.leakage.bounds import estimate_in_words, metric_at
from auditor.report.claims import Change, Claims, above
from auditor.report.figures import headline_rate, interval, is_finding, justified, p_value
from auditor.results import AttackResult, AuditResult, Comparison, Estimate
from auditor.results.leakage import Question

MAX_NAMES = 3
# A rise in AUC that an audit should be able to exclude; else its intervals are called wide.
WIDE = 0.02
# A perplexity that is worth a word beside a leakage that fell.
WORSE = 1.005
VERDICTS = {
    "under": "is shown to stay within the bound",
    "over": "is shown to break the bound",
    "undecided": "is not shown to stay within the bound",
}


def caveat(result: AuditResult, *, broken: bool = True) -> str:
    """What the first sentence begins with: severe warnings that leave an answer possible."""
    codes = dict.fromkeys(
        item.code
        for item in result.warnings
        if item.severity == "severe" and item.code != "broken-variant"
    )
    text = f"Read the severe warning first ({listed(list(codes))}). " if codes else ""
    names = [found.variant for found in result.variants if found.status != "ok"]
    if names and broken:
        verb = "is" if len(names) == 1 else "are"
        text += f"{_named(names)} {verb} broken and left out of this answer. "
    return text


def of_original(result: AuditResult) -> str:
    """How often the attack named before the run ranks a member above a nonmember."""
    found = result.variants[0].attacks.get(result.primary_attack)
    if found is None or found.auc.value is None:
        return "What the original gives away is absent from this audit."
    share = _share(found.auc.value)
    text = (
        f"On the original, the attack named before the run ({result.primary_attack}) ranks a "
        f"random member above a random nonmember {share} of the time (AUC "
        f"{spelled(found.auc, result)}; guessing gives 50%)"
    )
    if _finds_members(result):
        return text + _tpr(result) + "."
    if found.auc.high is not None and found.auc.high < 0.5:
        return text + ", which is worse than guessing and of no use to an attacker as it stands."
    learned = next((one for one in _learned(result) if above(one, 0.5)), None)
    best = result.leakage.best if result.leakage is not None else None
    text += ", which is not shown to be better than guessing"
    if learned is not None:
        return (
            f"{text}; an attack that has learned from records of known membership is (AUC "
            f"{interval(learned.auc)})."
        )
    if best is not None and best.p_value < 1 - result.confidence:
        names = [found.variant for found in result.variants if found.status == "ok"]
        return (
            f"{text}; the best of {best.n_candidates} training-free signals is ({best.attack} on "
            f"{described(best.versions, names)}, p {p_value(best.p_value)} with its selection "
            "paid for)."
        )
    return f"{text}; that is no proof that nothing can be found."


def _tpr(result: AuditResult) -> str:
    """What it finds at few false alarms, or that this cannot be said."""
    rate, found = _headline_tpr(result)
    if rate is None or found is None:
        n = result.records.nonmembers.n_audited
        return f"; how many it finds at few false alarms cannot be said from {n:,} nonmembers"
    text = estimate_in_words(found, metric_at(float(rate)))
    price = f"while taking {100 * float(rate):g}% of the nonmembers for members"
    return f" and finds {text} of the members {price}"


def _headline_tpr(result: AuditResult) -> tuple[str | None, Estimate | None]:
    rate = headline_rate(result)
    if rate is None:
        return None, None
    return rate, result.variants[0].attacks[result.primary_attack].tpr_at_fpr[rate]


def _finds_members(result: AuditResult) -> bool:
    """Whether the primary attack on the original does better than guessing, by AUC or TPR."""
    rate, tpr = _headline_tpr(result)
    by_tpr = rate is not None and tpr is not None and (tpr.low or 0.0) > float(rate)
    return by_tpr or above(result.variants[0].attacks.get(result.primary_attack), 0.5)


def any_leak(result: AuditResult) -> bool:
    """Whether anything in the audit does better than guessing, each by its own interval."""
    best = result.leakage.best if result.leakage is not None else None
    return (
        _finds_members(result)
        or any(
            above(found.attacks.get(result.primary_attack), 0.5)
            for found in result.variants
            if found.status == "ok"
        )
        or any(above(found, 0.5) for found in _learned(result, alone=False))
        or (best is not None and best.p_value < 1 - result.confidence)
    )


def _learned(result: AuditResult, *, alone: bool = True) -> list[AttackResult]:
    """Figures of the learned attackers, those with the reference first; alone: on the original."""
    settings = result.leakage.settings if result.leakage is not None else []
    found = [
        one
        for one in settings
        if one.supervision != "none" and (not alone or one.versions == [result.variants[0].variant])
    ]
    return [one.figures for one in sorted(found, key=lambda one: not one.with_reference)]


# --- the second sentence: what changes


def of_changes(result: AuditResult, claims: Claims) -> str:
    """What variants give away alone, beside the original and together, against the original."""
    if not claims.is_firm:
        return _nothing_shown(result, claims)
    text = "; ".join(text for text in (_alone(result, claims), _gains(claims)) if text)
    if not claims.more and not claims.gained and claims.highest is not None:
        text += f"{':' if claims.gains else ';'} {_excluded(result, claims.highest)}"
    return _capital(text) + "."


def _alone(result: AuditResult, claims: Claims) -> str:
    """Variants alone against the original; empty where none was compared."""
    claimed = [*claims.more, *claims.less]
    if not claimed:
        return "alone, no variant is shown to differ from the original" if claims.n_alone else ""
    of = f" of {claims.n_alone} variants" if claims.n_alone > 1 else ""
    parts = []
    if claims.more:
        who = f"{len(claims.more)}{of}" if of else "the variant"
        items = _items(claims.more)
        parts.append(f"{who} {_gives(claims.more)} away more than the original: {items}")
    if claims.less:
        first, *others = claims.less
        who = f"{len(claims.less)}{of}" if of else "the variant"
        items = _items([first], f"{_utility(result, first)}")
        items = listed([items, *_some([other.versions[-1] for other in others], MAX_NAMES - 1)])
        parts.append(f"{who} {_gives(claims.less)} away less than the original: {items}")
    return f"alone, {'; '.join(parts)}, {_surely(claimed)}"


def _gives(changes: Sequence[Change]) -> str:
    return "gives" if len(changes) == 1 else "give"


def _items(changes: Sequence[Change], beside: str = "") -> str:
    """Up to three variants with their differences, and how many more there are."""
    parts: list[str] = []
    for change in changes[:MAX_NAMES]:
        word = "higher" if (change.difference.value or 0.0) > 0 else "lower"
        by = f"AUC {word} by " if not parts else ""
        parts.append(f"{change.versions[-1]} ({by}{_size(change.difference)}{beside})")
    more = len(changes) - MAX_NAMES
    return listed([*parts, f"{more} more"] if more > 0 else parts)


def _utility(result: AuditResult, change: Change) -> str:
    """What a variant that gives away less has lost, which is often why."""
    name = change.versions[-1]
    ratio = next((one.perplexity_ratio for one in result.variants if one.variant == name), None)
    if ratio is None or not math.isfinite(ratio) or ratio < WORSE:
        return ""
    return f", at {ratio:.2f} times the original's perplexity"


def _gains(claims: Claims) -> str:
    """What is gained by holding more than one version; empty where that was not asked."""
    if not claims.gains:
        return ""
    if not claims.gained:
        return f"{listed(_together(claims), 'or')}, no gain is shown"
    beside = [name for name in claims.gains if name.endswith("reference")]
    plain = [_gain(claims, name) for name in claims.gains if name not in beside]
    held = [_gain(claims, name) for name in beside]
    parts = []
    if any(plain):
        whom = "to an attacker without the reference, " if beside else ""
        parts.append(whom + listed([text for text in plain if text]))
    if any(held):
        whom = "to an attacker who holds the reference too, "
        parts.append(whom + listed([text for text in held if text]))
    text = f"{'; '.join(parts)}, {_surely(claims.gained)}"
    return f"{text}, and to one who holds it no gain is shown" if beside and not any(held) else text


def _gain(claims: Claims, question: Question) -> str:
    """One gain in words; empty where none is claimed."""
    changes = claims.gains[question]
    if not changes:
        return ""
    if question.startswith("MR"):
        over = "the best pair" if question == "MR over SR" else "the original"
        size, n = _size(changes[0].difference), len(changes[0].versions)
        return f"all {n} versions together give away more than {over} (AUC higher by {size})"
    over = "either alone" if question == "SR over NR" else "the original alone"
    items = _items(changes)
    return f"{items} beside the original {_gives(changes)} away more than {over}"


def _together(claims: Claims) -> list[str]:
    pairs = any(name.startswith("SR") for name in claims.gains)
    sets = any(name.startswith("MR") for name in claims.gains)
    asked = (("beside the original", pairs), ("all together", sets))
    return [text for text, is_asked in asked if is_asked]


def _nothing_shown(result: AuditResult, claims: Claims) -> str:
    where = listed([*(["alone"] if claims.n_alone else []), *_together(claims)], "or")
    text = f"{where}, no variant is shown to change what is given away"
    if claims.highest is not None:
        text += f": {_excluded(result, claims.highest)}"
    if claims.every:
        surest = min(claims.every, key=lambda change: (change.p_value, change.versions))
        text += (
            f"; the surest change, of {_named(surest.versions)} ({_surely([surest])}), is not left "
            "when all questions of the audit are counted together"
        )
    differ = [item for item in result.comparisons if _is_secondary_finding(item, result)]
    if differ:
        n = sum(item.family == "secondary" for item in result.comparisons)
        text += (
            f"; of {n:,} secondary comparisons {len(differ):,} "
            f"{'differs' if len(differ) == 1 else 'differ'}, after a correction of their own"
        )
    return _capital(text) + "."


def _is_secondary_finding(item: Comparison, result: AuditResult) -> bool:
    return item.family == "secondary" and is_finding(item.p_adjusted, result.confidence)


def _excluded(result: AuditResult, highest: float) -> str:
    """How large a rise in AUC is ruled out, or is not; true of each interval by itself only."""
    level = f"at {_level(result)}"
    if highest > WIDE:
        members, nonmembers = result.records.members, result.records.nonmembers
        return (
            f"a rise of {math.floor(1000 * highest) / 1000:.3f} in AUC cannot be ruled out {level} "
            f"with {members.n_audited:,} members and {nonmembers.n_audited:,} nonmembers"
        )
    rounded = math.ceil(1000 * highest) / 1000
    size = f"a rise of more than {rounded:.3f}" if rounded > 0 else "any rise"
    return f"{size} in AUC is ruled out {level} in each comparison taken by itself"


# --- the third sentence: what to publish


def to_publish(result: AuditResult) -> str:
    """The advice, or why there is none; what lies in clear in the files comes before it."""
    leakage = result.leakage
    before = ""
    if any(item.kind != "file" and item.severity == "severe" for item in result.artifacts):
        before = "Before anything is published, take out the texts that stand in the files. "
    releases = leakage.releases if leakage is not None else None
    if releases is None:
        why = leakage.left_out.get("learned attacks") if leakage is not None else None
        reason = f" (learned attacks: {why})" if why else ""
        return (
            f"{before}What to publish together cannot be said: what several versions give away to "
            f"whoever holds them all was not judged{reason}."
        )
    names = [part.version for part in releases.parts]
    gate = releases.gate
    if gate is not None and gate.verdict is not None:
        asked = _capital(described(gate.versions, names))
        before += f"{asked}, which it was about, {VERDICTS[gate.verdict]}. "
    beside = "For an attacker who holds the reference too: " if releases.with_reference else ""
    return before + beside + releases.advice


# --- words


def _surely(changes: Sequence[Change]) -> str:
    """The largest of some p-values."""
    most = max(change.p_value for change in changes)
    each = "each " if len(changes) > 1 else ""
    if most < 0.001:
        return f"{each}p < 0.001 after Holm's correction"
    sign = "at most" if len(changes) > 1 else "="
    return f"{each}p {sign} {most:.3f} after Holm's correction"


def _size(found: Estimate) -> str:
    """The size of a difference with its interval, to the digits that it justifies."""
    if (found.value or 0.0) < 0:
        ends = {"low": found.high, "high": found.low}
        turned = {name: -end for name, end in ends.items() if end is not None}
        found = found.model_copy(update={"value": -(found.value or 0.0), **turned})
    shown = justified(found, signed=True)
    return f"{shown.value} {shown.interval}".replace("+", "").strip()


def spelled(found: Estimate, result: AuditResult) -> str:
    """An AUC with its interval in words: the first that a reader meets."""
    if found.value is None or found.low is None or found.high is None:
        return interval(found)
    return f"{found.value:.3f}, {_level(result)} interval {found.low:.3f} to {found.high:.3f}"


def _level(result: AuditResult) -> str:
    return f"{100 * result.confidence:g}%"


def _share(auc: float) -> str:
    """An AUC as a share of pairs, without the digits that the interval would not bear."""
    if auc >= 0.995:
        return "more than 99%"
    return f"{100 * auc:.0f}%" if auc >= 0.005 else "less than 1%"


def _named(names: Sequence[str]) -> str:
    """At most three names, and how many more there are."""
    return listed(_some(names, MAX_NAMES))


def _some(names: Sequence[str], most: int) -> list[str]:
    more = len(names) - most
    return [*names[:most], f"{more} more"] if more > 0 else list(names)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
