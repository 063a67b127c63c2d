"""The receipt of a variant: what was really changed, counted on the result.

A compressor that silently skipped its work is worse than none. So nothing here is taken from a
configuration: parameters are counted module by module on the model that will be scored.
"""

from pydantic import BaseModel, ConfigDict, Field

# The reason for a module that the compressor was for and that its library did not touch.
LEFT = "the library left it in full precision"


class Skipped(BaseModel):
    """One module that kept its weights, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str = Field(description="Name of the module in the model.")
    n_parameters: int = Field(description="Parameters of the module.")
    reason: str = Field(description="Why it was not compressed.")


class Compressed(BaseModel):
    """One module that was compressed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str = Field(description="Name of the module in the model.")
    kind: str = Field(description="Class of the module, such as Linear4bit or Conv1D.")
    n_parameters: int = Field(description="Weights of the module, biases not counted.")
    n_changed: int = Field(description="Weights whose value is not what it was in the original.")
    sparsity: float = Field(description="Share of the weights that are exactly zero.")
    relative_error: float = Field(
        description="||W' - W|| / ||W||, Frobenius norms, W' as the variant computes with it."
    )


class Receipt(BaseModel):
    """What was done to make a variant, counted on the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str = Field(description="The variant with all its options.")
    library: str = Field(description="Library and version that did the work.")
    n_parameters: int = Field(description="Parameters of the model, tied ones counted once.")
    n_compressed: int = Field(description="Weights in the modules that were compressed.")
    n_changed: int = Field(description="Weights whose value really differs from the original's.")
    compressed: list[Compressed] = Field(description="Module by module.")
    skipped: list[Skipped] = Field(description="Modules with parameters that were left alone.")
    bits_per_weight: float = Field(
        description="Bits that the compressed modules need for a weight, scales included; of a "
        "pruned matrix, its nonzero weights and one bit a weight to say where they are."
    )
    sparsity: float = Field(description="Share of zeros among the weights of compressed modules.")
    relative_error: float = Field(
        description="||W' - W|| / ||W|| over all compressed modules together."
    )
    bytes_memory: int = Field(description="Bytes that the variant's parameters and buffers take.")
    bytes_disk: int = Field(
        description="Bytes of its weights in a checkpoint, counted from the tensors that saving "
        "would write (pruned matrices are written dense)."
    )
    compress_s: float = Field(
        description="Seconds to compress and to count what changed; loading is in it only where "
        "the library compresses while it loads."
    )
    batch_dependent: bool = Field(
        False,
        description="Whether a record's scores would depend on its batch; such a variant is scored "
        "one record at a time.",
    )
    repairs: list[str] = Field(
        default_factory=list,
        description="Defects of the library on this machine that a probe found, and what was done.",
    )
