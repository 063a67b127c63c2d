"""The answer of an audit in two or three plain sentences, never stronger than its tests.

Does compression change what an outsider learns, by how much, how surely; what to publish together.
"""

from typing import Literal, NamedTuple

from auditor.leakage.advice import NO_DIFFERENCE
from auditor.report.claims import Claims, read_claims
from auditor.report.plain import printable
from auditor.report.sentences import any_leak, caveat, of_changes, of_original, spelled, to_publish
from auditor.results import AuditResult

Finding = Literal["more", "less", "mixed", "none", "unknown"]


class Answer(NamedTuple):
    """What an audit answers.

    Attributes:
        headline: One short sentence.
        sentences: Two or three.
        finding: Whether compressed versions are shown to give away more than the original, less,
            both, or neither; unknown where the audit allows no answer. Over audits in which
            nothing changes, more, less and mixed together come up no oftener than 1 - confidence.
    """

    headline: str
    sentences: list[str]
    finding: Finding


def answer(result: AuditResult) -> Answer:
    """The answer of an audit.

    Args:
        result: The audit.
    """
    found = _no_answer(result) or _answer(result)
    headline, *sentences = map(printable, (found.headline, *found.sentences))
    return Answer(headline, sentences, found.finding)


def _no_answer(result: AuditResult) -> Answer | None:
    """What takes away the right to any claim, if anything does."""
    if result.blind is not None and result.blind.told_apart:
        blind = result.blind.auc
        return Answer(
            "No answer about the model can be given: the two lists can be told apart without it.",
            [
                "No answer about the model can be given, because a classifier that never saw it "
                f"tells members from nonmembers (AUC {spelled(blind, result)}).",
                "Every figure measures the lists as well as the model: draw members and nonmembers "
                "from one shuffled pool, and audit again before anything is decided.",
            ],
            "unknown",
        )
    controls = result.leakage.controls if result.leakage is not None else []
    failed = [control for control in controls if not control.passed]
    if failed:
        first = failed[0]
        seen = "nothing" if first.figure.value is None else f"{first.figure.value:.3f}"
        return Answer(
            "No answer can be given: a control of this audit failed.",
            [
                f"No answer can be given, because {len(failed)} of {len(controls)} controls "
                f"failed: {first.attack} with {first.name} gives {seen}, where "
                f"{first.expected:g} must come out.",
                "Until the cause is found, neither a difference between versions nor what is said "
                "about publishing them together can be trusted.",
            ],
            "unknown",
        )
    variants = result.variants[1:]
    if variants and all(found.status != "ok" for found in variants):
        what = f"all {len(variants)} are" if len(variants) > 1 else f"{variants[0].variant} is"
        return Answer(
            f"No compressed version could be judged: {what} broken.",
            [
                caveat(result, broken=False) + of_original(result),
                "Whether compression changes what an outsider learns cannot be said, nor what to "
                "publish together: why each is broken stands beside it.",
            ],
            "unknown",
        )
    return None


def _answer(result: AuditResult) -> Answer:
    claims = read_claims(result)
    first = caveat(result) + of_original(result)
    if len(result.variants) == 1:
        return Answer(
            "Only the original was audited: whether compression changes anything was not asked.",
            [first, "Nothing is said about compressed versions: name them with --variants."],
            "unknown",
        )
    if claims.n_alone == 0 and not claims.gains:
        return Answer(
            "Whether compression changes what an outsider learns was not tested.",
            [first, "No comparison of a variant with the original could be made."],
            "unknown",
        )
    sentences = [first, of_changes(result, claims), to_publish(result)]
    finding = _finding(claims)
    if finding in ("none", "less") and _advice_sees_more(result):
        return Answer(
            "The tests do not agree on whether compression changes what an outsider learns.",
            sentences,
            "unknown",
        )
    return Answer(_headline(result, claims, finding), sentences, finding)


def _finding(claims: Claims) -> Finding:
    if not claims.is_firm:
        return "none"
    gives_more = bool(claims.more or claims.gained)
    if gives_more and claims.less:
        return "mixed"
    return "more" if gives_more else "less"


def _headline(result: AuditResult, claims: Claims, finding: Finding) -> str:
    if finding == "none":
        if not any_leak(result):
            return "Members are not shown to be told from nonmembers, in any version."
        return "Compression is not shown to change what an outsider learns."
    data = "about the training data than the original"
    if finding == "less":
        who = _how_many(len(claims.less), claims.n_alone)
        return f"{who} away less {data}, and none is shown to give away more."
    if not claims.gained or claims.more:
        if claims.less:
            return f"Some compressed versions give away more {data}, others less."
        return f"{_how_many(len(claims.more), claims.n_alone)} away more {data}."
    beside = "beside the original" if _pairs_gain(claims) else "held all together"
    whom = " to an attacker who lacks the reference" if _only_without_reference(claims) else ""
    if len(result.variants) == 2:
        alone = "gives away less" if claims.less else "is not shown to differ"
        return f"Alone, the variant {alone}; {beside}, it gives away more{whom}."
    if claims.less:
        return f"Alone, some compressed versions give away less; {beside}, they give more{whom}."
    return f"Alone no variant is shown to differ; {beside}, they give away more{whom}."


def _how_many(n: int, of: int) -> str:
    """`2 of 4 variants give`."""
    if of == 1:
        return "The variant gives"
    if n == of:
        return "Both variants give" if of == 2 else f"All {of} variants give"
    return f"{n} of {of} variants {'gives' if n == 1 else 'give'}"


def _pairs_gain(claims: Claims) -> bool:
    return bool(
        claims.gains.get("SR over NR") or claims.gains.get("SR over original and reference")
    )


def _only_without_reference(claims: Claims) -> bool:
    """Whether gains are claimed, and none for the attacker who holds the reference too."""
    beside = [found for name, found in claims.gains.items() if name.endswith("reference")]
    return bool(claims.gained) and bool(beside) and not any(beside)


def _advice_sees_more(result: AuditResult) -> bool:
    """Whether the test of all versions together, which is no part of the claims, shows more."""
    releases = result.leakage.releases if result.leakage is not None else None
    if releases is None or releases.bound is not None or len(releases.parts) < 2:
        return False
    return not releases.advice.startswith(NO_DIFFERENCE)
