"""Shadow audits: opened and checked before anything is run, read when they are needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.config import AuditConfig
from auditor.errors import ConfigError
from auditor.leakage.blocks import read_blocks
from auditor.leakage.evidence import LEAST, pairs_of
from auditor.leakage.shadow import Shadow, joined
from auditor.results import ModelIdentity
from auditor.run import Run, open_run
from auditor.store import REFERENCE

if TYPE_CHECKING:
    from auditor.records import Records
    from auditor.subject import Subjects


class Target(NamedTuple):
    """What a shadow must be laid beside.

    Attributes:
        model: The audited model.
        reference: The reference, or None.
        ids: Of the audited records, shape (n,).
        is_member: Shape (n,).
    """

    model: ModelIdentity
    reference: ModelIdentity | None
    ids: npt.NDArray[np.str_]
    is_member: npt.NDArray[np.bool_]


def target_of(subjects: "Subjects", records: "Records") -> Target:
    """What the shadows of an audit must be laid beside."""
    reference = subjects.reference.identity if subjects.reference is not None else None
    return Target(subjects.model.identity, reference, records.ids, records.is_member)


def open_shadows(config: AuditConfig, target: Target) -> list[Run]:
    """Open the shadow audits of a configuration, and check that they can teach about the target.

    Raises:
        StoreError: A folder holds no finished audit.
        ConfigError: A shadow has other variants, another tokenizer, another kind of reference,
            too few records, records of the target on the same side, or is the target itself.
    """
    if "shadow" not in config.supervisions:
        return []
    found = []
    for name in config.shadow:
        run = open_run(Path(name))
        _must_match(run, name, config, target)
        found.append(run)
    return found


def _must_match(run: Run, name: str, config: AuditConfig, target: Target) -> None:
    wanted = {spec.label: spec.canonical for spec in config.variant_specs}
    there = {v.canonical: v.variant for v in run.result.variants if v.variant in run.signals}
    missing = [label for label, canonical in wanted.items() if canonical not in there]
    if missing:
        raise ConfigError(
            "a shadow audit must have the same variants as this one",
            seen=f"{name} lacks {', '.join(missing)}; it has {', '.join(there.values())}",
            fix="audit the shadow model with the same --variants",
        )
    if run.result.model.sha256 == target.model.sha256:
        raise ConfigError(
            "a shadow must be another model, trained on members of its own",
            seen=f"{name} is an audit of this very model",
        )
    if run.result.model.tokenizer_sha256 != target.model.tokenizer_sha256:
        raise ConfigError(
            "a shadow model must have the tokenizer of the audited one",
            seen=f"{name} has another: its tokens say something else",
        )
    if (config.reference is None) != (run.result.reference is None):
        with_it = "with" if config.reference is not None else "without"
        raise ConfigError(
            "a shadow audit must have a reference model where this one has, and only there",
            seen=f"this audit is {with_it} a reference, and {name} is not",
        )
    if same_tokens(run.result.model, run.result.reference) != same_tokens(
        target.model, target.reference
    ):
        raise ConfigError(
            "the reference of a shadow audit must have the model's tokenizer where this one's has, "
            "and only there",
            seen=f"the reference of {name} is of the other kind: it says other things",
        )
    for side in (True, False):
        shared = np.intersect1d(
            run.ids[run.is_member == side], target.ids[target.is_member == side]
        )
        if len(shared):
            kind = "members" if side else "nonmembers"
            raise ConfigError(
                "a shadow must learn from records of its own, or it is told what it must find out",
                seen=f"{len(shared):,} records are {kind} in {name} and here",
                fix="train and audit the shadow on records that this audit does not have",
            )
    fewest = min(int(run.is_member.sum()), int((~run.is_member).sum()))
    if fewest < LEAST:
        raise ConfigError(
            f"a shadow audit must have {LEAST} members and {LEAST} nonmembers to learn from",
            seen=f"{name} has {fewest} on one side",
        )


def same_tokens(model: ModelIdentity, reference: ModelIdentity | None) -> bool:
    """Whether there is a reference, and it has the model's tokenizer."""
    return reference is not None and reference.tokenizer_sha256 == model.tokenizer_sha256


def read_shadow(runs: Sequence[Run], config: AuditConfig) -> Shadow | None:
    """The features of all shadow audits' records, under the target's names of the variants.

    Raises:
        StoreError: A shard is missing or damaged.
    """
    if not runs:
        return None
    shadows = []
    for run in runs:
        there = {found.canonical: found.variant for found in run.result.variants}
        stores = {spec.label: run.stores[there[spec.canonical]] for spec in config.variant_specs}
        reference = run.stores.get(REFERENCE)
        same = same_tokens(run.result.model, run.result.reference)
        blocks = read_blocks(
            stores,
            pairs_of(tuple(stores), config),
            n_records=len(run),
            reference=reference,
            same_tokens=same,
        )
        shadows.append(Shadow(blocks, run.is_member, run.groups))
    return joined(shadows)
