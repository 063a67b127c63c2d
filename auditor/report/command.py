"""The command that repeats an audit, from nothing but the configuration in its `audit.json`."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from auditor.config import AuditConfig
from auditor.errors import CompleakError
from auditor.recipes import BY_HAND
from auditor.results import AuditResult

COMMAND = "compleak-llm audit"
RECIPE = "audit.yaml"
SOURCES = ("members", "nonmembers", "data", "calibration")
# A name of an option that may be repeated in a comment: nothing else gets out of quotes.
NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")


def repeat_command(result: AuditResult) -> str:
    """The shell command that repeats an audit.

    Every option that differs from its default, one a line. What no flag can spell (a path with a
    comma, a name with control characters) goes into a recipe that the command writes first. Of a
    configuration that a later version wrote, what this version knows.

    Args:
        result: The audit.
    """
    config = result.config
    known = {name: config[name] for name in AuditConfig.model_fields if name in config}
    strange = sorted(str(name) for name in config if name not in AuditConfig.model_fields)
    given = {name: value for name, value in known.items() if value != _default(name)}
    command = _command(given)
    if not strange:
        return command
    named = [name for name in strange if NAME.fullmatch(name)]
    unnamed = len(strange) - len(named)
    named += [f"{unnamed} more"] if unnamed else []
    return f"# options that this version does not know are left out: {', '.join(named)}\n{command}"


def _default(name: str) -> object:
    """The default of an option as `audit.json` has it."""
    field = AuditConfig.model_fields[name]
    default = field.get_default(call_default_factory=True)
    return list(default) if isinstance(default, tuple) else default


def _command(given: Mapping[str, Any]) -> str:
    spelled = {name: _spelled(name, value) for name, value in given.items()}
    texts = {name: text for name, text in spelled.items() if text is not None}
    if len(texts) < len(spelled) or not _are_read_back(texts, given):
        return _through_recipe(given)
    return " \\\n  ".join([COMMAND, *(_flag(name, given[name], texts[name]) for name in given)])


def _flag(name: str, value: object, text: str) -> str:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else f"--no-{name.replace('_', '-')}"
    # A value that looks like a flag would be taken for one.
    return f"{flag}{'=' if text.startswith('-') else ' '}{shlex.quote(text)}"


def _spelled(name: str, value: object) -> str | None:
    """A value as its flag takes it, or None where there is no such spelling."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        return repr(value)
    text: str | None = None
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        # The original is always among the variants.
        items = value[1:] if name == "variants" and value[:1] == ["original"] else value
        text = ",".join(item if isinstance(item, str) else repr(item) for item in items)
    elif isinstance(value, dict):
        parts = {str(key): str(item) for key, item in value.items() if item is not None}
        path = [parts.pop("path", "")] if name in SOURCES else []
        text = ",".join([*path, *(f"{key}={item}" for key, item in parts.items())])
    return text if text is not None and text.isprintable() else None


def _are_read_back(texts: Mapping[str, str], given: Mapping[str, Any]) -> bool:
    """Whether the flags are read as the values that they were spelled from."""
    try:
        wanted = AuditConfig.model_validate(dict(given))
    except (ValueError, CompleakError):
        # None of this version: a comma inside a part is what a flag could not carry.
        parts = [
            one for value in given.values() if isinstance(value, dict) for one in value.items()
        ]
        return not any("," in str(item) for _, item in parts)
    flags = {name: given[name] if text == "" else text for name, text in texts.items()}
    try:
        return AuditConfig.model_validate(flags) == wanted
    except (ValueError, CompleakError):
        return False


def _through_recipe(given: Mapping[str, Any]) -> str:
    """A recipe in JSON, which is YAML too, and the command that reads it."""
    content = json.dumps(given, indent=2, ensure_ascii=False)
    # YAML knows \U for letters beyond 16 bits, which JSON would write as two halves.
    content = "".join(
        letter
        if letter == "\n" or letter.isprintable()
        else (f"\\u{ord(letter):04x}" if ord(letter) < 2**16 else f"\\U{ord(letter):08x}")
        for letter in content
    )
    # What a recipe alone may not allow stands beside it.
    flags = "".join(f" {_flag(name, True, '')}" for name in BY_HAND if given.get(name) is True)
    return f"cat > {RECIPE} <<'END'\n{content}\nEND\n{COMMAND} --recipe {RECIPE}{flags}"
