"""`--dry-run`: everything is checked, the plan is printed, no model is run and nothing written."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from auditor.compress.checkpoint import Checkpoint, Placement
from auditor.config import AuditConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Share of the measured matrix-product rate that a forward pass reaches, measured with a 5.5M and a
# 124M model on two cores; an estimate is meant to tell minutes from hours, not more.
EFFICIENCY = 0.6
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


def matrix_rate(device: str) -> float:
    """Floating point operations per second of a float32 matrix product, measured on the spot."""
    import torch

    a = torch.randn(1024, 1024, device=device)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * 1024**3 / best


def show_plan(config: AuditConfig, console: Console | None = None) -> None:
    """Check an audit as `audit` would, and print what it would do.

    Raises:
        CompleakError: Whatever the audit would stop at before its first pass.
    """
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

    console = console or Console()
    subjects = open_subjects(config)
    records = read_records(config, subjects.model.encoder)
    must_be_possible(config, records.is_member)
    open_shadows(config, target_of(subjects, records))
    calibrations = calibrations_of(config, subjects, records)
    must_be_free(Path(config.output_path), about(subjects, records))
    attacks, left_out, primary = choose_attacks(
        config, has_reference=subjects.reference is not None, same_tokens=subjects.same_tokens
    )
    count = n_parameters(subjects.model.checkpoint)
    tokens = int(records.n_tokens.sum())
    n_passes = len(config.variants) + (subjects.reference is not None)
    if "noise" in config.controls:
        n_passes += len(config.variants) - 1
    table = new_table("plan", "")
    members, nonmembers = records.summary.members, records.summary.nonmembers
    table.add_row("model", f"{config.model} ({subjects.model.identity.model_type})")
    table.add_row("reference", config.reference or "none")
    table.add_row("device", f"{subjects.model.placement.device}, {subjects.model.identity.dtype}")
    if lies := foreseen(subjects.model.checkpoint, subjects.model.placement):
        table.add_row("device map", lies)
    table.add_row("records", f"{members.n_audited:,} members, {nonmembers.n_audited:,} nonmembers")
    table.add_row("tokens", f"{tokens:,}, at most {subjects.model.encoder.max_length:,} a record")
    table.add_row("variants", "\n".join(config.variants))
    for kind, calibration in calibrations.items():
        used = calibration.use
        said = f"{used.n_samples} x {used.n_tokens // used.n_samples} tokens of {used.source}"
        table.add_row("calibration" if kind == "given" else "", said)
    table.add_row("passes", f"{n_passes}, one per version of the model")
    table.add_row("attacks", ", ".join(attacks))
    for name, reason in left_out.items():
        table.add_row("", f"without {name}: it {reason}")
    table.add_row("primary", primary)
    n_questions = _add_questions(table, config, has_reference=subjects.reference is not None)
    _add_power(table, config, records.is_member, n_questions=n_questions)
    table.add_row("results", config.output_path)
    _add_estimates(table, subjects.model.placement, count, tokens * n_passes)
    for warned in records.warnings:
        table.add_row(warned.severity, warned.message)
    console.print(Harmless(table))


def _add_questions(table: Table, config: AuditConfig, *, has_reference: bool) -> int:
    """What is asked about more than one version, named before a score is seen; how many times."""
    from collections import Counter

    from auditor.leakage.questions import questions
    from auditor.leakage.wanted import is_wanted, may_ask

    if not is_wanted(config):
        return 0
    table.add_row("settings", f"{', '.join(config.settings)}; {', '.join(config.supervisions)}")
    labels = [spec.label for spec in config.variant_specs]
    noises = {name: name for name in labels[1:]} if "noise" in config.controls else {}
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
    n_variants = len(config.variants) - 1
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


def _add_estimates(table: Table, place: Placement, count: int | None, tokens: int) -> None:
    if count is None:
        table.add_row("memory, time", "unknown: the weights are not safetensors")
        return
    memory = count * place.dtype.itemsize + OVERHEAD_BYTES
    seconds = 2 * count * tokens / (EFFICIENCY * matrix_rate(place.device))
    table.add_row("memory", f"about {memory / 2**30:.1f} GiB")
    table.add_row("time", f"about {_duration(seconds)} in the model, loading apart")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
