"""The tables of a study, each a function of results that lie on disk."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from auditor.results import AuditResult, LeakageComparison, SettingResult
from auditor.results.figures import Comparison, Estimate
from auditor.study.recipe import Study, target_folder

# Below this, after Holm, a difference is told.
LEVEL = 0.05
ORIGINAL, RETRAIN = "original", "retrain"
UNTOLD = "·"


class Result(NamedTuple):
    """A target and both of its audits."""

    name: str
    alone: AuditResult
    reference: AuditResult


class Kind(NamedTuple):
    """A way of compressing, and which versions are of it."""

    title: str
    holds: Callable[[str], bool]


def is_recovered(version: str) -> bool:
    """Whether a version was trained on the members after it was compressed."""
    return "recover=" in version and not version.startswith(RETRAIN)


def is_control(version: str) -> bool:
    """Whether a version is there to be compared with, and not to be published."""
    return version.startswith((RETRAIN, "noise"))


def _one_shot(*starts: str) -> Callable[[str], bool]:
    return lambda version: version.startswith(starts) and not is_recovered(version)


def _is_four_bits(version: str) -> bool:
    """4 bits are GPTQ's default, which a label leaves out."""
    return version.startswith(("bnb-nf4", "bnb-fp4")) or (
        version.startswith("gptq") and "bits=" not in version
    )


KINDS = (
    Kind("8 bits (LLM.int8, GPTQ)", _one_shot("bnb-int8", "gptq:bits=8")),
    Kind("4 bits (NF4, FP4, GPTQ)", _is_four_bits),
    Kind("3 bits (GPTQ)", _one_shot("gptq:bits=3")),
    Kind("pruning", _one_shot("prune-")),
    Kind("clustering", _one_shot("cluster")),
    Kind("adapter over the compressed base", _one_shot("unmerged")),
    Kind(
        "pruning, then trained on the members",
        lambda version: version.startswith("prune-") and is_recovered(version),
    ),
    Kind(
        "clustering, then trained on the members",
        lambda version: version.startswith("cluster") and is_recovered(version),
    ),
    Kind("no compression, trained further (control)", lambda version: version.startswith(RETRAIN)),
)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    ruled = ["---", *("---:" for _ in columns[1:])]
    lines = [columns, ruled, *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def figure(estimate: Estimate, *, signed: bool = False, percent: bool = False) -> str:
    """A figure with its interval, or a dash where there is none."""
    if estimate.value is None:
        return "–"
    factor, digits = (100, 1) if percent else (1, 3)
    sign = "+" if signed else ""
    text = f"{factor * estimate.value:{sign}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    low, high = (f"{factor * end:{sign}.{digits}f}" for end in (estimate.low, estimate.high))
    return f"{text} [{low}, {high}]"


def told(difference: Estimate, p_adjusted: float | None) -> str:
    """↑ or ↓ where a difference is told after Holm, else a dot."""
    if p_adjusted is None or p_adjusted >= LEVEL or difference.value is None:
        return UNTOLD
    return "↑" if difference.value > 0 else "↓"


def primary(result: AuditResult, version: str) -> Comparison | None:
    """The comparison of a version with the original that was named before the run."""
    return next(
        (c for c in result.comparisons if c.variant == version and c.family == "primary"), None
    )


def versions(result: AuditResult) -> list[str]:
    """The versions in order, without those that stand for noise."""
    return [one.variant for one in result.variants if not one.variant.startswith("noise")]


# -- targets ---------------------------------------------------------------------------------------


def targets_table(study: Study, results: Sequence[Result]) -> str:
    """How each target came out, and what the original gives away."""
    rows = []
    for name, alone, reference in results:
        about = _about(study, name)
        last: dict[str, Any] = next(
            (e for e in about["epochs"] if e["epoch"] == about["kept_epoch"]), {}
        )
        originals = [
            one.variant(ORIGINAL).attacks[one.primary_attack] for one in (alone, reference)
        ]
        rows.append(
            (
                name,
                about["method"],
                f"{about['split']['n_members']:,} / {about['split']['n_nonmembers']:,}",
                f"{about['kept_epoch']:g}",
                f"{last['members']:.3f}",
                f"{last['nonmembers']:.3f}",
                *(figure(one.auc) for one in originals),
                _rates(originals[1].tpr_at_fpr),
            )
        )
    _, alone, reference = results[0]
    return markdown(
        (
            "target",
            "method",
            "members / nonmembers",
            "epochs",
            "loss on members",
            "on nonmembers",
            f"AUC of {alone.primary_attack}",
            f"AUC of {reference.primary_attack}, with the base",
            "members found, with the base",
        ),
        rows,
    )


def _rates(tpr: dict[str, Estimate]) -> str:
    """The TPR at the lowest rate that these counts support."""
    for rate in sorted(tpr, key=float):
        if tpr[rate].value is not None:
            return f"{figure(tpr[rate], percent=True)}% at {100 * float(rate):g}% FPR"
    return "–"


def _about(study: Study, name: str) -> dict[str, Any]:
    path = target_folder(study, name) / "target.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# -- one version -----------------------------------------------------------------------------------


def versions_table(result: Result) -> str:
    """NR: every version alone, and whether it gives away more or less than the original."""
    rows = []
    for version in versions(result.alone):
        one, two = result.alone.variant(version), result.reference.variant(version)
        row = [
            f"`{version}`",
            f"{one.receipt.bits_per_weight:.2f}" if one.receipt is not None else "–",
            f"{one.perplexity_ratio:.3f}" if one.perplexity_ratio is not None else "–",
        ]
        for audited, found in ((result.alone, one), (result.reference, two)):
            attack = found.attacks.get(audited.primary_attack)
            against = primary(audited, version)
            row += [
                figure(attack.auc) if attack is not None else "–",
                "" if against is None else _change(against),
            ]
        rows.append(row)
    return markdown(
        (
            "version",
            "bits a weight",
            "perplexity ×",
            f"AUC of {result.alone.primary_attack}",
            "against the original",
            f"AUC of {result.reference.primary_attack}, with the base",
            "against the original",
        ),
        rows,
    )


def _change(comparison: Comparison) -> str:
    sign = told(comparison.difference, comparison.p_adjusted)
    return f"{sign} {figure(comparison.difference, signed=True)}"


def signs_of(kind: Kind, results: Sequence[Result], which: str) -> list[str]:
    """What is told of each version of a kind, over all targets; `which`: alone or reference."""
    return [
        told(c.difference, c.p_adjusted)
        for result in results
        for c in getattr(result, which).comparisons
        if c.family == "primary" and kind.holds(c.variant)
    ]


def kinds_table(results: Sequence[Result]) -> str:
    """Over all targets: how often each kind raised, lowered, or was not told from the original."""
    rows = []
    for kind in KINDS:
        row = [kind.title]
        for which in ("alone", "reference"):
            signs = signs_of(kind, results, which)
            row += [str(signs.count(sign)) for sign in ("↑", "↓", UNTOLD)]
        if any(cell != "0" for cell in row[1:]):
            rows.append(row)
    _, alone, reference = results[0]
    columns = [
        f"{one.primary_attack}: {what}"
        for one in (alone, reference)
        for what in ("raised", "lowered", "not told")
    ]
    return markdown(("versions", *columns), rows)


# -- beside the original, and together -----------------------------------------------------------


def questions(result: AuditResult, supervision: str = "crossfit") -> list[LeakageComparison]:
    """The questions on AUC about more than one version, in their order."""
    if result.leakage is None:
        return []
    return [
        c
        for c in result.leakage.comparisons
        if c.metric == "auc"
        and c.supervision == supervision
        and not any(map(is_control, c.versions))
        and c.question != "variants over original"
    ]


def beside_table(results: Sequence[Result]) -> str:
    """SR and MR: by how much they beat what they must beat, and how often that is told."""
    rows = []
    asked = {
        (which, c.question, c.with_reference, c.supervision)
        for result in results
        for which in ("alone", "reference")
        for supervision in ("crossfit", "shadow")
        for c in questions(getattr(result, which), supervision)
    }
    for which, question, with_reference, supervision in sorted(asked):
        found = [
            c
            for result in results
            for c in questions(getattr(result, which), supervision)
            if c.question == question and c.with_reference == with_reference
        ]
        gains = [c.difference.value for c in found if c.difference.value is not None]
        signs = [told(c.difference, c.p_adjusted) for c in found]
        if not gains:
            continue
        rows.append(
            (
                question,
                "with the base" if which == "reference" else "alone",
                "yes" if with_reference else "no",
                supervision,
                str(len(found)),
                str(signs.count("↑")),
                f"{sorted(gains)[len(gains) // 2]:+.3f}",
                f"{max(gains):+.3f}",
            )
        )
    rows = sorted(set(rows))
    return markdown(
        (
            "question",
            "audit",
            "holds the base",
            "trained by",
            "asked",
            "told (Holm, one-sided)",
            "median gain in AUC",
            "largest",
        ),
        rows,
    )


def settings_table(result: Result) -> str:
    """The best that each setting finds on one target, cross-fitted and by shadow."""
    rows = []
    for held, which in (("nothing else", result.alone), ("the base too", result.reference)):
        if which.leakage is None:
            continue
        for setting in ("NR", "SR", "MR"):
            for supervision in ("crossfit", "shadow"):
                found = [
                    s
                    for s in which.leakage.settings
                    if s.setting == setting
                    and s.supervision == supervision
                    and s.with_reference == (which is result.reference)
                    and not any(is_control(version) for version in s.versions)
                ]
                if not found:
                    continue
                if setting == "NR":
                    found = [s for s in found if s.versions == [ORIGINAL]] or found
                best = max(found, key=_auc)
                what = (
                    f"{len(best.versions)} versions"
                    if setting == "MR"
                    else " + ".join(f"`{version}`" for version in best.versions)
                )
                rows.append((setting, held, supervision, what, figure(best.figures.auc)))
    return markdown(("setting", "beside the versions", "trained by", "versions", "AUC"), rows)


def _auc(one: SettingResult) -> float:
    return one.figures.auc.value or 0.0


# -- recovery, controls --------------------------------------------------------------------------


def recovery_table(result: Result) -> str:
    """What training on the members after compression does, beside the control without it."""
    rows = []
    for version in versions(result.reference):
        if not is_recovered(version):
            continue
        plain = _plain(version)
        beside = (plain, version, _control(result.reference))
        against = beyond_training(result.reference, version)
        rows.append(
            [
                f"`{version}`",
                *(_auc_of(result.reference, name) for name in beside),
                "" if against is None else _change(against),
            ]
        )
    return markdown(
        (
            "version",
            "AUC one-shot",
            "AUC recovered",
            "AUC of the original trained further",
            "recovered against that",
        ),
        rows,
    )


def beyond_training(result: AuditResult, version: str) -> Comparison | None:
    """A recovered version against the original that was trained by the same steps, on the AUC."""
    return next(
        (c for c in result.beyond_training if c.variant == version and c.family == "primary"), None
    )


def _plain(version: str) -> str:
    """The one-shot version of a recovered one."""
    name, _, options = version.partition(":")
    kept = [part for part in options.split(",") if not part.startswith("recover")]
    return f"{name}:{','.join(kept)}" if kept else name


def _control(result: AuditResult) -> str:
    return next((v for v in versions(result) if v.startswith(RETRAIN)), "")


def _auc_of(result: AuditResult, version: str) -> str:
    found = next((v for v in result.variants if v.variant == version), None)
    attack = found.attacks.get(result.primary_attack) if found is not None else None
    return figure(attack.auc) if attack is not None else "–"


def controls_table(results: Sequence[Result]) -> str:
    """What is known beforehand, and whether it came out so."""
    rows = []
    for name, alone, reference in results:
        for kind, one in (("alone", alone), ("with the base", reference)):
            controls = one.leakage.controls if one.leakage is not None else []
            passed = sum(control.passed for control in controls)
            blind = figure(one.blind.auc) if one.blind is not None else "–"
            rows.append((name, kind, f"{passed} of {len(controls)}", blind))
    return markdown(("target", "audit", "controls passed", "AUC of the blind baseline"), rows)
