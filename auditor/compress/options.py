"""The options of every compressor, declared once: range, default and help.

They serve the parser of variant strings, `compleak-llm list variants`, the recipe and the error
messages. No heavy import stands here, because `--help` and the parser read it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from auditor.errors import VariantError

if TYPE_CHECKING:
    from auditor.compress import VariantSpec
    from auditor.compress.matrices import Shape

Shapes = Mapping[str, "Shape"]


class Options(BaseModel):
    """Base of all options; also the options of a compressor that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # The option that may be written first and without its key, as in `checkpoint:PATH`.
    positional: ClassVar[str | None] = None
    # Whether that option takes all that is written, commas and equals signs with it.
    takes_all: ClassVar[bool] = False

    @property
    def changed_share(self) -> float:
        """Share of the weights that the compressor is meant to change."""
        return 1.0

    @property
    def recovery(self) -> "Recovery | None":
        """The training that follows compression, or None."""
        return None

    def spelled(self) -> dict[str, Any]:
        """All options, for the spelling that stores and receipts know a variant by."""
        return self.model_dump()

    def check(self, variant: str, shapes: Shapes) -> None:
        """Refuse, before anything is run, what these options cannot do to matrices of these shapes.

        Raises:
            VariantError: Says which matrix does not fit and which values would.
        """


class Recovery(NamedTuple):
    """Training on the members of the audit, as far as options say it.

    Attributes:
        epochs: Passes over the members.
        rate: The highest learning rate; None for the one that `train` would take.
    """

    epochs: float
    rate: float | None


def _whole(value: float) -> float:
    """1 for 1.0, so that it is spelled as it was written."""
    return int(value) if value == int(value) else value


Epochs = Annotated[float, AfterValidator(_whole)]


class Recovered(Options):
    """What all compressors share whose work can be followed by training on the members."""

    recover: Epochs = Field(
        0,
        ge=0,
        le=100,
        description="Train what was compressed on the members for so many epochs, zeros kept zero "
        "and shared values shared.",
    )
    recover_lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Highest learning rate of that training; 0.001 over the cube root of the "
        "millions of parameters when left out.",
    )

    @model_validator(mode="after")
    def _a_rate_is_used(self) -> "Recovered":
        if self.recover_lr is not None and not self.recover:
            raise ValueError("recover_lr is the rate of a training: recover must be given too")
        return self

    @property
    def recovery(self) -> Recovery | None:
        """The training that follows compression, or None."""
        return Recovery(self.recover, self.recover_lr) if self.recover else None

    def spelled(self) -> dict[str, Any]:
        """All options; without training, what would say how is none of them."""
        found = super().spelled()
        if not self.recover:
            del found["recover"], found["recover_lr"]
        return found


class RetrainOptions(Recovered):
    """Options of `retrain`."""

    recover: Epochs = Field(
        gt=0, le=100, description="Train the original on the members for so many epochs."
    )


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


def _number(value: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
    """A whole number that was written as text, so that it can be compared with a list."""
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


Bits = Annotated[Literal[8, 4, 3, 2], BeforeValidator(_number)]
# Group sizes that the library packs, beside -1.
GPTQ_GROUPS = (16, 32, 64, 128, 256, 512, 1024)
N_M = {"2:4": (2, 4), "4:8": (4, 8)}


class PruneOptions(Recovered):
    """What all ways of pruning share."""

    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the weights that are set to zero; must be given unless a pattern is.",
    )
    pattern: Literal["unstructured", "2:4", "4:8"] = Field(
        "unstructured",
        description="2:4 and 4:8: so many zeros in every group of 4 or 8 weights along the inputs.",
    )

    @model_validator(mode="after")
    def _sparsity_or_pattern(self) -> "PruneOptions":
        if self.pattern == "unstructured" and self.sparsity is None:
            raise ValueError("sparsity must be given")
        if self.pattern != "unstructured" and self.sparsity not in (None, 0.5):
            raise ValueError(f"the pattern {self.pattern} is a sparsity of 0.5")
        return self

    @property
    def n_m(self) -> tuple[int, int] | None:
        """(N, M) of the pattern, or None where there is none."""
        return N_M.get(self.pattern)

    @property
    def share(self) -> float:
        """Share of the weights that are set to zero."""
        return 0.5 if self.sparsity is None else self.sparsity

    @property
    def changed_share(self) -> float:
        """Share of the weights that the compressor is meant to change."""
        return self.share

    def check(self, variant: str, shapes: Shapes) -> None:
        """See `Options.check`."""
        if self.n_m is not None:
            _some_divisible(variant, shapes, self.n_m[1])


class PruneMagnitudeOptions(PruneOptions):
    """Options of `prune-magnitude`."""

    scope: Literal["layer", "global"] = Field(
        "layer", description="Rank the weights within each matrix, or over all matrices together."
    )

    @model_validator(mode="after")
    def _pattern_is_local(self) -> "PruneMagnitudeOptions":
        if self.pattern != "unstructured" and self.scope == "global":
            raise ValueError("a pattern ranks within its groups, so that scope must be layer")
        return self


class Calibrated(Options):
    """What all compressors share that look at texts."""

    calibration: Literal["given", "members"] = Field(
        "given",
        description="given: the texts of --calibration; members: members of the audit itself, to "
        "ask what calibration leaks (needs --allow-calibration-on-members).",
    )


class PruneCalibratedOptions(PruneOptions, Calibrated):
    """Options of `prune-wanda`."""


class SparseGptOptions(PruneCalibratedOptions):
    """Options of `prune-sparsegpt`."""

    damp: float = Field(
        0.01, gt=0, lt=1, description="Part of the Hessian's mean diagonal that is added to it."
    )


class GptqOptions(Calibrated):
    """Options of `gptq`."""

    bits: Bits = Field(4, description="Bits of a weight: 8, 4, 3 or 2.")
    group_size: int = Field(
        128, description="Weights along the inputs that share a scale; -1: a whole row."
    )
    desc_act: bool = Field(False, description="Quantize the columns with large activations first.")
    damp: float = Field(
        0.01, gt=0, lt=1, description="Part of the Hessian's mean diagonal that is added to it."
    )

    def check(self, variant: str, shapes: Shapes) -> None:
        """See `Options.check`."""
        for name, (inputs, outputs) in shapes.items():
            if inputs % 32 or outputs % 32:
                raise VariantError(
                    f"{variant}: GPTQ packs weights by 32, so that both sides of every matrix must "
                    "be multiples of 32",
                    seen=f"{name} has {inputs} inputs and {outputs} outputs",
                    fix="leave this variant out, or take hqq or prune-sparsegpt",
                )
        size = self.group_size
        bad = [name for name, shape in shapes.items() if size not in GPTQ_GROUPS
               or shape.inputs % size]  # fmt: skip
        if size != -1 and bad:
            widths = sorted({shape.inputs for shape in shapes.values()})
            good = [n for n in GPTQ_GROUPS if not any(width % n for width in widths)]
            raise VariantError(
                f"{variant}: group_size must divide the inputs of every matrix",
                seen=f"{size} and {bad[0]} with {shapes[bad[0]].inputs} inputs",
                fix=f"for this model: {', '.join(map(str, good))}, or -1 for a whole row",
            )


class ClusterOptions(Recovered):
    """Options of `cluster`."""

    k: int = Field(16, ge=2, le=256, description="Values that the weights of each matrix may take.")


class GroupOptions(Options):
    """Options of `int4`."""

    group_size: int = Field(
        32, ge=8, description="Weights along the inputs that share a scale; must divide them."
    )

    def check(self, variant: str, shapes: Shapes) -> None:
        """See `Options.check`."""
        _some_divisible(variant, shapes, self.group_size, key="group_size")


class HqqOptions(Options):
    """Options of `hqq`."""

    bits: Bits = Field(4, description="Bits of a weight: 8, 4, 3 or 2.")
    group_size: int = Field(
        64,
        ge=8,
        multiple_of=8,
        description="Weights that share a scale and a zero point, counted over the whole matrix.",
    )

    def divides(self, n_weights: int) -> bool:
        """Whether a matrix of so many weights comes out in whole groups, and they in whole bytes.

        The library packs codes of different groups into one byte, 4-bit ones by two, 2-bit ones by
        four.
        """
        n_groups, rest = divmod(n_weights, self.group_size)
        return not rest and not n_groups % self._groups_in_a_byte

    @property
    def _groups_in_a_byte(self) -> int:
        return {4: 2, 2: 4}.get(self.bits, 1)

    def check(self, variant: str, shapes: Shapes) -> None:
        """See `Options.check`."""
        sizes = sorted({shape.inputs * shape.outputs for shape in shapes.values()})
        if sizes and not any(map(self.divides, sizes)):
            tried = (self.model_copy(update={"group_size": n}) for n in (8, 16, 32, 64, 128))
            good = [str(one.group_size) for one in tried if any(map(one.divides, sizes))]
            many = self._groups_in_a_byte
            raise VariantError(
                f"{variant}: group_size must divide the weights of at least one matrix"
                + (f", into a multiple of {many} groups" if many > 1 else ""),
                seen=f"groups of {self.group_size}, and matrices with "
                f"{', '.join(map(str, sizes))} weights",
                fix=f"for this model: {', '.join(good) or 'none does; leave it out'}",
            )


class CheckpointOptions(Options):
    """Options of `checkpoint`."""

    positional: ClassVar[str | None] = "path"

    path: str = Field(
        min_length=1, description="Folder, .gguf file or model id of a published version."
    )
    revision: str | None = Field(None, description="Revision of a model id.")


class UnmergedOptions(Options):
    """Options of `unmerged`."""

    positional: ClassVar[str | None] = "over"
    takes_all: ClassVar[bool] = True

    over: str = Field(
        min_length=1,
        description="The variant of the base that the adapter lies over, as in "
        "unmerged:prune-magnitude:sparsity=0.5.",
    )

    @field_validator("over")
    @classmethod
    def _over_is_a_variant(cls, value: str) -> str:
        from auditor.compress import parse_variants

        specs = parse_variants([value])
        if len(specs) != 1:
            raise ValueError("one variant must be given")
        if specs[0].id in ("unmerged", "checkpoint"):
            raise ValueError(f"the base cannot be made into {specs[0].id}")
        if specs[0].recovery:
            raise ValueError("a base that is trained further is no longer the adapter's")
        return specs[0].label

    @property
    def spec(self) -> "VariantSpec":
        """The variant of the base."""
        from auditor.compress import parse_variant

        return parse_variant(self.over)

    @property
    def calibration(self) -> str | None:
        """The kind of calibration texts that the base's compressor looks at, if it does."""
        return getattr(self.spec.options, "calibration", None)

    def spelled(self) -> dict[str, Any]:
        """All options of the base's variant too."""
        return {"over": self.spec.canonical}

    def check(self, variant: str, shapes: Shapes) -> None:
        """See `Options.check`."""
        self.spec.options.check(variant, shapes)


def _some_divisible(variant: str, shapes: Shapes, size: int, *, key: str = "pattern") -> None:
    """Matrices that cannot be divided are skipped by the receipt; all of them is an error."""
    widths = sorted({shape.inputs for shape in shapes.values()})
    if widths and all(width % size for width in widths):
        good = [n for n in (8, 16, 32, 64, 128) if any(width % n == 0 for width in widths)]
        raise VariantError(
            f"{variant}: {key} must divide the inputs of at least one matrix",
            seen=f"groups of {size}, and matrices with {', '.join(map(str, widths))} inputs",
            fix=f"for this model: {', '.join(map(str, good)) or 'none does; leave it out'}",
        )
