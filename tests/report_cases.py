"""Invented finished audits: `audit.json` and `scores.parquet` by the real statistics, and no model.

Every record has one number per version, what its attacker sees of it: something that all versions
share, something of its own, and for members what leaks. From there on all is the product's own:
figures, comparisons, questions, releases, exposed records, bounds, the columns and the schema.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from auditor.attacks import ATTACKS
from auditor.attacks.signals import Signals, applicable
from auditor.blind import MOST, Blind
from auditor.compress.noise import is_noise, noise_name
from auditor.config import AuditConfig
from auditor.judge import ORIGINAL, Findings, assemble
from auditor.leakage.learners import Bools, Float64
from auditor.outputs import write_result, write_signals
from auditor.records import records_sha256
from auditor.results import BlindBaseline, RecordsSummary, VariantResult, Warned
from auditor.scoring.encode import RecordText
from auditor.stats.figures import attack_result, compare, tpr_estimates
from auditor.stats.roc import auc, auc_estimate
from auditor.store import REFERENCE
from tests import report_parts as parts
from tests.report_leakage import REPEATS, Seen, evidence_of, judge_invented

VARIANTS = (
    "bnb-nf4",
    "prune-magnitude:sparsity=0.5",
    "cluster",
    "bnb-int8",
    "gptq",
    "gptq:bits=3,group_size=64",
    "prune-wanda:sparsity=0.5",
    "prune-sparsegpt:pattern=2:4",
    "hqq:bits=3",
    "int4",
    "fp8",
)
BROKEN = "prune-magnitude:sparsity=0.9"
FROM_HERE_BROKEN = 6
# A checkpoint's path is free text, but for the comma that parts options.
HOSTILE_PATH = 'checkpoint:/models/"><img src=x onerror=alert(1)>|`=cmd()\u202e<script>alert(1)'
# What each variant gives away beside what the original does, as a factor; in turn.
GAINS = (1.05, 1.35, 0.85, 1.0, 0.95, 1.15)
DRAWS = 100
SCALES = {"loss": 0.4, "zlib": 0.002, "min-k": 1.1, "ref": 0.3}


@dataclass(frozen=True)
class Lists:
    """The records of an invented audit: what `Records` has, without sources."""

    ids: npt.NDArray[np.str_]
    is_member: Bools
    n_tokens: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    summary: RecordsSummary
    warnings: list[Warned]

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self, rows: npt.NDArray[np.int64]) -> list[RecordText]:
        """Invented texts."""
        return [RecordText(prompt="", text=f"record {row}") for row in rows.tolist()]


def invented_run(
    folder: Path,
    *,
    n: int = 400,
    n_variants: int = 3,
    seed: int = 0,
    leak: float = 0.5,
    reference: bool = True,
    hostile: bool = False,
    beyond: bool = True,
    include_text: bool = False,
    warned: bool = False,
) -> Path:
    """Write a finished audit of n records, half of them members.

    From 6 variants on the last of them is broken, and membership was drawn by coin.

    Args:
        folder: Where to; made if it is not there.
        n: Records of both sides together.
        n_variants: Variants besides the original, at most 12.
        seed: Of everything that is drawn.
        leak: What members gain under the original, in standard deviations; 0: nothing leaks.
        reference: Whether there is a reference model.
        hostile: Whether names, paths, words and tokens are those of an attacker.
        beyond: Whether versions are judged beside each other and together.
        include_text: Whether there are texts: token views, and a column in the scores.
        warned: Whether there is a warning of each kind, and something in the checkpoints' files.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = parts.Texts(hostile=hostile)
    config = AuditConfig.model_validate(
        {
            "model": texts("models/chat"),
            "members": {"path": texts("data/members.jsonl")},
            "nonmembers": {"path": texts("data/nonmembers.jsonl")},
            "reference": texts("models/base") if reference else None,
            "variants": [ORIGINAL, *_names(n_variants, hostile=hostile)],
            "settings": ["NR", "SR", "MR"] if beyond else ["NR"],
            "attacks": [] if beyond else ["loss", "zlib", "min-k", "min-k-plus-plus"],
            "controls": ["noise"] if beyond and n_variants < FROM_HERE_BROKEN else [],
            "membership": "given" if n_variants < FROM_HERE_BROKEN else "randomized",
            "limit": n // 2 if warned else None,
            "bootstrap": DRAWS,
            "seed": seed,
            "output_path": texts(folder.name),
            "include_text": include_text,
        }
    )
    lists = _lists(n, config, texts, warned=warned)
    findings, seen = _alone(config, lists, leak=leak)
    findings = _figures(config, lists, findings, texts)
    if beyond and n_variants:
        evidence = evidence_of(
            config, findings, ids=lists.ids, is_member=lists.is_member, groups=lists.groups
        )
        judged = judge_invented(config, evidence, findings, seen, fails=warned)
        findings = findings._replace(judged=judged)
    blind = _blind(config, lists, told=warned)
    write_signals(folder, config, cast(Any, lists), findings, blind=blind.signal)
    views = [name for name in findings.signals if not is_noise(name)] if include_text else []
    if views and reference:
        views.append(REFERENCE)
    result = assemble(
        config,
        cast(Any, None),
        cast(Any, lists),
        blind,
        findings,
        artifacts=parts.artifacts(lists.ids.tolist(), texts) if warned else [],
        token_views=parts.token_views(lists.ids, views, leak=leak, seed=seed, texts=texts),
        versions={"python": "3.11.7", "compleak-llm": "0.1.0", "torch": texts("2.13.0")},
        environment={
            "system": "Linux x86_64",
            "processor": texts("a processor"),
            "n_cores": 2,
            "n_threads": 2,
            "n_processes": 1,
            "device": "cpu",
            "dtype": "float32",
        },
        timings=parts.timings(list(findings.signals), n),
    )
    write_result(folder / "audit.json", result)
    return folder


def _names(n_variants: int, *, hostile: bool) -> list[str]:
    names = list(VARIANTS[:n_variants])
    if n_variants >= FROM_HERE_BROKEN:
        names = [*VARIANTS[: n_variants - 1], BROKEN]
    return [HOSTILE_PATH, *names[1:]] if hostile and names else names


def _lists(n: int, config: AuditConfig, texts: parts.Texts, *, warned: bool) -> Lists:
    rng = np.random.default_rng([config.seed, 1])
    ids = np.array(
        [hashlib.sha256(f"{config.seed} {row}".encode()).hexdigest()[:16] for row in range(n)]
    )
    is_member = np.arange(n) < n // 2
    n_tokens = np.clip(rng.lognormal(5.0, 0.6, n), 8, 512).astype(np.int64)
    sides = {
        name: parts.side(n_tokens[rows], warned=warned)
        for name, rows in (("members", is_member), ("nonmembers", ~is_member))
    }
    summary = RecordsSummary(
        **sides,
        sha256=records_sha256(ids, is_member),
        length_auc=auc(n_tokens[is_member], n_tokens[~is_member]),
    )
    warnings = parts.of_records(n // 2, texts) if warned else []
    return Lists(ids, is_member, n_tokens, np.arange(n), summary, warnings)


def _alone(config: AuditConfig, lists: Lists, *, leak: float) -> tuple[Findings, Seen]:
    """Signals of every version alone, and what attackers see who learn or who hold pairs."""
    rng = np.random.default_rng([config.seed, 2])
    n, has_reference = len(lists), config.reference is not None
    attacks, left_out = applicable(config.attacks, has_reference=has_reference, same_tokens=True)
    labels = [spec.label for spec in config.variant_specs]
    noises = [noise_name(name) for name in labels[1:]] if config.controls else []
    common, view = rng.normal(size=n), {name: rng.normal(size=n) for name in attacks}
    signals: dict[str, Signals] = {}
    learned: dict[tuple[str, bool], Float64] = {}
    core: dict[str, Float64] = {}
    for place, name in enumerate([*labels, *noises]):
        # Noise gives away what the original does.
        factor = GAINS[(place - 1) % len(GAINS)] if 0 < place < len(labels) else 1.0
        gained = leak * factor * lists.is_member
        own = (0.15 + 0.04 * place) * rng.normal(size=n)
        core[name] = gained + 0.9 * common + own
        by_attack = {}
        for attack in attacks:
            # Beside a reference, less of what is a record's own is in the way.
            shared = 0.5 if ATTACKS[attack].needs_reference else 0.9
            value = gained + shared * common + 0.4 * view[attack] + own
            # A ratio has a long tail, as that of `ez` has on real models; ranks are the same.
            is_ratio = attack == "ez"
            by_attack[attack] = (
                1000 * np.exp(4 * value) if is_ratio else SCALES.get(attack, 1.0) * (value - 6.0)
            )
        # Compression costs perplexity, and what is broken is far off.
        cost = (1 + 0.03 * place**1.5) * (20 if name == BROKEN else 1)
        signals[name] = Signals(by_attack, 12.0 * cost)
        for beside in (False, True) if has_reference else (False,):
            accident = 0.25 * rng.normal(size=(REPEATS, n)) + 0.5 * rng.normal(size=n)
            learned[name, beside] = core[name] - (0.4 * common if beside else 0.0) + accident
    gaps = {
        attack: {
            name: 0.4 * (found - core[ORIGINAL]) + 0.02 * rng.normal(size=n)
            for name, found in core.items()
        }
        for attack in ("gap", "ez-gap")
    }
    identities = {ORIGINAL: parts.identity(config.model, mark="6c")}
    if config.reference is not None:
        identities[REFERENCE] = parts.identity(config.reference, mark="86")
    findings = Findings(
        signals,
        [],
        [],
        attacks,
        left_out,
        "ez" if "ez" in attacks else "min-k-plus-plus",
        identities,
        stored={name: f"version-{place:012x}" for place, name in enumerate(signals)},
        without_noise={},
    )
    return findings, Seen(learned, gaps)


def _figures(config: AuditConfig, lists: Lists, findings: Findings, texts: parts.Texts) -> Findings:
    """The same with the figures of every version and their comparisons."""
    how: dict[str, Any] = {
        "fprs": config.fpr,
        "confidence": config.confidence,
        "draws": config.bootstrap,
        "seed": config.seed,
    }
    variants = []
    for place, spec in enumerate(config.variant_specs):
        alone, broken = findings.signals[spec.label], spec.label == BROKEN
        ratio = alone.perplexity / findings.signals[ORIGINAL].perplexity
        reason = f"its perplexity is {alone.perplexity:.4g}, over 10 times the original's"
        variants.append(
            VariantResult(
                variant=spec.label,
                canonical=spec.canonical,
                status="broken" if broken else "ok",
                reason=f"{reason}: {texts('not published like this')}" if broken else None,
                receipt=parts.receipt(spec.label, spec.canonical, place, texts),
                perplexity=alone.perplexity,
                perplexity_ratio=ratio,
                attacks={
                    attack: attack_result(signal, lists.is_member, **how)
                    for attack, signal in alone.by_attack.items()
                },
            )
        )
    comparisons = compare(
        {
            one.variant: findings.signals[one.variant].by_attack
            for one in variants
            if one.status == "ok"
        },
        lists.is_member,
        original=ORIGINAL,
        primary=findings.primary,
        **how,
    )
    return findings._replace(variants=variants, comparisons=comparisons)


def _blind(config: AuditConfig, lists: Lists, *, told: bool) -> Blind:
    """The baseline that sees no model; as the real one it looks at some records only."""
    rng = np.random.default_rng([config.seed, 4])
    member = lists.is_member
    signal = rng.normal(size=len(lists)) + 0.9 * told * member
    for side in (member, ~member):
        signal[np.flatnonzero(side)[MOST:]] = np.nan
    drawn = ~np.isnan(signal)
    sides = signal[drawn & member], signal[drawn & ~member]
    result = BlindBaseline(
        auc=auc_estimate(*sides, confidence=config.confidence),
        tpr_at_fpr=tpr_estimates(
            *sides,
            fprs=config.fpr,
            confidence=config.confidence,
            draws=config.bootstrap,
            seed=config.seed,
        ),
        n_features=131_075,
        told_apart=told,
    )
    return Blind(result, signal, [parts.told_apart(result.auc)] if told else [])
