"""TrainConfig: every option of `train`, once; the flags and the study's recipe read it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from auditor.errors import ConfigError
from auditor.shared_config import (
    AllowPickle,
    Device,
    OfModel,
    Seed,
    SourceField,
    TrustRemoteCode,
)

Method = Literal["full", "lora", "qlora"]


class TrainConfig(OfModel):
    """One target. Equal configurations on one machine give equal weights."""

    data: SourceField = Field(
        description="The pool that members and nonmembers are drawn from: a .jsonl, .json, .csv or "
        ".parquet file, or a data set as PATH[,name=..][,split=..][,revision=..]."
    )
    out: str = Field(description="Folder to write; new or empty.", min_length=1)
    method: Method = Field(
        "full",
        description="full: all weights; lora: an adapter (peft); qlora: an adapter over the base "
        "in NF4 (bitsandbytes).",
    )
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the members at most.")
    patience: int = Field(
        2,
        ge=0,
        description="Stop after so many epochs in which the loss on the third split has not "
        "fallen, and keep the best epoch; 0: never stop, and keep the last.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Highest rate; it falls linearly to 0. Left out: 0.001 over the cube root of "
        "the millions of parameters, and four times that for an adapter.",
    )
    batch_size: int = Field(16, ge=1, description="Records in a step, over all processes together.")
    rank: int = Field(16, ge=1, description="Rank of the adapter.")
    lora_alpha: int | None = Field(
        None, ge=1, description="Scale of the adapter; twice its rank when left out."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the adapter.")
    packing: bool = Field(
        False,
        description="Lay records end to end in rows of --max-length tokens. A record is then no "
        "longer a row of its own, and what is before it in its row is learned with it.",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Cut records to this many tokens; the model's context when left out.",
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="Share of the records that go to the third split, neither members nor "
        "nonmembers: early stopping looks at it, and compressors are calibrated on it.",
    )
    shadows: int = Field(
        0,
        ge=0,
        le=16,
        description="Shadow targets to train beside this one, each on a part of the data of its "
        "own, in OUT/shadow-1 and so on.",
    )
    canaries: int = Field(
        0,
        ge=0,
        description="Invented records, random tokens, each trained on or not by a coin of its own; "
        "for a lower bound on epsilon from one run.",
    )
    limit: int | None = Field(None, ge=1, description="Take the first N records.")
    eval_records: int = Field(
        1000, ge=1, description="Records a side at most for the losses after each epoch."
    )
    device: Device = "auto"
    # What NumPy takes, less the shadows' own.
    seed: Annotated[Seed, Field(le=2**32 - 32)] = 0
    trust_remote_code: TrustRemoteCode = False
    allow_pickle: AllowPickle = False

    @model_validator(mode="after")
    def _adapter_options_have_an_adapter(self) -> "TrainConfig":
        given = sorted({"rank", "lora_alpha", "lora_dropout"} & self.model_fields_set)
        if self.method == "full" and given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')} is an adapter's",
                seen="--method full",
                fix="give --method lora (or qlora), or leave it out",
            )
        if 0 < self.canaries < MIN_CANARIES:
            raise ConfigError(
                f"--canaries must be 0 or at least {MIN_CANARIES}",
                seen=str(self.canaries),
                fix="an audit needs some dozens of them on either side",
            )
        return self


MIN_CANARIES = 120
