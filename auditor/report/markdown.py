"""The report as Markdown, for a pull request or an issue: what the page says, without its figures.

Everything that comes from models, variants, paths and records is text in it: `escape` stands
between every value and the template, which can put nothing in without it.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from auditor.finished import Finished
from auditor.leakage.advice import listed
from auditor.report.answer import answer
from auditor.report.command import repeat_command
from auditor.report.figures import headline_rate, p_value
from auditor.report.leakage import LESS
from auditor.report.plain import printable
from auditor.report.plots.forest import find_blocks
from auditor.report.plots.sets import find_picture
from auditor.report.terminal import what_was_done
from auditor.report.view import (
    Cell,
    Column,
    Fact,
    Grid,
    Row,
    estimate_cell,
    metric_title,
    number_cell,
    p_cell,
    text_cell,
)
from auditor.report.view_head import notices, releases_view, short_name
from auditor.report.view_method import method_view
from auditor.report.view_receipts import receipts_view
from auditor.report.view_table import SUPERVISION, holds, main_question
from auditor.results import AuditResult, Comparison, Exposed, SettingResult, VariantResult

TEMPLATE = "report.md.j2"
# GitHub takes no longer comment; what is left out first where a report would be.
MOST_LETTERS = 65_536
DROPPED = ("receipts", "notes", "attackers", "sets", "command")
# Letters of one value: a path may be of any length, a report may not.
MOST_OF_A_VALUE = 300
MOST_OF_A_SENTENCE = 2_000
MOST_NOTICES = 25
SPECIAL = re.compile(r"[\\`*_{}\[\]<>|#~&$]")
# What GitHub links on its own: addresses, people, and issues by their number.
ADDRESS = re.compile(r"://|\bwww\.", re.IGNORECASE)
CALLED = re.compile(r"@(?=\w)|#(?=\d)")
# What makes a list, a heading, a rule or a table of a line that begins with it.
FIRST = re.compile(r"(\d{0,9})([-+.)])(?=\s|$)|()([-=:])(?=[-=:\s]*$)")
ALERTS = {"severe": "CAUTION", "warning": "WARNING"}
JOINER = "\u2060"


class Markdown(str):
    """Text that is Markdown already; everything else is escaped where it is put in."""

    __slots__ = ()


def escape(text: str) -> str:
    """Text that comes out of Markdown as it is, anywhere on a line and in a table's cell.

    Nothing in it is a tag, a link, a picture or emphasis, nobody is called, and no line ends.

    Args:
        text: Anything; control and direction characters become spaces.
    """
    plain = printable(text).strip()
    plain = SPECIAL.sub(r"\\\g<0>", plain)
    plain = ADDRESS.sub(lambda found: found[0].replace(":", r"\:").replace(".", r"\."), plain)
    plain = CALLED.sub(rf"\g<0>{JOINER}", plain)
    found = FIRST.match(plain)
    at = found.end(1) if found and found[2] else 0
    return f"{plain[:at]}\\{plain[at:]}" if found else plain


def render_markdown(finished: Finished) -> str:
    """The report as Markdown, at most 65,536 characters long.

    Figures are linked as `figures/NAME.png`.

    Args:
        finished: The audit.
    """
    result = finished.result
    picture = find_picture(finished)
    parts = _parts(result)
    parts["has_release"] = picture is not None and bool(picture.points)
    text = ""
    for n in range(len(DROPPED) + 1):
        gone = dict.fromkeys(DROPPED[:n])
        left_out = f"Left out for want of room: {listed(DROPPED[:n])}." if n else ""
        text = _template().render({**parts, **gone, "left_out": left_out})
        if len(text) <= MOST_LETTERS:
            break
    return text


def _parts(result: AuditResult) -> dict[str, Any]:
    """Every variable of the template."""
    found, method = answer(result), method_view(result)
    told = notices(result)
    loud = [notice for notice in told if notice.severity in ALERTS][:MOST_NOTICES]
    releases = releases_view(result)
    leakage = result.leakage
    return {
        "name": short_name(result.model.name),
        "alerts": [
            (Markdown(ALERTS[one.severity]), _short(one.text, 2 * MOST_OF_A_VALUE)) for one in loud
        ],
        "n_more_alerts": sum(notice.severity in ALERTS for notice in told) - len(loud),
        "headline": found.headline,
        "sentences": found.sentences,
        "level": f"{100 * result.confidence:g}%",
        "primary": result.primary_attack,
        "versions": table(_versions(result)),
        "attackers": _or_none(_attackers(result)),
        "gate": releases.gate if releases is not None else "",
        "sets": table(releases.sets) if releases is not None else None,
        "has_forest": bool(find_blocks(result)),
        "exposed": _exposed(leakage.exposed if leakage is not None else None),
        "receipts": table(receipts_view(result).overview),
        "notes": [notice.text for notice in told if notice.severity not in ALERTS],
        "data": table(method.data),
        "facts": [*method.data_facts, *_facts(result), *method.fingerprints],
        "command": fenced(repeat_command(result)),
    }


def table(grid: Grid) -> Markdown:
    """A table as Markdown, its notes below it."""
    lines = [
        [escape(_short(column.title)) for column in grid.columns],
        *([_cell(cell) for cell in row.cells] for row in grid.rows),
    ]
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    rule = "".join(" :-- |" if column.kind == "text" else " --: |" for column in grid.columns)
    notes = [f"\n{escape(note)}" for note in grid.notes]
    return Markdown("\n".join([head, f"|{rule}", *rows, *notes]))


def _cell(cell: Cell) -> str:
    """A figure stands above its interval where both are too wide; neither is broken."""
    if cell.value is None:
        return escape(_short(cell.text))
    parts = [escape(part).replace(" ", "\u00a0") for part in (cell.text, cell.interval) if part]
    return " ".join(parts)


def fenced(command: str) -> Markdown:
    """A shell command as a block that nothing in it can close."""
    lines = "\n".join(map(_visible, command.split("\n")))
    runs = (len(run) for run in re.findall("`+", lines))
    fence = "`" * max(3, 1 + max(runs, default=0))
    return Markdown(f"{fence}sh\n{lines}\n{fence}")


def _visible(line: str) -> str:
    """A line whose leading spaces stay."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def _short(text: str, most: int = MOST_OF_A_VALUE) -> str:
    """A value of any length, its middle left out where it is too long."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … {text[-half:]}"


def _or_none(grid: Grid) -> Markdown | None:
    return table(grid) if grid.rows else None


@cache
def _environment() -> Environment:
    # Not HTML: `finalize` escapes for Markdown what the template puts in.
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=False,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template() -> Any:  # noqa: ANN401 - jinja2 calls it Template only to type checkers
    return _environment().get_template(TEMPLATE)


def _escaped(value: Any) -> str:  # noqa: ANN401 - whatever the template puts in
    return value if isinstance(value, Markdown) else escape(_short(str(value), MOST_OF_A_SENTENCE))


# --- its own tables


def _versions(result: AuditResult) -> Grid:
    """Every version alone, under the attack that was named before the run."""
    rate = headline_rate(result)
    columns = [Column("Version"), Column("Compressed"), Column("Perplexity", "number")]
    columns.append(Column("AUC", "estimate"))
    columns += [Column(metric_title(f"tpr@{rate}"), "estimate")] if rate is not None else []
    columns += [Column("AUC − original", "estimate"), Column("p (Holm)", "number")]
    tests = {
        item.variant: item
        for item in result.comparisons
        if item.attack == result.primary_attack and item.metric == "auc"
    }
    rows = [_version(result, one, tests.get(one.variant), rate) for one in result.variants]
    return Grid("versions", "Each version alone", columns, rows)


def _version(
    result: AuditResult, variant: VariantResult, test: Comparison | None, rate: str | None
) -> Row:
    found = variant.attacks.get(result.primary_attack)
    done = what_was_done(variant.receipt)
    if variant.status != "ok":
        done = f"broken: {variant.reason or 'no reason was given'}"
    worth = variant.perplexity
    cells = [
        text_cell(variant.variant),
        text_cell(done),
        number_cell(worth, f"{worth:.2f}" if worth is not None else None),
        estimate_cell(found.auc if found else None),
    ]
    if rate is not None:
        cells.append(estimate_cell(found.tpr_at_fpr.get(rate) if found else None, percent=True))
    cells.append(estimate_cell(test.difference if test else None, signed=True))
    cells.append(p_cell(test.p_adjusted if test else None, level=result.confidence))
    return Row(cells)


def _attackers(result: AuditResult) -> Grid:
    """Who holds more than one version, and what he gains over who holds less."""
    settings = result.leakage.settings if result.leakage is not None else []
    learned = [one for one in settings if one.supervision != "none" and one.setting != "NR"]
    shown = learned or [one for one in settings if one.setting != "NR"]
    rate = headline_rate(result)
    columns = [Column("Setting"), Column("The attacker holds"), Column("Attack")]
    columns.append(Column("AUC", "estimate"))
    columns += [Column(metric_title(f"tpr@{rate}"), "estimate")] if rate is not None else []
    columns += [Column("Gain in AUC", "estimate"), Column("Over"), Column("p (Holm)", "number")]
    rows = [_attacker(result, one, rate) for one in shown]
    return Grid("attackers", "Several versions held together", columns, rows)


def _attacker(result: AuditResult, one: SettingResult, rate: str | None) -> Row:
    held = holds(result, one.versions)
    attack = one.attack
    if one.supervision == "shadow":
        attack = f"{attack}, trained on {SUPERVISION['shadow']}"
    cells = [
        text_cell(one.setting),
        text_cell(f"{held}, with the reference" if one.with_reference else held),
        text_cell(attack),
        estimate_cell(one.figures.auc),
    ]
    if rate is not None:
        cells.append(estimate_cell(one.figures.tpr_at_fpr.get(rate), percent=True))
    test = main_question(result, one)
    cells.append(estimate_cell(test.difference if test else None, signed=True))
    cells.append(text_cell(LESS[test.question] if test else "–"))
    cells.append(p_cell(test.p_adjusted if test else None, level=result.confidence))
    return Row(cells)


def _exposed(exposed: Exposed | None) -> str:
    """How many members are found only with the compressed versions; empty where not asked."""
    if exposed is None:
        return ""
    if exposed.fpr is None or exposed.n_newly is None:
        return f"Exposed records: {exposed.absent}." if exposed.absent else ""
    chance = exposed.expected_by_chance or 0.0
    p = f", p {p_value(exposed.p_value)}" if exposed.p_value is not None else ""
    return (
        f"Exposed records: {exposed.n_newly:,} members are found at {100 * exposed.fpr:g}% FPR "
        f"with all versions and not with the original alone, {exposed.n_no_longer or 0:,} the "
        f"other way round; {chance:,.1f} would be by chance{p}. Their ids are in audit.json."
    )


def _facts(result: AuditResult) -> list[Fact]:
    """What a reader checks first of how it was done."""
    facts = [Fact("Attacks", ", ".join(result.attacks))]
    facts += [
        Fact(f"Left out: {name}", f"it {reason}")
        for name, reason in result.attacks_left_out.items()
    ]
    controls = result.leakage.controls if result.leakage is not None else []
    if controls:
        n_passed = sum(control.passed for control in controls)
        facts.append(Fact("Controls", f"{n_passed} of {len(controls)} passed"))
    version = result.versions.get("compleak-llm")
    return [*facts, Fact("Made by", f"compleak-llm {version}")] if version else facts
