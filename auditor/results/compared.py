"""The result of `compare`: two audits of the same records, figure beside figure."""

from typing import Literal

from pydantic import Field

from auditor.results.audit import ModelIdentity, Warned
from auditor.results.figures import AttackResult, Comparison, Estimate, Result


class ComparedAudit(Result):
    """One of the two audits."""

    folder: str = Field(description="Its folder, as given.")
    model: ModelIdentity = Field(description="The model that it audited.")
    reference: ModelIdentity | None = Field(default=None, description="Its reference model.")


class ComparedVersion(Result):
    """One version of the model in both audits."""

    variant: str = Field(description="Its name in tables.")
    canonical: str = Field(description="Its name with all options, by which it was found.")
    perplexity_before: float | None = Field(description="On the nonmembers, in the first audit.")
    perplexity_after: float | None = Field(description="The same in the second.")
    before: dict[str, AttackResult] = Field(description="Figures of the first audit, by attack.")
    after: dict[str, AttackResult] = Field(description="Figures of the second audit, by attack.")


class RunComparison(Comparison):
    """One version and one attack in the second audit against the first, on the same records."""

    difference: Estimate = Field(description="Second audit minus first.")
    family: Literal["primary", "secondary"] = Field(
        description="primary: the AUC of the primary attack, one for each version; secondary: "
        "all others."
    )


class ComparedRuns(Result):
    """Two audits of the same records, paired."""

    before: ComparedAudit = Field(description="The first audit.")
    after: ComparedAudit = Field(description="The second audit.")
    n_members: int = Field(description="Members that both audited.")
    n_nonmembers: int = Field(description="Nonmembers that both audited.")
    primary_attack: str = Field(description="The attack whose AUC is the primary question.")
    confidence: float = Field(description="Level of every interval.")
    notes: list[Warned] = Field(description="What to know before the figures, worst first.")
    left_out: dict[str, str] = Field(
        description="Versions and attacks that were not compared, with the reason."
    )
    versions: list[ComparedVersion] = Field(description="What both audits hold, original first.")
    comparisons: list[RunComparison] = Field(description="Second audit minus first.")
