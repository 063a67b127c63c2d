"""An answer is never more than its tests allow: over audits of nothing, and over any numbers."""

import math
import re
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.finished import read_result
from auditor.report.answer import Answer, answer
from auditor.results import (
    AttackResult,
    AuditResult,
    Comparison,
    Estimate,
    Leakage,
    LeakageComparison,
)
from auditor.results.leakage import Question
from auditor.stats.figures import adjusted, compare
from auditor.stats.paired import paired_auc
from auditor.stats.roc import auc_estimate
from tests.answer_cases import NAMES, audit_of, difference, estimate, figures, gain, leakage
from tests.report_cases import invented_run

ALPHA = 1 - 0.95
NEVER = re.compile(r"\b(safe|safely|private|nan|None|inf|no leakage)\b")
BROKEN = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    folder = invented_run(tmp_path_factory.mktemp("claims") / "run", n=120, n_variants=2)
    return read_result(folder / "audit.json")


def whole(found: Answer) -> str:
    return "\n".join([found.headline, *found.sentences])


# --- over audits in which compression changes nothing, and in which it does


def drawn(
    base: AuditResult, rng: np.random.Generator, *, leak: float, gained: float, together: bool
) -> AuditResult:
    """An audit of 160 records and 3 variants, by the real statistics.

    Every version sees what all share and noise of its own; a variant sees `gained` more of a
    member. The attackers who hold more see no more, with noise of their own.
    """
    n = 160
    is_member = np.arange(n) < n // 2
    shared = rng.normal(size=n)

    def seen(more: float = 0.0) -> Any:
        return (leak + more) * is_member + shared + 0.5 * rng.normal(size=n)

    signals = {"original": {"ez": seen()}, **{name: {"ez": seen(gained)} for name in NAMES[:3]}}
    comparisons = compare(
        signals,
        is_member,
        original="original",
        primary="ez",
        fprs=(),
        confidence=1 - ALPHA,
        draws=100,
        seed=0,
    )
    result = audit_of(base, comparisons)
    variants = []
    for one in result.variants:
        signal = signals[one.variant]["ez"]
        auc = auc_estimate(signal[is_member], signal[~is_member], confidence=1 - ALPHA)
        variants.append(one.model_copy(update={"attacks": {"ez": figures(auc)}}))
    gains = [asked(seen(), seen(), is_member, name) for name in NAMES[:3]]
    return result.model_copy(
        update={"variants": variants, "leakage": leakage(adjusted(gains)) if together else None}
    )


def asked(less: Any, more: Any, is_member: Any, name: str) -> LeakageComparison:
    """Whether who holds more gains: the two-sided test, one-sided."""
    test = paired_auc(
        less[is_member], less[~is_member], more[is_member], more[~is_member], confidence=1 - ALPHA
    )
    half = (test.p_value or 0.0) / 2
    p_value = half if (test.difference.value or 0.0) > 0 else 1 - half
    return gain("SR over NR", ("original", name), test.difference, p_value)


# With so many audits of both families a level of its own for each would be seen.
@pytest.mark.parametrize(
    ("leak", "together", "n_audits"), [(0.0, True, 100), (1.0, False, 100), (1.0, True, 1000)]
)
def test_over_audits_of_nothing_a_change_is_found_no_oftener_than_allowed(
    base: AuditResult, leak: float, together: bool, n_audits: int
) -> None:
    rng = np.random.default_rng([7, int(leak), together])
    n_found = sum(
        answer(drawn(base, rng, leak=leak, gained=0.0, together=together)).finding
        in ("more", "less", "mixed")
        for _ in range(n_audits)
    )
    spread = math.sqrt(ALPHA * (1 - ALPHA) / n_audits)
    assert n_found / n_audits <= ALPHA + BROKEN * spread
    # Where the original leaks, claims must be possible at all.
    assert leak == 0.0 or n_found > 0


@pytest.mark.parametrize(("gained", "finding"), [(1.0, "more"), (-0.9, "less")])
def test_a_large_change_is_found(base: AuditResult, gained: float, finding: str) -> None:
    rng = np.random.default_rng(3)
    audits = (drawn(base, rng, leak=1.0, gained=gained, together=False) for _ in range(20))
    assert sum(answer(one).finding == finding for one in audits) >= 18


# --- over any numbers

part = st.floats(-0.4, 0.4).filter(lambda x: x == 0 or abs(x) > 1e-9)
chance = st.one_of(
    st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02499, 0.025, 0.04999, 0.05])
)


@st.composite
def estimates(draw: st.DrawFn, *, around: float = 0.0) -> Estimate:
    value = draw(st.one_of(st.none(), part))
    if value is None:
        return Estimate(value=None, n_members=9, n_nonmembers=9, method="", absent="too few")
    ends = sorted([value, *draw(st.tuples(part, part))])
    if draw(st.booleans()):
        return Estimate(value=around + value, n_members=9, n_nonmembers=9, method="")
    return estimate(around + value, around + ends[0], around + ends[2])


@st.composite
def audits(draw: st.DrawFn) -> dict[str, Any]:
    names = NAMES[: draw(st.integers(0, 5))]
    questions = draw(
        st.lists(
            st.sampled_from(get_args(Question)),
            max_size=5,
        )
    )
    gains = [
        gain(
            question,
            ("original", *names) if question.startswith("MR") else ("original", names[0]),
            draw(estimates()),
            draw(chance),
        )
        for question in questions
        if names
    ]
    return {
        "differences": [difference(name, draw(estimates()), draw(chance)) for name in names],
        "original": figures(draw(estimates(around=0.5)), draw(estimates(around=0.4))),
        "aucs": {name: draw(st.floats(0.4, 0.9)) for name in names},
        "together": draw(st.sampled_from([None, leakage(gains, passed=draw(st.booleans()))])),
        "told_apart": draw(st.integers(0, 9)) == 0,
    }


def shown(items: list[Any], sign: int) -> list[Any]:
    return [
        item
        for item in items
        if item.p_adjusted is not None
        and item.p_adjusted < ALPHA
        and sign * (item.difference.value or 0.0) > 0
    ]


def test_a_change_is_claimed_only_where_a_test_shows_it(base: AuditResult) -> None:
    @settings(max_examples=150, deadline=None)
    @given(tests=audits())
    def check(tests: dict[str, Any]) -> None:
        must_claim_what_is_shown(audit_of(base, **tests), **tests)

    check()


def must_claim_what_is_shown(
    result: AuditResult,
    *,
    differences: list[Comparison],
    original: AttackResult,
    together: Leakage | None,
    told_apart: bool,
    aucs: dict[str, float],
) -> None:
    found = answer(result)
    gains = [
        item
        for item in (together.comparisons if together is not None else [])
        if item.question not in ("compression over noise", "variants over original")
    ]
    more, less, gained = shown(differences, 1), shown(differences, -1), shown(gains, 1)
    if found.finding in ("more", "mixed"):
        assert gained or any(aucs[item.variant] > 0.53 for item in more)
    if found.finding in ("less", "mixed"):
        assert less
        assert (original.auc.low or 0.0) > 0.5
    named = {name for name in NAMES if name in whole(found)}
    if "surest" not in whole(found):
        assert named <= {x.variant for x in (*more, *less)} | {x.versions[-1] for x in gained}
    if told_apart or (together is not None and not together.controls[0].passed):
        assert found.finding == "unknown"
        assert not named
    must_be_readable(found)
    must_have_only_its_numbers(found, result)


def must_be_readable(found: Answer) -> None:
    assert 2 <= len(found.sentences) <= 3
    for text in (found.headline, *found.sentences):
        assert text.endswith(".")
        assert not NEVER.search(text)
        assert not re.search(r"  |\(\)|\[\]| [.,;:]|,,|;;|and \.", text)


def must_have_only_its_numbers(found: Answer, result: AuditResult) -> None:
    text = whole(found)
    together = result.leakage
    if together is not None and together.releases is not None:
        text = text.replace(together.releases.advice, "")
    for name in NAMES:
        text = text.replace(name, "")
    known = [abs(x) for x in numbers(result.model_dump(exclude={"config", "records", "timings"}))]
    known += [100 * x for x in known] + [0.0, 50.0, 60.0, 99.0, 95.0, 1.0, 5.0]
    for written in re.findall(r"\d[\d,]*(?:\.\d+)?", text):
        digits = len(written.partition(".")[2])
        wanted = float(written.replace(",", ""))
        near = min(known, key=lambda x: abs(x - wanted))
        # A rise that is ruled out is rounded up, one that is not down.
        is_count = not digits and wanted <= len(NAMES) + 1
        assert is_count or abs(near - wanted) < 1.001 * 10.0**-digits, (written, text)


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict):
        for item in content.values():
            yield from numbers(item)
    elif isinstance(content, list):
        for item in content:
            yield from numbers(item)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield float(content)


def test_an_original_without_figures(base: AuditResult) -> None:
    absent = Estimate(value=None, n_members=9, n_nonmembers=9, method="", absent="too few")
    even = difference("gptq", estimate(0.001, -0.003, 0.005), 0.8)
    for first in (figures(absent), None):
        result = audit_of(base, [even], original=first)
        if first is None:
            bare = result.variants[0].model_copy(update={"attacks": {}})
            result = result.model_copy(update={"variants": [bare, *result.variants[1:]]})
        found = answer(result)
        assert "What the original gives away is absent from this audit." in whole(found)
        assert found.finding == "none"


def test_names_cannot_move_the_cursor_or_turn_the_line(base: AuditResult) -> None:
    name = "checkpoint:a\x1b[2J\u202eb\nc"
    found = answer(audit_of(base, [difference(name, estimate(0.05), 0.001)]))
    assert "checkpoint:a [2J b c" in whole(found)
    assert all(text.isprintable() for text in (found.headline, *found.sentences))
