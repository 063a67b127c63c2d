"""What versions give away alone (NR), beside the original (SR) and together (MR).

The three attackers are those of CompLeak (Li et al., arXiv 2507.16872).
"""

from typing import Literal

from pydantic import Field

from auditor.results.figures import AttackResult, Estimate, Result

Setting = Literal["NR", "SR", "MR"]
Supervision = Literal["none", "crossfit", "shadow"]
Verdict = Literal["under", "over", "undecided"]
Question = Literal[
    "SR over NR",
    "MR over SR",
    "SR over original and reference",
    "MR over original and reference",
    "variants over original",
    "compression over noise",
]


class SettingResult(Result):
    """What one attacker finds: what he holds, how he attacks, how well it works."""

    setting: Setting = Field(description="NR: one version; SR: the original and one variant; MR.")
    attack: str = Field(description="The attack's id.")
    versions: list[str] = Field(description="The versions that the attacker holds.")
    with_reference: bool = Field(
        False, description="Whether he holds the reference model too, which saw no member."
    )
    supervision: Supervision = Field(
        description="none: training-free; crossfit: learned on other records of this audit; "
        "shadow: learned on another model's audit, without a label of this one."
    )
    figures: AttackResult = Field(description="Its figures.")
    noise_share: float | None = Field(
        default=None,
        description="Of a cross-fitted signal, the share of its spread that is the accident of "
        "training, 0 to 1; intervals are widened by the root of 1 plus this.",
    )
    learners: dict[str, int] = Field(
        default_factory=dict,
        description="How many of the outer folds chose which learner and strength.",
    )


class LeakageComparison(Result):
    """One question that was named before the run, asked on the same records and folds."""

    question: Question = Field(description="What is asked.")
    attack: str = Field(description="The stronger attack.")
    versions: list[str] = Field(description="The versions that it holds.")
    against: str = Field(description="The attack that it must beat.")
    against_versions: list[str] = Field(
        description="What that one holds; of several, the best is chosen inside the folds."
    )
    with_reference: bool = Field(description="Whether both hold the reference model too.")
    supervision: Supervision = Field(description="As for a setting.")
    metric: str = Field(description="'auc' or 'tpr@0.01' and the like.")
    difference: Estimate = Field(description="The stronger attack minus the other.")
    p_value: float | None = Field(
        description="One-sided, of no gain: that an attacker gains nothing by what he holds more."
    )
    p_adjusted: float | None = Field(description="After Holm, over the family.")
    family: Literal["primary", "secondary"] = Field(
        description="primary: the AUC of the questions; secondary: their TPR, 'variants over "
        "original', and what is asked a second time beside the reference."
    )


class Control(Result):
    """Something that is known beforehand, put through the same pipeline."""

    name: Literal["permuted-labels", "original-as-variant"] = Field(
        description="permuted-labels: membership is drawn anew, the AUC must be 0.5; "
        "original-as-variant: the original stands in for the variant, SR must add nothing."
    )
    attack: str = Field(description="The attack.")
    versions: list[str] = Field(description="The versions that it holds.")
    with_reference: bool = Field(False, description="Whether it holds the reference too.")
    learner: str | None = Field(
        default=None, description="How a learned attack's learner was settled."
    )
    figure: Estimate = Field(description="The AUC, or the difference of two.")
    expected: float = Field(description="What it must be.")
    confidence: float = Field(
        description="Level of the interval: of permuted-labels 0.99 over all of them together."
    )
    passed: bool = Field(
        description="Whether the interval of permuted-labels reaches down to what it must be, or "
        "the figure of original-as-variant is exactly that."
    )


class BestOf(Result):
    """The best of all training-free attacks on all versions, with its selection paid for."""

    attack: str = Field(description="The attack.")
    versions: list[str] = Field(description="The versions that it holds.")
    auc: float = Field(description="Its AUC: the largest of many, and so too high.")
    n_candidates: int = Field(description="Signals that it was chosen from.")
    p_value: float = Field(
        description="Share of label permutations whose best of all candidates is as good."
    )
    n_permutations: int = Field(description="Permutations.")


class Exposed(Result):
    """Members that are found only once the compressed versions are out."""

    fpr: float | None = Field(description="False positive rate; null where it is absent.")
    n_found_original: int | None = Field(
        default=None, description="Members that are found with the original alone."
    )
    n_found_together: int | None = Field(
        default=None, description="Members that are found with all versions."
    )
    n_newly: int | None = Field(default=None, description="Found with all, not with the original.")
    n_no_longer: int | None = Field(
        default=None,
        description="Found with the original, not with all: what changes places by accident.",
    )
    expected_by_chance: float | None = Field(
        default=None,
        description="Members that would be newly found if all versions were worth no more than the "
        "original: half of those that change places.",
    )
    n_expected_of_nonmembers: float | None = Field(
        default=None,
        description="Members that would be newly found if as large a share of them were as of the "
        "nonmembers.",
    )
    p_value: float | None = Field(
        default=None,
        description="One-sided, that all versions find no more members at this rate than the "
        "original; the thresholds' own spread is counted.",
    )
    ids: list[str] = Field(
        default_factory=list, description="Ids of the newly found members, the surest first."
    )
    absent: str | None = Field(default=None, description="Why there is no list.")


class Bound(Result):
    """What a release may give away at most."""

    metric: str = Field(description="'auc' or 'tpr@0.01' and the like.")
    at_most: float = Field(description="The bound.")


class Release(Result):
    """A set of versions that are published together."""

    versions: list[str] = Field(description="The versions.")
    auc: Estimate = Field(description="AUC of the attacker who holds exactly these.")
    tpr_at_fpr: dict[str, Estimate] = Field(description="TPR, keyed by the rate.")
    perplexity_worst: float = Field(description="Largest perplexity on nonmembers of the set.")
    perplexity_mean: float = Field(description="Mean perplexity on nonmembers of the set.")
    on_frontier: bool = Field(
        description="Whether no other set of as many versions or more has both a lower mean "
        "perplexity and less leakage."
    )
    verdict: Verdict | None = Field(
        default=None,
        description="Against the bound: under, its interval lies below, and so do those of all its "
        "subsets, which whoever holds it holds too; over, its own or a subset's lies above; "
        "undecided.",
    )


class Part(Result):
    """What one version adds to what a release gives away, on average over all releases."""

    version: str = Field(description="The version.")
    auc: float = Field(description="Its Shapley part of AUC - 0.5; the parts of all add up.")
    tpr_at_fpr: dict[str, float] = Field(description="Its Shapley part of TPR - FPR, by the rate.")


class Releases(Result):
    """Which versions can be published together."""

    with_reference: bool = Field(description="Whether the attacker holds the reference model too.")
    metric: str = Field(description="What sets are ranked by: 'auc' or 'tpr@0.01' and the like.")
    search: Literal["every set", "beam"] = Field(description="How the sets were chosen.")
    sets: list[Release] = Field(description="Best utility first: most versions, then perplexity.")
    parts: list[Part] = Field(description="What each version adds.")
    left_out: dict[str, str] = Field(
        default_factory=dict, description="Versions that were not judged, with the reason."
    )
    bound: Bound | None = Field(default=None, description="What was allowed at most.")
    gate: Release | None = Field(default=None, description="The release that was to be judged.")
    advice: str = Field(description="One sentence.")


class EpsilonBound(Result):
    """A lower bound on the epsilon of the training, or why there is none."""

    method: Literal["one-run", "split-threshold"] = Field(
        description="one-run: Steinke et al. 2023; split-threshold: Clopper-Pearson at a threshold "
        "chosen on the other half."
    )
    attack: str = Field(description="The attack; training-free, so that it saw no label.")
    versions: list[str] = Field(description="The versions that it holds.")
    epsilon: float | None = Field(default=None, description="The lower bound.")
    delta: float = Field(description="Delta.")
    confidence: float = Field(description="Level of all bounds of the audit together.")
    n_guesses: int | None = Field(default=None, description="Records that were guessed.")
    n_correct: int | None = Field(default=None, description="Guesses that were right.")
    absent: str | None = Field(default=None, description="Why there is no bound.")


class Leakage(Result):
    """Everything about more than one version at a time."""

    supervision: list[Supervision] = Field(description="How the learned attacks were trained.")
    n_folds: int | None = Field(default=None, description="Outer folds.")
    n_repeats: int | None = Field(default=None, description="Times that the folds were drawn.")
    n_groups: int | None = Field(
        default=None, description="Groups of records; near-duplicates are one and share a fold."
    )
    n_features: dict[str, int] = Field(
        default_factory=dict, description="Features of a version, of a pair, of the lengths."
    )
    shadows: list[str] = Field(default_factory=list, description="Shadow audits, as given.")
    left_out: dict[str, str] = Field(
        default_factory=dict,
        description="Attacks and versions that were left out, with the reason.",
    )
    settings: list[SettingResult] = Field(description="What each attacker finds.")
    comparisons: list[LeakageComparison] = Field(description="The questions, answered.")
    controls: list[Control] = Field(description="What is known beforehand.")
    best: BestOf | None = Field(default=None, description="Best of the training-free attacks.")
    exposed: Exposed | None = Field(
        default=None, description="Members that are found only with the compressed versions."
    )
    releases: Releases | None = Field(default=None, description="What can be published together.")
    epsilon: list[EpsilonBound] = Field(default_factory=list, description="Lower bounds.")
