"""`compleak-llm release`: a finished audit's versions, judged as sets under a bound.

Everything comes from stored scores, with the audit's own folds and seed, so that the figures are
those of `audit.json`; no model is run and nothing in the run's folder is written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from auditor.config import AuditConfig
from auditor.errors import ConfigError, GateError, StoreError
from auditor.files import write_text
from auditor.leakage.bounds import spell_bound
from auditor.leakage.evidence import Evidence
from auditor.leakage.judge import open_case, releases_of
from auditor.leakage.learners import one_thread
from auditor.leakage.releases import gate_broken, is_control
from auditor.leakage.shadow_runs import Target, open_shadows, read_shadow, same_tokens
from auditor.recipes import validated
from auditor.results import AuditResult, Releases
from auditor.run import Run, open_run
from auditor.store import REFERENCE

FailOn = Literal["over", "undecided"]
LEARNED = ("learned attacks", "attacks learned on shadows")


def judge_run(
    folder: Path,
    *,
    at_most: str | None = None,
    release: Sequence[str] = (),
    fail_on: FailOn | None = None,
    out: Path | None = None,
) -> Releases:
    """Judge every set of versions of a finished audit.

    Args:
        folder: The audit's output folder.
        at_most: What a release may give away at most; the audit's own bound when left out.
        release: The versions that are to be published; all when left out.
        fail_on: Whether they have to pass a gate, so that none of them may be missing.
        out: File to write the result to as JSON; it must not be there yet.

    Raises:
        StoreError: The folder holds no finished audit or no scores, or `out` cannot be written.
        ConfigError: The bound cannot be read, is missing, or the counts do not support it; a
            version that is to be published was not judged.
        GateError: The same, where they have to pass a gate.
    """
    if out is not None and out.exists():
        raise StoreError(
            f"{out} must not be there yet", seen="a file", fix="choose another --out, or remove it"
        )
    run = open_run(folder)
    config = _asked(run.config, at_most, release, fail_on)
    if fail_on is not None:
        _must_be_judged(config.release or config.variants, run.left_out)
    for name in config.release:
        if name in run.left_out:
            raise ConfigError(
                "the versions to be published must be among those that were judged",
                seen=f"{name} was not: {run.left_out[name]}",
                fix="leave it out of --versions, or mend it",
            )
    shadow = read_shadow(open_shadows(config, _target(run)), config)
    case = open_case(evidence_of(run), config, shadow=shadow)
    with one_thread():  # as in the audit: with more threads sums differ in their last bit
        releases = releases_of(case)
    if releases is None:
        raise StoreError(
            f"{folder} must be an audit whose versions can be judged together",
            seen=_why_not(case.left_out),
            fix="audit with more records, or with fewer that are near-duplicates of each other",
        )
    releases = releases.model_copy(update={"left_out": dict(run.left_out)})
    if out is not None:
        write_text(out, releases.model_dump_json(indent=2) + "\n", private=False)
    return releases


def _asked(
    config: AuditConfig, at_most: str | None, release: Sequence[str], fail_on: FailOn | None
) -> AuditConfig:
    """The audit's configuration with the bound that is asked for now; all of MR is judged."""
    given = config.model_dump(mode="json")
    given.update(settings=["NR", "SR", "MR"], attacks=[], controls=[], releases=True, fail_on=None)
    if "crossfit" in config.supervisions:
        # Releases are judged by it; shadow audits need not be there any more.
        given.update(supervision=["crossfit"], shadow=[])
    if at_most is not None:
        given.update(at_most=at_most, release=[])
    if given["at_most"] is None and (release or fail_on):
        raise ConfigError(
            "--versions and --fail-on need a bound to be judged by",
            seen="no --at-most, neither here nor in the audit",
            fix="for example --at-most auc=0.6",
        )
    if release:
        given.update(release=list(release))
    return validated(AuditConfig, given)


def _target(run: Run) -> Target:
    return Target(run.result.model, run.result.reference, run.ids, run.is_member)


def evidence_of(run: Run) -> Evidence:
    """What a finished audit has stored; broken versions are left out by name."""
    usable = [found for found in run.result.variants if found.variant in run.signals]
    names = [found.variant for found in usable]
    return Evidence(
        ids=run.ids,
        is_member=run.is_member,
        groups=run.groups,
        stores={name: run.stores[name] for name in names},
        noises={},
        reference=run.stores.get(REFERENCE),
        same_tokens=same_tokens(run.result.model, run.result.reference),
        signals=run.signals,
        perplexities={found.variant: found.perplexity or float("nan") for found in usable},
        primary=run.result.primary_attack,
        left_out=run.left_out,
    )


def must_pass(releases: Releases | None, fail_on: FailOn | None) -> None:
    """Raise where the gate is closed.

    Raises:
        GateError: The release breaks its bound.
    """
    if releases is None or releases.bound is None or fail_on is None:
        return
    reason = gate_broken(releases, fail_on)
    if reason is not None:
        raise GateError(
            f"the release must stay within {spell_bound(releases.bound)}",
            seen=reason,
            fix=releases.advice,
        )


def must_pass_gate(result: AuditResult) -> None:
    """The same for the release that an audit was asked to judge.

    Raises:
        GateError: The release breaks its bound, or could not be judged.
    """
    fail_on = result.config.get("fail_on")
    if fail_on is None:
        return
    planned = result.config.get("release") or [found.variant for found in result.variants]
    broken = {found.variant: str(found.reason) for found in result.variants if found.status != "ok"}
    _must_be_judged(planned, broken)
    if result.leakage is None or result.leakage.releases is None:
        raise GateError(
            "the release must be judged before it goes out",
            seen=_why_not(result.leakage.left_out if result.leakage is not None else {}),
            fix="audit two versions or more, with the records that learned attacks need",
        )
    must_pass(result.leakage.releases, fail_on)


def _must_be_judged(planned: Sequence[str], left_out: Mapping[str, str]) -> None:
    for name in planned:
        if name in left_out and not is_control(name):
            raise GateError(
                "every version of the release must be judged before it goes out",
                seen=f"{name} was not: {left_out[name]}",
                fix="leave it out of the release, or mend it",
            )


def _why_not(left_out: Mapping[str, str]) -> str:
    """Why no release was judged: not every reason for leaving something out is one."""
    reasons = [f"{name} were left out: {left_out[name]}" for name in LEARNED if name in left_out]
    return reasons[0] if reasons else "there are not two versions that could be judged"
