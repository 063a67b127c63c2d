"""The options of every compressor, declared once: range, default and help.

They serve the parser of variant strings, `compleak-llm list variants`, the recipe and the error
messages. No heavy import stands here, because `--help` and the parser read it.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of all options; also the options of a compressor that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def changed_share(self) -> float:
        """Share of the weights that the compressor is meant to change."""
        return 1.0


class Int8Options(Options):
    """Options of `bnb-int8`."""

    threshold: float = Field(
        6.0,
        ge=0,
        description="Activation columns with a value above this stay in 16 bits (LLM.int8); 0 "
        "turns that off. Above 0 the columns are chosen over the whole batch, so that records are "
        "scored one at a time.",
    )


class FourBitOptions(Options):
    """Options of `bnb-nf4` and `bnb-fp4`."""

    double_quant: bool = Field(False, description="Quantize the block scales as well.")


class PruneMagnitudeOptions(Options):
    """Options of `prune-magnitude`."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the weights that are set to zero.")
    scope: Literal["layer", "global"] = Field(
        "layer", description="Rank the weights within each matrix, or over all matrices together."
    )

    @property
    def changed_share(self) -> float:
        """Share of the weights that the compressor is meant to change."""
        return self.sparsity
