"""The models of an audit, opened and identified before anything is run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.compress import COMPRESSORS, VariantSpec
from auditor.compress.cache import Cache, learned_of
from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    context_tokens,
    load_tokenizer,
    open_checkpoint,
    tokenizer_sha256,
)
from auditor.compress.dispatch import must_hold, quantizations, said_where
from auditor.compress.make import check_possible
from auditor.compress.merged import open_audited
from auditor.compress.noise import imitate, noise_name
from auditor.compress.options import CheckpointOptions
from auditor.config import AuditConfig
from auditor.environment import installed, place
from auditor.errors import ConfigError
from auditor.report.progress import Tell
from auditor.results import ModelIdentity
from auditor.scoring.encode import Encoder
from auditor.scoring.variants import Pass
from auditor.store import REFERENCE, STORE_VERSION, VariantStore, plan_shards

if TYPE_CHECKING:
    from auditor.calibration import Calibration
    from auditor.compress.published import Published
    from auditor.lessons import Lessons
    from auditor.records import Records

Make = Callable[[Checkpoint, Placement], CompressedModel]


@dataclass(frozen=True)
class Subject:
    """One checkpoint of the audit, ready to be loaded.

    Attributes:
        checkpoint: Where it lies.
        encoder: Its tokenizer and the length that records are cut to.
        placement: Where it runs and in which precision.
        identity: What the results call it.
    """

    checkpoint: Checkpoint
    encoder: Encoder
    placement: Placement
    identity: ModelIdentity


@dataclass(frozen=True)
class Subjects:
    """The audited model and, where one was given, the reference.

    Attributes:
        model: The audited model.
        reference: The reference model, or None.
        same_tokens: Whether both have the same tokenizer, so that tokens can be compared.
        published: The published versions among the variants, by label.
    """

    model: Subject
    reference: Subject | None
    same_tokens: bool
    published: dict[str, "Published"]

    @property
    def paths(self) -> dict[str, Path]:
        """Every checkpoint that was given, by its name."""
        given, adapter = [self.model.checkpoint], self.model.checkpoint.adapter
        if adapter is not None:  # what it was merged to holds nothing of its own
            given = [adapter.base]
        if self.reference is not None:
            given.append(self.reference.checkpoint)
        found = {one.name: one.path for one in given}
        if adapter is not None:
            found[adapter.name] = adapter.path
        for version in self.published.values():
            found[version.checkpoint.name] = version.path
        return found


def open_subjects(config: AuditConfig) -> Subjects:
    """Open the checkpoints, check them, and settle how long a record may be.

    Raises:
        ModelError: A checkpoint cannot be used.
        VariantError: A variant would quantize what is quantized already, or lacks its library.
        ConfigError: A device or a length that cannot be.
    """
    model = _open(config, config.model, is_reference=False)
    published = {}
    for spec in config.variant_specs:
        check_possible(model.checkpoint, spec)
        if isinstance(spec.options, CheckpointOptions):
            published[spec.label] = _identify(spec.options, model)
    quantized = quantizations(config.variant_specs, model.placement)
    must_hold(model.checkpoint, model.placement, changed=_changed(config), quantized=quantized)
    if config.reference is None:
        return Subjects(model, None, same_tokens=False, published=published)
    reference = _open(config, config.reference, is_reference=True)
    must_hold(reference.checkpoint, reference.placement)
    same = model.identity.tokenizer_sha256 == reference.identity.tokenizer_sha256
    if same:
        # Token by token the two must speak of the same text: the shorter context rules both.
        shorter = min(model.encoder.max_length, reference.encoder.max_length)
        model.encoder.max_length = reference.encoder.max_length = shorter
    return Subjects(model, reference, same_tokens=same, published=published)


def _changed(config: AuditConfig) -> list[str]:
    """Labels of what changes the original's weights where they lie: variants, and controls."""
    specs = config.variant_specs
    found = [spec.label for spec in specs if COMPRESSORS[spec.id].in_place]
    return [*found, *(noise_name(spec.label) for spec in noisy(config))]


def noisy(config: AuditConfig) -> list[VariantSpec]:
    """The variants that noise of the same norm is laid beside: those that are compressed."""
    if "noise" not in config.controls:
        return []
    return [spec for spec in config.variant_specs[1:] if not spec.is_control]


def _identify(options: CheckpointOptions, model: Subject) -> "Published":
    from auditor.compress.published import identify

    return identify(options, model.checkpoint, tokenizer=model.encoder.tokenizer)


def _open(config: AuditConfig, name: str, *, is_reference: bool) -> Subject:
    # The flags that name a part of the audited checkpoint say nothing about the reference.
    own = ("revision", "subfolder", "tokenizer")
    args = {k: v for k, v in config.model_args.items() if not (is_reference and k in own)}
    if is_reference:
        checkpoint = open_checkpoint(
            name,
            model_args=args,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
        )
    else:
        checkpoint = open_audited(config)
    tokenizer = load_tokenizer(checkpoint, args.get("tokenizer"))
    context = context_tokens(checkpoint.config, tokenizer)
    placement = place(config, getattr(checkpoint.config, "dtype", None))
    identity = ModelIdentity(
        name=checkpoint.name,
        is_path=any(
            Path(given).expanduser().exists()
            for given in (name, None if is_reference else config.adapter)
            if given is not None
        ),
        model_type=str(checkpoint.config.model_type),
        sha256=checkpoint.sha256,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        context_tokens=context,
        dtype=str(placement.dtype).removeprefix("torch."),
    )
    limit = max_length(config)
    return Subject(
        checkpoint, Encoder(tokenizer, min(context, limit or context)), placement, identity
    )


def max_length(config: AuditConfig) -> int | None:
    """`--max-length`, or the same from `--model-args`."""
    given = config.model_args.get("max_length")
    if config.max_length is not None or given is None:
        return config.max_length
    # Digits of other scripts are some that `int` does not read.
    if not re.fullmatch("[0-9]{1,9}", given) or int(given) < 2:
        raise ConfigError("max_length must be a whole number of at least 2", seen=given)
    return int(given)


def about(subjects: Subjects, records: "Records") -> dict[str, str]:
    """What the output folder is about; a folder that is about something else is not touched."""
    model = subjects.model
    return {
        "model": model.identity.sha256,
        "tokenizer": model.identity.tokenizer_sha256,
        "records": records.summary.sha256,
        "max_length": str(model.encoder.max_length),
        "dtype": model.identity.dtype,
    }


def passes(
    config: AuditConfig,
    subjects: Subjects,
    records: "Records",
    *,
    calibrations: "Mapping[str, Calibration]",
    lessons: "Lessons | None" = None,
    root: Path,
    tell: Tell = lambda _: None,
) -> dict[str, Pass]:
    """What is to be scored, by name: the original, the reference, the variants, their controls.

    The original comes first because every comparison needs it, the reference second because the
    strongest attacks do. Controls come last, because noise is made from a variant's receipt.
    What the user should know of the cache is told to `tell`, a line at a time.
    """
    shards, cache = plan_shards(records.n_tokens), Cache.of_user(tell)
    found: dict[str, Pass] = {}

    def add(
        name: str,
        subject: Subject,
        make: Make,
        fingerprint: Mapping[str, Any],
        *,
        beside: bool,
        after: str | None = None,
    ) -> None:
        found[name] = Pass(
            name=name,
            make=lambda: said_where(make(subject.checkpoint, subject.placement), subject.placement),
            encoder=subject.encoder,
            store=VariantStore(
                root, name, fingerprint=fingerprint, shards=shards, record_ids=records.ids
            ),
            placement=subject.placement,
            identity=subject.identity,
            materialise=config.materialise,
            beside=beside,
            after=after,
        )

    def add_variant(name: str, subject: Subject, spec: VariantSpec) -> None:
        calibration = calibrations.get(spec.calibration or "")
        fingerprint = _fingerprint(subject, spec, records.summary.sha256)
        if COMPRESSORS[spec.id].requires or spec.id == "checkpoint":
            # Of the same weights, and yet one rounding apart in 16 bits.
            fingerprint["materialise"] = config.materialise
        if calibration is not None:
            fingerprint["calibration"] = calibration.use.sha256
        if version := subjects.published.get(spec.label):
            fingerprint["checkpoint"] = version.checkpoint.sha256
        fingerprint |= learned_of(spec, lessons)
        beside = spec.beside and subject is subjects.model
        add(
            name,
            subject,
            lambda c, p: cache.made(c, spec, p, calibration=calibration, lessons=lessons),
            fingerprint,
            beside=beside,
        )

    def add_noise(like: VariantStore) -> None:
        name, seed = noise_name(like.name), config.seed
        fingerprint = _fingerprint(subjects.model, original, records.summary.sha256)
        fingerprint |= {"variant": name, "noise_like": like.fingerprint, "seed": seed}
        add(
            name,
            subjects.model,
            lambda c, p: imitate(c, like, p, seed=seed),
            fingerprint,
            beside=True,
            after=like.name,
        )

    original, *others = config.variant_specs
    add_variant(original.label, subjects.model, original)
    if subjects.reference is not None:
        add_variant(REFERENCE, subjects.reference, original)
    for spec in others:
        add_variant(spec.label, subjects.model, spec)
    for spec in noisy(config):
        add_noise(found[spec.label].store)
    return found


def _fingerprint(subject: Subject, spec: VariantSpec, records_sha256: str) -> dict[str, Any]:
    """Everything that determines the numbers of one version.

    The batch plan is not among it: no record's scores depend on its batch, because variants for
    which they would are scored one record at a time.
    """
    libraries = ["torch", "transformers", *spec.requires]
    if subject.checkpoint.adapter is not None:
        libraries.append("peft")
    return {
        "store": STORE_VERSION,
        "variant": spec.canonical,
        "model": subject.identity.sha256,
        "tokenizer": subject.identity.tokenizer_sha256,
        "records": records_sha256,
        "max_length": subject.encoder.max_length,
        "dtype": subject.identity.dtype,
        "device": subject.placement.device.partition(":")[0],
        "libraries": {name: installed(name) for name in libraries},
    }
