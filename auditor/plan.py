"""`--dry-run`: everything is checked, the plan is printed, no model is run and nothing written."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from auditor.compress.checkpoint import Checkpoint, Placement
from auditor.config import AuditConfig
from auditor.cost import (
    Work,
    amount,
    cost,
    duration,
    factor,
    price_of,
    speed,
    with_prefix,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from auditor.dist import Processes
    from auditor.records import Records
    from auditor.subject import Subject, Subjects

# Records that are tokenized once more where the reference's tokenizer is another.
SAMPLED = 512
OVERHEAD_BYTES = 600 * 2**20
POWER = 0.8
TYPICAL_AUC = 0.7
# Signals of 4-bit versions correlate with the original's by .99 and more, of harshly pruned by .9.
CORRELATIONS = (0.99, 0.9)


def n_parameters(checkpoint: Checkpoint) -> int | None:
    """Parameters in the checkpoint's safetensors headers, or None for other weights."""
    from safetensors import safe_open

    total = 0
    paths = sorted(Path(checkpoint.path).glob("*.safetensors"))
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                total += size
    return total if paths else None


def show_plan(
    config: AuditConfig, console: Console | None = None, *, price_per_hour: float | None = None
) -> None:
    """Check an audit as `audit` would, and print what it would do and cost.

    Args:
        config: The audit.
        console: Where to print.
        price_per_hour: Of one device, in any currency.

    Raises:
        CompleakError: Whatever the audit would stop at before its first pass.
    """
    from auditor.dist import processes

    ranks = processes(config.rank_timeout)
    with ranks.together():
        _show_plan(config, console or Console(), ranks, price_of(price_per_hour))


def _show_plan(
    config: AuditConfig, console: Console, ranks: "Processes", price: float | None
) -> None:
    from auditor.audit import calibrations_of
    from auditor.compress.dispatch import foreseen
    from auditor.judge import choose_attacks
    from auditor.leakage.evidence import must_be_possible
    from auditor.leakage.shadow_runs import open_shadows, target_of
    from auditor.output_folder import must_be_free
    from auditor.records import read_records
    from auditor.report.catalogue import new_table
    from auditor.report.harmless import Harmless
    from auditor.subject import about, open_subjects
    from auditor.targets.lists import with_records

    told: list[str] = []
    config = with_records(config, told.append).config
    subjects = open_subjects(config)
    records = read_records(config, subjects.model.encoder)
    must_be_possible(config, records.is_member)
    open_shadows(config, target_of(subjects, records))
    calibrations = calibrations_of(config, subjects, records)
    must_be_free(Path(config.output_path), about(subjects, records))
    attacks, left_out, primary = choose_attacks(
        config, has_reference=subjects.reference is not None, same_tokens=subjects.same_tokens
    )
    works = works_of(config, subjects, records)
    rates = _rates(subjects.model.placement, ranks)
    if not ranks.is_main:
        return
    tokens = int(records.n_tokens.sum())
    table = new_table("plan", "")
    members, nonmembers = records.summary.members, records.summary.nonmembers
    _add_model(table, subjects.model)
    table.add_row("reference", config.reference or "none")
    table.add_row("device", f"{subjects.model.placement.device}, {subjects.model.identity.dtype}")
    if lies := foreseen(subjects.model.checkpoint, subjects.model.placement):
        table.add_row("device map", lies)
    table.add_row("records", f"{members.n_audited:,} members, {nonmembers.n_audited:,} nonmembers")
    for line in told:
        table.add_row("", line)
    table.add_row(
        "tokens",
        f"{tokens:,} counted, {tokens / len(records):,.1f} a record, at most "
        f"{subjects.model.encoder.max_length:,}",
    )
    table.add_row("variants", "\n".join(spec.label for spec in config.variant_specs))
    for kind, calibration in calibrations.items():
        used = calibration.use
        said = f"{used.n_samples} x {used.n_tokens // used.n_samples} tokens of {used.source}"
        table.add_row("calibration" if kind == "given" else "", said)
    table.add_row("passes", f"{len(works)}, one per version of the model")
    table.add_row("attacks", ", ".join(attacks))
    for name, reason in left_out.items():
        table.add_row("", f"without {name}: it {reason}")
    table.add_row("primary", primary)
    n_questions = _add_questions(table, config, has_reference=subjects.reference is not None)
    _add_power(table, config, records.is_member, n_questions=n_questions)
    table.add_row("results", config.output_path)
    _add_memory(table, subjects.model)
    _add_cost(table, config, subjects, works, rates=rates, n_processes=ranks.world, price=price)
    for warned in records.warnings:
        table.add_row(warned.severity, warned.message)
    console.print(Harmless(table))


def _add_model(table: Table, subject: "Subject") -> None:
    checkpoint, kind = subject.checkpoint, subject.identity.model_type
    adapter = checkpoint.adapter
    table.add_row("model", f"{adapter.base.name if adapter else checkpoint.name} ({kind})")
    if adapter is not None:
        table.add_row("adapter", f"{adapter.name}, {adapter.n_parameters:,} parameters")


def _add_questions(table: Table, config: AuditConfig, *, has_reference: bool) -> int:
    """What is asked about more than one version, named before a score is seen; how many times."""
    from collections import Counter

    from auditor.leakage.questions import questions
    from auditor.leakage.wanted import is_wanted, may_ask
    from auditor.subject import noisy

    if not is_wanted(config):
        return 0
    table.add_row("settings", f"{', '.join(config.settings)}; {', '.join(config.supervisions)}")
    labels = [spec.label for spec in config.variant_specs]
    noises = {spec.label: spec.label for spec in noisy(config)}
    asked = questions(labels, settings=config.settings, with_reference=has_reference, noises=noises)
    counts = Counter(one.question for one in asked if one.primary and may_ask(config, one.stronger))
    for place, (question, count) in enumerate(counts.items()):
        times = f" ({count} times)" if count > 1 else ""
        table.add_row("questions" if not place else "", f"{question}{times}")
    return sum(counts.values())


def _add_power(
    table: Table, config: AuditConfig, is_member: "npt.NDArray[np.bool_]", *, n_questions: int
) -> None:
    """What difference in AUC these counts can find, and which TPRs will be refused."""
    from auditor.stats.power import detectable_difference, placement_correlation, refused_rates

    n_members, n_nonmembers = int(is_member.sum()), int((~is_member).sum())
    n_variants = len(config.variant_specs) - 1
    if n_variants:
        found = {
            correlation: detectable_difference(
                n_members,
                n_nonmembers,
                auc=TYPICAL_AUC,
                correlation=placement_correlation(correlation, auc=TYPICAL_AUC),
                n_comparisons=n_variants,
                confidence=config.confidence,
                power=POWER,
            )
            for correlation in CORRELATIONS
        }
        said = ", ".join(
            f"{'none' if math.isinf(size) else format(size, '.3f')} if their signals correlate by "
            f"{correlation:g}"
            for correlation, size in found.items()
        )
        table.add_row(
            "power",
            f"a variant is found to differ from the original {100 * POWER:.0f} times in 100 where "
            f"the AUCs (around {TYPICAL_AUC:g}) are this far apart: {said}; Holm's correction over "
            f"{n_variants} included",
        )
        gain = detectable_difference(
            n_members,
            n_nonmembers,
            auc=TYPICAL_AUC,
            correlation=placement_correlation(CORRELATIONS[0], auc=TYPICAL_AUC),
            n_comparisons=max(1, n_questions),
            confidence=config.confidence,
            power=POWER,
            one_sided=True,
        )
        if n_questions:
            table.add_row(
                "",
                f"SR and MR are found to gain where the AUC rises by {gain:.3f} to "
                f"{math.sqrt(2) * gain:.3f}, by how much of a learned signal is accident "
                f"(correlation {CORRELATIONS[0]:g}; {n_questions} questions)",
            )
    for reason in refused_rates(config.fpr, n_nonmembers).values():
        table.add_row("refused", reason)


def _add_memory(table: Table, subject: "Subject") -> None:
    count = n_parameters(subject.checkpoint)
    if count is None:
        table.add_row("memory", "unknown: the weights are not safetensors")
        return
    memory = count * subject.placement.dtype.itemsize + OVERHEAD_BYTES
    table.add_row("memory", f"about {memory / 2**30:.1f} GiB")


# -- what it costs --------------------------------------------------------------------------------


def works_of(config: AuditConfig, subjects: "Subjects", records: "Records") -> list[Work]:
    """Every pass of the audit, in operations."""
    from auditor.compress.matrices import skeleton
    from auditor.probe import shape_of
    from auditor.subject import noisy

    lengths = records.n_tokens
    tokens = int(lengths.sum())
    shape = shape_of(skeleton(subjects.model.checkpoint))
    once, device = shape.operations(lengths), subjects.model.placement.device
    found = [
        Work(tokens, once, factor(spec, weights=shape.weights, device=device))
        for spec in config.variant_specs
    ]
    found += [Work(tokens, once)] * len(noisy(config))
    if subjects.reference is not None:
        shape = shape_of(skeleton(subjects.reference.checkpoint))
        if not subjects.same_tokens:
            lengths = _sampled(subjects.reference, records)
        times = len(records) / len(lengths)
        found.append(Work(int(lengths.sum() * times), shape.operations(lengths) * times))
    return found


def _sampled(subject: "Subject", records: "Records") -> "npt.NDArray[np.int64]":
    """Tokens of some records, evenly over all, as another tokenizer cuts them."""
    import numpy as np

    chosen = np.unique(np.linspace(0, len(records) - 1, SAMPLED).astype(np.int64))
    encoded = subject.encoder.encode(records.texts(chosen))
    return np.array([len(one.ids) for one in encoded], dtype=np.int64)


class Rates(NamedTuple):
    """How fast the processes are, all of them together.

    Attributes:
        product: Operations per second of a matrix product in the audit's dtype.
        float32: The same in float32.
        n_devices: Devices that they hold.
    """

    product: float
    float32: float
    n_devices: float


def _rates(place: Placement, ranks: "Processes") -> Rates:
    import torch

    from auditor.probe import matrix_rate, n_devices

    # All of them at once, as they will compute, or each would be told of a machine for itself.
    ranks.wait()
    own = matrix_rate(place.device, place.dtype)
    is_asked = place.device == "cpu" and place.dtype != torch.float32
    plain = matrix_rate(place.device, torch.float32) if is_asked else own
    told = ranks.tell_all([own, plain, n_devices(place)])
    return Rates(*(sum(column) for column in zip(*told, strict=True)))


def _add_cost(
    table: Table,
    config: AuditConfig,
    subjects: "Subjects",
    works: list[Work],
    *,
    rates: Rates,
    n_processes: int,
    price: float | None,
) -> None:
    place = subjects.model.placement
    reached = speed(place.device, rates.product, float32=rates.float32)
    found = cost(works, reached, n_devices=rates.n_devices, price=price)
    sampled = subjects.reference is not None and not subjects.same_tokens
    table.add_row(
        "cost",
        f"{found.passes} passes, {found.tokens:,} tokens, about "
        f"{with_prefix(found.operations, 'FLOP')} (2 x weights x tokens, and attention)"
        + ("; the reference's tokens are a sample's" if sampled else ""),
    )
    device = "CPU" if place.device == "cpu" else "GPU"
    where = "1 process" if n_processes == 1 else f"{n_processes} processes together"
    dtype = subjects.model.identity.dtype
    how = "as measured on CPUs" if device == "CPU" else "assumed, not measured"
    table.add_row(
        "rate",
        f"{with_prefix(rates.product, 'FLOP/s')} in {dtype} products, measured now on the {device} "
        f"({where}), of which scoring reaches about {reached.usual / rates.product:.0%} ({how})",
    )
    table.add_row("time", f"about {duration(found.seconds)} in the model, within a factor of two")
    slow = [
        f"{spec.label} {work.factor:g}"
        for spec, work in zip(config.variant_specs, works, strict=False)
        if work.factor is not None
    ]
    if slow:
        kind = " in float32" if device == "CPU" else ""
        table.add_row("", f"counted as so many times the original{kind}: {', '.join(slow)}")
    if found.money is not None:
        n = f"{rates.n_devices:g} {'device' if rates.n_devices == 1 else 'devices'}"
        table.add_row(
            "price",
            f"about {amount(found.money)} at {price:g} for an hour of a device "
            f"({found.device_hours:.2g} device-hours on {n})",
        )
    table.add_row("", _not_counted(config))


def _not_counted(config: AuditConfig) -> str:
    slow = [spec.label for spec in config.variant_specs if (spec.over or spec).saved_as is not None]
    making = f"making the versions (long: {', '.join(slow)})" if slow else "making the versions"
    return f"not counted: loading, {making}, attacks and intervals"
