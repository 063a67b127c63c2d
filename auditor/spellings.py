"""How values are spelled on the command line and in recipes: names, sources, variants."""

from typing import Any, Literal, get_args

from auditor.compress import parse_variants
from auditor.errors import ConfigError, unknown

Setting = Literal["NR", "SR", "MR"]
Control = Literal["noise", "retrain"]
MODEL_ARGS = ("revision", "subfolder", "dtype", "attn_implementation", "max_length", "tokenizer")


def key_values(text: str, *, known: tuple[str, ...], kind: str) -> dict[str, str]:
    """Parse `key=value,key=value`; an unknown key is an error that names the nearest.

    Raises:
        ConfigError: A part has no `=`, or its key is not in `known`.
    """
    values: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{kind} must be key=value pairs with commas between", seen=part)
        if key not in known:
            raise unknown(f"key of {kind}", key, known)
        values[key] = value
    return values


def parse_source(value: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
    """Turn the string form of a `Source` into its fields."""
    if not isinstance(value, str):
        return value
    path, _, rest = value.partition(",")
    found = key_values(rest, known=("name", "split", "revision"), kind="a data source")
    return {"path": path, **{key: value for key, value in found.items() if value}}


def parse_model_args(value: Any) -> Any:  # noqa: ANN401
    """Turn `key=value,...` into a mapping and check its keys."""
    if isinstance(value, str):
        return key_values(value, known=MODEL_ARGS, kind="--model-args")
    if isinstance(value, dict):
        for key in value:
            if key not in MODEL_ARGS:
                raise unknown("key of --model-args", str(key), MODEL_ARGS)
        return {str(key): str(item) for key, item in value.items()}
    return value


def split_names(value: Any) -> Any:  # noqa: ANN401
    """Accept `a,b`, ["a", "b"] and ["a,b", "c"] for a tuple of names."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return tuple(
        part.strip() if isinstance(part, str) else part
        for item in value
        for part in (item.split(",") if isinstance(item, str) else [item])
        if not isinstance(part, str) or part.strip()
    )


def split_variants(value: Any) -> Any:  # noqa: ANN401
    """Check the variants and give back their canonical short spelling, the original first."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    specs = parse_variants([str(item) for item in value])
    labels = dict.fromkeys(["original", *(spec.label for spec in specs)])
    return tuple(labels)


def split_settings(value: Any) -> Any:  # noqa: ANN401
    """Accept the settings in either case; they are kept in the order NR, SR, MR."""
    names = split_names(value)
    if not isinstance(names, tuple):
        return names
    given = [str(name).upper() for name in names]
    for name in given:
        if name not in get_args(Setting):
            raise unknown("setting", name, get_args(Setting))
    return tuple(name for name in get_args(Setting) if name in given)


def split_controls(value: Any) -> Any:  # noqa: ANN401
    """Names of controls."""
    names = split_names(value)
    for name in names if isinstance(names, tuple) else ():
        if name not in get_args(Control):
            raise unknown("control", str(name), get_args(Control))
    return names


def split_labels(value: Any) -> Any:  # noqa: ANN401
    """Labels of versions, in the spelling that the results use."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return tuple(dict.fromkeys(spec.label for spec in parse_variants([str(v) for v in value])))
