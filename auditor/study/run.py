"""Running a study: what is finished is left alone, what is left is done in the recipe's order.

OUT/targets/NAME/                  the target, its shadow in shadow-1/
OUT/audits/NAME/                   the audit's own folder, whose scores serve both results
OUT/results/NAME.alone.json        judged without the base
OUT/results/NAME.reference.json    judged with the base as reference
OUT/README.md, OUT/figures/        the tables and figures
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from auditor.audit import audit
from auditor.config import AuditConfig
from auditor.files import write_text
from auditor.report.progress import Display, Tell
from auditor.study.recipe import Study, audit_config, target_folder, train_config
from auditor.targets.config import TrainConfig

if TYPE_CHECKING:
    from auditor.results import AuditResult

ALONE, WITH = "alone", "reference"


class Step(NamedTuple):
    """An audit of the study.

    Attributes:
        name: Of its result, without suffix.
        config: The audit.
        target: The target that it belongs to.
    """

    name: str
    config: AuditConfig
    target: str


def steps_of(study: Study, name: str) -> list[Step]:
    """The audits of a target in their order: its shadows first, which it needs."""
    made = train_config(study, name)
    folder, root = target_folder(study, name), Path(study.output_path)
    shadows = [f"{name}-shadow-{number}" for number in range(1, made.shadows + 1)]
    found = []
    for number, shadow in enumerate(shadows, 1):
        settled = _settled(made, folder / f"shadow-{number}", root / "audits" / shadow)
        with_base = {**settled, "reference": made.model}
        found.append(Step(f"{shadow}.{WITH}", audit_config(study, name, with_base), name))
    settled = _settled(made, folder, root / "audits" / name)
    if shadows:
        settled["shadow"] = [str(root / "audits" / shadow) for shadow in shadows]
    for kind in (ALONE, WITH):
        own = dict(settled)
        if kind == WITH:
            own["reference"] = made.model
        elif shadows:
            # A shadow that was audited with its base trains attackers who hold it.
            own.pop("shadow")
        found.append(Step(f"{name}.{kind}", audit_config(study, name, own), name))
    return found


def _settled(made: TrainConfig, folder: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "members": {"path": str(folder / "members.jsonl")},
        "nonmembers": {"path": str(folder / "nonmembers.jsonl")},
        "calibration": {"path": str(folder / "validation.jsonl")},
        "output_path": str(out),
        "max_length": made.max_length,
    }
    if made.method == "full":
        return {**found, "model": str(folder)}
    return {**found, "model": made.model, "adapter": str(folder)}


def result_path(study: Study, step: str) -> Path:
    """Where the result of an audit is kept."""
    return Path(study.output_path) / "results" / f"{step}.json"


def run_study(study: Study, *, display: Callable[[], Display], tell: Tell = lambda _: None) -> Path:
    """Do what is left of a study, then write its tables.

    Args:
        study: The study.
        display: Makes what is told of an audit.
        tell: Told what goes on, a line at a time.

    Returns:
        The page with the tables.

    Raises:
        CompleakError: Whatever training or an audit stops at.
    """
    from auditor.dist import processes
    from auditor.study.page import write_page
    from auditor.targets.make import train

    is_main = processes().is_main
    for number, name in enumerate(study.targets, 1):
        tell(f"target {number} of {len(study.targets)}: {name}")
        train(train_config(study, name), tell=tell)
        for step in steps_of(study, name):
            if is_finished(study, step):
                tell(f"{step.name}: finished before")
                continue
            tell(f"{step.name}: audit")
            result = audit(step.config, display=display())
            if is_main:
                write_text(result_path(study, step.name), result.model_dump_json(indent=1) + "\n")
                write_text(_made_of(study, step), targets_sha256(study, name))
        if is_main:  # so that a study that is stopped has a page of what is finished
            write_page(study)
    return Path(study.output_path) / "README.md"


def targets_sha256(study: Study, name: str) -> str:
    """Over what a target and its shadows say of themselves, hex: which weights they have."""
    found = hashlib.sha256()
    for path in sorted(target_folder(study, name).rglob("target.json")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _made_of(study: Study, step: Step) -> Path:
    """Where it stands of which targets a result is."""
    return result_path(study, step.name).with_suffix(".targets")


def is_finished(study: Study, step: Step) -> bool:
    """Whether the very same audit of the very same target has left a result."""
    try:
        made_of = _made_of(study, step).read_text(encoding="utf-8")
        if made_of != targets_sha256(study, step.target):
            return False
        found = json.loads(result_path(study, step.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("config") == step.config.model_dump(mode="json")


def finished(study: Study) -> list[str]:
    """The targets whose audits have all left a result."""
    return [
        name
        for name in study.targets
        if all(is_finished(study, step) for step in steps_of(study, name))
    ]


def results(study: Study) -> Iterator[tuple[str, "AuditResult", "AuditResult"]]:
    """Every target that is finished, with its result alone and with the base."""
    from auditor.results import AuditResult

    for name in finished(study):
        one, two = (
            AuditResult.model_validate_json(
                result_path(study, f"{name}.{kind}").read_text(encoding="utf-8")
            )
            for kind in (ALONE, WITH)
        )
        yield name, one, two
