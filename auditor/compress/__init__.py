"""Compressors: from the original and a variant's name to a compressed model with its receipt.

`COMPRESSORS` is the only registry: one line per compressor. `make` names a function
`(Checkpoint, options, Placement, *, variant) -> CompressedModel` as "module:name", so that nothing
heavy is imported before it is needed; `options` is a pydantic model from `options.py`. A compressor
whose options derive from `Calibrated` is also given `calibration=`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from auditor.compress.options import (
    Calibrated,
    CheckpointOptions,
    ClusterOptions,
    FourBitOptions,
    GptqOptions,
    GroupOptions,
    HqqOptions,
    Int8Options,
    Options,
    PruneCalibratedOptions,
    PruneMagnitudeOptions,
    Recovery,
    RetrainOptions,
    SparseGptOptions,
    UnmergedOptions,
)
from auditor.compress.quiet import hush
from auditor.errors import ConfigError, unknown

# Here, because nothing of this program loads transformers before it has come by.
hush()


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
        beside: Whether it may work while another version is scored: it gets the original from
            `load_model` without further arguments, and changes nothing that the process shares
            (torch's default dtype and generator, streams, the environment).
        in_place: Whether it changes weights where they lie, so that all of them must lie where they
            are computed with; not where it only reads them, or a library quantizes them as it
            loads them.
        saved_as: The form in which what it has made is kept in the cache (see `saved.FORMS`), for
            compressors that take long; None for those that are as quick as reading.
    """

    make: str
    options: type[Options]
    summary: str
    requires: tuple[str, ...] = ()
    beside: bool = True
    in_place: bool = True
    saved_as: Literal["matrices", "packed"] | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs calibration texts."""
        return issubclass(self.options, Calibrated)


BNB = ("bitsandbytes",)
GPTQ = ("gptqmodel", "optimum")
TORCHAO = ("torchao",)
COMPRESSORS: dict[str, Compressor] = {
    "original": Compressor(
        "auditor.compress.original:make", Options, "the full-precision model", in_place=False
    ),
    "float16": Compressor(
        "auditor.compress.casts:make_float16", Options, "weights cast to 16 bits, 5 of exponent"
    ),
    "bfloat16": Compressor(
        "auditor.compress.casts:make_bfloat16", Options, "weights cast to 16 bits, 8 of exponent"
    ),
    "bnb-int8": Compressor(
        "auditor.compress.bitsandbytes:make_int8",
        Int8Options,
        "LLM.int8: 8-bit weights and activations",
        BNB,
        beside=False,
        in_place=False,
    ),
    "bnb-nf4": Compressor(
        "auditor.compress.bitsandbytes:make_nf4",
        FourBitOptions,
        "4-bit NormalFloat weights, blocks of 64",
        BNB,
        beside=False,
        in_place=False,
    ),
    "bnb-fp4": Compressor(
        "auditor.compress.bitsandbytes:make_fp4",
        FourBitOptions,
        "4-bit float weights, blocks of 64",
        BNB,
        beside=False,
        in_place=False,
    ),
    "gptq": Compressor(
        "auditor.compress.gptq:make",
        GptqOptions,
        "weights rounded so that the layer's outputs on calibration texts change least",
        GPTQ,
        beside=False,
        saved_as="packed",
    ),
    "int8": Compressor(
        "auditor.compress.torchao:make_int8", Options, "8-bit weights, a scale a row", TORCHAO
    ),
    "int8-dynamic": Compressor(
        "auditor.compress.torchao:make_int8_dynamic",
        Options,
        "8-bit weights, and 8-bit activations at run time",
        TORCHAO,
    ),
    "int4": Compressor(
        "auditor.compress.torchao:make_int4", GroupOptions, "4-bit weights in groups", TORCHAO
    ),
    "fp8": Compressor(
        "auditor.compress.torchao:make_fp8", Options, "8-bit float weights (e4m3)", TORCHAO
    ),
    "hqq": Compressor(
        "auditor.compress.hqq:make",
        HqqOptions,
        "weights in groups, zero points by half-quadratic optimisation",
        ("hqq",),
    ),
    "prune-magnitude": Compressor(
        "auditor.compress.prune:make_magnitude",
        PruneMagnitudeOptions,
        "the smallest weights set to zero",
    ),
    "prune-wanda": Compressor(
        "auditor.compress.wanda:make",
        PruneCalibratedOptions,
        "weights set to zero by size times the norm of their input",
        saved_as="matrices",
    ),
    "prune-sparsegpt": Compressor(
        "auditor.compress.sparsegpt:make",
        SparseGptOptions,
        "weights set to zero and the others moved to make up for it",
        saved_as="matrices",
    ),
    "cluster": Compressor(
        "auditor.compress.cluster:make",
        ClusterOptions,
        "each matrix shares k values (k-means)",
        saved_as="matrices",
    ),
    "retrain": Compressor(
        "auditor.compress.recover:make_retrained",
        RetrainOptions,
        "the original trained further and not compressed: a control for recover=",
    ),
    "unmerged": Compressor(
        "auditor.compress.unmerged:make",
        UnmergedOptions,
        "the base as another variant has it, with the adapter of --adapter over it in full "
        "precision",
        ("peft",),
        beside=False,
    ),
    "checkpoint": Compressor(
        "auditor.compress.published:make",
        CheckpointOptions,
        "a version that was published: GPTQ, AWQ, compressed-tensors, bitsandbytes, GGUF, HQQ, "
        "torchao, pruned",
        beside=False,
        in_place=False,
    ),
}
# The original trained by the steps of a recovered version.
CONTROL = "retrain"
# Formats that are published and cannot be made here, with what to do instead.
ONLY_PUBLISHED = {
    "awq": "the libraries that make AWQ checkpoints need a GPU of their own kind",
    "gguf": "llama.cpp makes GGUF files",
    "compressed-tensors": "llm-compressor makes these checkpoints",
}


@dataclass(frozen=True)
class VariantSpec:
    """A variant as the user named it: a compressor and its options, checked."""

    id: str
    options: Options

    @property
    def recovery(self) -> Recovery | None:
        """The training on the members that is part of it, or None."""
        return self.options.recovery

    @property
    def is_control(self) -> bool:
        """Whether it is there to be compared with, and nobody would publish it."""
        return is_retrained(self.id)

    @property
    def saved_as(self) -> str | None:
        """The form in which it is kept in the cache; None where it is made anew each time."""
        return "parameters" if self.recovery else COMPRESSORS[self.id].saved_as

    @property
    def beside(self) -> bool:
        """Whether it may be made while another is scored: training seeds the whole process."""
        return COMPRESSORS[self.id].beside and not self.recovery

    @property
    def over(self) -> "VariantSpec | None":
        """The variant of the base that an adapter lies over unmerged, or None."""
        return self.options.spec if isinstance(self.options, UnmergedOptions) else None

    @property
    def requires(self) -> tuple[str, ...]:
        """Distributions that it needs beyond the core."""
        return (*COMPRESSORS[self.id].requires, *(self.over.requires if self.over else ()))

    @property
    def calibration(self) -> str | None:
        """The kind of calibration texts that it looks at, or None."""
        return getattr(self.options, "calibration", None)

    @property
    def canonical(self) -> str:
        """All options, sorted: what the store and the receipt know the variant by."""
        return self._spell(self.options.spelled())

    @property
    def label(self) -> str:
        """Only what differs from the defaults, sorted: the name in tables and results."""
        return self._spell(self.options.model_dump(exclude_defaults=True))

    def _spell(self, options: Mapping[str, Any]) -> str:
        first = self.options.positional
        pairs = [spell(options[first])] if first is not None and first in options else []
        pairs += [
            f"{key}={spell(options[key])}"
            for key in sorted(options)
            if key != first and options[key] is not None
        ]
        return f"{self.id}:{','.join(pairs)}" if pairs else self.id


def is_retrained(name: str) -> bool:
    """Whether a version, by its name, is the original that was only trained further."""
    return name.partition(":")[0] == CONTROL


def controls_of(specs: Iterable[VariantSpec]) -> tuple[VariantSpec, ...]:
    """For every training that follows a compression, the same training without compression."""
    recoveries = dict.fromkeys(spec.recovery for spec in specs if not spec.is_control)
    return tuple(
        VariantSpec(CONTROL, RetrainOptions(recover=one.epochs, recover_lr=one.rate))
        for one in recoveries
        if one is not None
    )


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
    if name in ONLY_PUBLISHED:
        raise ConfigError(
            f"{name} is audited as it was published: checkpoint:PATH",
            seen=f"variant {text.strip()!r}; {ONLY_PUBLISHED[name]}",
            fix="give --variants checkpoint:path/to/it",
        )
    if name not in COMPRESSORS:
        raise unknown("variant", name, COMPRESSORS)
    model = COMPRESSORS[name].options
    if model.takes_all and model.positional and rest.strip():
        given = {model.positional: rest.strip().removeprefix(f"{model.positional}=")}
    else:
        given = _given(name, model, [piece.strip() for piece in rest.split(",")])
    try:
        return VariantSpec(name, model(**given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        seen = f"{key} missing" if first["type"] == "missing" else f"{key}={given.get(key)}"
        message = first["msg"].removeprefix("Value error, ").lower()
        raise ConfigError(
            f"{name}: {key}: {message}" if key else f"{name}: {message}",
            seen=seen if key else repr(text.strip()),
            fix=_usage(name),
        ) from None


def _given(name: str, model: type[Options], parts: list[str]) -> dict[str, str]:
    """The options as they were written, by key."""
    given: dict[str, str] = {}
    for number, part in enumerate(parts):
        if not part:
            continue
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        # A path may hold an equals sign of its own.
        if number == 0 and model.positional and key not in model.model_fields:
            given[model.positional] = part
            continue
        if not equals:
            raise ConfigError(
                f"options of {name} must be written key=value", seen=part, fix=_usage(name)
            )
        if key not in model.model_fields:
            raise unknown(f"option of {name}", key, model.model_fields or ["(it has none)"])
        if key in given:
            raise ConfigError(f"an option of {name} must be given once", seen=f"{key} twice")
        given[key] = value.strip()
    return given


def parse_variants(items: Iterable[str]) -> tuple[VariantSpec, ...]:
    """Parse a list of variants; each item may itself hold several with commas between."""
    return tuple(dict.fromkeys(parse_variant(item) for item in split_list(items)))


def _usage(name: str) -> str:
    fields = COMPRESSORS[name].options.model_fields
    if not fields:
        return f"{name} takes no options"
    described = (f"{key} ({field.description})" for key, field in fields.items())
    return f"options of {name}: " + "; ".join(described)
