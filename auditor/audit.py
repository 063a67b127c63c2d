"""The one way in: `audit(config)` runs the whole flow and gives back what it found.

    config -> records -> compress -> scoring -> store -> attacks -> statistics -> results

Everything right of the store is NumPy and is done again in seconds from stored scores; what is
stored is never computed twice.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.config import AuditConfig
from auditor.results import Artifact, AuditResult, Timings, TokenView

if TYPE_CHECKING:
    from auditor.calibration import Calibration
    from auditor.dist import Processes
    from auditor.judge import Findings
    from auditor.lessons import Lessons
    from auditor.records import Records
    from auditor.report.progress import Display, Tell
    from auditor.scoring.variants import Pass
    from auditor.subject import Subjects
    from auditor.targets.lists import Listed


def audit(config: AuditConfig, *, display: "Display | None" = None) -> AuditResult:
    """Audit a model and its compressed versions.

    Args:
        config: What to audit and how.
        display: Told what is going on; silent when left out.

    Returns:
        What was found; the same stands in `audit.json` in the output folder.

    Raises:
        CompleakError: Something that the caller can mend, with what must hold, what was seen and
            what to do.
    """
    # Imported here, so that `from auditor import AuditConfig` and `--help` stay quick.
    from auditor.devices import must_be_supported
    from auditor.dist import processes
    from auditor.memory import shortage_is_said, take_buffers
    from auditor.report.progress import Silent
    from auditor.targets.lists import with_records

    must_be_supported(config)
    ranks = processes(config.rank_timeout)
    with ranks.together(), shortage_is_said():
        take_buffers()
        shown = display or Silent()
        return _audit(with_records(config, shown.note), ranks, shown)


def _audit(listed: "Listed", ranks: "Processes", display: "Display") -> AuditResult:
    from auditor import judge, output_folder, outputs
    from auditor.blind import blind_baseline
    from auditor.environment import environment, versions
    from auditor.leakage.evidence import must_be_possible
    from auditor.leakage.shadow_runs import open_shadows, target_of
    from auditor.records import read_records
    from auditor.run import read_result
    from auditor.scoring.pipeline import score_versions
    from auditor.subject import about, open_subjects, passes

    def say(stage: str) -> None:
        display.note(stage)
        ranks.doing(stage)

    config = listed.config
    started, begin = datetime.now(UTC), time.perf_counter()
    output = Path(config.output_path)
    if ranks.is_main:
        output_folder.must_not_be_in_use(output)
    subjects = open_subjects(config)

    clock = time.perf_counter()
    say("reading records")
    records = read_records(config, subjects.model.encoder, folder=output / "tokens").found_in(
        listed.source, listed.data_set
    )
    must_be_possible(config, records.is_member)
    shadows = open_shadows(config, target_of(subjects, records))
    calibrations = calibrations_of(config, subjects, records)
    records_s = time.perf_counter() - clock

    with output_folder.locked(output, is_main=ranks.is_main):
        root = output_folder.claim(output, about(subjects, records), is_main=ranks.is_main)
        ranks.wait()
        if ranks.is_main:
            records.keep(root)
        plan = passes(
            config,
            subjects,
            records,
            calibrations=calibrations,
            lessons=lessons_of(config, subjects, records, tell=display.note),
            root=root,
            tell=display.note,
        )
        manifests, timings = score_versions(
            plan,
            records,
            checkpoint=subjects.model.checkpoint,
            placement=subjects.model.placement,
            batch_size=config.batch_size,
            ranks=ranks,
            display=display,
        )
        if ranks.is_main:
            clock = time.perf_counter()
            say("searching the checkpoints for records")
            artifacts = _search(config, subjects, records, calibrations)
            search_s = time.perf_counter() - clock

            clock = time.perf_counter()
            say("blind baseline")
            blind = blind_baseline(records, config)
            blind_s = time.perf_counter() - clock

            clock = time.perf_counter()
            say("attacks, intervals and tests")
            findings = judge.judge(config, records, plan, manifests, subjects, shadows=shadows)
            outputs.write_signals(output, config, records, findings, blind=blind.signal)
            views = _token_views(config, subjects, records, findings, plan)
            statistics_s = time.perf_counter() - clock
            result = judge.assemble(
                config,
                subjects,
                records,
                blind,
                findings,
                artifacts=artifacts,
                token_views=views,
                versions=versions(),
                environment=environment(
                    subjects.model.placement, ranks.world, receipt=manifests["original"].receipt
                ),
                timings=Timings(
                    started_at=started.isoformat(timespec="seconds"),
                    total_s=time.perf_counter() - begin,
                    records_s=records_s,
                    search_s=search_s,
                    blind_s=blind_s,
                    statistics_s=statistics_s,
                    variants=timings,
                ),
            )
            outputs.write_result(output / "audit.json", result)
        ranks.wait()
    return result if ranks.is_main else read_result(output / "audit.json")


def calibrations_of(
    config: AuditConfig, subjects: "Subjects", records: "Records"
) -> "dict[str, Calibration]":
    """The calibration texts that the audit's variants need; errors as in `read_calibrations`."""
    from auditor.calibration import read_calibrations

    return read_calibrations(
        config,
        config.variant_specs,
        subjects.model.encoder.tokenizer,
        context=subjects.model.identity.context_tokens,
        records=records,
        known=lambda: ((i, text.words) for i, _, text in records.stream()),
    )


def lessons_of(
    config: AuditConfig, subjects: "Subjects", records: "Records", *, tell: "Tell" = lambda _: None
) -> "Lessons | None":
    """What the audit's recovered versions and their controls are trained on; None without any."""
    from auditor.lessons import lessons, members_of, recovers

    if not recovers(config.variant_specs):
        return None
    return lessons(members_of(records), subjects.model.encoder, seed=config.seed, tell=tell)


def _token_views(
    config: AuditConfig,
    subjects: "Subjects",
    records: "Records",
    findings: "Findings",
    plan: "dict[str, Pass]",
) -> list[TokenView]:
    """A few records token by token, where texts may be written."""
    from auditor.compress.noise import is_noise
    from auditor.store import REFERENCE
    from auditor.token_views import token_views

    if not config.include_text:
        return []
    names = [name for name in findings.signals if not is_noise(name)]
    if REFERENCE in plan and subjects.same_tokens:
        names.append(REFERENCE)
    stores = {name: plan[name].store for name in names}
    return token_views(records, findings, subjects.model.encoder, stores)


def _search(
    config: AuditConfig,
    subjects: "Subjects",
    records: "Records",
    calibrations: "dict[str, Calibration]",
) -> list[Artifact]:
    """What lies in the checkpoints that must not be published."""
    from auditor.artifacts.scan import scan_checkpoints

    given = (config.members, config.nonmembers, config.data, config.calibration)
    return scan_checkpoints(
        subjects.paths,
        ((i, side, text.words) for i, side, text in records.stream()),
        calibration=[text for found in calibrations.values() for text in found.texts],
        own_files=[Path(source.path).expanduser() for source in given if source is not None],
    )
