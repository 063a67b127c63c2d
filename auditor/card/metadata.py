"""An audit's figures as the Hub's metadata: `model-index` entries and an `.eval_results` file.

An entry says what one attacker finds, by one metric. huggingface_hub groups entries by task and
data set, so version and attack stand in the metric's name and arguments, and so does what an entry
of ours is known by on the next run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

import auditor
from auditor.card.attackers import HUB_ID, alone, hub_id, model_name, together
from auditor.card.entries import Entries
from auditor.card.readme import CardError
from auditor.card.yaml_text import as_yaml
from auditor.errors import ConfigError
from auditor.leakage.bounds import metric_in_words
from auditor.report.figures import headline_rate
from auditor.report.plain import printable
from auditor.results import AuditResult, Estimate

TOOL = "compleak-llm"
# Stands for the records where they are no data set on the Hub.
OWN_RECORDS = "compleak-llm/membership-inference"
DIGITS = 6


class Figure(NamedTuple):
    """One figure of one attacker.

    Attributes:
        metric: 'auc', 'auc gain' or 'tpr@0.01' and the like.
        found: The figure.
        setting: NR, SR or MR.
        attack: The attack.
        versions: What the attacker holds.
        with_reference: Whether he holds the reference model too.
        supervision: How the attack was trained.
    """

    metric: str
    found: Estimate
    setting: str
    attack: str
    versions: list[str]
    with_reference: bool
    supervision: str

    @property
    def name(self) -> str:
        """What it is, in the order of metric, attack and versions."""
        metric = "AUC gain" if self.metric == "auc gain" else metric_in_words(self.metric)
        beside = " + reference" if self.with_reference else ""
        return printable(f"{metric}, {self.attack}, {' + '.join(self.versions)}{beside}")

    @property
    def task(self) -> str:
        """What can be compared from model to model: `nr-auc`, `nr-tpr-at-0.01`, `sr-auc-gain`."""
        metric = self.metric.replace("@", "-at-").replace(" ", "-")
        return f"{self.setting.lower()}-{metric}"


def figures(result: AuditResult, variant: str | None = None) -> list[Figure]:
    """What a card's metadata says; with a variant only what is about it.

    For every version alone, AUC and TPR under the attack named before the run; for each beside
    the original, what is gained; for all together, AUC and what is gained. What is absent is left
    out.
    """
    found = list(_figures(result, variant))
    return [one for one in found if one.found.value is not None]


def _figures(result: AuditResult, variant: str | None) -> Iterator[Figure]:
    rate = headline_rate(result)
    reference = result.primary_attack in ("ref", "ez")
    rows = alone(result)
    for row in rows:
        name = row.version.variant
        seen = row.version.attacks.get(result.primary_attack)
        if seen is None or (variant is not None and name != variant):
            continue
        if row.version.status != "ok":
            continue
        facts = ("NR", result.primary_attack, [name], reference, "none")
        yield Figure("auc", seen.auc, *facts)
        if rate is not None:
            yield Figure(f"tpr@{rate}", seen.tpr_at_fpr[rate], *facts)
    for held in (row for group in together(result, variant) for row in group):
        one = held.setting
        facts = (one.setting, one.attack, one.versions, one.with_reference, one.supervision)
        everything = len(one.versions) == sum(row.version.status == "ok" for row in rows)
        if one.setting == "NR" or (one.setting == "MR" and not everything):
            continue
        if one.setting == "MR" or held.gain is None:
            yield Figure("auc", one.figures.auc, *facts)
        if held.gain is not None:
            yield Figure("auc gain", held.gain.difference, *facts)


def eval_results(result: AuditResult, variant: str | None = None) -> list[EvalResult]:
    """The figures as entries for `model-index`."""
    records = result.records
    n_members, n_nonmembers = records.members.n_audited, records.nonmembers.n_audited
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Membership inference",
            dataset_type=OWN_RECORDS,
            dataset_name=f"{n_members:,} members and {n_nonmembers:,} nonmembers",
            dataset_revision=records.sha256,
            dataset_args={"n_members": n_members, "n_nonmembers": n_nonmembers},
            metric_type=one.metric.partition("@")[0].replace(" ", "_"),
            metric_value=_rounded(one.found.value),
            metric_name=one.name,
            metric_args=_arguments(result, one),
        )
        for one in figures(result, variant)
    ]


def _arguments(result: AuditResult, one: Figure) -> dict[str, Any]:
    """What an entry is of; `tool` is what it is known by."""
    fpr = one.metric.partition("@")[2]
    arguments = {
        "tool": TOOL,
        "tool_version": result.versions.get(TOOL, auditor.__version__),
        "setting": one.setting,
        "attack": printable(one.attack),
        "versions": [printable(name) for name in one.versions],
        "with_reference": one.with_reference,
        "supervision": one.supervision,
        "fpr": float(fpr) if fpr else None,
        "confidence": result.confidence,
        "low": _rounded(one.found.low),
        "high": _rounded(one.found.high),
    }
    return {key: value for key, value in arguments.items() if value is not None}


def model_index(
    path: Path,
    before: Any,  # noqa: ANN401 - read from YAML
    result: AuditResult,
    variant: str | None = None,
) -> Entries:
    """What `model-index` must hold: the entries of others as they are, and this audit's.

    Args:
        path: The README, for errors.
        before: What stands there now; None where nothing does.
        result: The audit.
        variant: The version that the card is for.

    Raises:
        CardError: What stands there is no `model-index`, or of more than one model.
    """
    model = _one_model(path, before)
    results = model.get("results", [])
    kept, old = [], []
    for at, entry in enumerate(results):
        others = [metric for metric in entry["metrics"] if not _is_ours(metric)]
        if len(others) < len(entry["metrics"]):
            old.append(at)
        if others or not entry["metrics"]:
            kept.append({**entry, "metrics": others})
    name = model.get("name") or _own_name(result, variant)
    ours = eval_results_to_model_index(name, eval_results(result, variant))[0]["results"]
    # Ours stand where they stood, so that the same audit gives the same bytes.
    at = len([place for place in range(old[0]) if place not in old]) if old else len(kept)
    after = {**model, "name": name, "results": [*kept[:at], *ours, *kept[at:]]}
    return Entries(after=[after], ours=ours, old=old)


def _one_model(path: Path, before: Any) -> dict[str, Any]:  # noqa: ANN401 - read from YAML
    """The one model of a `model-index`; empty where there is none yet."""
    if not before:
        return {}
    if isinstance(before, list) and len(before) > 1:
        raise CardError(
            f"the model-index of {path} must be of one model",
            seen=f"{len(before)} of them",
            fix="leave the one that this README is the card of",
        )
    try:
        model_index_to_eval_results(before)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CardError(
            f"the model-index of {path} must be as the Hub reads it",
            seen=f"{type(error).__name__}: {error}",
            fix="mend it, or leave --model-index out",
        ) from error
    model: dict[str, Any] = before[0]
    return model


def _is_ours(metric: dict[str, Any]) -> bool:
    arguments = metric.get("args")
    return isinstance(arguments, dict) and arguments.get("tool") == TOOL


def _own_name(result: AuditResult, variant: str | None) -> str:
    name = model_name(result).rpartition("/")[2]
    return printable(f"{name} {variant}" if variant else name)


def eval_results_file(result: AuditResult, variant: str | None = None) -> str:
    """The figures as `.eval_results/compleak-llm.yaml`.

    The Hub shows an entry on a leaderboard where its data set is a benchmark; records that are
    no data set on the Hub stand under an id of this program's own.
    """
    records = result.records.sha256[:16]
    entries = [
        EvalResultEntry(
            dataset_id=OWN_RECORDS,
            task_id=one.task,
            value=_rounded(one.found.value),
            notes=f"{one.name}, {_in_brackets(result, one)}, records {records}",
        )
        for one in figures(result, variant)
    ]
    return as_yaml(eval_result_entries_to_yaml(entries))


def _in_brackets(result: AuditResult, one: Figure) -> str:
    level = f"{100 * result.confidence:g}%"
    return f"{level} interval [{_rounded(one.found.low)}, {_rounded(one.found.high)}]"


def base_model(result: AuditResult, given: str | None) -> str:
    """The original's id on the Hub.

    Raises:
        ConfigError: It is not known, or what was given is no id.
    """
    found = given if given is not None else hub_id(result.model)
    if found is None or not HUB_ID.fullmatch(found):
        raise ConfigError(
            "the card of a variant must name the original, as org/name on the Hub",
            seen=f"--base-model {given}"
            if given is not None
            else f"the model was {result.model.name}, a path",
            fix="for example --base-model org/name",
        )
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
