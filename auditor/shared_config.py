"""The options that several commands share, once; see `auditor.config`."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from auditor.compress import VariantSpec, parse_variant
from auditor.devices import parse_max_memory
from auditor.errors import ConfigError
from auditor.spellings import MODEL_ARGS, parse_model_args, parse_source

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Frozen(BaseModel):
    """Base of the configuration: immutable, and a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Frozen):
    """Where records come from: a file, or a data set in the words of `datasets.load_dataset`.

    As a flag or in a recipe it is one string, `PATH[,name=...][,split=...][,revision=...]`.
    """

    path: str = Field(min_length=1)
    name: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        keys = ((key, getattr(self, key)) for key in ("name", "split", "revision"))
        return ",".join([self.path, *(f"{key}={value}" for key, value in keys if value)])


SourceField = Annotated[Source, BeforeValidator(parse_source)]


# Options of all commands that open a checkpoint; each has its place among those of its command.
Device = Annotated[str, Field(description="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, Field(ge=0, description="Seed of everything that is drawn.")]
TrustRemoteCode = Annotated[
    bool, Field(description="Run Python code that comes with the checkpoint.")
]
AllowPickle = Annotated[
    bool,
    Field(description="Read weights that are only there as pickle (torch.load, weights_only)."),
]


class OfModel(Frozen):
    """What all that opens a checkpoint and reads texts has in common."""

    model: str = Field(
        description="The checkpoint: a folder in the Hugging Face format, or a model id. "
        "(In lm-evaluation-harness --model is a backend; here it is the checkpoint.)",
        min_length=1,
    )
    model_args: Annotated[dict[str, str], BeforeValidator(parse_model_args)] = Field(
        default_factory=dict,
        description=f"key=value,...; keys: {', '.join(MODEL_ARGS)}.",
    )
    text_column: str = Field("text", description="Column that holds the text of a record.")
    messages_column: str = Field(
        "messages",
        description="Column that holds a conversation; used where there is no text column.",
    )
    prompt_column: str = Field("prompt", description="Column of the prompt, which is not scored.")
    completion_column: str = Field("completion", description="Column of the scored completion.")


class Shared(OfModel):
    """What an audit and the making of one variant have in common."""

    adapter: str | None = Field(
        None,
        description="A LoRA adapter in peft's format, a folder: the audited model is then --model "
        "with this adapter merged in, and unmerged:VARIANT puts it over the compressed base.",
        min_length=1,
    )
    members: SourceField | None = Field(
        None,
        description="Records that the model was trained on: a .jsonl, .json, .csv or .parquet "
        "file, or a data set as PATH[,name=..][,split=..][,revision=..]. An audit that is given "
        "no records takes those that target.json beside the model names, else the data sets of "
        "its card.",
    )
    nonmembers: SourceField | None = Field(
        None, description="Records of the same kind that the model never saw; spelled as --members."
    )
    calibration: SourceField | None = Field(
        None,
        description="Texts that GPTQ, Wanda and SparseGPT look at, neither members nor nonmembers; "
        "spelled as --members. Left out: a third set that lies with the records, if there is one.",
    )
    calibration_samples: int = Field(
        128, ge=1, description="Windows of tokens that are cut from the calibration texts."
    )
    calibration_tokens: int = Field(512, ge=2, description="Tokens in each of these windows.")
    allow_calibration_on_members: bool = Field(
        False,
        description="Calibrate on texts that are members or nonmembers, to ask what that leaks.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: the checkpoint's own where the device multiplies in it (a GPU; bfloat16 "
        "on a CPU that has it), else float32.",
    )
    device: Device = "auto"
    device_map: Literal["single", "auto"] = Field(
        "single",
        description="single: the whole model on one device; auto: over all GPUs, then in memory, "
        "then on disk, for a model that no single device holds.",
    )
    max_memory: Annotated[dict[str, str], BeforeValidator(parse_max_memory)] = Field(
        default_factory=dict,
        description="What --device-map auto may take for weights, as 0=20GiB,1=20GiB,cpu=60GiB; "
        "devices that are not named are not used. All that is free, less some room, if left out.",
    )
    offload_folder: str | None = Field(
        None, description="Let --device-map auto read from disk what fits nowhere else; a folder."
    )
    seed: Seed = 0
    trust_remote_code: TrustRemoteCode = False
    allow_pickle: AllowPickle = False


def must_have_adapter(specs: Iterable[VariantSpec], adapter: str | None) -> None:
    """Refuse variants that need an adapter where there is none.

    Raises:
        ConfigError: There is such a variant.
    """
    found = next((spec for spec in specs if spec.over is not None), None)
    if found is not None and adapter is None:
        raise ConfigError(
            "unmerged:VARIANT puts an adapter over a compressed base: --adapter must be given",
            seen=f"{found.label} without --adapter",
            fix="give --adapter DIR, or leave this variant out",
        )


class CompressConfig(Shared):
    """One variant, to be written as a folder that loads anywhere."""

    variant: Annotated[str, BeforeValidator(lambda value: parse_variant(str(value)).label)] = Field(
        description="The variant, name[:key=value,...]; `compleak-llm list variants` shows them."
    )
    out: str = Field(description="Folder to write; it must not be there yet.", min_length=1)

    @model_validator(mode="after")
    def _an_adapter_is_there(self) -> "CompressConfig":
        must_have_adapter([self.spec], self.adapter)
        return self

    @property
    def spec(self) -> VariantSpec:
        """The variant, parsed."""
        return parse_variant(self.variant)
