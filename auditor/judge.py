"""From stored scores to the result: attacks, figures, comparisons, warnings."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from auditor.attacks.signals import Signals, applicable, compute_signals
from auditor.caveats import caveats
from auditor.compress import VariantSpec
from auditor.compress.noise import is_noise, noise_name
from auditor.config import AuditConfig
from auditor.errors import ConfigError, ModelError
from auditor.results import (
    Artifact,
    AuditResult,
    Comparison,
    ModelIdentity,
    Timings,
    TokenView,
    VariantResult,
)
from auditor.results.figures import BeyondTraining
from auditor.stats.figures import attack_result, compare, compare_trained
from auditor.store import REFERENCE, Manifest
from auditor.subject import Subjects
from auditor.workers import in_order

if TYPE_CHECKING:
    from auditor.blind import Blind
    from auditor.leakage.blocks import Blocks
    from auditor.leakage.judge import Judged
    from auditor.records import Records
    from auditor.run import Run
    from auditor.scoring.variants import Pass

ORIGINAL = "original"
# A variant whose perplexity is over this many times the original's is not published like this.
BROKEN_RATIO = 10.0


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
        without_noise: Controls that were asked for and are not there, with the reason.
        judged: What versions give away beside each other and together, where it was asked for.
        beyond_training: Each recovered variant against the original trained by the same steps.
    """

    signals: dict[str, Signals]
    variants: list[VariantResult]
    comparisons: list[Comparison]
    attacks: list[str]
    left_out: dict[str, str]
    primary: str
    identities: dict[str, ModelIdentity]
    stored: dict[str, str]
    without_noise: dict[str, str]
    judged: "Judged | None" = None
    beyond_training: "Sequence[BeyondTraining]" = ()


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
    *,
    shadows: "Sequence[Run]" = (),
) -> Findings:
    """Run attacks and statistics on what is stored; no model is run.

    Raises:
        ModelError: The original or the reference has scores that are not finite.
        StoreError: A shard is damaged.
    """
    from auditor.leakage.wanted import is_wanted, making_of

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
    stores = {
        name: step.store
        for name, step in plan.items()
        if name != REFERENCE and manifests[name].status == "ok"
    }
    # While a shard is at hand: all that is made of token statistics is made in one reading.
    making = (
        making_of(config, list(stores), n_records=len(records), same_tokens=subjects.same_tokens)
        if is_wanted(config)
        else None
    )
    signals = compute_signals(
        stores,
        attacks,
        is_member=records.is_member,
        reference=reference,
        same_tokens=subjects.same_tokens,
        beside=making,
    )

    def judged_alone(spec: VariantSpec) -> VariantResult:
        return _variant(config, records, spec, manifest=manifests[spec.label], signals=signals)

    variants = list(in_order(judged_alone, config.variant_specs))
    usable = {result.variant for result in variants if result.status == "ok"}
    by_attack = {name: found.by_attack for name, found in signals.items() if name in usable}
    how: dict[str, Any] = {
        "primary": primary,
        "fprs": config.fpr,
        "confidence": config.confidence,
        "draws": config.bootstrap,
        "seed": config.seed,
    }
    comparisons = compare(by_attack, records.is_member, original=ORIGINAL, **how)
    beyond_training = compare_trained(
        by_attack, records.is_member, controls=_trained_alike(config, usable), **how
    )
    identities = {
        name: manifests[name].identity for name in (ORIGINAL, REFERENCE) if name in manifests
    }
    found = Findings(
        signals,
        variants,
        comparisons,
        attacks,
        left_out,
        primary,
        identities,
        stored={name: step.store.folder.name for name, step in plan.items()},
        without_noise={
            name: found.reason or "it is broken"
            for name, found in manifests.items()
            if is_noise(name) and found.status == "broken"
        },
        beyond_training=beyond_training,
    )
    if making is None:
        return found
    blocks = making.made()
    judged = _beyond(config, records, plan, found, subjects, blocks=blocks, shadows=shadows)
    return found._replace(judged=judged)


def _trained_alike(config: AuditConfig, usable: Collection[str]) -> dict[str, str]:
    """By recovered variant, the original that was trained by the same steps, where it is there."""
    specs = [spec for spec in config.variant_specs if spec.recovery and spec.label in usable]
    controls = {spec.recovery: spec.label for spec in specs if spec.is_control}
    return {
        spec.label: controls[spec.recovery]
        for spec in specs
        if not spec.is_control and spec.recovery in controls
    }


def _variant(
    config: AuditConfig,
    records: "Records",
    spec: VariantSpec,
    *,
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


def _beyond(
    config: AuditConfig,
    records: "Records",
    plan: Mapping[str, "Pass"],
    findings: Findings,
    subjects: Subjects,
    *,
    blocks: "Blocks",
    shadows: "Sequence[Run]",
) -> "Judged":
    """What versions give away beside each other and together."""
    from auditor.leakage.evidence import Evidence
    from auditor.leakage.judge import judge_leakage
    from auditor.leakage.shadow_runs import read_shadow

    usable = [found for found in findings.variants if found.status == "ok"]
    evidence = Evidence(
        ids=records.ids,
        is_member=records.is_member,
        groups=records.groups,
        stores={found.variant: plan[found.variant].store for found in usable},
        noises={
            found.variant: plan[noise_name(found.variant)].store
            for found in usable
            if noise_name(found.variant) in findings.signals
        },
        reference=plan[REFERENCE].store if REFERENCE in plan else None,
        same_tokens=subjects.same_tokens,
        signals={found.variant: findings.signals[found.variant].by_attack for found in usable},
        perplexities={
            found.variant: findings.signals[found.variant].perplexity for found in usable
        },
        primary=findings.primary,
        left_out={
            found.variant: found.reason or "it is broken"
            for found in findings.variants
            if found.status != "ok"
        },
        blocks=blocks,
    )
    return judge_leakage(evidence, config, shadow=read_shadow(shadows, config))


def assemble(
    config: AuditConfig,
    subjects: Subjects,
    records: "Records",
    blind: "Blind",
    findings: Findings,
    *,
    artifacts: list[Artifact],
    token_views: list[TokenView],
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
        warnings=caveats(config, records, blind, findings),
        blind=blind.result,
        primary_attack=findings.primary,
        attacks=findings.attacks,
        attacks_left_out=findings.left_out,
        confidence=config.confidence,
        variants=findings.variants,
        comparisons=findings.comparisons,
        beyond_training=list(findings.beyond_training),
        leakage=findings.judged.leakage if findings.judged is not None else None,
        token_views=token_views,
        stored=findings.stored,
        timings=timings,
    )
