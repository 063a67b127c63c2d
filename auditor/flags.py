"""Flags made from the fields of a configuration, so that an option is written in one place."""

import inspect
from collections.abc import Callable
from typing import Annotated, Literal, get_args, get_origin

from cyclopts import Parameter
from pydantic_core import PydanticUndefined

from auditor.config import OfModel


def _flags(config: type[OfModel]) -> list[inspect.Parameter]:
    """One keyword parameter for every field of a configuration, None where it was not given."""
    parameters = []
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = (
            "" if default in (None, (), {}, PydanticUndefined) else f" [default: {_shown(default)}]"
        )
        kind = field.annotation
        plain = kind in (bool, int, float, str) or get_origin(kind) is Literal
        flag = Parameter(help=f"{field.description or ''}{shown}", show_default=False)
        if int in get_args(kind) and str not in get_args(kind) and type(None) in get_args(kind):
            plain, kind = True, int
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[(kind if plain else str) | None, flag],  # type: ignore[operator]
            )
        )
    return parameters


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_flags(function: Callable[..., None], config: type[OfModel]) -> Callable[..., None]:
    """A command that takes every field of a configuration as a flag, beside its own."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=[*_flags(config), *own])  # type: ignore[attr-defined]
    return function
