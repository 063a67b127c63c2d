"""Recipes: audits as YAML, whose keys are the fields of `AuditConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from auditor.config import AuditConfig, CompressConfig, OfModel
from auditor.errors import ConfigError, unknown
from auditor.targets.config import TrainConfig

Config = TypeVar("Config", bound=OfModel)

COMMANDS: dict[type[OfModel], str] = {CompressConfig: "compress", TrainConfig: "train"}
# What lets a checkpoint's own code or pickles be read is for whoever runs a recipe to say.
BY_HAND = ("trust_remote_code", "allow_pickle")


def folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def names() -> dict[str, str]:
    """Every recipe by name, with the first line of the comment on its top."""
    found = {}
    for path in sorted(folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip()
    return found


def load(name: str) -> dict[str, Any]:
    """The keys of a recipe, given by name or by path.

    Raises:
        ConfigError: There is none of that name, it is not YAML, or it holds an unknown key.
    """
    from auditor.bounded_yaml import YAML_ERRORS
    from auditor.bounded_yaml import load as load_yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else folder() / f"{name}.yaml"
    if not path.is_file():
        if path.parent == folder():
            raise unknown("recipe", name, names())
        raise ConfigError("--recipe must be a name or a file", seen=f"{path} does not exist")
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        seen = " ".join(str(error).split())
        raise ConfigError(f"{path} must be readable YAML", seen=seen) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values", seen=type(content).__name__)
    for key in content:
        if str(key).replace("-", "_") not in AuditConfig.model_fields:
            raise unknown(f"key of {path.name}", str(key), AuditConfig.model_fields)
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def configure(given: dict[str, Any], *, recipe: str | None = None) -> AuditConfig:
    """An `AuditConfig` from a recipe and from what was given beside it, which wins.

    Raises:
        ConfigError: A value is missing or wrong, or must be given by hand; names the flag.
    """
    loaded = load(recipe) if recipe else {}
    for key in BY_HAND:
        if loaded.get(key) not in (None, False) and key not in given:
            flag = f"--{key.replace('_', '-')}"
            raise ConfigError(
                f"{flag} must be given on the command line: a recipe that was written by somebody "
                "else must not open this machine to a checkpoint",
                seen=f"{key}: {loaded[key]!r} in {recipe}",
                fix=f"add {flag} to the command if you trust the checkpoints that it names",
            )
    merged = {**loaded, **given}
    # A way of naming the records given by hand replaces the recipe's, instead of clashing with it.
    pair = {"members", "nonmembers"}
    if "data" in given and not pair & given.keys():
        merged = {key: value for key, value in merged.items() if key not in pair}
    elif pair <= given.keys() and "data" not in given:
        merged.pop("data", None)
    return validated(AuditConfig, merged)


def validated(kind: type[Config], given: Mapping[str, Any]) -> Config:
    """A configuration from what was given.

    Raises:
        ConfigError: A value is missing or wrong; names the flag.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0] if first["loc"] else "").replace("_", "-")
        if first["type"] == "missing":
            command = COMMANDS.get(kind, "audit")
            raise ConfigError(
                f"{flag} must be given",
                seen="it was left out",
                fix=f"compleak-llm {command} --help shows every option",
            ) from None
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{flag}: {message.lower()}", seen=repr(first["input"])) from None
