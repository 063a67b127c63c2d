"""Figures with intervals, and comparisons on the same records."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """Base of everything in `audit.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Result):
    """A figure with its interval and the counts behind it."""

    value: float | None = Field(description="The figure, or null where it is absent.")
    low: float | None = Field(default=None, description="Lower end of the interval.")
    high: float | None = Field(default=None, description="Upper end of the interval.")
    n_members: int = Field(description="Members behind the figure.")
    n_nonmembers: int = Field(description="Nonmembers behind the figure.")
    method: str = Field(description="How the interval was made.")
    absent: str | None = Field(default=None, description="Why there is no figure.")


class AttackResult(Result):
    """What one attack finds on one variant."""

    auc: Estimate = Field(description="Area under the ROC curve.")
    tpr_at_fpr: dict[str, Estimate] = Field(
        description="True positive rate at each false positive rate, keyed by the rate as '0.01'."
    )
    balanced_accuracy: Estimate = Field(
        description="Mean of TPR and TNR at a threshold chosen on the other half of the records."
    )


class Comparison(Result):
    """One variant against the original, on the same records."""

    variant: str = Field(description="The variant.")
    attack: str = Field(description="The attack.")
    metric: str = Field(description="'auc' or 'tpr@0.01' and the like.")
    difference: Estimate = Field(description="Variant minus original.")
    p_value: float | None = Field(description="Two-sided, of no difference; null where absent.")
    p_adjusted: float | None = Field(description="After Holm, over the family.")
    family: Literal["primary", "secondary"] = Field(
        description="primary: the one comparison per variant named before the run."
    )


class BeyondTraining(Comparison):
    """A recovered version against the original that was trained by the same steps."""

    against: str = Field(description="That control: differences are the variant minus it.")
