"""AuditConfig: every option of an audit, once.

The fields below are the only definition of each option and of its default. The command line
(cyclopts reads this model), the YAML recipe (its keys are these names) and Python
(`AuditConfig(...)`) all come from here. cyclopts was chosen over pydantic-settings because it
makes flags, groups, both spellings (`--output-path`, `--output_path`) and "did you mean" from
the model itself and starts in a tenth of a second; pydantic-settings reads environment variables
well, which nobody asked for, and its command line is its younger part.

Nothing heavy is imported here: `compleak-llm --help` must answer at once.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from auditor.compress import VariantSpec, controls_of, parse_variants
from auditor.errors import ConfigError, unknown
from auditor.shared_config import (
    DTYPES,
    CompressConfig,
    Frozen,
    OfModel,
    Shared,
    Source,
    SourceField,
    must_have_adapter,
)
from auditor.spellings import (
    Control,
    Setting,
    split_controls,
    split_labels,
    split_names,
    split_settings,
    split_variants,
)

__all__ = [
    "DTYPES",
    "AuditConfig",
    "CompressConfig",
    "Frozen",
    "OfModel",
    "Shared",
    "Source",
    "SourceField",
]

Learner = Literal["logistic", "trees"]
Trained = Literal["crossfit", "shadow"]
# What is asked about an adapter: merged and then compressed, and QLoRA as it is served.
WITH_ADAPTER = ("original", "bnb-nf4", "unmerged:bnb-nf4")
RECORDS_MUST = "records must come from --members and --nonmembers together, or from --data alone"


class AuditConfig(Shared):
    """One audit. Equal configurations on one machine give equal `audit.json`, but for times."""

    data: SourceField | None = Field(
        None, description="One source for both sides, told apart by --label-column."
    )
    label_column: str = Field("label", description="Column of --data: 1 or true is a member.")
    reference: str | None = Field(
        None,
        description="A checkpoint that saw none of the members, such as the base of a fine-tune; "
        "adds the attacks ref and ez.",
    )
    variants: Annotated[tuple[str, ...], BeforeValidator(split_variants)] = Field(
        ("original",),
        description="Compressed versions, name[:key=value,...] with commas between; "
        "`compleak-llm list variants` shows them. The original is always among them. With "
        "--adapter, bnb-nf4 and unmerged:bnb-nf4 too when left out.",
    )
    attacks: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (), description="Attacks by id with commas between; all that apply when left out."
    )
    primary: str | None = Field(
        None,
        description="The attack that is named before the run for the headline; "
        "min-k-plus-plus, or ez with a reference, when left out.",
    )
    settings: Annotated[tuple[Setting, ...], BeforeValidator(split_settings)] = Field(
        ("NR", "SR", "MR"),
        description="What an attacker may hold: NR one version, SR the original beside a variant, "
        "MR many versions.",
    )
    supervision: Annotated[tuple[Trained, ...], BeforeValidator(split_names)] = Field(
        (),
        description="How the learned attacks are trained: crossfit on other records of this audit, "
        "shadow on another audit (--shadow). Left out: crossfit, and shadow where one is given.",
    )
    shadow: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (),
        description="Output folders of shadow audits: the same variants of a model that was "
        "trained on members of its own.",
    )
    folds: int = Field(5, ge=2, le=50, description="Outer folds of the learned attacks.")
    repeats: int = Field(2, ge=1, le=20, description="Times that these folds are drawn.")
    learners: Annotated[tuple[Learner, ...], BeforeValidator(split_names)] = Field(
        ("logistic", "trees"),
        description="Learners to choose from inside the folds: regularised logistic regression, "
        "and gradient-boosted trees beside it.",
    )
    at_most: str | None = Field(
        None,
        description="What a release may give away at most: tpr=0.05@fpr=0.01, or auc=0.6.",
    )
    releases: bool = Field(
        True,
        description="Judge sets of versions as releases. Above 8 variants thousands of sets are "
        "weighed; `compleak-llm release` can do it later from the stored scores.",
    )
    release: Annotated[tuple[str, ...], BeforeValidator(split_labels)] = Field(
        (),
        description="The versions that are to be published together, for --at-most; all of the "
        "audit when left out.",
    )
    fail_on: Literal["over", "undecided"] | None = Field(
        None,
        description="Exit with code 3 when the release breaks --at-most: over: it is shown to lie "
        "above; undecided: it is not shown to lie below.",
    )
    membership: Literal["given", "randomized"] = Field(
        "given",
        description="randomized: a fair coin decided for each record by itself whether it was "
        "trained on. Only then is there a lower bound on epsilon.",
    )
    delta: float = Field(0.0, ge=0, lt=1, description="Delta of the lower bounds on epsilon.")
    controls: Annotated[tuple[Control, ...], BeforeValidator(split_controls)] = Field(
        (),
        description="Controls that cost a pass: noise adds, for every variant, the original plus "
        "random noise of the same norm per matrix; retrain, for every training that follows a "
        "compression (recover=), the original trained by the same steps without it.",
    )
    fpr: Annotated[tuple[float, ...], BeforeValidator(split_names)] = Field(
        (0.001, 0.01, 0.05), description="False positive rates at which the TPR is reported."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of every interval.")
    bootstrap: int = Field(2000, ge=100, le=100_000, description="Bootstrap draws per interval.")
    limit: int | None = Field(
        default=None, ge=1, description="Take the first N records of each side."
    )
    min_records: int = Field(
        50, ge=2, description="Fewest records a side that an audit is allowed to speak about."
    )
    allow_overlap: bool = Field(
        False, description="Drop records that stand on both sides instead of stopping."
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Cut records to this many tokens; the model's context when left out.",
    )
    batch_size: Annotated[
        int | Literal["auto"],
        BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.isdigit() else v),
    ] = Field(
        "auto",
        description="Records per batch, or auto: as many as fit a token budget, "
        "halved whenever memory runs out.",
    )
    materialise: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Score versions whose weights alone are packed (NF4, FP4, GPTQ, int8, int4, "
        "fp8, HQQ) on their weights decompressed once, the same arithmetic at dense speed: auto "
        "where memory allows, always, or never.",
    )
    rank_timeout: float = Field(
        1800.0,
        gt=0,
        description="Seconds after which a process without a sign of life stops a run on several.",
    )
    output_path: str = Field("runs/audit", description="Folder for the results.", min_length=1)
    include_text: bool = Field(
        default=False, description="Let the text of records into the output folder."
    )

    @field_validator("batch_size")
    @classmethod
    def _batch_size_is_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be 'auto' or at least 1")
        return value

    @field_validator("fpr")
    @classmethod
    def _rates_are_rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 < rate < 1 for rate in value):
            raise ValueError("every false positive rate must lie between 0 and 1")
        return tuple(sorted(set(value)))

    @field_validator("at_most")
    @classmethod
    def _bound_can_be_read(cls, value: str | None) -> str | None:
        from auditor.leakage.bounds import parse_bound

        if value is not None:
            parse_bound(value)
        return value

    @field_validator("attacks")
    @classmethod
    def _attacks_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from auditor.attacks import ATTACKS

        for name in value:
            if name not in ATTACKS:
                raise unknown("attack", name, ATTACKS)
        return tuple(dict.fromkeys(value))

    @model_validator(mode="before")
    @classmethod
    def _an_adapter_has_variants(cls, given: Any) -> Any:  # noqa: ANN401
        if isinstance(given, dict) and given.get("adapter") and "variants" not in given:
            return {**given, "variants": WITH_ADAPTER}
        return given

    @model_validator(mode="after")
    def _an_adapter_is_there(self) -> "AuditConfig":
        must_have_adapter(self.variant_specs, self.adapter)
        return self

    @model_validator(mode="after")
    def _one_way_of_giving_records(self) -> "AuditConfig":
        # None at all is allowed: `auditor.targets.lists` then looks beside the model.
        given = [n for n in ("members", "nonmembers", "data") if getattr(self, n) is not None]
        if given not in ([], ["members", "nonmembers"], ["data"]):
            raise ConfigError(
                RECORDS_MUST,
                seen=", ".join(f"--{name}" for name in given),
                fix="for example: --members members.jsonl --nonmembers nonmembers.jsonl",
            )
        return self

    @model_validator(mode="after")
    def _primary_is_possible(self) -> "AuditConfig":
        from auditor.attacks import ATTACKS

        if self.primary is None:
            return self
        if self.primary not in ATTACKS:
            raise unknown("attack", self.primary, ATTACKS)
        if self.attacks and self.primary not in self.attacks:
            raise ConfigError(
                "the primary attack must be among the attacks that are run",
                seen=f"--primary {self.primary} with --attacks {','.join(self.attacks)}",
            )
        return self

    @model_validator(mode="after")
    def _shadows_are_used(self) -> "AuditConfig":
        if "shadow" in self.supervision and not self.shadow:
            raise ConfigError(
                "--supervision shadow needs a shadow audit",
                seen="no --shadow",
                fix="audit another model of the same kind with the same variants, and give its "
                "output folder as --shadow",
            )
        if self.shadow and self.supervision == ("crossfit",):
            raise ConfigError(
                "shadow audits must be of use",
                seen=f"--shadow {','.join(self.shadow)} with --supervision crossfit",
                fix="leave --supervision out, or name shadow there too",
            )
        return self

    @model_validator(mode="after")
    def _a_gate_has_a_bound(self) -> "AuditConfig":
        if self.at_most is None and (self.fail_on or self.release):
            raise ConfigError(
                "--fail-on and --release need a bound to be judged by",
                seen="no --at-most",
                fix="for example --at-most tpr=0.05@fpr=0.01",
            )
        named = not self.attacks or "combined" in self.attacks
        if self.at_most and not ("MR" in self.settings and named):
            raise ConfigError(
                "--at-most needs the attack that holds many versions",
                seen=f"--settings {','.join(self.settings)} --attacks {','.join(self.attacks)}"
                if self.attacks
                else f"--settings {','.join(self.settings)}",
                fix="leave --settings and --attacks out, or name MR and combined there too",
            )
        if self.at_most and not self.releases:
            raise ConfigError(
                "--at-most needs releases to be judged",
                seen="--no-releases",
                fix="leave it out, or ask `compleak-llm release` later",
            )
        labels = {spec.label for spec in self.variant_specs if not spec.is_control}
        if missing := [name for name in self.release if name not in labels]:
            raise unknown("version of this audit", missing[0], labels)
        return self

    @model_validator(mode="after")
    def _what_is_asked_for_is_done(self) -> "AuditConfig":
        if "logistic" not in self.learners:
            raise ConfigError(
                "logistic regression is always among the learners: trees are taken where they are "
                "clearly better",
                seen=f"--learners {','.join(self.learners)}",
                fix="--learners logistic,trees, or logistic alone",
            )
        if "noise" in self.controls and not (
            "SR" in self.settings
            and (not self.attacks or "paired" in self.attacks)
            and "crossfit" in self.supervisions
        ):
            raise ConfigError(
                "--controls noise needs the cross-fitted attack on pairs, or its passes are for "
                "nothing",
                seen=f"--settings {','.join(self.settings)}, "
                f"--supervision {','.join(self.supervisions)}",
                fix="leave --settings, --attacks and --supervision out, or the control",
            )
        return self

    @property
    def gives_records(self) -> bool:
        """Whether the records are given, or must be looked for beside the model."""
        return self.data is not None or self.members is not None

    @property
    def supervisions(self) -> tuple[Trained, ...]:
        """How the learned attacks are trained."""
        if self.supervision:
            return tuple(dict.fromkeys(self.supervision))
        return ("crossfit", "shadow") if self.shadow else ("crossfit",)

    @property
    def variant_specs(self) -> tuple[VariantSpec, ...]:
        """The variants, parsed, the original first, and the trained controls last."""
        specs = parse_variants(list(self.variants))
        added = controls_of(specs) if "retrain" in self.controls else ()
        return tuple(dict.fromkeys([*specs, *added]))
