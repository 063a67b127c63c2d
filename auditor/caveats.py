"""What the reader must know before the figures: warnings, worst first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from auditor.calibration import MEMBERS_SOURCE
from auditor.compress.receipt import UNTOUCHED
from auditor.config import AuditConfig
from auditor.results import Leakage, VariantResult, Warned
from auditor.store import REFERENCE

if TYPE_CHECKING:
    from auditor.blind import Blind
    from auditor.judge import Findings
    from auditor.records import Records
    from auditor.results.figures import BeyondTraining

# Below this share of what it could have compressed, a variant is worth a word.
LITTLE = 0.5
REMOTE_CODE = (
    "Python code that came with the checkpoints was allowed to run (--trust-remote-code): what it "
    "did, to the figures too, nobody has checked here."
)
PICKLE = "Weights were allowed to be read from pickle files (--allow-pickle), as tensors alone."
# Of the warnings of one weight these come first: they speak of all figures.
ALLOWED = ("remote-code", "pickle")
FROM_CARD = (
    "The lists come from the model's card, which names the data set {name}: its train split was "
    "taken for members, and another for nonmembers. Whether the model saw the first and not the "
    "second is the card's word and not known; the blind baseline says whether the two differ in "
    "themselves."
)
RETRAIN = (
    "To tell compression from training further: train the model on its members for as many steps "
    "as a recovered variant was, without compressing it, and give it as a variant, "
    "checkpoint:PATH. Its rows then stand beside the compressed ones, against the same original. "
    "Of variants that are trained here (recover=) --controls retrain makes it by itself."
)
TRAINED = (
    "{control} is the original, trained on the members by the steps of {variants} and not "
    "compressed: a control, and nothing to publish. A recovered variant leaks more than it only if "
    "compression did it."
)


def caveats(
    config: AuditConfig,
    records: "Records",
    blind: "Blind",
    findings: "Findings",
) -> list[Warned]:
    """Everything that the reader must know before the figures, worst first."""
    found = [
        *_allowed(config),
        *_of_card(records),
        *records.warnings,
        *blind.warnings,
        *_of_training(config, findings.beyond_training),
        *_of_leakage(findings.judged.leakage if findings.judged else None),
    ]
    for variant in findings.variants:
        found += _variant_warnings(variant)
    if config.limit is not None:
        found.append(
            Warned(
                code="limited",
                message=f"Only the first {config.limit} records of each side were read (--limit).",
                severity="warning",
            )
        )
    found += [
        Warned(code="no-noise", message=f"There is no {name}: {reason}.", severity="info")
        for name, reason in findings.without_noise.items()
    ]
    for name, reason in findings.left_out.items():
        if findings.identities.get(REFERENCE) is not None:
            found.append(
                Warned(code="attack-left-out", message=f"{name}: {reason}.", severity="info")
            )
    weight = {"severe": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda warned: weight[warned.severity])


def _of_card(records: "Records") -> list[Warned]:
    """What the figures are worth where nobody has said who the members are."""
    summary = records.summary
    if summary.source != "card":
        return []
    message = FROM_CARD.format(name=summary.data_set)
    return [Warned(code="from-card", message=message, severity="warning")]


def _allowed(config: AuditConfig) -> list[Warned]:
    """What files of others were allowed to do, before any other warning of its weight."""
    return [
        Warned(code=code, message=message, severity="warning")
        for flag, code, message in (
            (config.trust_remote_code, "remote-code", REMOTE_CODE),
            (config.allow_pickle, "pickle", PICKLE),
        )
        if flag
    ]


def _variant_warnings(variant: VariantResult) -> list[Warned]:
    found: list[Warned] = []
    name, receipt = variant.variant, variant.receipt
    if receipt is not None:
        # Of a variant that was made here the notes stand in its receipt; of a published one they
        # may say that it is a version of something else.
        notes = receipt.notes if receipt.method is not None else []
        for code, sentences in (("library-repaired", receipt.repairs), ("note", notes)):
            found += [
                Warned(code=code, message=f"{name}: {sentence}", severity="info")
                for sentence in sentences
            ]
        left = sum(item.n_parameters for item in receipt.skipped if item.reason in UNTOUCHED)
        share = receipt.n_compressed / max(1, receipt.n_compressed + left)
        if receipt.compressed and share < LITTLE:
            found.append(
                Warned(
                    code="little-compressed",
                    message=f"{name} compressed only {100 * share:.0f}% of the weights that it is "
                    "for; the rest stayed in full precision (see its receipt).",
                    severity="warning",
                )
            )
        if receipt.calibration is not None and receipt.calibration.source == MEMBERS_SOURCE:
            found.append(
                Warned(
                    code="calibrated-on-members",
                    message=f"{name} was calibrated on members of this audit, on purpose.",
                    severity="info",
                )
            )
    if variant.status == "broken":
        found.append(
            Warned(
                code="broken-variant",
                message=f"{name} is broken and is compared with nothing: {variant.reason}.",
                severity="severe",
            )
        )
    return found


def _of_training(config: AuditConfig, beyond: "Sequence[BeyondTraining]") -> list[Warned]:
    """What training after compression, and what compression itself, has done."""
    recovered = [s.label for s in config.variant_specs if s.recovery and not s.is_control]
    if "retrain" in config.controls and not recovered:
        return [Warned(code="retrain", message=RETRAIN, severity="info")]
    said = []
    for control in dict.fromkeys(item.against for item in beyond):
        alike = dict.fromkeys(item.variant for item in beyond if item.against == control)
        said.append(TRAINED.format(control=control, variants=", ".join(alike)))
    said += [_beyond(item, 1 - config.confidence) for item in beyond if item.family == "primary"]
    if recovered and not beyond:
        said.append(
            f"{', '.join(recovered)}: trained on the members after compression, and what training "
            "alone gives away was not measured beside it (--controls retrain)."
        )
    return [Warned(code="retrain", message=sentence, severity="info") for sentence in said]


def _beyond(item: "BeyondTraining", level: float) -> str:
    """What a recovered variant gives away beside the original that was trained as it was."""
    found, p = item.difference, item.p_adjusted
    if found.value is None or p is None:
        return f"{item.variant} was not compared with {item.against}: {found.absent}."
    more = "more" if found.value > 0 else "less"
    word = f"gives away {more} than" if p < level else "is not shown to differ from"
    inside = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return (
        f"{item.variant} {word} {item.against}, alone: AUC of {item.attack} "
        f"{found.value:+.3f}{inside}, p = {p:.3g} (Holm)."
    )


def _of_leakage(leakage: Leakage | None) -> list[Warned]:
    found: list[Warned] = []
    if leakage is None:
        return found
    for control in leakage.controls:
        if not control.passed:
            value = control.figure.value
            found.append(
                Warned(
                    code="control-failed",
                    message=f"A control failed: {control.attack} with {control.name} gives "
                    f"{'nothing' if value is None else format(value, '.3f')}, where "
                    f"{control.expected:g} must come out. The figures of learned attacks cannot "
                    "be trusted.",
                    severity="severe",
                )
            )
    found += [
        Warned(code="left-out", message=f"Left out: {name}: {reason}.", severity="warning")
        for name, reason in leakage.left_out.items()
    ]
    return found
