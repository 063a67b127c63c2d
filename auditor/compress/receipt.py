"""The receipt of a variant: what was really changed, counted on the result.

A compressor that silently skipped its work is worse than none. So nothing here is taken from a
configuration: parameters are counted module by module on the model that will be scored.
"""

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

# The reason for a module that the compressor was for and that its library did not touch.
LEFT = "the library left it in full precision"
# The same for a matrix whose sides do not fit what the format asks for.
NOT_DIVISIBLE = "its inputs cannot be divided as the format asks"
# Reasons for matrices that compression was for.
UNTOUCHED = (LEFT, NOT_DIVISIBLE)


# JSON has no word for NaN, and null stands for it: a broken variant's receipt must be read again.
OrNaN = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]


class Part(BaseModel):
    """Base of everything in a receipt."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Skipped(Part):
    """One module that kept its weights, and why."""

    module: str = Field(description="Name of the module in the model.")
    n_parameters: int = Field(description="Parameters of the module.")
    reason: str = Field(description="Why it was not compressed.")


class Compressed(Part):
    """One module that was compressed."""

    module: str = Field(description="Name of the module in the model.")
    kind: str = Field(description="Class of the module, such as Linear4bit or Conv1D.")
    n_parameters: int = Field(description="Weights of the module, biases not counted.")
    n_changed: int = Field(description="Weights whose value is not what it was in the original.")
    sparsity: float = Field(description="Share of the weights that are exactly zero.")
    relative_error: OrNaN = Field(
        description="||W' - W|| / ||W||, Frobenius norms, W' as the variant computes with it; null "
        "where a weight is not a number, or the original's were all zero and these are not."
    )
    n_values: int | None = Field(
        default=None, description="Distinct values in the matrix, counted where they are the point."
    )
    pattern: str | None = Field(
        default=None,
        description="N:M where every group of M weights along the inputs was found to hold at "
        "least N zeros of the pattern.",
    )


class Held(Part):
    """What of a model lies on one device."""

    n_modules: int = Field(description="Modules with weights of their own there.")
    n_bytes: int = Field(description="Bytes of these weights, tied ones counted once.")


class CalibrationUse(Part):
    """The texts that a compressor was calibrated on, by id."""

    source: str = Field(description="Where they come from.")
    n_records: int = Field(description="Texts that were used.")
    n_samples: int = Field(description="Windows of tokens that were cut from them.")
    n_tokens: int = Field(description="Tokens in all windows.")
    sha256: str = Field(description="Over the token ids, hex.")
    ids: list[str] = Field(description="Ids of the texts, as for records.")


class Receipt(Part):
    """What was done to make a variant, counted on the result."""

    variant: str = Field(description="The variant with all its options.")
    library: str = Field(description="Library and version that did the work.")
    method: str | None = Field(
        default=None, description="What a published checkpoint was found to be compressed with."
    )
    n_parameters: int = Field(description="Parameters of the model, tied ones counted once.")
    n_compressed: int = Field(description="Weights in the modules that were compressed.")
    n_changed: int = Field(description="Weights whose value really differs from the original's.")
    compressed: list[Compressed] = Field(description="Module by module.")
    skipped: list[Skipped] = Field(description="Modules with parameters that were left alone.")
    bits_per_weight: float = Field(
        description="Bits that the compressed modules need for a weight, scales included; of a "
        "pruned matrix, its nonzero weights and one bit a weight to say where they are, or with a "
        "pattern the weights that every group keeps and their places in it."
    )
    sparsity: float = Field(description="Share of zeros among the weights of compressed modules.")
    relative_error: OrNaN = Field(
        description="||W' - W|| / ||W|| over all compressed modules together; null as above."
    )
    correlation: float | None = Field(
        default=None,
        description="Of the weights with the original's, over all compressed modules together; "
        "says whether a published checkpoint is a version of this original.",
    )
    bytes_memory: int = Field(description="Bytes that the variant's parameters and buffers take.")
    bytes_disk: int = Field(
        description="Bytes of its weights in a checkpoint: of a published one its files, else "
        "counted from the tensors that saving would write (pruned matrices are written dense)."
    )
    compress_s: float = Field(
        description="Seconds to compress and to count what changed; loading is in it only where "
        "the library compresses while it loads."
    )
    compress_peak_bytes: int = Field(
        default=0,
        description="Memory that making it took at its peak, above what was held before: resident "
        "memory on a CPU, allocated memory on a GPU; 0 where the system does not tell. With what "
        "scoring took meanwhile, where it was made while another version was scored.",
    )
    calibration: CalibrationUse | None = Field(
        default=None, description="The texts that the compressor looked at, where it needs some."
    )
    devices: dict[str, Held] = Field(
        default_factory=dict,
        description="With --device-map auto, what lay where while it was scored. What lies on "
        "disk, or under `cpu` beside a GPU, is fetched for every batch.",
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
    notes: list[str] = Field(
        default_factory=list, description="What else the reader of this receipt must know."
    )
