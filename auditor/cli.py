"""The command line: commands and flags, no logic.

The flags of `audit` are the fields of `AuditConfig`: one name, one default, one sentence of help.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError

import auditor
from auditor.commands import card, compare, release, report, report_and_show
from auditor.config import AuditConfig, CompressConfig
from auditor.errors import CompleakError, ConfigError
from auditor.flags import with_flags
from auditor.listings import cache, listing
from auditor.memory import shortage_is_said
from auditor.report.progress import Display, DisplayKind, Tell
from auditor.stopping import Stopped, stopped_by_signals
from auditor.targets.config import TrainConfig

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
for command in (compare, release, report, card):
    app.command(command)


def run_audit(
    *,
    recipe: str | None = None,
    quick: bool = False,
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
    quick
        For a recipe that is a study: fewer targets, records and versions, in minutes.
    dry_run
        Check everything, print the plan and what it costs, and run nothing.
    price_per_hour
        For --dry-run: what a GPU (or a machine that has none) costs for an hour, in any currency.
    display
        rich: a bar per version; plain: lines for a log; none: nothing but errors.
    """
    from auditor.recipes import configure
    from auditor.study.recipe import is_study

    given = {k: v for k, v in given.items() if v is not None}
    if recipe is not None and is_study(recipe):
        _study_and_show(recipe, given, display, quick=quick, dry_run=dry_run)
        return
    if quick:
        raise ConfigError(
            "--quick is for a study",
            seen="no study as --recipe",
            fix="--recipe compleak-lm --quick",
        )
    config = configure(given, recipe=recipe)
    if dry_run:
        from auditor.plan import show_plan

        show_plan(config, price_per_hour=price_per_hour)
        return
    if price_per_hour is not None:
        raise ConfigError("--price-per-hour is for --dry-run", seen="no --dry-run", fix="add it")
    _audit_and_show(config, display)


def _study_and_show(
    recipe: str, given: dict[str, Any], kind: DisplayKind, *, quick: bool, dry_run: bool
) -> None:
    from auditor.report.harmless import say
    from auditor.study.recipe import read_study

    study = read_study(recipe, given, quick=quick)
    if dry_run:
        from auditor.report.catalogue import print_table
        from auditor.study.plan import plan_table

        print_table(plan_table(study))
        return
    from auditor.report.progress import display
    from auditor.study.run import run_study

    # A study is looked at by its lines: hours of bars tell nothing afterwards.
    shown: DisplayKind = "none" if kind == "none" else "plain"
    page = run_study(study, display=lambda: display(shown), tell=_teller(shown))
    say(str(page), file=sys.stdout)


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


def run_train(
    *,
    display: DisplayKind = "rich",
    **given: Any,  # noqa: ANN401 - typed by the fields of TrainConfig
) -> None:
    """Train a target with known membership: half of the data by a coin for each record.

    Parameters
    ----------
    display
        rich or plain: say what goes on; none: nothing but errors.
    """
    from auditor.recipes import validated

    _train_and_show(
        validated(TrainConfig, {k: v for k, v in given.items() if v is not None}), display
    )


def _train_and_show(config: TrainConfig, kind: DisplayKind) -> None:
    from auditor.dist import processes
    from auditor.targets.make import train

    is_main = processes().is_main
    targets = train(config, tell=_teller(kind))
    if is_main and kind != "none":
        from auditor.report.catalogue import print_table
        from auditor.targets.shown import next_commands, target_table

        for target in targets:
            print_table(target_table(target))
        _teller(kind)(next_commands(targets, config))


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
    report_and_show(output_path, kind="html", out=None)


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
app.command(with_flags(run_train, TrainConfig), name="train")


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
