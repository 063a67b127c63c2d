"""Two finished audits of the same records, paired: a model's versions 1 and 2, or two trainings.

    compleak-llm compare runs/v1 runs/v2

Every record has a signal in both audits, so that differences are tested record by record and are
much surer than two intervals side by side suggest. No model is run and nothing is opened but the
two folders.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.attacks import ATTACKS
from auditor.config import AuditConfig
from auditor.errors import ConfigError, StoreError
from auditor.files import write_text
from auditor.leakage.columns import WITH_REFERENCE
from auditor.leakage.settings import no_worse_than_chance
from auditor.recipes import validated
from auditor.results import AttackResult, Warned
from auditor.results.compared import ComparedAudit, ComparedRuns, ComparedVersion, RunComparison
from auditor.run import Run, open_run
from auditor.scoring.scores import Float64
from auditor.stats.figures import adjusted, attack_result, paired_tests

# The most that the accident of training can add to the spread of a cross-fitted signal, or of a
# difference of two (see `stats.crossfitted`); how much two audits share of it cannot be seen.
MOST_INFLATION = math.sqrt(2)


class Pair(NamedTuple):
    """One version in both audits: what all tables call it, and what each audit does."""

    label: str
    canonical: str
    before: str
    after: str


class Compared(NamedTuple):
    """What is compared with what.

    Attributes:
        before: The first audit.
        after: The second.
        order: int64, shape (n,): where the second has the records of the first.
        config: The first audit's configuration, with what was asked for instead.
        primary: The primary attack.
    """

    before: Run
    after: Run
    order: npt.NDArray[np.int64]
    config: AuditConfig
    primary: str

    def signals(self, pair: Pair) -> dict[str, tuple[Float64, Float64]]:
        """Both signals of every attack that both audits have, in the order of the first."""
        first, second = self.before.signals[pair.before], self.after.signals[pair.after]
        return {name: (first[name], second[name][self.order]) for name in first if name in second}


def compare_runs(
    before: Path,
    after: Path,
    *,
    primary: str | None = None,
    fprs: Sequence[float] | str | None = None,
    confidence: float | None = None,
    out: Path | None = None,
) -> ComparedRuns:
    """Compare two audits of the same records.

    The primary family is the AUC of the primary attack, one test for each version that both hold;
    every other attack and rate is secondary. Holm's correction is made over each family.

    Args:
        before: Folder of the first audit.
        after: Folder of the second; differences are this one minus the first.
        primary: The primary attack; the first audit's when left out, or the second's where the
            first's is not in both.
        fprs: False positive rates, also as "0.01,0.05"; the first audit's when left out.
        confidence: Level of the intervals; the first audit's when left out.
        out: File for the result, which must not be there yet.

    Raises:
        StoreError: A folder holds no whole audit, or the two are not of the same records, cut
            into the same tokens; or `out` cannot be written.
        ConfigError: A rate, the level or the primary attack cannot be.
    """
    if out is not None and out.exists():
        raise StoreError("--out must not be there yet", seen=f"{out} is", fix="choose another")
    first, second = open_run(before), open_run(after)
    order = aligned(first, second)
    given = {"fpr": fprs, "confidence": confidence}
    asked: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    config = validated(AuditConfig, {**first.config.model_dump(mode="json"), **asked})
    pairs, left_out = _pairs(first, second)
    shared = _shared_attacks(first, second, pairs, left_out)
    compared = Compared(first, second, order, config, _primary(first, second, shared, primary))
    result = ComparedRuns(
        before=_audit(first),
        after=_audit(second),
        n_members=int(first.is_member.sum()),
        n_nonmembers=int((~first.is_member).sum()),
        primary_attack=compared.primary,
        confidence=config.confidence,
        notes=_notes(compared, shared),
        left_out=left_out,
        versions=[_version(compared, pair) for pair in pairs],
        comparisons=adjusted([item for pair in pairs for item in _tests(compared, pair)]),
    )
    if out is not None:
        _write(out, result)
    return result


def aligned(first: Run, second: Run) -> npt.NDArray[np.int64]:
    """Where the second audit has the records of the first, shape (n,).

    Raises:
        StoreError: They are not of the same records and sides, in the same tokens.
    """
    must = "two audits must be of the same records, on the same sides, to be compared"
    fix = "audit both models on the same members and nonmembers"
    shared, of_first, of_second = np.intersect1d(first.ids, second.ids, return_indices=True)
    if not len(shared) == len(first) == len(second):
        seen = (
            f"{len(shared):,} records are in both, of {len(first):,} in {first.folder} and "
            f"{len(second):,} in {second.folder}"
        )
        raise StoreError(must, seen=seen, fix=fix)
    order = np.empty(len(first), dtype=np.int64)
    order[of_first] = of_second
    if n_moved := int((first.is_member != second.is_member[order]).sum()):
        seen = f"{n_moved:,} of the {len(first):,} shared records are on the other side"
        raise StoreError(must, seen=seen, fix=fix)
    digests = [run.result.model.tokenizer_sha256 for run in (first, second)]
    if digests[0] != digests[1]:
        raise StoreError(
            "two audits must be of models with the same tokenizer to be compared",
            seen=f"tokenizers {digests[0][:16]} and {digests[1][:16]}",
            fix="records are cut into other tokens: read the two audits side by side instead",
        )
    if n_cut := int((first.n_tokens != second.n_tokens[order]).sum()):
        longest = [
            run.stores[run.original].fingerprint.get("max_length") for run in (first, second)
        ]
        raise StoreError(
            "two audits must cut records to the same length to be compared",
            seen=f"{n_cut:,} records have another length, cut to {longest[0]} tokens and to "
            f"{longest[1]}",
            fix="audit both with the same --max-length",
        )
    return order


def _pairs(first: Run, second: Run) -> tuple[list[Pair], dict[str, str]]:
    """The versions that both audits hold, the original first, and the others with the reason."""
    names = [
        {item.canonical: item.variant for item in run.result.variants} for run in (first, second)
    ]
    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    for canonical in {**names[0], **names[1]}:
        reasons = []
        for run, known in zip((first, second), names, strict=True):
            if canonical not in known:
                reasons.append(f"not in {run.folder}")
            elif reason := run.left_out.get(known[canonical]):
                reasons.append(f"left out of {run.folder}: {reason}")
        label = names[0].get(canonical) or names[1][canonical]
        if reasons:
            left_out[label] = "; ".join(reasons)
        else:
            pairs.append(Pair(label, canonical, names[0][canonical], names[1][canonical]))
    return pairs, left_out


def _shared_attacks(
    first: Run, second: Run, pairs: list[Pair], left_out: dict[str, str]
) -> list[str]:
    """Attacks that both audits have on some version; what one of them lacks goes to `left_out`."""
    shared: dict[str, None] = {}
    lacking: dict[str, dict[Path, list[str]]] = {}
    for pair in pairs:
        known = (first.signals[pair.before], second.signals[pair.after])
        shared.update(dict.fromkeys(name for name in known[0] if name in known[1]))
        for run, own, other in ((first, known[0], known[1]), (second, known[1], known[0])):
            for name in other:
                if name not in own:
                    lacking.setdefault(name, {}).setdefault(run.folder, []).append(pair.label)
    for name, folders in lacking.items():
        reasons = [
            f"not in {folder}" + (f" for {', '.join(labels)}" if name in shared else "")
            for folder, labels in folders.items()
        ]
        left_out[name] = "; ".join(reasons)
    if not shared:
        seen = [", ".join(run.signals[run.original]) for run in (first, second)]
        raise StoreError(
            "two audits must have an attack in common to be compared",
            seen=f"{seen[0]} in {first.folder}; {seen[1]} in {second.folder}",
            fix="run one of them again with the other's --attacks: stored scores are kept",
        )
    return list(shared)


def _primary(first: Run, second: Run, shared: list[str], wanted: str | None) -> str:
    named = [run.result.primary_attack for run in (first, second)]
    for name in [wanted] if wanted is not None else named:
        if name in shared:
            return name
    raise ConfigError(
        "the primary attack must be one that both audits have",
        seen=f"--primary {wanted}" if wanted is not None else f"{named[0]} and {named[1]}",
        fix=f"--primary, one of {', '.join(shared)}",
    )


def _audit(run: Run) -> ComparedAudit:
    return ComparedAudit(
        folder=str(run.folder), model=run.result.model, reference=run.result.reference
    )


def _version(compared: Compared, pair: Pair) -> ComparedVersion:
    first, second = compared.before, compared.after
    signals = compared.signals(pair)
    firsts = {attack: both[0] for attack, both in signals.items()}
    seconds = {attack: both[1] for attack, both in signals.items()}
    return ComparedVersion(
        variant=pair.label,
        canonical=pair.canonical,
        perplexity_before=first.result.variant(pair.before).perplexity,
        perplexity_after=second.result.variant(pair.after).perplexity,
        before=_figures(compared, first, pair.before, firsts),
        after=_figures(compared, second, pair.after, seconds),
    )


def _figures(
    compared: Compared, run: Run, version: str, signals: dict[str, Float64]
) -> dict[str, AttackResult]:
    """Figures of one version in one audit, its signals in the order of the first."""
    config = compared.config
    found = {}
    for attack, signal in signals.items():
        share = _noise_share(run, version, attack)
        figures = attack_result(
            signal,
            compared.before.is_member,
            fprs=config.fpr,
            confidence=config.confidence,
            draws=config.bootstrap,
            seed=config.seed,
            inflation=math.sqrt(1 + (share or 0.0)),
        )
        if share is not None:
            figures = figures.model_copy(update={"auc": no_worse_than_chance(figures.auc)})
        found[attack] = figures
    return found


def _tests(compared: Compared, pair: Pair) -> list[RunComparison]:
    """Every attack and metric of one version, not yet corrected."""
    config = compared.config
    found = []
    for attack, (before, after) in compared.signals(pair).items():
        tests = paired_tests(
            before,
            after,
            compared.before.is_member,
            fprs=config.fpr,
            confidence=config.confidence,
            draws=config.bootstrap,
            seed=config.seed,
            inflation=MOST_INFLATION if _is_learned(attack) else 1.0,
        )
        found += [
            RunComparison(
                variant=pair.label,
                attack=attack,
                metric=metric,
                difference=test.difference,
                p_value=test.p_value,
                p_adjusted=None,
                family="primary" if (attack, metric) == (compared.primary, "auc") else "secondary",
            )
            for metric, test in tests.items()
        ]
    return found


def _is_learned(attack: str) -> bool:
    """Whether its signal was cross-fitted; one that is not known here is taken for learned."""
    return attack not in ATTACKS or ATTACKS[attack].learned


def _noise_share(run: Run, version: str, attack: str) -> float | None:
    """The accident of training in one audit's signal, as that audit found it.

    None where there is none; the most that it can be where the audit does not say.
    """
    if not _is_learned(attack):
        return None
    leakage, held = run.result.leakage, {run.original, version}
    if leakage is None or not leakage.supervision:
        return MOST_INFLATION**2 - 1
    for item in leakage.settings:
        name = item.attack + (WITH_REFERENCE if item.with_reference else "")
        # Of several supervisions the column is of the first, see `leakage.judge`.
        if (name, item.supervision) != (attack, leakage.supervision[0]):
            continue
        if version in item.versions and held.issuperset(item.versions):
            return item.noise_share
    return MOST_INFLATION**2 - 1


def _notes(compared: Compared, shared: list[str]) -> list[Warned]:
    """What the reader must know before the figures, worst first."""
    first, second = compared.before.result, compared.after.result
    references = [run.reference and run.reference.sha256 for run in (first, second)]
    beside = [name for name in shared if name in ATTACKS and ATTACKS[name].needs_reference]
    learned = [name for name in shared if _is_learned(name)]
    found = (
        (
            any(run.blind is not None and run.blind.told_apart for run in (first, second)),
            ("told-apart", "severe"),
            "Members and nonmembers can be told apart without a model: the figures measure the two "
            "lists as much as the models.",
        ),
        (
            bool(beside) and references[0] != references[1],
            ("other-reference", "warning"),
            "The two audits have different reference models: what differs under "
            f"{' and '.join(beside)} may come from these.",
        ),
        (
            first.primary_attack != second.primary_attack,
            ("other-primary", "warning"),
            f"The primary attack of the first audit is {first.primary_attack}, of the second "
            f"{second.primary_attack}; here it is {compared.primary}.",
        ),
        (
            first.model.dtype != second.model.dtype,
            ("other-dtype", "warning"),
            f"The first model ran in {first.model.dtype}, the second in {second.model.dtype}.",
        ),
        (
            first.model.sha256 == second.model.sha256,
            ("same-model", "info"),
            "Both audits are of the identical model: a difference comes from how it was run or "
            "compressed, not from its training.",
        ),
        (
            bool(learned),
            ("learned-anew", "info"),
            f"{', '.join(learned)}: trained anew in each audit; intervals of the differences are "
            "widened by the most that the accident of training can do.",
        ),
    )
    return [
        Warned.model_validate({"code": code, "severity": severity, "message": message})
        for holds, (code, severity), message in found
        if holds
    ]


def _write(out: Path, result: ComparedRuns) -> None:
    try:
        write_text(out, result.model_dump_json(indent=2) + "\n", private=False)
    except StoreError as error:
        raise StoreError(error.must, seen=error.seen, fix="choose another --out") from error
