"""Compressors: from the original and a variant's name to a compressed model with its receipt.

`COMPRESSORS` is the only registry: one line per compressor. `make` names a function
`(Checkpoint, options, Placement, *, variant) -> CompressedModel` as "module:name", so that nothing
heavy is imported before it is needed; `options` is a pydantic model from `options.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from auditor.compress.options import (
    FourBitOptions,
    Int8Options,
    Options,
    PruneMagnitudeOptions,
)
from auditor.errors import ConfigError, unknown


@dataclass(frozen=True)
class Compressor:
    """One way of compressing.

    Attributes:
        make: "module:name" of `(Checkpoint, options, Placement, *, variant: str) ->
            CompressedModel`, where `variant` is the canonical spelling that the receipt carries;
            `make.compress` calls it, times it and checks the receipt.
        options: The pydantic model of its options.
        summary: One line for `list variants`.
        requires: Distributions that it needs beyond the core, as pip spells them.
    """

    make: str
    options: type[Options]
    summary: str
    requires: tuple[str, ...] = ()


COMPRESSORS: dict[str, Compressor] = {
    "original": Compressor("auditor.compress.original:make", Options, "the full-precision model"),
    "bnb-int8": Compressor(
        "auditor.compress.bitsandbytes:make_int8",
        Int8Options,
        "LLM.int8: 8-bit weights and activations",
        ("bitsandbytes",),
    ),
    "bnb-nf4": Compressor(
        "auditor.compress.bitsandbytes:make_nf4",
        FourBitOptions,
        "4-bit NormalFloat weights, blocks of 64",
        ("bitsandbytes",),
    ),
    "bnb-fp4": Compressor(
        "auditor.compress.bitsandbytes:make_fp4",
        FourBitOptions,
        "4-bit float weights, blocks of 64",
        ("bitsandbytes",),
    ),
    "prune-magnitude": Compressor(
        "auditor.compress.prune:make_magnitude",
        PruneMagnitudeOptions,
        "the smallest weights set to zero",
    ),
}


@dataclass(frozen=True)
class VariantSpec:
    """A variant as the user named it: a compressor and its options, checked."""

    id: str
    options: Options

    @property
    def canonical(self) -> str:
        """All options, sorted: what the store and the receipt know the variant by."""
        return self._spell(self.options.model_dump())

    @property
    def label(self) -> str:
        """Only what differs from the defaults, sorted: the name in tables and results."""
        return self._spell(self.options.model_dump(exclude_defaults=True))

    def _spell(self, options: Mapping[str, Any]) -> str:
        pairs = ",".join(f"{key}={spell(options[key])}" for key in sorted(options))
        return f"{self.id}:{pairs}" if pairs else self.id


def spell(value: object) -> str:
    """An option's value as it is written in a variant: `true`, `0.5`, `layer`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_list(items: Iterable[str]) -> list[str]:
    """Split `a,b:x=1,y=2,c` into `a`, `b:x=1,y=2`, `c`.

    The comma parts both variants and options. A piece that is `key=value` goes on with the
    variant before it; variant names hold no `=` before their colon.
    """
    found: list[str] = []
    for piece in (part.strip() for item in items for part in item.split(",")):
        if not piece:
            continue
        is_option = "=" in piece.split(":", 1)[0]
        if is_option and found:
            found[-1] += f",{piece}" if ":" in found[-1] else f":{piece}"
        else:
            found.append(piece)
    return found


def parse_variant(text: str) -> VariantSpec:
    """Parse `name[:key=value,...]`.

    Raises:
        ConfigError: The name or a key is not known, or a value is out of its range.
    """
    name, _, rest = text.strip().partition(":")
    name = name.strip().replace("_", "-")
    if name not in COMPRESSORS:
        raise unknown("variant", name, COMPRESSORS)
    model = COMPRESSORS[name].options
    given: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise ConfigError(
                f"options of {name} must be written key=value", seen=part, fix=_usage(name)
            )
        if key not in model.model_fields:
            raise unknown(f"option of {name}", key, model.model_fields or ["(it has none)"])
        if key in given:
            raise ConfigError(f"an option of {name} must be given once", seen=f"{key} twice")
        given[key] = value.strip()
    try:
        return VariantSpec(name, model(**given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        seen = f"{key} missing" if first["type"] == "missing" else f"{key}={given.get(key)}"
        raise ConfigError(
            f"{name}: {key}: {first['msg'].lower()}", seen=seen, fix=_usage(name)
        ) from None


def parse_variants(items: Iterable[str]) -> tuple[VariantSpec, ...]:
    """Parse a list of variants; each item may itself hold several with commas between."""
    return tuple(dict.fromkeys(parse_variant(item) for item in split_list(items)))


def _usage(name: str) -> str:
    fields = COMPRESSORS[name].options.model_fields
    if not fields:
        return f"{name} takes no options"
    described = (f"{key} ({field.description})" for key, field in fields.items())
    return f"options of {name}: " + "; ".join(described)
