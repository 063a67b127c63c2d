"""The result of an audit: versions, records, what was found in files, where the time went."""

from typing import Any, Literal

from pydantic import Field

from auditor.compress.receipt import Receipt
from auditor.results.figures import AttackResult, BeyondTraining, Comparison, Estimate, Result
from auditor.results.leakage import Leakage

SCHEMA_VERSION = "1"


class VariantResult(Result):
    """One version of the model."""

    variant: str = Field(description="Its name in tables: options that differ from the defaults.")
    canonical: str = Field(description="Its name with all options.")
    status: Literal["ok", "broken"] = Field(
        description="ok; broken: its scores are not finite, or its perplexity is over 10 times the "
        "original's: not published like this. A broken variant is compared with nothing."
    )
    reason: str | None = Field(default=None, description="Why it is broken.")
    receipt: Receipt | None = Field(default=None, description="What was really changed.")
    perplexity: float | None = Field(
        None, description="exp of the mean of -log p over all scored tokens of the nonmembers."
    )
    perplexity_ratio: float | None = Field(
        default=None, description="Its perplexity over the original's."
    )
    attacks: dict[str, AttackResult] = Field(default_factory=dict, description="By attack id.")


class LengthSummary(Result):
    """Tokens per record on one side."""

    mean: float = Field(description="Mean.")
    median: float = Field(description="Median.")
    low: int = Field(description="Shortest.")
    high: int = Field(description="Longest.")


class Side(Result):
    """What was found on one side."""

    n_read: int = Field(description="Rows read.")
    n_audited: int = Field(description="Records that were scored.")
    n_duplicates: int = Field(description="Later copies of a record on the same side; left out.")
    n_empty: int = Field(description="Records without text; left out.")
    n_too_short: int = Field(description="Records with nothing to predict; left out.")
    n_overlap: int = Field(description="Records that stand on the other side too; left out.")
    n_near_duplicates: int = Field(
        description="Records that share half of their word 13-grams or more with the other side."
    )
    n_truncated: int = Field(description="Records cut to the context.")
    left_out_ids: list[str] = Field(
        description="Ids of the records left out for being too short or empty (first 100)."
    )
    tokens: LengthSummary | None = Field(description="Tokens per audited record.")


class RecordsSummary(Result):
    """The records of the audit."""

    members: Side = Field(description="Records that the model was trained on.")
    nonmembers: Side = Field(description="Records that it never saw.")
    source: Literal["given", "target.json", "card"] = Field(
        "given",
        description="given: by whoever asked for the audit; target.json: by the file that training "
        "left beside the model; card: from the data set that the model's card names, so that "
        "membership is taken for granted and not known.",
    )
    data_set: str | None = Field(
        default=None, description="The data set that the card names, where the records are its."
    )
    sha256: str = Field(description="Over the ids and sides, in order, hex.")
    length_auc: float | None = Field(
        description="AUC of the record's length as a signal, 0.5 where the sides are alike."
    )


class Warned(Result):
    """Something that the reader must know before the figures."""

    code: str = Field(description="A short name that does not change.")
    message: str = Field(description="One or two sentences.")
    severity: Literal["info", "warning", "severe"] = Field(description="How much it weighs.")


class Artifact(Result):
    """Something in the files of a checkpoint that must not be published, or needs a second look."""

    checkpoint: str = Field(description="The checkpoint, as given.")
    file: str = Field(description="The file or folder, relative to the checkpoint.")
    kind: Literal["record", "calibration", "file"] = Field(
        description="record: audited records stand in it; calibration: texts that a variant was "
        "calibrated on do; file: it does not belong there, or could not be searched."
    )
    n_records: int = Field(0, description="Records or calibration texts that stand in it.")
    n_whole: int = Field(0, description="Of them, those that stand there from end to end.")
    n_members: int = Field(0, description="Of the records, members.")
    n_nonmembers: int = Field(0, description="Of the records, nonmembers.")
    record_ids: list[str] = Field(default_factory=list, description="Their ids (first 100).")
    message: str = Field(description="What it is and what to do, without a word of any record.")
    severity: Literal["info", "warning", "severe"] = Field(description="How much it weighs.")


class BlindBaseline(Result):
    """A classifier that never sees the model: can the lists alone be told apart?"""

    auc: Estimate = Field(description="Out-of-fold AUC.")
    tpr_at_fpr: dict[str, Estimate] = Field(description="As for an attack.")
    n_features: int = Field(description="Columns of the hashed features.")
    told_apart: bool = Field(
        description="Whether the AUC's interval at 99% lies above 0.5: the audit then measures the "
        "lists as well as the model."
    )


class ModelIdentity(Result):
    """Which model it was."""

    name: str = Field(description="As given.")
    is_path: bool | None = Field(
        default=None,
        description="Whether the name was a path on the machine of the audit; null: not recorded.",
    )
    model_type: str = Field(description="Architecture family in transformers' words.")
    sha256: str = Field(description="Over weights and configuration, hex.")
    tokenizer_sha256: str = Field(description="Over the tokenizer, hex.")
    n_parameters: int | None = Field(
        default=None, description="Parameters, tied ones counted once."
    )
    context_tokens: int = Field(description="Tokens that it takes at most.")
    dtype: str = Field(description="Precision of the pass.")


class TokenView(Result):
    """One record, token by token; there only where its text may be written."""

    record_id: str = Field(description="Its id.")
    is_member: bool = Field(description="Its side.")
    chosen: Literal["newly exposed", "surest member", "nonmember most like a member"] = Field(
        description="Why it is shown: a member that is found only with the compressed versions; "
        "one with the largest signal of the primary attack on the original; a nonmember with it."
    )
    tokens: list[str] = Field(
        description="The text of each token, after truncation; joined they are the record, but "
        "for special tokens, which stand by their names."
    )
    first: int = Field(description="Position of the first token that is scored.")
    log_p: dict[str, list[float]] = Field(
        description="By version, and 'reference': log p of each token from `first` on, in nats."
    )


class Timing(Result):
    """Seconds and counts of one model's way through the audit."""

    variant: str = Field(description="The variant, or 'reference'.")
    load_s: float = Field(description="Loading.")
    compress_s: float = Field(
        description="Compressing and counting what changed; with a library that compresses while "
        "it loads, loading too. The version's own seconds, also those that are in `hidden_s`. Of "
        "one that was read from the cache, waiting for the process that made it."
    )
    from_cache: bool = Field(
        False,
        description="Whether it was made before, or by another process, and read from the cache; "
        "its receipt says what it took then.",
    )
    hidden_s: float = Field(
        0.0,
        description="Seconds of loading and compressing that passed while the version before was "
        "scored, and so are no part of the whole.",
    )
    forward_s: float = Field(description="Inside the model and the token statistics.")
    rest_s: float = Field(
        description="Reading, tokenizing, writing, as far as the pass had to wait for it."
    )
    n_forward_records: int = Field(description="Records that went through the model in this run.")
    n_forward_passes: int = Field(description="Batches that went through the model in this run.")
    n_tokens: int = Field(description="Tokens of those records, padding not counted.")
    peak_bytes: int = Field(description="Peak memory of the process by then.")


class Timings(Result):
    """Where the time of this run went; the only part that differs between equal runs."""

    started_at: str = Field(description="UTC, ISO 8601.")
    total_s: float = Field(description="The whole audit.")
    records_s: float = Field(description="Reading and checking the records.")
    search_s: float = Field(0.0, description="Searching the checkpoints for records.")
    blind_s: float = Field(description="The blind baseline.")
    statistics_s: float = Field(description="Attacks, intervals and tests.")
    variants: list[Timing] = Field(description="One for each model.")


class AuditResult(Result):
    """Everything that one audit found."""

    schema_version: Literal["1"] = Field("1", description="Version of this schema.")
    config: dict[str, Any] = Field(description="The configuration, every option.")
    versions: dict[str, str] = Field(description="Python and libraries.")
    environment: dict[str, Any] = Field(description="Processor, device, threads.")
    model: ModelIdentity = Field(description="The audited model.")
    reference: ModelIdentity | None = Field(default=None, description="The reference model.")
    records: RecordsSummary = Field(description="The records.")
    artifacts: list[Artifact] = Field(
        default_factory=list,
        description="What was found in the files of the checkpoints: records and calibration texts "
        "first, then files that do not belong there.",
    )
    warnings: list[Warned] = Field(description="What to know before the figures, worst first.")
    blind: BlindBaseline | None = Field(description="The baseline that never sees the model.")
    primary_attack: str = Field(description="The attack named before the run.")
    attacks: list[str] = Field(description="Attacks that were run.")
    attacks_left_out: dict[str, str] = Field(description="Attacks that were not, with the reason.")
    confidence: float = Field(description="Level of every interval.")
    variants: list[VariantResult] = Field(description="The original first.")
    comparisons: list[Comparison] = Field(description="Each variant against the original.")
    beyond_training: list[BeyondTraining] = Field(
        default_factory=list,
        description="Each version that was trained on the members after compression, against the "
        "original trained by the same steps without: what is left of it is compression's.",
    )
    leakage: Leakage | None = Field(
        default=None,
        description="What versions give away beside each other and together; null where only one "
        "version, or only attacks on one version at a time, were asked for.",
    )
    token_views: list[TokenView] = Field(
        default_factory=list,
        description="A few records token by token; empty unless --include-text was given.",
    )
    stored: dict[str, str] = Field(
        default_factory=dict,
        description="Folder of each version's token statistics, in `tokens/`, by its name.",
    )
    timings: Timings = Field(description="Where the time went.")

    def variant(self, name: str) -> VariantResult:
        """The result of one variant by its name; `KeyError` where there is none."""
        for result in self.variants:
            if name in (result.variant, result.canonical):
                return result
        raise KeyError(name)
