"""The commands on finished audits: compare, release, report, card. Flags, and no logic."""

import io
import sys
from pathlib import Path
from typing import Any, Literal


def compare(
    before: Path,
    after: Path,
    *,
    primary: str | None = None,
    fpr: str | None = None,
    confidence: float | None = None,
    out: Path | None = None,
) -> None:
    """Compare two audits of the same records, paired: versions 1 and 2 of a model, say.

    Parameters
    ----------
    before
        Output folder of the first audit.
    after
        Output folder of the second; differences are this one minus the first.
    primary
        The attack for the headline; the first audit's when left out.
    fpr
        False positive rates with commas between; the first audit's when left out.
    confidence
        Level of every interval; the first audit's when left out.
    out
        File to write the result to as JSON; it must not be there yet.
    """
    _compare_and_show(before, after, primary=primary, fprs=fpr, confidence=confidence, out=out)


def _compare_and_show(before: Path, after: Path, **given: Any) -> None:  # noqa: ANN401
    from auditor.compare import compare_runs
    from auditor.report.compared import show

    show(compare_runs(before, after, **given))


def release(
    run: Path,
    *,
    at_most: str | None = None,
    versions: str | None = None,
    fail_on: Literal["over", "undecided"] | None = None,
    out: Path | None = None,
) -> None:
    """Say which versions of a finished audit can be published together.

    Parameters
    ----------
    run
        Output folder of the audit.
    at_most
        What a release may give away at most: tpr=0.05@fpr=0.01, or auc=0.6; the audit's own
        bound when left out.
    versions
        The versions that are to be published, with commas between; all when left out.
    fail_on
        Exit with code 3 when they break the bound: over: they are shown to lie above; undecided:
        they are not shown to lie below.
    out
        File to write the result to as JSON; it must not be there yet.
    """
    wanted = [versions] if versions else []
    _release_and_show(run, at_most=at_most, release=wanted, fail_on=fail_on, out=out)


def _release_and_show(
    run: Path,
    *,
    fail_on: Literal["over", "undecided"] | None,
    **given: Any,  # noqa: ANN401
) -> None:
    from rich.console import Console

    from auditor.release import judge_run, must_pass
    from auditor.report.harmless import Harmless
    from auditor.report.releases import releases_table

    releases = judge_run(run, fail_on=fail_on, **given)
    console = Console()
    console.print(Harmless(releases_table(releases, width=console.width)))
    must_pass(releases, fail_on)


def report(
    run: Path,
    *,
    format: Literal["html", "md", "pdf"] = "html",
    out: Path | None = None,
) -> None:
    """Write the report of a finished audit: one page to look at, and its figures as files.

    Parameters
    ----------
    run
        Output folder of the audit.
    format
        html: one file that opens anywhere with no network; md: for a pull request; pdf: printed by
        Chromium, where one is found.
    out
        File to write; report.html (or .md, .pdf) in the audit's folder when left out. Figures go
        into figures/ beside it.
    """
    report_and_show(run, kind=format, out=out)


def report_and_show(run: Path, *, kind: Literal["html", "md", "pdf"], out: Path | None) -> None:
    """Write a report, and say which files were written."""
    from auditor.report.harmless import say
    from auditor.report.page import write_report

    path, *figures = write_report(run, kind=kind, out=out)
    say(str(path), file=sys.stdout)
    if figures:
        say(f"{len(figures)} figures in {figures[0].parent}", file=sys.stderr)


def card(
    run: Path,
    *,
    readme: Path = Path("README.md"),
    variant: str | None = None,
    model_index: bool = False,
    eval_results: bool = False,
    base_model: str | None = None,
    create: bool = False,
    push: str | None = None,
) -> None:
    """Write or renew the privacy section of a model card, and print what changed.

    Parameters
    ----------
    run
        Output folder of the audit.
    readme
        The model card; all outside the section's two markers stays as it is, byte for byte.
    variant
        Write the card of this one published variant.
    model_index
        Write the figures into the front matter too, as a model-index.
    eval_results
        Write the figures into .eval_results/ beside the card too.
    base_model
        The original's id on the Hub, for a variant's card; the audited model's name when left out.
    create
        Make the card where there is none.
    push
        Open a pull request with these files on this model repository of the Hub.
    """
    _card_and_show(
        run,
        readme=readme,
        variant=variant,
        model_index=model_index,
        eval_results=eval_results,
        base_model=base_model,
        create=create,
        push=push,
    )


def _card_and_show(run: Path, **given: Any) -> None:  # noqa: ANN401
    from auditor.card import write_card
    from auditor.report.harmless import say

    written = write_card(run, **given)
    for path in written.paths:
        say(f"wrote {path}", file=sys.stderr)
    if written.pull_request is not None:
        say(written.pull_request, file=sys.stdout)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The files are written: a terminal that lacks a sign must not make an error of it.
        sys.stdout.reconfigure(errors="backslashreplace")
    print(written.diff or "nothing to change")
