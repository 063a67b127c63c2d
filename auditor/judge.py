"""From stored scores to the result: attacks, figures, comparisons, warnings, files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from auditor.attacks.signals import Signals, applicable, compute_signals
from auditor.calibration import MEMBERS_SOURCE
from auditor.compress import VariantSpec
from auditor.compress.receipt import UNTOUCHED
from auditor.config import AuditConfig
from auditor.errors import ConfigError, ModelError
from auditor.files import write_text, written_whole
from auditor.results import (
    Artifact,
    AuditResult,
    BlindBaseline,
    Comparison,
    ModelIdentity,
    Timings,
    VariantResult,
    Warned,
)
from auditor.stats.figures import attack_result, compare
from auditor.store import Manifest
from auditor.subject import REFERENCE, Subjects

if TYPE_CHECKING:
    from auditor.blind import Blind
    from auditor.records import Records
    from auditor.scoring.variants import Pass

ORIGINAL = "original"
# A variant whose perplexity is over this many times the original's is not published like this.
BROKEN_RATIO = 10.0
# Below this share of what it could have compressed, a variant is worth a word.
LITTLE = 0.5


class Findings(NamedTuple):
    """What the attacks and the statistics say.

    Attributes:
        signals: Of each version that has finite scores, the original first.
        variants: The result of each version, the original first.
        comparisons: Each variant against the original.
        attacks: Ids of the attacks that were run.
        left_out: Those that were not, with the reason.
        primary: The attack named before the run.
        identities: Of the audited model and of the reference, with parameter counts.
        stored: Folder of every version's token statistics, in `tokens/`.
    """

    signals: dict[str, Signals]
    variants: list[VariantResult]
    comparisons: list[Comparison]
    attacks: list[str]
    left_out: dict[str, str]
    primary: str
    identities: dict[str, ModelIdentity]
    stored: dict[str, str]


def choose_attacks(
    config: AuditConfig, *, has_reference: bool, same_tokens: bool
) -> tuple[list[str], dict[str, str], str]:
    """The attacks to run, those left out with the reason, and the primary one.

    The primary is settled before any score is seen: `ez` where a reference allows it, else
    `min-k-plus-plus`, unless the configuration names another.

    Raises:
        ConfigError: No attack is left, or the primary one does not apply.
    """
    names, left_out = applicable(
        config.attacks, has_reference=has_reference, same_tokens=same_tokens
    )
    for name in (*config.attacks, *([config.primary] if config.primary else [])):
        if name in left_out:
            raise ConfigError(f"attack {name} {left_out[name]}", seen="it was asked for by name")
    if config.primary is not None:
        return names, left_out, config.primary
    order = ("ez", "min-k-plus-plus", *names)
    return names, left_out, next(name for name in order if name in names)


def judge(
    config: AuditConfig,
    records: "Records",
    plan: Mapping[str, "Pass"],
    manifests: Mapping[str, Manifest],
    subjects: Subjects,
) -> Findings:
    """Run attacks and statistics on what is stored; no model is run.

    Raises:
        ModelError: The original or the reference has scores that are not finite.
        StoreError: A shard is damaged.
    """
    for name in (ORIGINAL, REFERENCE):
        if name in manifests and manifests[name].status == "broken":
            raise ModelError(
                f"the {name}'s scores must be finite numbers, or there is nothing to compare with",
                seen=manifests[name].reason or "",
                fix="try --dtype float32, and look at the checkpoint",
            )
    attacks, left_out, primary = choose_attacks(
        config,
        has_reference=subjects.reference is not None,
        same_tokens=subjects.same_tokens,
    )
    reference = plan[REFERENCE].store if REFERENCE in plan else None
    signals = {
        name: compute_signals(
            step.store,
            attacks,
            is_member=records.is_member,
            reference=reference,
            same_tokens=subjects.same_tokens,
        )
        for name, step in plan.items()
        if name != REFERENCE and manifests[name].status == "ok"
    }
    variants = [
        _variant(config, records, spec=spec, manifest=manifests[spec.label], signals=signals)
        for spec in config.variant_specs
    ]
    usable = {result.variant for result in variants if result.status == "ok"}
    comparisons = compare(
        {name: found.by_attack for name, found in signals.items() if name in usable},
        records.is_member,
        original=ORIGINAL,
        primary=primary,
        fprs=config.fpr,
        confidence=config.confidence,
        draws=config.bootstrap,
        seed=config.seed,
    )
    identities = {
        name: manifests[name].identity for name in (ORIGINAL, REFERENCE) if name in manifests
    }
    stored = {name: step.store.folder.name for name, step in plan.items()}
    return Findings(signals, variants, comparisons, attacks, left_out, primary, identities, stored)


def _variant(
    config: AuditConfig,
    records: "Records",
    *,
    spec: VariantSpec,
    manifest: Manifest,
    signals: Mapping[str, Signals],
) -> VariantResult:
    name, canonical = spec.label, spec.canonical
    if manifest.status == "broken":
        return VariantResult(
            variant=name,
            canonical=canonical,
            status="broken",
            reason=manifest.reason,
            receipt=manifest.receipt,
        )
    ratio = signals[name].perplexity / signals[ORIGINAL].perplexity
    # A perplexity that is not a number is no smaller than any bound.
    is_broken = not ratio <= BROKEN_RATIO
    return VariantResult(
        variant=name,
        canonical=canonical,
        status="broken" if is_broken else "ok",
        reason=f"its perplexity is {signals[name].perplexity:.4g}, over {BROKEN_RATIO:.0f} times "
        "the original's: not published like this"
        if is_broken
        else None,
        receipt=manifest.receipt,
        perplexity=signals[name].perplexity,
        perplexity_ratio=ratio,
        attacks={
            attack: attack_result(
                values,
                records.is_member,
                fprs=config.fpr,
                confidence=config.confidence,
                draws=config.bootstrap,
                seed=config.seed,
            )
            for attack, values in signals[name].by_attack.items()
        },
    )


def write_scores(path: Path, config: AuditConfig, records: "Records", findings: Findings) -> None:
    """Write `scores.parquet`: a row per version and record, versions one after another.

    Raises:
        StoreError: The folder cannot be written.
    """
    n = len(records)
    schema = [
        ("record_id", pa.string()),
        ("variant", pa.string()),
        ("is_member", pa.bool_()),
        ("n_tokens", pa.int64()),
        ("group", pa.int64()),
        *((attack, pa.float64()) for attack in findings.attacks),
    ]
    if config.include_text:
        schema.append(("text", pa.string()))
    with written_whole(path) as part, pq.ParquetWriter(part, pa.schema(schema)) as writer:
        for name, found in findings.signals.items():
            columns: dict[str, Any] = {
                "record_id": records.ids.tolist(),
                "variant": [name] * n,
                "is_member": records.is_member,
                "n_tokens": records.n_tokens.astype(np.int64),
                "group": getattr(records, "groups", np.arange(n)),
                **found.by_attack,
            }
            if config.include_text:
                texts = records.texts(np.arange(n))
                columns["text"] = [text.prompt + text.text for text in texts]
            writer.write_table(pa.table(columns, schema=pa.schema(schema)))


def assemble(
    config: AuditConfig,
    subjects: Subjects,
    records: "Records",
    blind: "Blind",
    findings: Findings,
    *,
    artifacts: list[Artifact],
    versions: dict[str, str],
    environment: dict[str, Any],
    timings: Timings,
) -> AuditResult:
    """Put everything together."""
    return AuditResult(
        config=config.model_dump(mode="json"),
        versions=versions,
        environment=environment,
        model=findings.identities[ORIGINAL],
        reference=findings.identities.get(REFERENCE),
        records=records.summary,
        artifacts=artifacts,
        warnings=_warnings(config, records, blind.result, blind.warnings, findings),
        blind=blind.result,
        primary_attack=findings.primary,
        attacks=findings.attacks,
        attacks_left_out=findings.left_out,
        confidence=config.confidence,
        variants=findings.variants,
        comparisons=findings.comparisons,
        stored=findings.stored,
        timings=timings,
    )


def _warnings(
    config: AuditConfig,
    records: "Records",
    blind: BlindBaseline,
    blind_warnings: Sequence[Warned],
    findings: Findings,
) -> list[Warned]:
    found = [*records.warnings, *blind_warnings]
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
    for flag, code, message in (
        (config.trust_remote_code, "remote-code", "Code that came with the checkpoint was run."),
        (config.allow_pickle, "pickle", "Weights were allowed to be read from pickle files."),
    ):
        if flag:
            found.append(Warned(code=code, message=message, severity="warning"))
    for name, reason in findings.left_out.items():
        if findings.identities.get(REFERENCE) is not None:
            found.append(
                Warned(code="attack-left-out", message=f"{name}: {reason}.", severity="info")
            )
    weight = {"severe": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda warned: weight[warned.severity])


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


def write_result(path: Path, result: AuditResult) -> None:
    """Write `audit.json`; errors as in `written_whole`."""
    write_text(path, result.model_dump_json(indent=2) + "\n")
