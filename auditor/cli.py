"""The command line: commands and flags, no logic.

The flags of `audit` are the fields of `AuditConfig`: one name, one default, one sentence of help.
"""

import io
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, CycloptsError

import auditor
from auditor.config import AuditConfig, CompressConfig
from auditor.errors import CompleakError, ConfigError
from auditor.flags import with_flags
from auditor.listings import cache, listing
from auditor.memory import shortage_is_said
from auditor.report.progress import Display, DisplayKind, Tell
from auditor.stopping import Stopped, stopped_by_signals

# How long a process that leaves the word to another one waits for it at most.
LINGER_S = 5.0

app = App(
    name="compleak-llm",
    version=auditor.__version__,
    help="Audit what the compressed versions of a language model give away about its "
    "training data.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(listing)
app.command(cache)


def run_audit(
    *,
    recipe: str | None = None,
    dry_run: bool = False,
    price_per_hour: float | None = None,
    display: DisplayKind = "rich",
    **given: Any,  # noqa: ANN401 - typed by the fields of AuditConfig
) -> None:
    """Audit a model and its compressed versions.

    Parameters
    ----------
    recipe
        A recipe's name, or the path of one; flags given beside it win.
    dry_run
        Check everything, print the plan and what it costs, and run nothing.
    price_per_hour
        For --dry-run: what a GPU (or a machine that has none) costs for an hour, in any currency.
    display
        rich: a bar per version; plain: lines for a log; none: nothing but errors.
    """
    from auditor.recipes import configure

    config = configure({k: v for k, v in given.items() if v is not None}, recipe=recipe)
    if dry_run:
        from auditor.plan import show_plan

        show_plan(config, price_per_hour=price_per_hour)
        return
    if price_per_hour is not None:
        raise ConfigError("--price-per-hour is for --dry-run", seen="no --dry-run", fix="add it")
    _audit_and_show(config, display)


def _audit_and_show(config: AuditConfig, kind: DisplayKind) -> None:
    from contextlib import nullcontext

    from auditor.devices import must_be_supported
    from auditor.dist import processes
    from auditor.report.progress import Rich, display
    from auditor.report.terminal import show

    must_be_supported(config)
    ranks = processes(config.rank_timeout)
    shown: Display = display(kind if ranks.is_main else "none")
    with shown if isinstance(shown, Rich) else nullcontext():
        result = auditor.audit(config, display=shown)
    if ranks.is_main and kind != "none":
        show(result)
    if config.fail_on is not None and ranks.is_main:
        from auditor.release import must_pass_gate

        must_pass_gate(result)


def run_compress(
    *,
    display: DisplayKind = "rich",
    **given: Any,  # noqa: ANN401 - typed by the fields of CompressConfig
) -> None:
    """Write one variant as a folder that loads anywhere, with its receipt.

    Parameters
    ----------
    display
        rich or plain: say what was done; none: nothing but errors.
    """
    from auditor.recipes import validated

    config = validated(CompressConfig, {k: v for k, v in given.items() if v is not None})
    _compress_and_show(config, display)


def _compress_and_show(config: CompressConfig, display: DisplayKind) -> None:
    from auditor.publish import publish
    from auditor.report.catalogue import print_table, receipt_table

    receipt = publish(config, tell=_teller("none" if display == "none" else "plain"))
    if display != "none":
        print_table(receipt_table(receipt))


@app.command
def demo(
    *,
    output_path: Path = Path("runs/demo"),
    variants: str | None = None,
    seed: int = 0,
    display: DisplayKind = "rich",
) -> None:
    """Train a small model on invented clinic letters on the spot, audit it, write the report.

    Parameters
    ----------
    output_path
        Folder for the model (target/) and the results.
    variants
        Variants to audit, as for audit.
    seed
        Seed of the letters, the split and the training.
    display
        As for audit.
    """
    from auditor.demo import demo_config

    # The variants are checked before a minute is spent on training.
    config = demo_config(output_path, variants=variants, seed=seed)
    from auditor.demo.target import make_target

    make_target(output_path / "target", seed=seed, tell=_teller(display))
    _audit_and_show(config, display)
    _report_and_show(output_path, kind="html", out=None)


@app.command
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


@app.command
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


@app.command
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
    _report_and_show(run, kind=format, out=out)


def _report_and_show(run: Path, *, kind: Literal["html", "md", "pdf"], out: Path | None) -> None:
    from auditor.report.harmless import say
    from auditor.report.page import write_report

    path, *figures = write_report(run, kind=kind, out=out)
    say(str(path), file=sys.stdout)
    if figures:
        say(f"{len(figures)} figures in {figures[0].parent}", file=sys.stderr)


@app.command
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


def _teller(kind: DisplayKind) -> Tell:
    if kind == "none":
        return lambda _: None
    from auditor.report.harmless import say

    return lambda line: say(line, file=sys.stderr)


@app.command
def doctor() -> None:
    """Say which compressors and devices work here, and how to install what is missing."""
    from auditor.doctor import diagnose
    from auditor.report.catalogue import print_table

    print_table(diagnose())


@app.command
def schema() -> None:
    """Print the JSON Schema of audit.json."""
    import json

    from auditor.results import AuditResult

    print(json.dumps(AuditResult.model_json_schema(), indent=2))


app.command(with_flags(run_audit, AuditConfig), name="audit")
app.command(with_flags(run_compress, CompressConfig), name="compress")


def _say_error(error: Exception) -> None:
    from auditor.dist import says_for_all
    from auditor.report.harmless import say

    # What is wrong with what they were started with, every process of a launcher sees. It ends them
    # all when the first has gone, and that must not be before one has spoken.
    if says_for_all() or not isinstance(error, CycloptsError | ConfigError):
        say(f"error: {error}", file=sys.stderr)
    else:
        time.sleep(LINGER_S)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and give back the exit code."""
    # A library that asks a hub at import must not hold up a program that works on local paths.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if os.environ.get("WORLD_SIZE"):  # torch would show its own stack where another process is gone
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with stopped_by_signals(), shortage_is_said():
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _say_error(error)
        return 2
    except CompleakError as error:
        if not error.is_said:
            _say_error(error)
        return error.exit_code
    except Stopped as error:
        print("stopped; the same command goes on where this one stopped", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
