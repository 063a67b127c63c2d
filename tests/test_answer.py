"""The answer in plain sentences: each case in its own words."""

from collections.abc import Callable

import pytest

from auditor.finished import read_result
from auditor.report.answer import Answer, answer
from auditor.results import Artifact, AuditResult, BestOf, Bound, Release, Warned
from tests.answer_cases import (
    ADVICE,
    NAMES,
    audit_of,
    difference,
    estimate,
    figures,
    gain,
    leakage,
)
from tests.report_cases import invented_run

A, B, PRUNED, *_ = NAMES
EVEN = difference(B, estimate(0.001, -0.003, 0.005), 0.8)
MORE = difference(A, estimate(0.031, 0.019, 0.043), 0.0004)
LESS = difference(PRUNED, estimate(-0.064, -0.072, -0.056), 1e-9)
PAIR = ("original", PRUNED)
NO_GAIN = [
    gain("SR over NR", ("original", B), estimate(0.001, -0.002, 0.0041), 0.9),
    gain("MR over SR", ("original", A, B), estimate(-0.001, -0.004, 0.002), 1.0),
]
SR_GAIN = gain("SR over NR", PAIR, estimate(0.024, 0.018, 0.03), 1e-6)
MR_GAIN = gain("MR over SR", ("original", A, B), estimate(0.011, 0.005, 0.017), 0.004)
NOTHING = figures(estimate(0.503, 0.478, 0.529), estimate(0.012, 0.004, 0.02))
SEVERE = Warned(code="told-apart-by-length", message="The sides differ.", severity="severe")
NEVER = ("safe", "private", "no leakage", "nan", "None", "inf ")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    folder = invented_run(tmp_path_factory.mktemp("answer") / "run", n=120, n_variants=2)
    return read_result(folder / "audit.json")


Case = Callable[[AuditResult], AuditResult]
# By name: the audit, what is found, what the answer says, what it does not say.
CASES: dict[str, tuple[Case, str, list[str], list[str]]] = {
    "nothing leaks": (
        lambda base: audit_of(
            base, [EVEN], original=NOTHING, aucs={B: 0.505}, together=leakage(NO_GAIN)
        ),
        "none",
        [
            "Members are not shown to be told from nonmembers, in any version.",
            "50% of the time (AUC 0.503, 95% interval 0.478 to 0.529; guessing gives 50%)",
            "which is not shown to be better than guessing; that is no proof that nothing can",
            "Alone, beside the original or all together, no variant is shown to change what is",
            "a rise of more than 0.005 in AUC is ruled out at 95% in each comparison taken by",
            ADVICE,
        ],
        ["more than the original"],
    ),
    "the original leaks, no difference": (
        lambda base: audit_of(base, [EVEN], together=leakage(NO_GAIN)),
        "none",
        [
            "Compression is not shown to change what an outsider learns.",
            "the attack named before the run (ez) ranks a random member above a random "
            "nonmember 72% of the time (AUC 0.720, 95% interval 0.700 to 0.740; guessing gives "
            "50%) and finds 8.0% [6.0%, 10.0%] of the members while taking 1% of the nonmembers "
            "for members.",
        ],
        ["better than guessing"],
    ),
    "more": (
        lambda base: audit_of(base, [MORE, EVEN], together=leakage(NO_GAIN)),
        "more",
        [
            "1 of 2 variants gives away more about the training data than the original.",
            f"1 of 2 variants gives away more than the original: {A} (AUC higher by "
            "0.031 [0.019, 0.043]), p < 0.001 after Holm's correction",
            "beside the original or all together, no gain is shown.",
        ],
        ["ruled out", "less"],
    ),
    "less, and what it lost": (
        lambda base: audit_of(base, [LESS, EVEN], together=leakage(NO_GAIN)),
        "less",
        [
            "1 of 2 variants gives away less about the training data than the original, and none "
            "is shown to give away more.",
            f"{PRUNED} (AUC lower by 0.0640 [0.0560, 0.0720], at 1.49 times the original's "
            "perplexity), p < 0.001",
            "no gain is shown: a rise of more than 0.005 in AUC is ruled out",
        ],
        [],
    ),
    "some more, others less": (
        lambda base: audit_of(base, [MORE, LESS, EVEN], together=leakage(NO_GAIN)),
        "mixed",
        [
            "Some compressed versions give away more about the training data than the original, "
            "others less.",
            "1 of 3 variants gives away more than the original: bnb-nf4",
            "1 of 3 variants gives away less than the original: prune",
            "each p < 0.001",
        ],
        [],
    ),
    "less alone, more beside the original": (
        lambda base: audit_of(base, [LESS], together=leakage([SR_GAIN, *NO_GAIN])),
        "mixed",
        [
            "Alone, the variant gives away less; beside the original, it gives away more.",
            f"{PRUNED} (AUC higher by 0.0240 [0.0180, 0.0300]) beside the original gives away "
            "more than either alone, p < 0.001",
        ],
        ["lacks the reference"],
    ),
    "a gain without the reference only": (
        lambda base: audit_of(
            base,
            [EVEN],
            together=leakage(
                [
                    SR_GAIN,
                    gain("SR over original and reference", PAIR, estimate(0.0, -0.001, 0.001), 1.0),
                ]
            ),
        ),
        "more",
        [
            "Alone, the variant is not shown to differ; beside the original, it gives away more to "
            "an attacker who lacks the reference.",
            f"to an attacker without the reference, {PRUNED}",
            "to one who holds it no gain is shown",
        ],
        [],
    ),
    "only all together": (
        lambda base: audit_of(base, [EVEN], together=leakage([MR_GAIN])),
        "more",
        [
            "Alone, the variant is not shown to differ; held all together, it gives away more.",
            "all 3 versions together give away more than the best pair (AUC higher by "
            "0.0110 [0.0050, 0.0170]), p = 0.004 after Holm's correction.",
        ],
        [],
    ),
    "wide intervals": (
        lambda base: audit_of(base, [difference(B, estimate(0.01, -0.0234, 0.0437), 0.6)]),
        "none",
        ["a rise of 0.043 in AUC cannot be ruled out at 95% with 60 members and 60 nonmembers."],
        ["is ruled out"],
    ),
    "any rise is ruled out": (
        lambda base: audit_of(base, [difference(B, estimate(-0.01, -0.019, -0.001), 0.2)]),
        "none",
        ["any rise in AUC is ruled out at 95% in each comparison taken by itself"],
        ["-0"],
    ),
    "not left over both families": (
        lambda base: audit_of(
            base,
            [difference(A, estimate(0.012, 0.001, 0.023), 0.04), EVEN],
            together=leakage(NO_GAIN),
        ),
        "none",
        [
            "the surest change, of bnb-nf4 (p = 0.040 after Holm's correction), is not left when "
            "all questions of the audit are counted together",
        ],
        ["gives away more than"],
    ),
    "many variants": (
        lambda base: audit_of(
            base,
            [difference(x, estimate(0.03 + i / 100), 0.001) for i, x in enumerate(NAMES)],
        ),
        "more",
        [
            "All 5 variants give away more about the training data than the original.",
            "5 of 5 variants give away more than the original: hqq (AUC higher by 0.070 "
            "[0.050, 0.090]), cluster (0.060 [0.040, 0.080]), prune-magnitude:sparsity=0.7 (0.050 "
            "[0.030, 0.070]) and 2 more, each p at most 0.001",
        ],
        ["gptq", "bnb-nf4"],
    ),
    "a difference between two that are no better than guessing": (
        lambda base: audit_of(
            base,
            [difference(B, estimate(0.03, 0.01, 0.05), 0.001)],
            original=figures(estimate(0.46, 0.43, 0.49)),
            aucs={B: 0.49},
        ),
        "none",
        ["which is worse than guessing and of no use to an attacker as it stands."],
        ["gives away more"],
    ),
    "one version only": (
        lambda base: audit_of(base, []),
        "unknown",
        ["Only the original was audited", "72% of the time", "name them with --variants"],
        ["together"],
    ),
    "the lists can be told apart": (
        lambda base: audit_of(base, [MORE], told_apart=True, together=leakage([SR_GAIN])),
        "unknown",
        [
            "No answer about the model can be given: the two lists can be told apart without it.",
            "(AUC 0.710, 95% interval 0.680 to 0.740)",
        ],
        [A, PRUNED, ADVICE, "the attack named before the run"],
    ),
    "a control failed": (
        lambda base: audit_of(base, [MORE], together=leakage([SR_GAIN], passed=False)),
        "unknown",
        [
            "No answer can be given: a control of this audit failed.",
            "1 of 1 controls failed: paired with permuted-labels gives 0.610, where 0.5 must come",
        ],
        [A, PRUNED, ADVICE],
    ),
    "a severe warning": (
        lambda base: audit_of(base, [MORE], warnings=[SEVERE]),
        "more",
        ["Read the severe warning first (told-apart-by-length). On the original"],
        [],
    ),
    "the advice sees what the claims do not": (
        lambda base: audit_of(
            base, [EVEN], together=leakage(NO_GAIN, advice="Leave out gptq and TPR falls.")
        ),
        "unknown",
        [
            "The tests do not agree on whether compression changes what an outsider learns.",
            "Leave out gptq and TPR falls.",
        ],
        [],
    ),
    "not judged together": (
        lambda base: audit_of(
            base,
            [EVEN],
            original=figures(estimate(0.65)),
            together=leakage([], advice=None).model_copy(
                update={"left_out": {"learned attacks": "they need 50 members"}}
            ),
        ),
        "none",
        [
            "What to publish together cannot be said: what several versions give away to whoever "
            "holds them all was not judged (learned attacks: they need 50 members).",
            "cannot be said from 60 nonmembers",
        ],
        ["beside the original"],
    ),
}


def whole(found: Answer) -> str:
    return "\n".join([found.headline, *found.sentences])


def must_be_plain(found: Answer) -> None:
    assert 2 <= len(found.sentences) <= 3
    for text in (found.headline, *found.sentences):
        assert text.endswith(".")
        assert text[0].isupper() or not text[0].isalpha()
        assert not any(word in text for word in NEVER)
        assert "  " not in text


@pytest.mark.parametrize("name", CASES)
def test_each_case_has_its_own_words(base: AuditResult, name: str) -> None:
    made, finding, said, unsaid = CASES[name]
    found = answer(made(base))
    assert found.finding == finding
    for text in said:
        assert text in whole(found)
    for text in unsaid:
        assert text not in whole(found)
    must_be_plain(found)


def test_no_two_cases_have_the_same_headline_but_those_that_say_the_same(base: AuditResult) -> None:
    headlines = [answer(made(base)).headline for made, *_ in CASES.values()]
    assert len(set(headlines)) == 14


def test_broken_variants_are_left_out_by_name(base: AuditResult) -> None:
    result = audit_of(base, [MORE, EVEN])
    broken = result.variants[2].model_copy(update={"status": "broken", "attacks": {}})
    some = result.model_copy(update={"variants": [*result.variants[:2], broken]})
    found = answer(some)
    assert found.sentences[0].startswith(f"{B} is broken and left out of this answer. On the orig")
    assert "The variant gives away more" in found.headline
    gone = result.variants[1].model_copy(update={"status": "broken", "attacks": {}})
    found = answer(some.model_copy(update={"variants": [result.variants[0], gone, broken]}))
    assert found.finding == "unknown"
    assert found.headline == "No compressed version could be judged: all 2 are broken."
    must_be_plain(found)
    assert A not in whole(found)


def test_what_lies_in_clear_comes_before_the_advice(base: AuditResult) -> None:
    lying = Artifact(
        checkpoint="model",
        file="config.json",
        kind="calibration",
        n_records=3,
        message="texts stand in it",
        severity="severe",
    )
    result = audit_of(base, [EVEN], together=leakage(NO_GAIN), artifacts=[lying])
    last = answer(result).sentences[-1]
    assert (
        last
        == f"Before anything is published, take out the texts that stand in the files. {ADVICE}"
    )


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("under", "is shown to stay within the bound"),
        ("over", "is shown to break the bound"),
        ("undecided", "is not shown to stay within the bound"),
    ],
)
def test_the_release_that_was_asked_about_is_judged_first(
    base: AuditResult, verdict: str, said: str
) -> None:
    gate = Release.model_validate(
        {
            "versions": ["original", A],
            "auc": estimate(0.7),
            "tpr_at_fpr": {},
            "perplexity_worst": 10.0,
            "perplexity_mean": 9.0,
            "on_frontier": True,
            "verdict": verdict,
        }
    )
    together = leakage(NO_GAIN, advice="Leave out gptq and the others are shown to stay within.")
    assert together.releases is not None
    bound = Bound(metric="auc", at_most=0.75)
    releases = together.releases.model_copy(update={"bound": bound, "gate": gate})
    result = audit_of(base, [EVEN], together=together.model_copy(update={"releases": releases}))
    found = answer(result)
    assert found.finding == "none"
    assert found.sentences[-1].startswith(f"All but {B}, which it was about, {said}. Leave out")


def test_an_advice_is_about_who_holds_the_reference(base: AuditResult) -> None:
    together = leakage(NO_GAIN)
    assert together.releases is not None
    releases = together.releases.model_copy(update={"with_reference": True})
    result = audit_of(base, [EVEN], together=together.model_copy(update={"releases": releases}))
    last = answer(result).sentences[-1]
    assert last == f"For an attacker who holds the reference too: {ADVICE}"


def test_what_the_primary_attack_misses_is_not_hidden(base: AuditResult) -> None:
    best = BestOf(
        attack="zlib",
        versions=["original"],
        auc=0.6,
        n_candidates=20,
        p_value=0.003,
        n_permutations=2000,
    )
    together = leakage(NO_GAIN).model_copy(update={"best": best})
    result = audit_of(base, [EVEN], original=NOTHING, aucs={B: 0.505}, together=together)
    found = answer(result)
    assert found.headline == "Compression is not shown to change what an outsider learns."
    assert "the best of 20 training-free signals is (zlib on original, p 0.003" in whole(found)
    # At few false alarms it finds members, though not on average.
    found = answer(
        audit_of(base, [EVEN], original=figures(estimate(0.503), estimate(0.04, 0.02, 0.06)))
    )
    assert "finds 4.0% [2.0%, 6.0%]" in found.sentences[0]
    assert "not shown" not in found.sentences[0]


def test_secondary_comparisons_are_counted_and_claim_nothing(base: AuditResult) -> None:
    tpr = EVEN.model_copy(
        update={"metric": "tpr@0.01", "family": "secondary", "p_adjusted": 0.01, "attack": "loss"}
    )
    found = answer(audit_of(base, [EVEN], comparisons=[EVEN, tpr]))
    assert found.finding == "none"
    assert "of 1 secondary comparisons 1 differs, after a correction of their own" in whole(found)
