"""What is typed: variants, sources, model arguments, bounds, and recipes."""

import json
from typing import Any

import yaml

from auditor import recipes
from auditor.compress import parse_variant, parse_variants
from auditor.config import AuditConfig
from auditor.leakage.bounds import parse_bound, spell_bound
from auditor.recipes import configure, validated
from auditor.subject import max_length
from tests.fuzz.property import given

GIVEN: dict[str, Any] = {"model": "x", "members": "a.jsonl", "nonmembers": "b.jsonl"}
VARIANTS = (
    "original,bnb-nf4:double_quant=true,gptq:bits=3,group_size=64,desc_act=true,damp=0.02",
    "prune-magnitude:sparsity=0.5,scope=global, prune-sparsegpt:pattern=2:4,cluster:k=8",
    "checkpoint:a/b=c:d,revision=main,hqq:bits=2,group_size=16,int4:group_size=64,bnb-int8:threshold=0",
)


def _text(data: bytes) -> str:
    # As Python gives arguments: bytes that are no UTF-8 come as lone surrogates.
    return data.decode("utf-8", "surrogateescape")


def _kept(config: AuditConfig) -> None:
    """A configuration must come back the same from `audit.json`."""
    again = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
    assert AuditConfig.model_validate(again) == config


def variants(data: bytes) -> None:
    """Variants; each must be read again from both of its spellings."""
    for spec in parse_variants([_text(data)]):
        assert parse_variant(spec.canonical) == spec
        assert parse_variant(spec.label) == spec
    _kept(validated(AuditConfig, {**GIVEN, "variants": _text(data)}))


def source(data: bytes) -> None:
    """A source of records; it must be read again from its spelling."""
    found = validated(AuditConfig, {**GIVEN, "members": _text(data)})
    assert found.members is not None
    assert validated(AuditConfig, {**GIVEN, "members": str(found.members)}) == found
    _kept(found)


def model_args(data: bytes) -> None:
    """Arguments of the model."""
    found = validated(AuditConfig, {**GIVEN, "model_args": _text(data)})
    max_length(found)
    _kept(found)


def bound(data: bytes) -> None:
    """A bound; it must be read again from its spelling."""
    found = parse_bound(_text(data))
    again = parse_bound(spell_bound(found))
    assert again.metric == found.metric
    assert abs(again.at_most - found.at_most) < 1e-9
    _kept(validated(AuditConfig, {**GIVEN, "at_most": _text(data)}))


def flags(data: bytes) -> None:
    """All options at once, as strings: `key=value` a line."""
    pairs = (line.partition("=") for line in _text(data).split("\n"))
    given = {key: value for key, _, value in pairs if key in AuditConfig.model_fields}
    _kept(configure({**GIVEN, **given}))


def recipe(data: bytes) -> None:
    """A recipe, alone and with what is given beside it."""
    path = given("recipe.yaml", data)
    _kept(configure(GIVEN, recipe=str(path)))
    _kept(configure({}, recipe=str(path)))


def all_flags() -> list[bytes]:
    """Every option with its default, and some with others."""
    given = AuditConfig.model_validate({**GIVEN, "at_most": "auc=0.6", "shadow": "a,b"})
    lines = []
    for key, value in given.model_dump(mode="json").items():
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            text = value.get("path") or ",".join(f"{k}={v}" for k, v in value.items())
        if text is not None:
            lines.append(f"{key}={text}")
    return ["\n".join(lines).encode()]


def all_recipes() -> list[bytes]:
    """The recipes that come with the program, and one with every key."""
    found = [path.read_bytes() for path in sorted(recipes.folder().glob("*.yaml"))]
    given = AuditConfig.model_validate({**GIVEN, "variants": VARIANTS[1], "at_most": "auc=0.6"})
    return [*found, yaml.safe_dump(given.model_dump(mode="json")).encode()]
