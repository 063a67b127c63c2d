"""What a study is: its targets, how they are audited, and what is left out for a quick look."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from auditor.bounded_yaml import YAML_ERRORS
from auditor.bounded_yaml import load as load_yaml
from auditor.config import AuditConfig
from auditor.errors import ConfigError, unknown
from auditor.recipes import BY_HAND, folder, validated
from auditor.shared_config import Frozen
from auditor.targets.config import TrainConfig

Keys = dict[str, Any]
# What a study settles by itself for each target.
SETTLED = ("members", "nonmembers", "data", "reference", "adapter", "shadow", "supervision")
OUT = "runs/study"


class Quick(Frozen):
    """What is changed for a quick look."""

    targets: tuple[str, ...] = ()
    train: Keys = Field(default_factory=dict)
    audit: Keys = Field(default_factory=dict)


class Study(Frozen):
    """A study as its recipe says it.

    Attributes:
        study: Its title.
        train: Options of `train` for all targets.
        targets: By name, the options of each target beside these; `audit` among them holds options
            of its audits alone.
        audit: Options of `audit` for all targets.
        quick: What is changed for a quick look.
        output_path: Where everything goes.
    """

    study: str
    train: Keys = Field(default_factory=dict)
    targets: dict[str, Keys]
    audit: Keys = Field(default_factory=dict)
    quick: Quick = Quick()
    output_path: str = OUT


def path_of(recipe: str) -> Path:
    """The file of a recipe that is given by name or path."""
    return Path(recipe) if recipe.endswith((".yaml", ".yml")) else folder() / f"{recipe}.yaml"


def is_study(recipe: str | None) -> bool:
    """Whether a recipe is a study; a file that cannot be read is none."""
    if recipe is None:
        return False
    try:
        content = load_yaml(path_of(recipe).read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS):
        return False
    return isinstance(content, dict) and "study" in content


def read_study(recipe: str, given: Mapping[str, Any], *, quick: bool = False) -> Study:
    """A study, with options of the audit that were given by hand, which win.

    Raises:
        ConfigError: A key is unknown, or an option is wrong.
    """
    path = path_of(recipe)
    content = load_yaml(path.read_text(encoding="utf-8"))
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} must be a study: {where}: {first['msg'].lower()}", seen=repr(first["input"])
        ) from None
    if quick:
        study = _quickened(study, path)
    taken = dict(given)
    out = taken.pop("output_path", f"{study.output_path}-quick" if quick else study.output_path)
    if settled := sorted(set(taken) & {*SETTLED, "model"}):
        flag = f"--{settled[0].replace('_', '-')}"
        raise ConfigError(
            f"{flag} is settled by the study for each of its targets",
            seen=f"{flag} beside --recipe {recipe}",
            fix="leave it out, or copy the recipe and change its targets",
        )
    study = study.model_copy(update={"audit": {**study.audit, **taken}, "output_path": str(out)})
    for name in study.targets:  # so that nothing is found wrong after an hour
        train_config(study, name)
        audit_config(study, name, {"model": "m", "members": "m.jsonl", "nonmembers": "n.jsonl"})
    return study


def _quickened(study: Study, path: Path) -> Study:
    quick = study.quick
    if missing := [name for name in quick.targets if name not in study.targets]:
        raise unknown(f"target of {path.name}", missing[0], study.targets)
    names = quick.targets or tuple(study.targets)
    return study.model_copy(
        update={
            # What is quick wins over what a target says of itself.
            "targets": {
                name: {
                    **study.targets[name],
                    **quick.train,
                    "audit": {**study.targets[name].get("audit", {}), **quick.audit},
                }
                for name in names
            },
        }
    )


def train_config(study: Study, name: str) -> TrainConfig:
    """How a target is made."""
    keys = {**study.train, **study.targets[name]}
    keys.pop("audit", None)
    _by_hand(keys, name)
    return validated(TrainConfig, {**keys, "out": str(target_folder(study, name))})


def audit_config(study: Study, name: str, settled: Mapping[str, Any]) -> AuditConfig:
    """How a target is audited."""
    own = study.targets[name].get("audit", {})
    keys = {**study.audit, **(own if isinstance(own, dict) else {})}
    _by_hand(keys, name)
    for key in keys:
        if key in SETTLED or key not in AuditConfig.model_fields:
            raise unknown(f"option of the audits of {name}", str(key), AuditConfig.model_fields)
    return validated(AuditConfig, {**keys, **settled})


def _by_hand(keys: Mapping[str, Any], name: str) -> None:
    for key in BY_HAND:
        if keys.get(key) not in (None, False):
            raise ConfigError(
                "a study must not open this machine to a checkpoint", seen=f"{key} for {name}"
            )


def target_folder(study: Study, name: str) -> Path:
    """Where a target lies."""
    return Path(study.output_path) / "targets" / name
